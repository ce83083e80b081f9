"""Metrics of schedules that are small enough to be measured by hand."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given

from cspsched.problem.cost import CostModel
from cspsched.problem.objectives import Objective
from cspsched.problem.schedule import Schedule
from cspsched.referee.metrics import PERCENTILES, Metrics, measure, summary_s
from cspsched.referee.timing import schedule_asap
from tests.support.strategies import check, check_briefly, feasible_runs, make_instance

SECOND = CostModel(name="second", step=Fraction(10**9))
"""Every batch takes one second."""


@pytest.fixture
def metrics() -> Metrics:
    """r0 (2, 3) at 0 ns, r1 (3, 1) at 4 ns, r2 (1, 2) at 0 ns, in batches that end at 10, 22, 30, 45 ns.

    r0 has its tokens at 10, 22 and 45, r1 its only one at 22, r2 its two at 30 and 45.
    """
    batches = [[(0, 2)], [(1, 3), (0, 1)], [(2, 1)], [(2, 1), (0, 1)]]
    instance = make_instance((2, 3), (3, 1), (1, 2), arrivals_ns=[0, 4, 0])
    return measure(instance, Schedule.from_batches(batches, [[]] * 4, [0, 10, 22, 30], [10, 22, 30, 45]))


def test_token_times_are_grouped_by_request(metrics):
    """Token times are batch ends, by request and in order, whatever the order inside a batch."""
    assert metrics.token_ns.tolist() == [10, 22, 45, 22, 30, 45]


def test_ttft(metrics):
    """First token - arrival: 10 - 0, 22 - 4, 30 - 0."""
    assert metrics.ttft_ns.tolist() == [10, 18, 30]


def test_latency(metrics):
    """Last token - arrival: 45 - 0, 22 - 4, 45 - 0; with one output token it is the TTFT."""
    assert metrics.latency_ns.tolist() == [45, 18, 45]


def test_tpot_leaves_out_requests_of_one_token(metrics):
    """(45 - 10) / 2 and (45 - 30) / 1; r1 has none."""
    assert metrics.tpot_ns.tolist() == [17.5, 15.0]


def test_itl_pools_the_gaps_of_all_requests(metrics):
    """Gaps 12 and 23 of r0, none of r1, 15 of r2; nothing between requests."""
    assert metrics.itl_ns.tolist() == [12, 23, 15]


def test_objective_values(metrics):
    """Makespan 45, sum of latencies 108, sum of TTFT 58: Python integers."""
    values = {objective: metrics.objective_ns(objective) for objective in Objective}

    assert values == {Objective.MAKESPAN: 45, Objective.LATENCY: 108, Objective.TTFT: 58}
    assert {int} == {type(value) for value in values.values()}


@pytest.mark.parametrize(
    ("objective", "mean_s"), [(Objective.MAKESPAN, 6.0), (Objective.LATENCY, 2.0), (Objective.TTFT, 2.0)]
)
def test_sums_are_shown_as_means(objective, mean_s):
    """6 s over three requests are a makespan of 6 s, or a mean of 2 s per request."""
    assert mean_s == objective.mean_s(6 * 10**9, 3)


def test_requests_of_one_token_have_neither_tpot_nor_itl():
    """Where all outputs are one token there is no gap, and the summary says None instead of 0."""
    instance = make_instance((2, 1), (1, 1), cost=SECOND)
    metrics = measure(instance, schedule_asap(instance, [[(0, 2)], [(1, 1)]], [[], []]))
    shown = metrics.to_json()

    assert metrics.itl_ns.tolist() == metrics.tpot_ns.tolist() == []
    assert shown["itl_s"] is shown["tpot_s"] is None
    assert metrics.latency_ns.tolist() == metrics.ttft_ns.tolist() == [10**9, 2 * 10**9]


def test_a_refill_yields_the_next_token():
    """Evicted with 2 entries after its first token, r0 refills 3 tokens, and that batch ends its wait."""
    instance = make_instance((2, 3), cost=SECOND)
    metrics = measure(instance, schedule_asap(instance, [[(0, 2)], [(0, 3)], [(0, 1)]], [[], [0], []]))

    assert metrics.token_ns.tolist() == [10**9, 2 * 10**9, 3 * 10**9]
    assert metrics.recomputed_tokens == 2


def test_recomputed_tokens_are_the_entries_lost():
    """Evictions with 2 entries (a chunk of the prompt) and with 3 lose 5."""
    instance = make_instance((3, 2), cost=SECOND)
    batches = [[(0, 2)], [(0, 3)], [(0, 4)]]

    assert measure(instance, schedule_asap(instance, batches, [[], [0], [0]])).recomputed_tokens == 2 + 3


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([7], {"mean": 7, "p50": 7, "p90": 7, "p95": 7, "p99": 7, "max": 7}),
        ([1, 2], {"mean": 1.5, "p50": 1.5, "p90": 1.9, "p95": 1.95, "p99": 1.99, "max": 2}),
        ([5, 1, 3], {"mean": 3, "p50": 3, "p90": 4.6, "p95": 4.8, "p99": 4.96, "max": 5}),
        ([0, 0, 0, 10], {"mean": 2.5, "p50": 0, "p90": 7, "p95": 8.5, "p99": 9.7, "max": 10}),
    ],
)
def test_percentiles_are_interpolated_linearly(seconds, expected):
    """The p-th percentile of n sorted values lies at position p (n - 1) / 100 between its neighbours."""
    shown = summary_s(np.array(seconds) * 10**9)

    assert [f"p{p}" for p in PERCENTILES] == ["p50", "p90", "p95", "p99"]
    assert shown == pytest.approx(expected)


def test_summary_of_nothing_is_none():
    """No values, no numbers."""
    assert summary_s(np.array([], dtype=np.int64)) is None


def test_summary_has_rates_and_units():
    """Two requests with 3 + 1 tokens in 4 s: 0.5 requests and one output token per second."""
    instance = make_instance((2, 3), (1, 1), cost=SECOND)
    schedule = schedule_asap(instance, [[(0, 2)], [(0, 1)], [(0, 1)], [(1, 1)]], [[]] * 4)
    shown = measure(instance, schedule).to_json()

    assert shown["num_requests"] == 2
    assert shown["num_batches"] == 4
    assert shown["makespan_s"] == 4.0
    assert shown["requests_per_s"] == 0.5
    assert shown["output_tokens_per_s"] == 1.0
    assert shown["preemptions"] == shown["recomputed_tokens"] == 0
    assert shown["itl_s"]["max"] == 1.0


def test_sums_beyond_64_bits_are_exact():
    """Three latencies of about 2^62 ns add up in Python integers."""
    instance = make_instance((1, 1), (1, 1), (1, 1))
    late = 2**62
    schedule = Schedule.from_batches([[(0, 1), (1, 1), (2, 1)]], [[]], [late], [late + 1])

    assert measure(instance, schedule).objective_ns(Objective.LATENCY) == 3 * (late + 1)


@given(feasible_runs())
@check
def test_metrics_agree_with_lists(drawn):
    """On random schedules the arrays hold what a walk over tokens in plain lists finds."""
    instance, schedule = drawn
    metrics = measure(instance, schedule)
    ends = schedule.end_ns[schedule.batch_of_entry].tolist()
    tokens: list[list[int]] = [[] for _ in instance.requests]
    for i, end, generates in zip(schedule.request.tolist(), ends, metrics.history.generates, strict=True):
        if generates:
            tokens[i].append(end)
    arrivals = [request.arrival_ns for request in instance.requests]
    pairs = list(zip(tokens, arrivals, strict=True))

    assert metrics.ttft_ns.tolist() == [times[0] - arrival for times, arrival in pairs]
    assert metrics.latency_ns.tolist() == [times[-1] - arrival for times, arrival in pairs]
    assert metrics.itl_ns.tolist() == [b - a for times in tokens for a, b in pairwise(times)]
    assert metrics.tpot_ns.tolist() == [(t[-1] - t[0]) / (len(t) - 1) for t in tokens if len(t) > 1]
    assert metrics.makespan_ns == max(ends)


@given(feasible_runs())
@check_briefly
def test_idle_time_in_front_moves_every_objective(drawn):
    """Running everything 7 ns later costs 7 ns of makespan, 7 ns a request in the sums, and no gap."""
    instance, schedule = drawn
    later = replace(schedule, start_ns=schedule.start_ns + 7, end_ns=schedule.end_ns + 7)
    now, then = measure(instance, schedule), measure(instance, later)
    moved = {objective: then.objective_ns(objective) - now.objective_ns(objective) for objective in Objective}
    requests = len(instance.requests)

    assert moved == {
        Objective.MAKESPAN: 7,
        Objective.LATENCY: 7 * requests,
        Objective.TTFT: 7 * requests,
    }
    assert then.itl_ns.tolist() == now.itl_ns.tolist()
