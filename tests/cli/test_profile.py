"""`cspsched profile run` and `validate`, the whole chain on a CPU, and the campaign's script."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

from cspsched.cli.group import cspsched_group, run
from cspsched.costs.presets import describe_cost, load_cost
from tests.support.places import ROOT

CAMPAIGN = ROOT / "profiling/campaign_h200.sh"
SMALL = (
    "--batches", 24, "--repeats", 1, "--max-batch-tokens", 64, "--max-batch-requests", 8, "--max-context", 200
)  # fmt: skip


def call(capsys, *arguments):
    """Exit code, stdout and stderr of a command."""
    capsys.readouterr()
    code = run(cspsched_group, [str(argument) for argument in arguments])
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    """A profile of the small model on the smoke grid, and a cost model fitted to it."""
    pytest.importorskip("torch", reason="torch is an extra: pip install 'cspsched[gpu]'")
    folder = tmp_path_factory.mktemp("profile")
    words = ["run", "--model", "tiny-llama", "--device", "cpu", "--grid", "smoke", "--repeats", "1"]
    words += ["--output", str(folder)]
    assert run(cspsched_group, ["profile", *words]) == 0
    words = ["fit", str(folder), "--model", "tiny-llama", "--output", str(folder / "cost.toml")]
    assert run(cspsched_group, ["profile", *words]) == 0
    return folder


def test_run_says_what_was_measured(profile, capsys):
    """A resumed run finds all rows there; its figures are on stdout."""
    code, out, _ = call(
        capsys, "profile", "run", "--model", "tiny-llama", "--device", "cpu", "--grid", "smoke",
        "--output", profile, "--resume", "--json",
    )  # fmt: skip
    data = json.loads(out)

    assert (code, data["schema"]) == (0, "cspsched/profile-run/1")
    assert data["num_before"] == data["num_planned"] > 60
    assert data["num_measured"] == data["num_left"] == 0


def test_run_does_not_overwrite(profile, capsys):
    """A folder with a profile needs --resume."""
    code, _, err = call(
        capsys, "profile", "run", "--model", "tiny-llama", "--device", "cpu", "--output", profile
    )

    assert code == 1
    assert "holds a profile already; go on with --resume, or give another --output" in err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--model", "tiny-lama"), 2, "Did you mean 'tiny-llama'?"),
        (("--model", "tiny-llama", "--tp", 3), 2, "does not divide the 8 attention heads"),
        (("--model", "tiny-llama", "--grid", "cup"), 2, "unknown grid 'cup'. Did you mean 'cpu'?"),
        (("--model", "tiny-llama", "--grid", "none.toml"), 1, "none.toml does not exist"),
    ],
)
def test_run_refuses_nonsense_before_it_measures(tmp_path, capsys, options, code, message):
    """One line that says what to do, and no folder."""
    found, _, err = call(capsys, "profile", "run", *options, "--device", "cpu", "--output", tmp_path / "p")

    assert found == code
    assert message in err
    assert not (tmp_path / "p").exists()


def test_measured_cost_model_is_validated_and_scheduled_with(profile, tmp_path, capsys):
    """The whole chain: measured, fitted, judged raw and calibrated, and then `solve` with the result."""
    code, out, _ = call(
        capsys, "profile", "validate", "--cost", profile / "cost.toml", "--device", "cpu", *SMALL,
        "--loop-steps", 6, "--out", tmp_path, "--json",
    )  # fmt: skip
    data = json.loads(out)
    judged = {entry["regime"]: entry for entry in data["errors_percent"]}

    assert (code, data["schema"]) == (0, "cspsched/validation/1")
    assert data == json.loads((tmp_path / "validation.json").read_text())
    assert {name: row["batches"] for name, row in judged.items()} == {
        "decode": 3, "prefill": 3, "mixed": 3, "replay": 3, "all": 12,
    }  # fmt: skip
    assert len(data["batches"]) == 24
    assert data["loop_ns"]["measured"] > 0
    # Far from the gate of a real profile: the smoke grid is coarse, and CI machines are loud.
    assert judged["all"]["calibrated MAPE"] < 60
    for entry in data["batches"]:
        assert entry["measured_us"] > 0

    calibrated = load_cost(tmp_path / "cost.json")
    info = describe_cost(tmp_path / "cost.json")
    assert (info.model, info.tensor_parallel) == ("tiny-llama", 1)
    assert "calibrated" in info.title
    assert calibrated.step_ceil == data["step_ns"]

    code, out, err = call(
        capsys, "solve", "burst-6", "--limit", 2, "--cost", tmp_path / "cost.json", "--kv-tokens", 64,
        "--block-tokens", 1, "--max-batch-tokens", 64, "--max-batch-requests", 8, "--time-limit", "1s",
        "--json", "--out", tmp_path / "solved",
    )  # fmt: skip
    result = json.loads(out)
    assert (code, 0 < result["dual_ns"] <= result["primal_ns"]) == (0, True), err
    assert call(capsys, "check", tmp_path / "solved/schedule.json")[0] == 0


def test_validate_fails_at_its_gate(profile, capsys):
    """A mean error above --gate is exit code 3; the table is printed all the same."""
    code, out, err = call(
        capsys, "profile", "validate", "--cost", profile / "cost.toml", "--device", "cpu", *SMALL, "--gate", 0
    )

    assert code == 3
    assert "the calibrated mean error is" in err
    assert [line.split()[0] for line in out.splitlines()[1:6]] == [
        "decode", "prefill", "mixed", "replay", "all",
    ]  # fmt: skip


def test_validate_out_of_time_says_so(profile, capsys):
    """No figures from a handful of batches: exit code 5."""
    code, out, err = call(
        capsys, "profile", "validate", "--cost", profile / "cost.toml", "--device", "cpu", *SMALL,
        "--time-budget", "1ms",
    )  # fmt: skip

    assert (code, out) == (5, "")
    assert "too few to calibrate and judge; give more --time-budget" in err


def test_campaign_lists_its_steps_below_ten_minutes_each():
    """The most valuable step is first, and each says how long it is expected to take."""
    done = subprocess.run(["bash", CAMPAIGN, "--list"], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()

    assert lines[0].split() == ["1", "2", "min", "run", "llama-3.1-8b,", "tensor", "parallelism", "1"]
    assert [int(line.split()[0]) for line in lines] == list(range(1, len(lines) + 1))
    assert all(int(line.split()[1]) < 10 for line in lines)


def test_campaign_runs_on_a_cpu(tmp_path):
    """Its first steps with the small model and few points leave rows, a cost model and a validation."""
    pytest.importorskip("torch", reason="torch is an extra: pip install 'cspsched[gpu]'")
    environment = os.environ | {
        "PYTHON": sys.executable, "OUT": str(tmp_path / "out"), "DEVICE": "cpu", "GRID": "smoke",
        "MODEL": "tiny-llama", "BATCHES": "24", "REPEATS": "1",
        "LIMITS": "--max-batch-tokens 64 --max-context 200", "GATE": "1000",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", CAMPAIGN, "1", "2"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

    assert done.stderr.startswith(f"Python {platform.python_version()}, torch")
    folder = tmp_path / "out/llama-3.1-8b"
    assert {"profile.parquet", "meta.json", "cost.toml"} <= {path.name for path in folder.iterdir()}
    assert len(json.loads((folder / "validation/validation.json").read_text())["batches"]) == 24


def campaign(tmp_path, script, *arguments, **changes):
    """The campaign with a Python that is a shell script."""
    python = tmp_path / "python"
    python.write_text("#!/bin/bash\n" + script)
    python.chmod(0o755)
    environment = os.environ | {"PYTHON": str(python), "OUT": str(tmp_path / "out"), **changes}
    return subprocess.run(
        ["bash", CAMPAIGN, *arguments], env=environment, capture_output=True, text=True, check=False
    )


def test_campaign_says_first_what_the_machine_lacks(tmp_path):
    """A Python without its packages, or torch without a GPU, is told in one line before anything is run."""
    bare = campaign(tmp_path, f'exec "{sys.executable}" -I -S "$@"\n', "1")
    assert bare.returncode == 1
    assert bare.stderr.startswith("cannot measure here: ")
    assert "lacks click, numpy, pandas, pyarrow, numba, sklearn, rich, torch" in bare.stderr
    assert bare.stderr.count("\n") == 1

    torch = pytest.importorskip("torch", reason="torch is an extra: pip install 'cspsched[gpu]'")
    if not torch.cuda.is_available():
        without_gpu = campaign(tmp_path, f'exec "{sys.executable}" "$@"\n', "--check")
        assert without_gpu.returncode == 1
        assert f"torch {torch.__version__} finds no CUDA device" in without_gpu.stderr


FAKE = """[ "$1" = - ] && exit 0
echo "$@" >> "$OUT.log"
case "$*" in
  *"--tp 4 8"*) exit 5 ;;
  *"run --model mistral-7b"*) exit 1 ;;
