"""The walk in columns is the walk entry by entry."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cspsched.policies.base import make_policy
from cspsched.referee.walk import walk_columns, walk_entries
from cspsched.simulate import simulate
from tests.support.instances import instance_of
from tests.support.strategies import check, feasible_runs

SHAPES = [(5, 9), (3, 12), (8, 4), (2, 15), (6, 7), (4, 1)]


def crowded(**limits):
    """Six requests that have to be evicted now and then, and a schedule with evictions."""
    instance = instance_of(SHAPES, kv_blocks=limits.pop("kv_blocks", 24), **limits)
    return instance, simulate(instance, make_policy("vllm")).schedule


def assert_same_walk(instance, schedule):
    columns, entries = (walk(instance, schedule) for walk in (walk_columns, walk_entries))
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
