"""What the commands print and write: data on stdout, talk on stderr, files where they were asked for."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import pytest

from cspsched.cli.console import LiveLine
from cspsched.exact.watch import Progress
from cspsched.policies.base import policy_names
from cspsched.problem.objectives import Objective
from tests.support.command_line import invoke

TINY = ("tiny-12", "--objective", "makespan")
PNG = b"\x89PNG\r\n\x1a\n"
JSON_CALLS = {
    "solve tiny-12 --objective makespan": "cspsched/result/2",
    "compare tiny-12 --objective makespan": "cspsched/comparison/3",
    "gate tiny-12 --limit 3 --excess-at-most 300%": "cspsched/gate/1",
    "simulate tiny-12": "cspsched/metrics/1",
    "bound tiny-12": "cspsched/bounds/1",
    "check schedule.json": "cspsched/check/2",
    "trace describe tiny-12": "cspsched/trace-statistics/1",
    "trace generate --requests 3 --out made.csv": "cspsched/generated-trace/1",
    "trace sample tiny-12 --requests 3 --output made.csv": "cspsched/sampled-trace/1",
    "trace fit chat-2000 --output made.json": "cspsched/trace-profile/1",
    "capacity": "cspsched/capacity/1",
    "policies": "cspsched/policies/1",
    "models": "cspsched/models/1",
    "devices": "cspsched/devices/1",
    "costs": "cspsched/costs/1",
    "costs h100-llama-3.1-8b": "cspsched/cost-description/1",
}


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def assert_picture(path: Path) -> None:
    """A PNG of some width and height with something drawn in it."""
    data = path.read_bytes()
    width, height = struct.unpack(">II", data[16:24])

    assert data.startswith(PNG)
    assert width >= 800
    assert height >= 200
    assert len(data) > 5_000


@pytest.mark.parametrize("call", JSON_CALLS)
def test_json_is_all_of_stdout_and_names_its_schema(call, capsys):
    """With --json stdout is one JSON object with a `schema`, and every key is an identifier."""
    invoke(capsys, "simulate", *TINY, "--save", "schedule.json")

    outcome = invoke(capsys, *call.split(), "--json")
    data = json.loads(outcome.out)

    assert outcome.code == 0
    assert data["schema"] == JSON_CALLS[call]
    assert all(key.replace("-", "_").isidentifier() for row in data.get("rows", [data]) for key in row)


@pytest.mark.parametrize("call", JSON_CALLS)
def test_text_is_for_people(call, capsys):
    """Without --json no line of stdout is wider than a name or a sentence needs, or names a schema."""
    invoke(capsys, "simulate", *TINY, "--save", "schedule.json")

    outcome = invoke(capsys, *call.split())

    assert outcome.code == 0
    assert "schema" not in outcome.out
    assert not any(line.endswith(" ") for line in outcome.out.splitlines())


def test_compare_writes_table_and_report(capsys):
    """--markdown makes folders that are missing; --out holds a page, a table, the data and the pictures.

    Both policies are optimal here, and an excess of nothing is not drawn.
    """
    outcome = invoke(capsys, "compare", *TINY, "--markdown", "new/table.md", "--out", "deep/report")
    folder = Path("deep/report")
    names = ["latency", "batches-vllm", "memory-vllm", "batches-sarathi", "memory-sarathi"]

    assert outcome.code == 0
    assert "wrote deep/report/report.html and 8 more files to deep/report" in outcome.err
    assert Path("new/table.md").read_text(encoding="utf-8").startswith("| policy | makespan |")
    assert {path.stem for path in folder.glob("*.png")} == set(names)
    for name in names:
        assert_picture(folder / f"{name}.png")
    assert json.loads((folder / "comparison.json").read_text(encoding="utf-8"))["num_requests"] == 12
    assert "is optimal: no schedule has a lower makespan" in (folder / "report.html").read_text(
        encoding="utf-8"
    )


def test_compare_prints_one_row_a_policy_and_the_reference(capsys):
    """The table has a row for each policy; below it stands what the excess is measured against."""
    outcome = invoke(capsys, "compare", *TINY)
    lines = outcome.out.splitlines()

    assert lines[0].startswith("tiny-12: 12 requests, h100-llama-3.1-8b, 27,806 KV blocks of 16, C 8,192, R")
    assert [cell.strip() for cell in lines[2].split("┃")[2:4]] == ["vllm", "sarathi"]
    assert "Reference: the optimum, makespan 0." in outcome.out
    assert "The reference is clairvoyant" in outcome.out


def test_solve_prints_the_verdict_and_writes_schedule_and_pictures(capsys):
    """The verdict says what is proven; the folder holds a schedule that the referee accepts, and pictures."""
    outcome = invoke(capsys, "solve", *TINY, "--out", "best")

    assert outcome.code == 0
    assert outcome.out.startswith("OPTIMAL: makespan 0.")
    assert "12 requests, 45 batches, 0 preemptions" in outcome.out
    assert_picture(Path("best/batches.png"))
    assert_picture(Path("best/memory.png"))
    assert invoke(capsys, "check", "best/schedule.json").code == 0


def test_solve_json_has_the_result_without_the_schedule(capsys):
    """Instance and schedule are in the file; stdout has the verdict, the metrics and what was left out."""
    data = json.loads(invoke(capsys, "solve", *TINY, "--json").out)

    assert {"instance", "schedule"}.isdisjoint(data)
    assert data["status"] == "optimal"
    assert data["primal_ns"] == data["dual_ns"]
    assert data["metrics"]["num_requests"] == 12
    assert data["rejected"] == []


def test_solve_out_of_time_says_how_far_the_bound_is(capsys):
    """With no time to search the verdict is FEASIBLE, with bound, certificate, gap and the reason to stop."""
    crowded = ("--scale-rate", "100", "--kv-tokens", "48", "--block-tokens", "1", "--objective", "latency")
    outcome = invoke(capsys, "solve", "tiny-12", "--limit", "5", *crowded, "--time-limit", "0s")

    assert outcome.code == 0
    assert outcome.out.startswith("FEASIBLE: mean latency 0.")
    for part in ("at least 0.", "by certificate", "gap ", "stopped: time limit", "class: full"):
        assert part in outcome.out


def test_simulate_states_the_objective_that_check_derives(capsys):
    """For every objective the saved schedule passes the referee, also into a folder that is new."""
    for objective in ("makespan", "latency", "ttft"):
        saved = f"new/{objective}.json"
        assert invoke(capsys, "simulate", *TINY, "--objective", objective, "--save", saved).code == 0
        assert invoke(capsys, "check", saved).code == 0


def test_bound_lists_the_best_bound_first_and_short(capsys):
    """One line a certificate, in falling order; the numbers of the proofs are in the JSON."""
    outcome = invoke(capsys, "bound", *TINY, "--objective", "latency")
    rows = json.loads(invoke(capsys, "bound", *TINY, "--objective", "latency", "--json").out)["certificates"]
    lines = outcome.out.splitlines()

    assert len(lines) == len(rows)
    assert [line.split()[-1] for line in lines] == [row["name"] for row in rows]
    assert [row["value_ns"] for row in rows] == sorted((row["value_ns"] for row in rows), reverse=True)
    assert all(line.startswith("mean latency >= 0.") and len(line) < 60 for line in lines)
    assert any(row["details"] for row in rows)


def test_policies_lists_settings_with_their_defaults(capsys):
    """Every policy is listed with its settings and their defaults; None says that the instance decides."""
    data = json.loads(invoke(capsys, "policies", "--json").out)
    text = invoke(capsys, "policies").out

    assert [row["policy"] for row in data["rows"]] == policy_names()
    settings = {row["policy"]: row["settings"] for row in data["rows"]}
    assert settings["sarathi"].items() >= {"chunk": 512, "max_num_seqs": 128, "watermark": 0.01}.items()
    assert settings["vllm"]["max_num_batched_tokens"] is None
    assert "    chunk = 512\n" in text
    assert "    max_num_batched_tokens = the instance's\n" in text


def test_capacity_rows_add_up_and_give_the_blocks(capsys):
    """The shares are the memory of the device, byte by byte, and the blocks are those of `compare`."""
    from cspsched.costs.devices import load_device

    data = json.loads(invoke(capsys, "capacity", "--json").out)

    assert sum(row["bytes"] for row in data["rows"]) == load_device("h100").memory_bytes
    assert (data["kv_blocks"], data["block_tokens"], data["kv_tokens"]) == (27806, 16, 27806 * 16)


def test_numbers_in_listings_are_grouped_and_to_the_right(capsys):
    """Large numbers have thousands separators, and the last digits stand below each other."""
    lines = invoke(capsys, "models").out.splitlines()
    ends = {line.index("  ", line.index(",")) for line in lines[1:]}

    assert "8,030,261,248" in "\n".join(lines)
    assert len(ends) == 1


def test_costs_of_a_name_tells_source_fit_and_gaps(capsys):
    """A cost model says where it comes from, its fit error, and what it leaves out."""
    outcome = invoke(capsys, "costs", "h100-llama-3.1-8b")

    for part in ("source", "fit error: decode_attention", "leaves out"):
        assert part in outcome.out


def test_generated_trace_is_reproducible_and_readable(capsys):
    """The same seed gives the same bytes, another seed others, and the file is a trace."""
    for name, seed in (("a.csv", 7), ("b.csv", 7), ("c.csv", 8)):
        invoke(capsys, "trace", "generate", "--requests", "5", "--seed", seed, "--out", name)
    first, same, other = (Path(f"{name}.csv").read_bytes() for name in "abc")

    assert first == same
    assert first != other
    assert json.loads(invoke(capsys, "trace", "describe", "a.csv", "--json").out)["num_requests"] == 5


def test_description_of_one_request_has_dashes_for_what_is_not_known(capsys):
    """A rate needs two requests: it is a dash, neither 0 nor None."""
    outcome = invoke(capsys, "trace", "describe", "tiny-12", "--limit", "1")

    assert "requests         1\n" in outcome.out
    assert "rate             -\n" in outcome.out
    assert "None" not in outcome.out


class Terminal:
    """Makes rich believe in a terminal of some width."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "dumb")
        monkeypatch.setenv("COLUMNS", str(columns))


