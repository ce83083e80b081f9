"""No certificate exceeds the optimum that trying everything finds, for any costs, limits and switches."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspsched.bounds import (
    batch_count_bound,
    batch_floor,
    best_bound,
    certificates,
    check_certificate,
    solo_ns,
)
from cspsched.exact.heuristics.list_schedule import list_schedules
from cspsched.problem.cost import CostModel, PiecewiseLinear
from cspsched.problem.instance import Preemption, Switches
from cspsched.problem.objectives import Objective
from cspsched.referee.metrics import measure
from cspsched.referee.timing import schedule_asap
from tests.oracles.exhaustive import exhaustive_optimum, exhaustive_schedule
from tests.oracles.naive_bounds import affine_costs, tiny_instances
from tests.support.strategies import make_instance

UNIT = CostModel(name="unit", step=Fraction(1))
SLOW = settings(max_examples=60, deadline=None)


def optimal_schedule(instance, objective):
    """A schedule of the optimal value, from the moves of the exhaustive search."""
    _, moves = exhaustive_schedule(instance, objective)
    batches = [[(i, c) for i, (_, c) in enumerate(batch) if c] for batch in moves]
    evictions = [[i for i, (evicted, _) in enumerate(batch) if evicted] for batch in moves]
    return schedule_asap(instance, batches, evictions)


@pytest.mark.parametrize("objective", Objective)
def test_a_batch_may_cost_nothing_but_its_tokens(objective):
    """No step time, nothing per batch: pairs hold none up, and the certificates are those of the work."""
    cost = CostModel(name="no-step", tokens=PiecewiseLinear.linear(2000))
    instance = make_instance((3, 2), (2, 3), cost=cost, kv_blocks=16)
    found = certificates(instance, objective)
    assert found[0].value_ns == exhaustive_optimum(instance, objective)
    assert [check_certificate(instance, one) for one in found] == [[]] * len(found)


@pytest.mark.parametrize("objective", Objective)
@SLOW
@given(instance=tiny_instances(max_requests=2, max_prompt=4))
def test_no_certificate_of_two_requests_exceeds_the_optimum(objective, instance):
    """Two requests, every objective: all certificates are at most the optimum."""
    optimum = exhaustive_optimum(instance, objective)
    for certificate in certificates(instance, objective):
        assert certificate.value_ns <= optimum, certificate


@pytest.mark.parametrize("objective", Objective)
@settings(max_examples=25, deadline=None)
@given(instance=tiny_instances(max_requests=3, max_prompt=3, max_output=2))
def test_no_certificate_of_three_requests_exceeds_the_optimum(objective, instance):
    """Three requests, every objective: all certificates are at most the optimum."""
    optimum = exhaustive_optimum(instance, objective)
    for certificate in certificates(instance, objective):
        assert certificate.value_ns <= optimum, certificate


@pytest.mark.parametrize("objective", Objective)
@SLOW
@given(instance=tiny_instances(max_requests=3, max_prompt=3, max_output=3), data=st.data())
def test_certificates_hold_under_restrictions(objective, instance, data):
    """Switches that forbid something never push the optimum below a certificate."""
    switches = Switches(
        chunked_prefill=False,
        hybrid_batches=data.draw(st.booleans()),
        holding=data.draw(st.booleans()),
        preemption=data.draw(st.sampled_from(Preemption)),
        reservation=data.draw(st.booleans()),
    )
    restricted = replace(instance, switches=switches)
    optimum = exhaustive_optimum(restricted, objective)
    if optimum is not None:
        assert best_bound(restricted, objective).value_ns <= optimum


@SLOW
@given(
    instance=tiny_instances(max_requests=1, max_prompt=5, max_output=4), objective=st.sampled_from(Objective)
)
def test_the_bound_of_one_request_is_exact(instance, objective):
    """One request: the critical path is the optimum, for any cost, convex or not."""
    bound = max(certificates(instance, objective), key=lambda found: found.name == "critical-path")
    assert exhaustive_optimum(instance, objective) == bound.value_ns
    assert best_bound(instance, objective).value_ns == bound.value_ns


@SLOW
@given(instance=tiny_instances(max_requests=3, max_prompt=3, max_output=3, costs=st.just(UNIT)))
def test_batch_count_is_exact_at_unit_cost_if_only_slots_bind(instance):
    """Unit cost, all at 0, outputs of one token, ample memory and budget: makespan = ceil(N / R)."""
    requests = tuple(replace(request, arrival_ns=0, output_tokens=1) for request in instance.requests)
    limits = replace(instance.limits, kv_blocks=20, max_batch_tokens=20)
    instance = replace(instance, requests=requests, limits=limits)
    assert exhaustive_optimum(instance) == best_bound(instance, Objective.MAKESPAN).value_ns


@SLOW
@given(instance=tiny_instances(max_requests=2, max_prompt=3), objective=st.sampled_from(Objective))
def test_batch_floor_is_below_the_batch_times_of_optimal_schedules(instance, objective):
    """Batch times of a schedule with B batches sum to at least alpha B + work, for every pair."""
    schedule = optimal_schedule(instance, objective)
    busy_ns = int((schedule.end_ns - schedule.start_ns).sum())
    pairs = batch_floor(instance)
    assert pairs
    for alpha, work in pairs:
        assert alpha > 0
        assert alpha * schedule.num_batches + work <= busy_ns


@SLOW
@given(instance=tiny_instances(max_requests=2, max_prompt=3), objective=st.sampled_from(Objective))
def test_solo_times_are_below_the_latencies_of_optimal_schedules(instance, objective):
    """No request is faster in company than the bound on it alone."""
    metrics = measure(instance, optimal_schedule(instance, objective))
    assert all(alone <= latency for alone, latency in zip(solo_ns(instance), metrics.latency_ns, strict=True))
    first = solo_ns(instance, Objective.TTFT)
    assert all(alone <= ttft for alone, ttft in zip(first, metrics.ttft_ns, strict=True))


@pytest.mark.parametrize("objective", Objective)
@settings(max_examples=150, deadline=None)
@given(instance=tiny_instances(max_requests=4, max_prompt=9, max_output=6))
def test_every_certificate_is_derived_again(objective, instance):
    """The checker reaches the same number from the details, to the nanosecond."""
    for certificate in certificates(instance, objective):
        assert check_certificate(instance, certificate) == []


@pytest.mark.parametrize("objective", Objective)
@settings(max_examples=60, deadline=None)
@given(instance=tiny_instances(max_requests=4, max_prompt=9, max_output=6), data=st.data())
def test_bounds_do_not_depend_on_the_order_of_requests(objective, instance, data):
    """Permuting the requests changes no value."""
    shuffled = replace(instance, requests=tuple(data.draw(st.permutations(instance.requests))))
    values = {found.name: found.value_ns for found in certificates(instance, objective)}
    assert values == {found.name: found.value_ns for found in certificates(shuffled, objective)}


@settings(max_examples=60, deadline=None)
@given(instance=tiny_instances(max_requests=4, max_prompt=9, max_output=6), more=st.integers(1, 5))
def test_batch_counts_fall_with_larger_limits(instance, more):
    """More memory, budget or slots never raise a bound on the number of batches."""
    limits = instance.limits
    base = batch_count_bound(instance.requests, limits).num_batches
    for name in ("kv_blocks", "max_batch_tokens", "max_batch_requests"):
        larger = replace(limits, **{name: getattr(limits, name) + more})
        assert batch_count_bound(instance.requests, larger).num_batches <= base


@settings(max_examples=30, deadline=None)
@given(
    instance=tiny_instances(max_requests=4, max_prompt=9, max_output=6), objective=st.sampled_from(Objective)
)
def test_certificates_come_best_first(instance, objective):
    """The first certificate has the largest value, and best_bound is the first."""
    found = certificates(instance, objective)
    assert [c.value_ns for c in found] == sorted((c.value_ns for c in found), reverse=True)
    assert best_bound(instance, objective) == found[0]


@pytest.mark.parametrize("objective", Objective)
@settings(max_examples=40, deadline=None)
@given(
    instance=tiny_instances(max_requests=4, max_prompt=9, max_output=6, costs=affine_costs()),
    more=st.integers(1, 9),
)
def test_bounds_fall_with_more_memory_and_slots(objective, instance, more):
    """More memory or slots: the makespan bound never rises; no bound passes what less of them can reach.

    The bounds on sums are not monotone: SRPT's processing times are rounded, and the argument that counts
    the prefill batches is chosen before its share is. Both values are valid all the same.
    """
    if objective is Objective.MAKESPAN:
        most = best_bound(instance, objective).value_ns
    else:
        most = min(
            measure(instance, schedule).objective_ns(objective) for _, schedule in list_schedules(instance)
        )
    for name in ("kv_blocks", "max_batch_requests"):
        limits = replace(instance.limits, **{name: getattr(instance.limits, name) + more})
        assert best_bound(replace(instance, limits=limits), objective).value_ns <= most


@settings(max_examples=40, deadline=None)
@given(
    instance=tiny_instances(max_requests=4, max_prompt=9, max_output=6, costs=affine_costs()),
    more=st.integers(1, 9),
)
def test_makespan_bound_falls_with_a_larger_token_budget(instance, more):
    """Affine costs: the best bound on the makespan never rises when the token budget grows."""
    limits = replace(instance.limits, max_batch_tokens=instance.limits.max_batch_tokens + more)
    base = best_bound(instance, Objective.MAKESPAN).value_ns
    assert best_bound(replace(instance, limits=limits), Objective.MAKESPAN).value_ns <= base


@settings(max_examples=60, deadline=None)
@given(instance=tiny_instances(max_requests=4, max_prompt=9, max_output=6), shift=st.integers(1, 50))
def test_a_later_start_shifts_the_makespan_bound(instance, shift):
    """When all arrivals move by some time, the makespan's bounds move by it and the others stay."""
    moved = tuple(replace(request, arrival_ns=request.arrival_ns + shift) for request in instance.requests)
    later = replace(instance, requests=moved)
    for objective in Objective:
        growth = shift if objective is Objective.MAKESPAN else 0
        for before, after in zip(
            certificates(instance, objective), certificates(later, objective), strict=True
        ):
            assert (after.name, after.value_ns) == (before.name, before.value_ns + growth)