esac
"""
"""Passes the check, notes its arguments; one run always breaks its device, another fails."""


def test_campaign_goes_on_after_a_step_that_fails(tmp_path):
    """A broken device gets six processes, other failures one; the steps behind run, the exit code tells."""
    done = campaign(tmp_path, FAKE, "5", "6", "7", "8")
    runs = [line.split()[5] for line in (tmp_path / "out.log").read_text().splitlines()]

    assert runs == ["llama-3.1-70b"] * 6 + ["qwen2.5-7b", "mistral-7b", "qwen3-30b-a3b"]
    assert done.returncode == 1
    assert done.stderr.endswith("steps that failed: 5 7\n")


def test_every_field_of_a_profile_is_documented(profile, tmp_path, capsys):
    """Provenance, run and validation: no field is missing in the formats page."""
    page = (ROOT / "docs/formats.md").read_text(encoding="utf-8")
    call(
        capsys,
        "profile",
        "validate",
        "--cost",
        profile / "cost.toml",
        "--device",
        "cpu",
        *SMALL,
        "--out",
        tmp_path,
    )
    files = (profile / "meta.json", tmp_path / "validation.json")
    data = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    # By operator or group: their names are not fields.
    for name in ("backends", "failed"):
        data[0].pop(name)

    assert [name for name in field_names(data) if f"`{name}`" not in page] == []


def field_names(data):
    """Keys of a JSON value, however deep."""
    values = data.values() if isinstance(data, dict) else data if isinstance(data, list) else []
    inner = {name for value in values for name in field_names(value)}
    return inner | (set(data) if isinstance(data, dict) else set())
