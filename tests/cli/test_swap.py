"""Swap on the command line and in the library: options with units, what is refused, what is compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import click
import pytest

from cspsched.bounds import best_bound
from cspsched.cli.options import Rate, Size
from cspsched.errors import UsageError
from cspsched.problem.instance import Preemption
from cspsched.problem.objectives import Objective
from cspsched.studies.compare import compare_policies
from cspsched.studies.reference import ReferenceLimits
from tests.support.command_line import invoke
from tests.support.policy_runs import instance_of as plain_instance
from tests.support.swap_cases import SWAP, instance_of

Capture = pytest.CaptureFixture[str]
TIGHT = "--kv-blocks 5 --block-tokens 4 --cost unit --json"
TRACE = "".join(f"r{i},0,8,8\n" for i in range(3))


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three requests of 8 + 8 tokens, of which five blocks of 4 hold one at its end and two at the start."""
    monkeypatch.chdir(tmp_path)
    Path("trace.csv").write_text(
        "request_id,arrival_s,prompt_tokens,output_tokens\n" + TRACE, encoding="utf-8"
    )


@pytest.mark.parametrize(
    ("text", "size"), [("4GiB", 2**32), ("512MB", 512 * 10**6), ("1.5KiB", 1536), ("0GiB", 0), ("1kB", 1000)]
)
def test_sizes_have_units(text: str, size: int) -> None:
    """Powers of 1024 and of 1000 are told apart, and rates are sizes by the second."""
    assert Size().convert(text, None, None) == size
    assert Rate().convert(text + "/s", None, None) == size


@pytest.mark.parametrize("text", ["4", "GiB", "-1GiB", "4GiB/s"])
def test_sizes_without_a_unit_are_refused(text: str) -> None:
    """The sentence shows how it is written."""
    with pytest.raises(click.BadParameter, match="no size with a unit, such as 4GiB or 512MB"):
        Size().convert(text, None, None)


def test_rates_are_no_sizes() -> None:
    """A rate needs its second."""
    with pytest.raises(click.BadParameter, match="no rate with a unit, such as 25GB/s"):
        Rate().convert("25GB", None, None)


def simulated(capsys: Capture, arguments: str) -> dict[str, int]:
    """Metrics that `simulate --json` prints."""
    outcome = invoke(capsys, *f"simulate trace.csv {TIGHT} {arguments}".split())
    assert outcome.code == 0, outcome.err
    data: dict[str, int] = json.loads(outcome.out)
    return data


def test_simulate_swaps_with_defaults_that_make_sense(capsys: Capture) -> None:
    """Preemption is the only option needed; the summary tells how much moved and that nothing was lost."""
    data = simulated(capsys, f"--policy {SWAP} --preemption either")

    assert data["swaps"] == data["preemptions"] > 0
    assert data["recomputed_tokens"] == 0
    assert data["swapped_blocks"] >= 2 * data["swaps"]


def test_a_slower_bus_makes_it_longer(capsys: Capture) -> None:
    """The rate reaches the cost model, the memory reaches the limits."""
    fast, slow = (
        simulated(capsys, f"--policy {SWAP} --preemption swap --swap-bandwidth {rate}")["makespan_s"]
        for rate in ("1TB/s", "1kB/s")
    )

    assert fast < slow
    outcome = invoke(
        capsys, *f"simulate trace.csv {TIGHT} --policy {SWAP} --preemption swap --host-memory 0GiB".split()
    )
    assert outcome.code == 1
    assert "in host memory to be swapped out, 0 are free" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            f"simulate trace.csv --policy {SWAP}",
            "preemption recompute; give it swap or either (--preemption either)",
        ),
        ("simulate trace.csv --host-memory 1GiB", "allow swap (--preemption swap or either)"),
        (f"simulate trace.csv {TIGHT} --policy vllm --preemption swap", "evictions, but preemption is swap"),
        (
            f"compare trace.csv {TIGHT} --heuristics vllm --preemption none",
            "evictions, but preemption is none",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(capsys: Capture, arguments: str, message: str) -> None:
    """Each with a sentence that says what to do, as an error of usage."""
    outcome = invoke(capsys, *arguments.split())

    assert outcome.code == 2
    assert message in outcome.err


@pytest.mark.parametrize("preemption", ["swap", "either"])
def test_solve_names_the_class_with_swap(capsys: Capture, preemption: str) -> None:
    """No proof of a smaller class is passed off as one of this; what is written passes the check."""
    arguments = (*TIGHT.split(), "--limit", "2", "--time-limit", "5s", "--preemption", preemption)
    outcome = invoke(capsys, "solve", "trace.csv", *arguments, "--heuristics", "vllm-v0")
    told = json.loads(outcome.out)

    assert outcome.code == 0
    assert told["policy_class"] == ("swap" if preemption == "swap" else "recompute or swap")
    assert told["certificate"] != "state search"
    assert invoke(capsys, "check", "cspsched-solve/schedule.json").code == 0


def test_compare_with_swap_searches_the_class_with_swap() -> None:
    """The reference is at least as good as every policy and is not below the bound of this class."""
    instance = instance_of((3, 5), (3, 5), (3, 5), kv_blocks=9)
    limits = ReferenceLimits(work_s=2)
    comparison = compare_policies(instance, [SWAP, "vllm"], Objective.MAKESPAN, limits=limits)
    reference = comparison.reference
    best = min(row.value_ns for row in comparison.rows)

    assert best_bound(instance, Objective.MAKESPAN).value_ns <= reference.bound_ns
    assert reference.bound_ns <= reference.best_known_ns <= best


def test_compare_refuses_a_policy_that_the_instance_does_not_allow() -> None:
    """The V1 of vLLM recomputes, which an instance with swap alone forbids; that is no bug to report."""
    instance = instance_of((3, 5), (3, 5), kv_blocks=9, preemption=Preemption.SWAP)
    with pytest.raises(UsageError, match=r"vllm does what the instance does not allow: \d+ evictions"):
        compare_policies(instance, ["vllm"])


def test_an_instance_without_swap_keeps_its_fingerprint() -> None:
    """Host memory and rate are written only where there are any."""
    plain = plain_instance((2, 2))
    swapping = instance_of((2, 2), preemption=Preemption.RECOMPUTE)

    assert "host_kv_blocks" not in plain.to_json()["limits"]
    assert replace(swapping, limits=plain.limits).fingerprint() == plain.fingerprint()
    assert swapping.fingerprint() != plain.fingerprint()