def test_narrow_terminal_gets_the_table_on_its_side(capsys, monkeypatch):
    """On 80 columns the policies are columns, so that no number is cut off."""
    Terminal(monkeypatch, 80)

    outcome = invoke(capsys, "compare", *TINY)
    table = [line for line in outcome.out.splitlines() if line[:1] in "┏┃┡│└"]

    assert "certified excess (makespan)" in outcome.out
    assert "…" not in outcome.out
    assert max(map(len, table)) <= 80


def test_table_that_fits_neither_way_is_not_cut_off(capsys, monkeypatch):
    """Four policies on 60 columns wrap in the terminal; every name and number is there."""
    Terminal(monkeypatch, 60)
    chunks = [f"sarathi:chunk={chunk}" for chunk in (16, 32, 64)]

    outcome = invoke(capsys, "compare", *TINY, "--time-limit", "0s", "--heuristics", "vllm", *chunks)

    assert "…" not in outcome.out
    assert all(chunk in outcome.out for chunk in chunks)


def test_names_beyond_ascii_and_with_markup_are_shown_as_they_are(capsys):
    """Request names in any script, with dollars, underscores and brackets, survive table and pictures."""
    rows = (
        "请求,0,5,1\n_hidden,0.01,9,1\n$x_{$,0.02,9,1\n[bold]no[/bold],0.03,9,1\n" + "é" * 300 + ",0.04,4,1\n"
    )
    header = "request_id,arrival_s,prompt_tokens,output_tokens\n"
    Path("größe [red].csv").write_text(header + rows, encoding="utf-8")

    outcome = invoke(capsys, "compare", "größe [red].csv", *TINY[1:], "--out", "büro")
    solved = invoke(capsys, "solve", "größe [red].csv", *TINY[1:], "--out", "büro")

    assert (outcome.code, solved.code) == (0, 0)
    assert outcome.out.startswith("größe [red]: 5 requests")
    assert_picture(Path("büro/batches-vllm.png"))
    assert_picture(Path("büro/batches.png"))


