"""Fewest misses and percentiles: by hand, against trying all orders, and against policies and optima."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspsched.bounds import fewest_misses, misses, percentile_ns
from cspsched.bounds.misses import late_requests, moore_hodgson, percentiles_ns
from cspsched.bounds.parts.srpt import FEW_REQUESTS
from cspsched.errors import InputError
from cspsched.exact.heuristics.list_schedule import list_schedules
from cspsched.problem.objectives import Objective
from cspsched.referee.metrics import measure
from tests.oracles.naive_bounds import tiny_instances
from tests.support.bound_cases import instance_of


def fewest_late(processing, due):
    """Fewest late by trying every set of requests that is in time, by due date."""
    everyone = range(len(processing))
    for late in range(len(processing) + 1):
        for dropped in combinations(everyone, late):
            kept = sorted((due[i], processing[i]) for i in everyone if i not in dropped)
            ends = np.cumsum([time for _, time in kept])
            if all(end <= deadline for end, (deadline, _) in zip(ends, kept, strict=True)):
                return late
    raise AssertionError("no request is late if all are dropped")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 25)), max_size=7))
def test_moore_and_hodgson_find_the_fewest(rows):
    """The greedy rule is as good as trying every subset."""
    processing, due = [row[0] for row in rows], [row[1] for row in rows]
    assert moore_hodgson(processing, due) == fewest_late(processing, due)


@pytest.mark.parametrize("spread", [1, 40, 2000])
def test_compiled_and_plain_find_as_many_late(spread):
    """Of more requests than the plain loop is for, and of numbers beyond 64 bits, which stay plain."""
    rng = np.random.default_rng(spread)
    count = FEW_REQUESTS + 500
    processing = rng.integers(0, 50, count)
    due = np.cumsum(rng.integers(0, 30, count)) + rng.integers(0, spread, count)
    expected = moore_hodgson(processing.tolist(), due.tolist())

    assert late_requests(processing, due) == expected > 0
    assert late_requests(processing.astype(object) << 60, due.astype(object) << 60) == expected


def test_fewer_machines_bound_a_percentile_as_well(monkeypatch):
    """Of many requests only the machines of most work are asked; what they prove is no more than all do."""
    instance = instance_of([(k, 50 + k % 7, 5 + k % 11) for k in range(60)], max_batch_tokens=100)
    everything = percentiles_ns(instance, (0, 50, 90, 100))
    monkeypatch.setattr(misses, "MACHINES_REQUESTS", 1)
    some = percentiles_ns(instance, (0, 50, 90, 100))

    assert all(0 < some[percent] <= bound for percent, bound in everything.items())
    assert some[100] == everything[100]


@pytest.mark.parametrize("objective", [Objective.LATENCY, Objective.TTFT])
@settings(max_examples=60, deadline=None)
@given(instance=tiny_instances(max_requests=4, max_prompt=9, max_output=6), data=st.data())
def test_no_schedule_has_fewer_misses_or_smaller_percentiles(objective, instance, data):
    """For limits anywhere between nothing and all, and any percentile, every schedule is at least there."""
    for _, schedule in list_schedules(instance):
        metrics = measure(instance, schedule)
        times = metrics.latency_ns if objective is Objective.LATENCY else metrics.ttft_ns
        limits = [data.draw(st.integers(0, int(times.max()) + 1)) for _ in times]
        assert fewest_misses(instance, limits, objective) <= int((times > np.array(limits)).sum())
        percent = data.draw(st.sampled_from([0, 50, 90, 99, 100]))
        assert percentile_ns(instance, percent, objective) <= np.percentile(times, percent)


def test_crowded_requests_miss_and_spread_ones_do_not():
    """Twenty prompts of 200 ns at once, 1000 ns allowed: not all fit; a second apart none has to miss."""
    together = instance_of([(0, 100, 1)] * 20, max_batch_tokens=100)
    apart = instance_of([(k * 10**9, 100, 1) for k in range(20)], max_batch_tokens=100)
    assert fewest_misses(together, [1000] * 20) == 20 - 1000 // (100 + 40 + 200)
    assert fewest_misses(apart, [1000] * 20) == 0
    assert percentile_ns(together, 100) == 20 * 340
    assert percentile_ns(apart, 99) == 340


def test_a_limit_below_the_lone_time_is_missed():
    """A request alone takes 150 ns for its prompt: 149 ns is a miss, 150 ns is none."""
    instance = instance_of([(7, 5, 3)])
    assert fewest_misses(instance, [149], Objective.TTFT) == 1
    assert fewest_misses(instance, [150], Objective.TTFT) == 0


def test_inputs_are_refused():
    """As many limits as requests, a time of a request, a percentage."""
    instance = instance_of([(0, 5, 3)])
    with pytest.raises(InputError, match="expected one of each"):
        fewest_misses(instance, [])
    with pytest.raises(InputError, match="no time of a request"):
        fewest_misses(instance, [1], Objective.MAKESPAN)
    with pytest.raises(InputError, match="0 to 100"):
        percentile_ns(instance, 101)
