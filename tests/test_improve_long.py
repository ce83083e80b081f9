"""Long schedules: the parts are the whole, and a search that is judged in parts finds the same."""

from __future__ import annotations

import numpy as np
import pytest

from cspsched.errors import UsageError
from cspsched.improve import ImproveLimits, improve, long_runs
from cspsched.improve.list_scheduler import ListScheduler
from cspsched.improve.long_runs import batch_ranges, parts_of_run
from cspsched.improve.moves import plan_of, start_shapes
from cspsched.policies.base import make_policy
from cspsched.problem.metrics import Objective
from cspsched.problem.parts import judge_parts
from cspsched.problem.referee import find_violations
from cspsched.simulate.kernel import simulate_fast
from tests.test_improve_list import mixed

STEPS = ImproveLimits(time_limit_s=None, max_steps=30)


def assert_joined(parts, whole):
    """The parts, one after another, are the schedule."""
    for name in ("start_ns", "end_ns", "request", "tokens", "kv_tokens", "evicted_request"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        assert np.array_equal(joined, getattr(whole, name)), name
    offsets = np.concatenate([np.diff(part.first_entry) for part in parts])
    assert np.array_equal(offsets, np.diff(whole.first_entry))


@pytest.mark.parametrize("policy", ["vllm", "sarathi:chunk=64", "infermax", "srpt"])
@pytest.mark.parametrize("most_entries", [1, 7, 100, 10**9])
def test_parts_of_a_kernel_run_are_the_run(policy, most_entries):
    """Chunks, runs of decodes and evictions are cut at any batch."""
    instance = mixed(arrivals=False, kv_blocks=110)
    run = simulate_fast(instance, make_policy(policy))
    parts = list(parts_of_run(run, most_entries))

    assert len(parts) == 1 or most_entries < 10**9
    assert_joined(parts, run.to_simulation().schedule)
    assert judge_parts(instance, parts).violations == []


@pytest.mark.parametrize("most_entries", [1, 7, 100, 10**9])
def test_parts_of_a_list_schedule_are_the_schedule(most_entries, monkeypatch):
    """The same for plans of the search."""
    instance = mixed(arrivals=True)
    scheduler = ListScheduler(instance, Objective.LATENCY)
    plan = plan_of(next(iter(start_shapes(scheduler, instance.limits, Objective.LATENCY))), scheduler)
    monkeypatch.setattr(batch_ranges, "__defaults__", (most_entries,))
    whole = scheduler.schedule(plan)

    assert find_violations(instance, whole) == []
    assert_joined(list(scheduler.parts(plan)), whole)


def test_ranges_cover_all_batches():
    """Every batch is in one range; a range has more entries than allowed only if it is one batch."""
    sizes = np.array([3, 1, 9, 2, 2, 4, 1])

    assert list(batch_ranges(sizes, 5)) == [(0, 2), (2, 3), (3, 5), (5, 7)]


@pytest.mark.parametrize("objective", list(Objective))
def test_a_search_in_parts_finds_the_same(objective, monkeypatch):
    """Values of policies and of the search do not depend on how they are judged."""
    whole = improve(mixed(arrivals=True), objective, limits=STEPS)
    monkeypatch.setattr(long_runs, "MOST_ENTRIES", 0)
    monkeypatch.setattr(batch_ranges, "__defaults__", (50,))
    parts = improve(mixed(arrivals=True), objective, limits=STEPS)

    assert parts.to_json() == whole.to_json()
    assert parts.schedule is None
    assert whole.schedule is not None


def test_what_takes_hours_is_refused(monkeypatch):
    """A policy without kernel rules is not simulated on a long trace."""
    monkeypatch.setattr(long_runs, "MOST_ENTRIES", 0)
    with pytest.raises(UsageError, match="clear engine only"):
        improve(mixed(arrivals=True), heuristics=["sglang:schedule_policy=random"], limits=STEPS)
