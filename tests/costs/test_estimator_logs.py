"""Cost models from the log of a running engine, and the commands that import, fit and show profiles."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cspsched.cli.group import cspsched_group, run
from cspsched.costs.presets import load_cost
from cspsched.costs.step_log import read_iteration_log
from cspsched.errors import InputError
from cspsched.recording.log import read_recording
from cspsched.recording.step_times import step_times
from tests.support.profile_rows import all_rows

LINE = (
    "INFO 09-01 Iteration({at}): {p} context requests, {c} context tokens, {d} generation requests, "
    "{d} generation tokens, iteration elapsed time: {ms:.2f} ms, KV cache usage: 3.5%"
)


def log_text(number: int = 200) -> str:
    """A log of an engine that takes 4 ms, 20 us a token and 10 us a decode."""
    generator = np.random.default_rng(0)
    lines = ["INFO starting", LINE.format(at=0, p=0, c=0, d=0, ms=0.0)]
    for at in range(1, number):
        decodes = int(generator.integers(0, 60))
        chunk = int(generator.integers(1, 1000)) if decodes == 0 or generator.random() < 0.4 else 0
        ms = 4 + 0.02 * (chunk + decodes) + 0.01 * decodes
        lines.append(LINE.format(at=at, p=int(chunk > 0), c=chunk, d=decodes, ms=ms))
    return "\n".join([*lines, "INFO done"])


def recorded(number: int = 80) -> list[dict]:
    """A recorder's lines: request a decodes while b is prefilled in chunks of growing size."""
    lines, clock = [], 0.0
    for at in range(number):
        tokens = 0 if at % 2 else 16 + at
        entries = [["a", 1, 100 + at]] if at else [["a", 100, 0]]
        entries += [[f"b{at}", tokens, 0]] if tokens else []
        total = sum(entry[1] for entry in entries)
        seconds = 0.004 + 2e-5 * total
        lines.append(
            {"it": at, "t_start": clock, "t_end": clock + seconds, "sched": entries, "preempted": [],
             "kv_used": 1, "waiting": 0, "emitted": ["a"], "finished": []}
        )  # fmt: skip
        clock += seconds
    return lines


def test_iteration_log_becomes_batches(tmp_path):
    """Each line with work is a batch; the idle one and other lines are left out."""
    path = tmp_path / "vllm.log"
    path.write_text(
        "\n".join(["x", LINE.format(at=0, p=0, c=0, d=0, ms=0), LINE.format(at=1, p=1, c=64, d=8, ms=7.25)])
    )
    measured = read_iteration_log(path)

    assert measured.times_ns.tolist() == [7_250_000.0]
    assert measured.features.tokens.tolist() == [72]
    assert measured.features.prefill_tokens.tolist() == [64]
    assert [
        column.tolist() for column in (measured.features.num_prefills, measured.features.num_decodes)
    ] == [[1], [8]]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("nothing here", "holds no iterations; start vLLM with --enable-logging-iteration-details"),
        (
            LINE.format(at=1, p=1, c=64, d=8, ms=7)[:60],
            r"vllm.log line 1: an iteration of another form, or cut",
        ),
        (LINE.format(at=1, p=1, c=64, d=8, ms=0), r"vllm.log line 1: elapsed time is 0.00 ms, expected more"),
    ],
)
def test_logs_that_say_nothing_are_refused(tmp_path, text, complaint):
    """A log without iterations, one that is cut off, one without times."""
    (tmp_path / "vllm.log").write_text(text)

    with pytest.raises(InputError, match=complaint):
        read_iteration_log(tmp_path / "vllm.log")


