"""The walk in columns is the walk entry by entry, and a schedule in parts is judged as the whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cspsched.policies.base import make_policy
from cspsched.problem.metrics import Objective, measure
from cspsched.problem.parts import judge_parts
from cspsched.problem.referee import find_violations
from cspsched.problem.schedule import Schedule
from cspsched.problem.walk import Carried, walk_columns, walk_entries
from cspsched.simulate import simulate
from tests.instances import instance_of
from tests.strategies import check, feasible_runs

SHAPES = [(5, 9), (3, 12), (8, 4), (2, 15), (6, 7), (4, 1)]


def crowded(**limits):
    """Six requests that have to be evicted now and then, and a schedule with evictions."""
    instance = instance_of(SHAPES, kv_blocks=limits.pop("kv_blocks", 24), **limits)
    return instance, simulate(instance, make_policy("vllm")).schedule


def parts_of(schedule: Schedule, cuts: list[int]) -> list[Schedule]:
    """Ranges of batches between the cuts."""
    found = []
    for begin, end in zip([0, *cuts], [*cuts, schedule.num_batches], strict=True):
        entries = slice(schedule.first_entry[begin], schedule.first_entry[end])
        evicted = (schedule.evicted_batch >= begin) & (schedule.evicted_batch < end)
        found.append(
            Schedule(
                start_ns=schedule.start_ns[begin:end],
                end_ns=schedule.end_ns[begin:end],
                first_entry=schedule.first_entry[begin : end + 1] - schedule.first_entry[begin],
                request=schedule.request[entries],
                tokens=schedule.tokens[entries],
                kv_tokens=schedule.kv_tokens[entries],
                evicted_batch=schedule.evicted_batch[evicted] - begin,
                evicted_request=schedule.evicted_request[evicted],
            )
        )
    return found


def assert_same_walk(instance, schedule):
    start = Carried.nothing(len(instance.requests))
    columns, entries = (walk(instance, schedule, start) for walk in (walk_columns, walk_entries))
    if columns is not None:
        for name, values in entries._asdict().items():
            assert np.array_equal(getattr(columns, name), values), name
    return columns


@given(feasible_runs())
@check
def test_columns_are_entries_on_feasible_schedules(run):
    """Chunks, refills and evictions: the same in columns, and nothing but swap is given up."""
    instance, schedule = run
    swaps = bool(np.any(schedule.evicted_to_host)) or len(schedule.restored_batch) > 0

    assert (assert_same_walk(instance, schedule) is None) == swaps


@given(st.integers(0, 10**6))
@check
def test_columns_are_entries_or_nothing_on_broken_schedules(seed):
    """Whatever is done to a schedule, the columns agree with the rule or say that they do not."""
    instance, schedule = crowded()
    rng = np.random.default_rng(seed)
    tokens, request = schedule.tokens.copy(), schedule.request.copy()
    for _ in range(int(rng.integers(1, 4))):
        tokens[rng.integers(len(tokens))] += int(rng.integers(0, 3))
        first, second = rng.integers(len(request), size=2)
        request[first], request[second] = request[second], request[first]

    assert_same_walk(instance, replace(schedule, tokens=tokens, request=request))


def test_evictions_are_in_columns_too():
    """A policy's schedule with evictions and refills goes through the columns."""
    instance, schedule = crowded()
    columns = assert_same_walk(instance, schedule)

    assert schedule.num_preemptions > 0
    assert columns is not None
    assert columns.kv_evicted.min() > 0


@given(st.lists(st.integers(1, 40), max_size=5, unique=True), st.booleans())
@check
def test_parts_are_judged_as_the_whole(cuts, evicts):
    """However a feasible schedule is cut, its parts are feasible and give the same times."""
    instance, schedule = crowded(kv_blocks=24 if evicts else 200)
    metrics = measure(instance, schedule)
    cuts = sorted(cut for cut in cuts if cut < schedule.num_batches)
    verdict = judge_parts(instance, parts_of(schedule, cuts))

    assert verdict.violations == []
    assert verdict.num_batches == schedule.num_batches
    for objective in (Objective.MAKESPAN, Objective.LATENCY, Objective.TTFT):
        assert verdict.objective_ns(instance, objective) == metrics.objective_ns(objective)


@given(st.integers(0, 10**6), st.integers(1, 20))
@check
def test_what_breaks_a_rule_breaks_it_in_parts_too(seed, cut):
    """A schedule that is changed somewhere is refused whole and in parts, or in neither."""
    instance, schedule = crowded()
    rng = np.random.default_rng(seed)
    name = ("tokens", "kv_tokens", "request", "start_ns", "end_ns", "evicted_request")[int(rng.integers(6))]
    column = getattr(schedule, name).copy()
    column[rng.integers(len(column))] += int(rng.integers(0, 2))
    changed = replace(schedule, **{name: column})
    verdict = judge_parts(instance, parts_of(changed, [min(cut, schedule.num_batches - 1)]))

    assert bool(find_violations(instance, changed)) == bool(verdict.violations)


def test_a_missing_end_is_found():
    """Who never finishes is found once the last part is over."""
    instance, schedule = crowded(kv_blocks=200)
    parts = parts_of(schedule, [5])

    assert [one.rule for one in judge_parts(instance, parts[:1]).violations] == ["completion"]