def progress(elapsed_s: float, best_ns: int) -> Progress:
    return Progress(elapsed_s=elapsed_s, best_ns=best_ns, bound_ns=1_000_000_000)


def test_live_line_rewrites_itself_on_a_terminal(capsys, monkeypatch):
    """Every state is shown in place, nothing of a longer one stays, and the end takes the line away."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with LiveLine(Objective.LATENCY, 2) as live:
        live(progress(0.1, 40_000_000_000))
        live(progress(0.2, 4_000_000_000))
    written = capsys.readouterr().err

    assert "\n" not in written
    assert written.endswith("\r\x1b[K")
    assert "\r\x1b[K   0 s  best 2.000000000 s  bound 0.500000000 s  gap 75.00%" in written


def test_live_line_is_plain_and_rare_in_a_pipe(capsys):
    """In a log there is one line, and more only where there was silence, without control characters."""
    with LiveLine(Objective.MAKESPAN, 2) as live:
        live(progress(0.1, 4_000_000_000))
        live(progress(0.2, 3_000_000_000))

    assert capsys.readouterr().err == "   0 s  best 4.000000000 s  bound 1.000000000 s  gap 75.00%\n"


def test_uncertainty_needs_a_cost_model_with_a_band(capsys):
    """A fitted model has two ends, each with its excess; a published one has none, and says so."""
    refused = invoke(capsys, "compare", "burst-6", "--cost", "unit", "--uncertainty")
    told = invoke(
        capsys, "compare", "burst-6", "--objective", "makespan", "--heuristics", "vllm", "--uncertainty"
    ).out

    assert refused.code == 2
    assert "cost model unit states no error band" in refused.err
    assert "If all batches are fast, the certified excess is vllm" in told
    assert "If all batches are slow, the certified excess is vllm" in told


@pytest.mark.parametrize("command", ["simulate", "compare"])
def test_a_frontend_is_stated_and_added_for_the_client_only(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """TTFT and latency of a client are so much more; off it is said, and nothing else changes."""
    small = (command, "tiny-12", "--limit", 2, "--kv-tokens", 100)
    off = json.loads(invoke(capsys, *small, "--json").out)
    on = json.loads(invoke(capsys, *small, "--json", "--frontend", "7ms").out)
    told, quiet = invoke(capsys, *small, "--frontend", "7ms").out, invoke(capsys, *small).out

    assert off["frontend"] is None
    assert on["frontend"] == {"request_ns": 7_000_000, "output_ns": 0, "source": "given by hand"}
    assert "7.000 ms before the scheduler" in told
    assert "off" in quiet.lower().partition("frontend")[2]
    rows = zip(on.get("policies", [on]), off.get("policies", [off]), strict=True)
    for with_it, without in rows:
        for name in ("ttft_s", "latency_s"):
            assert with_it[f"client_{name}"]["p99"] == pytest.approx(without[name]["p99"] + 0.007)
            assert with_it[name] == without[name]
        assert "client_ttft_s" not in without