def test_recorded_batches_are_told_apart(tmp_path):
    """A request that has generated decodes; the first batch of each is a prefill; times are between ends."""
    path = tmp_path / "run.jsonl"
    path.write_text("\n".join(map(json.dumps, recorded(4))))
    measured = step_times(read_recording(path))

    assert measured.features.num_prefills.tolist() == [2, 0, 1, 0]
    assert measured.features.num_decodes.tolist() == [0, 1, 1, 1]
    assert measured.features.decode_context.tolist() == [0, 101, 102, 103]
    assert measured.features.prefill_tokens.tolist() == [116, 0, 18, 0]
    assert measured.times_ns == pytest.approx([6.32e6, 4.02e6, 4.38e6, 4.02e6], abs=1000)


@pytest.mark.parametrize("kind", ["vllm", "recorder"])
def test_fit_from_a_log(tmp_path, capsys, kind):
    """A cost model fitted to a log prices a batch of 500 tokens like the engine that wrote it."""
    path = tmp_path / ("vllm.log" if kind == "vllm" else "run.jsonl")
    path.write_text(log_text() if kind == "vllm" else "\n".join(map(json.dumps, recorded())))
    out = tmp_path / "cost.toml"
    code = run(
        cspsched_group,
        ["profile", "fit", str(path), "--from-log", "--model", "llama-3.1-8b", "--output", str(out)],
    )
    cost = load_cost(out)
    sizes = read_iteration_log(path).features if kind == "vllm" else step_times(read_recording(path)).features
    times = read_iteration_log(path).times_ns if kind == "vllm" else step_times(read_recording(path)).times_ns

    assert code == 0
    assert "in sample MAPE" in capsys.readouterr().out
    assert np.abs(cost.batch_times_ns(sizes) / times - 1).mean() < 0.02


def test_import_fit_show(tmp_path, capsys):
    """The whole chain on the command line: rows in a file, a cost file, a picture of each kind of work."""
    rows, cost, pictures = tmp_path / "rows.parquet", tmp_path / "cost.toml", tmp_path / "pictures"
    all_rows().to_parquet(rows)
    model = ["--model", "llama-3.1-8b"]
    codes = [
        run(cspsched_group, ["profile", "fit", str(rows), *model, "--device", "h100", "--output", str(cost)]),
        run(cspsched_group, ["profile", "show", str(rows), *model, "--out", str(pictures)]),
    ]

    assert codes == [0, 0]
    assert load_cost(cost).name == "cost"
    assert "measured up to     4,096 tokens" in capsys.readouterr().out
    names = ["decode_attention.png", "head.png", "prefill_attention.png", "tokens.png"]
    assert sorted(path.name for path in pictures.iterdir()) == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures.iterdir())


def test_import_writes_rows(tmp_path, capsys):
    """A foreign table becomes rows of a profile, in the format that the file's name asks for."""
    pd.DataFrame([{"layer": "act_fn", "tokens": 8, "time_us": 2.5}]).to_csv(
        tmp_path / "dense.csv", index=False
    )
    arguments = ["profile", "import", "llmservingsim", str(tmp_path / "dense.csv"), "--model", "llama-3.1-8b"]
    code = run(cspsched_group, [*arguments, "--output", str(tmp_path / "rows.csv")])

    assert code == 0
    assert "1 row of 1 operator: silu_mul" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "rows.csv")["t_us"].tolist() == [2.5]


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["import", "vidur", "--model", "llama-3.1-8b", "--output", "r.csv"], 2, "no tables are given"),
        (["import", "vidur", "x.csv", "--model", "llama-3.1-8b", "--output", "r.csv"], 1, "x.csv is no file"),
        (["fit", "x.csv", "--model", "llama-3.1-8b", "--output", "c.toml"], 1, "x.csv is no file"),
        (
            ["fit", "x.log", "--from-log", "--model", "llama-3.1-8b", "--output", "c.toml"],
            1,
            "x.log does not exist",
        ),
    ],
)
def test_commands_refuse_in_one_line(tmp_path, monkeypatch, capsys, arguments, code, complaint):
    """Missing files are one line on stderr and an exit code."""
    monkeypatch.chdir(tmp_path)

    assert code == run(cspsched_group, ["profile", *arguments])
    assert complaint in capsys.readouterr().err
    assert list(Path().iterdir()) == []
