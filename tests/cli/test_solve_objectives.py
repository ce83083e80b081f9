"""`cspsched solve --objective`: names, sums, orders, what is printed, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cspsched.problem.objectives import Measure
from tests.support.command_line import invoke

HEADER = "request_id,arrival_s,prompt_tokens,output_tokens,priority,ttft_limit_s,tpot_limit_s\n"
ROWS = "a,0,2,3,0,0.05,0.03\nb,0.01,3,2,1,0.05,0.03\n"
TIGHT = (
    "trace.csv",
    "--cost",
    "infermax-70b",
    "--kv-tokens",
    "5",
    "--block-tokens",
    "1",
    "--time-limit",
    "2s",
)

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two requests with limits, in memory for little more than one of them."""
    monkeypatch.chdir(tmp_path)
    Path("trace.csv").write_text(HEADER + ROWS, encoding="utf-8")


@pytest.mark.parametrize("measure", Measure)
def test_every_measure_is_solved_and_passes_the_check(capsys: Capture, measure: Measure) -> None:
    """The JSON names objective and unit, and the file is judged by the referee."""
    outcome = invoke(capsys, "solve", *TIGHT, "--no-chunking", "--objective", measure.value, "--json")
    told = json.loads(outcome.out)

    assert outcome.code == 0
    assert told["objective"] == measure.value.removeprefix("mean-") or told["objective"] == measure.value
    assert told["dual_ns"] <= told["primal_ns"]
    assert invoke(capsys, "check", "cspsched-solve/schedule.json").code == 0


def test_an_order_has_a_line_for_each_stage(capsys: Capture) -> None:
    """First the misses, with their proof; then the gaps of the schedules with so few."""
    outcome = invoke(capsys, "solve", *TIGHT, "--no-chunking", "--objective", "misses,max-itl")
    first, then, *_ = outcome.out.splitlines()

    assert outcome.code == 0
    assert first.startswith("first misses: 1 missed, proven by ")
    assert then.startswith("OPTIMAL: max-itl 0.0")
    assert "minimising misses" in outcome.err
    assert "minimising max-itl" in outcome.err
    data = json.loads(Path("cspsched-solve/schedule.json").read_text(encoding="utf-8"))
    assert data["earlier"][0]["unit"] == "request"
    assert invoke(capsys, "check", "cspsched-solve/schedule.json").code == 0


@pytest.mark.parametrize("preemption", ["swap", "either"])
def test_weighted_sums_and_swap_go_together(capsys: Capture, preemption: str) -> None:
    """A sum of a mean and a maximum, with KV caches that may move."""
    chosen = ("--no-chunking", "--objective", "latency+2*max-itl", "--preemption", preemption, "--json")
    told = json.loads(invoke(capsys, "solve", *TIGHT, *chosen).out)

    assert (told["objective"], told["unit"]) == ("latency+2*max-itl", "ns")
    assert "swaps" in told["metrics"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("--objective speed", 2, "objective 'speed' is not known, expected a measure or <weight>*<measure>"),
        ("--objective latency,latency", 2, "names a stage twice"),
        ("--objective misses,latency --ladder", 2, "has 2 stages; --ladder, --relax and --export take one"),
        ("--objective misses,latency --export m.pb", 2, "has 2 stages; --ladder, --relax and --export take"),
        ("--objective misses --ladder", 2, "add a time to it, such as misses+latency"),
    ],
)
def test_what_does_not_go_is_refused(capsys: Capture, arguments: str, code: int, message: str) -> None:
    """Each with a sentence that says what to do."""
    outcome = invoke(capsys, "solve", *TIGHT, *arguments.split())

    assert outcome.code == code
    assert message in outcome.err


def test_misses_need_limits(capsys: Capture) -> None:
    """The columns that are missing are named."""
    Path("plain.csv").write_text(
        "request_id,arrival_s,prompt_tokens,output_tokens\na,0,2,2\n", encoding="utf-8"
    )
    outcome = invoke(capsys, "solve", "plain.csv", "--objective", "misses")

    assert outcome.code == 1
    assert "give the trace a column ttft_limit_s or tpot_limit_s" in outcome.err


def test_the_model_of_a_mixture_is_exported(capsys: Capture) -> None:
    """The sentence says in which unit the objective is."""
    outcome = invoke(
        capsys, "solve", *TIGHT, "--no-chunking", "--objective", "mean-tpot", "--export", "m.txt"
    )

    assert outcome.code == 0
    assert "wrote m.txt: mean-tpot in 1/4 ns, 2 requests" in outcome.err
    assert Path("m.txt").stat().st_size > 1000


def test_a_ladder_of_gaps_with_swap(capsys: Capture) -> None:
    """Every rung is solved, the one with swap too, for the default host memory."""
    chosen = ("--no-chunking", "--objective", "weighted-latency", "--ladder", "--json")
    told = json.loads(invoke(capsys, "solve", *TIGHT, *chosen).out)

    assert [rung["skipped"] for rung in told["rungs"]] == [None] * 6
    values = [rung["value_ns"] for rung in told["rungs"]]
    assert values == sorted(values, reverse=True)
