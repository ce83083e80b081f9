"""The state search answers to exhaustive search wherever it says that it is exact."""

import os
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspsched.exact.heuristics.list_schedule import list_schedules
from cspsched.exact.parts.chunk_dominance import chunks_are_dominated, is_linear
from cspsched.exact.record import best_incumbent
from cspsched.exact.solver import solve_exactly
from cspsched.exact.states.search import STATE_SEARCH, Talk, search_states
from cspsched.exact.states.space import build_state_space
from cspsched.exact.watch import SearchLimits
from cspsched.problem.cost import CostModel, PiecewiseLinear
from cspsched.problem.objectives import Objective
from cspsched.problem.result import Status, StopReason
from cspsched.referee.metrics import measure
from cspsched.referee.rules import find_violations
from cspsched.referee.timing import schedule_asap
from tests.oracles.exhaustive import exhaustive_optimum
from tests.support.exact_cases import FLAT, tiny_instances
from tests.support.instances import NO_PREEMPTION, four_mixed, instance_of, three_equal

EXAMPLES = max(150, int(os.environ.get("CSPSCHED_ORACLE_EXAMPLES", "0")))
WHOLE_SLOPES = CostModel(
    name="whole slopes",
    step=Fraction(50),
    prefill_batch=Fraction(40),
    decode_batch=Fraction(25),
    prefill_request=Fraction(4),
    decode_request=Fraction(3),
    tokens=PiecewiseLinear((0, 1), (Fraction(9), Fraction(7))),
    prefill_attention=PiecewiseLinear.linear(2),
    decode_context=PiecewiseLinear.linear(Fraction(1, 3)),
    head=PiecewiseLinear((0, 1), (Fraction(10), Fraction(1))),
)
"""A decode batch is dear enough that refilling a resident beside a prefill can pay."""
DEAR_DECODES = replace(WHOLE_SLOPES, name="dear decodes", decode_context=PiecewiseLinear.linear(60))
MIXED = replace(
    WHOLE_SLOPES,
    name="mixed",
    mixed_request=Fraction(3, 2),
    mixed_context=PiecewiseLinear((0, 4), (Fraction(2), Fraction(25, 3))),
)
"""One attention kernel for both: beside a prefill a decode may cost more than its refill."""
THIRDS = replace(WHOLE_SLOPES, name="thirds", tokens=PiecewiseLinear.linear(Fraction(22, 3)))
E4_RECOMPUTE_NS = 181_582_588
"""Optimum of `four_mixed`, which two programs prove in `tests/exact/test_expected.py`."""


def talk(value_ns, time_left_s=60.0):
    """A talk without other members."""
    return Talk(
        time_left=lambda: time_left_s,
        upper_ns=lambda: value_ns,
        tell_bound=lambda _: None,
        tell_schedule=lambda _: None,
    )


def searched(instance, objective, *, sharp=False):
    """Best value and bound of the search alone, or None where it does not apply."""
    start = best_incumbent(instance, objective, list_schedules(instance))
    space = build_state_space(instance, objective, start.value_ns)
    if space is None or (sharp and not space.can_sharpen):
        return None
    if sharp:
        space.sharpen(lambda *_: True)
        assert len(space.heuristic_tables.path_values) > 0
    outcome = search_states(space, talk(start.value_ns))
    assert outcome.stop_reason is StopReason.ROUNDING
    if outcome.decisions is None:
        return start.value_ns, outcome.bound_ns
    schedule = schedule_asap(instance, *outcome.decisions)
    assert find_violations(instance, schedule) == []
    return measure(instance, schedule).objective_ns(objective), outcome.bound_ns


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(
    tiny_instances(arrivals=False),
    st.sampled_from([WHOLE_SLOPES, DEAR_DECODES, MIXED, FLAT]),
    st.sampled_from(Objective),
    st.booleans(),
)
def test_search_agrees_with_exhaustive_search(instance, cost, objective, sharp):
    """Where slopes are whole numbers the search proves the optimum to the nanosecond, with any heuristic."""
    instance = replace(instance, cost=cost)
    found = searched(instance, objective, sharp=sharp)

    if found is not None:
        optimum = exhaustive_optimum(instance, objective)
        assert found == (optimum, optimum)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(tiny_instances(arrivals=False), st.sampled_from(Objective))
def test_bound_holds_where_rounding_matters(instance, objective):
    """With slopes in thirds the bound is below the optimum and the schedule above, by rounding only."""
    instance = replace(instance, cost=THIRDS)
    found = searched(instance, objective)

    if found is not None:
        value, bound = found
        assert bound <= exhaustive_optimum(instance, objective) <= value <= bound + 50


def test_chunking_off_is_exact_for_any_cost():
    """Without chunking the search needs no condition on the cost model, nor on the budget."""
    instance = instance_of(
        [(3, 3), (2, 3)],
        kv_blocks=6,
        max_batch_tokens=4,
        switches=replace(three_equal().switches, chunked_prefill=False),
    )

    assert searched(instance, Objective.LATENCY)[1] == exhaustive_optimum(instance, Objective.LATENCY)


@pytest.mark.parametrize(
    ("change", "dominated"),
    [
        ({}, True),
        ({"arrival": 5}, False),
        ({"budget": 14}, False),
        ({"knots": (0, 10)}, False),
        ({"knots": (0, 20)}, True),
        ({"knots": (0, 1)}, False),
    ],
)
def test_chunks_are_dominated_only_under_the_conditions(change, dominated):
    """All at 0, a budget that cannot be exceeded (15 tokens in all), one slope on what can be reached."""
    knots = change.get("knots", (0,))
    cost = CostModel(
        name="bent",
        step=Fraction(5),
        tokens=PiecewiseLinear(knots, tuple(map(Fraction, range(1, len(knots) + 1)))),
    )
    instance = instance_of(
        [(4, 4), (6, 3, change.get("arrival", 0))],
        kv_blocks=20,
        max_batch_tokens=change.get("budget", 15),
        cost=cost,
    )

    assert chunks_are_dominated(instance) == dominated


def test_a_first_token_may_only_be_dearer():
    """A batch left without tokens saves the piece from 0 to 1, so that one may be steeper, not flatter."""
    assert is_linear(PiecewiseLinear((0, 1, 9), (Fraction(8), Fraction(2), Fraction(3))), 9)
    assert not is_linear(PiecewiseLinear((0, 1), (Fraction(1), Fraction(2))), 9)
    assert not is_linear(PiecewiseLinear((0, 2), (Fraction(8), Fraction(2))), 9)


@pytest.mark.parametrize("term", ["tokens", "prefill_tokens", "prefill_attention"])
def test_a_free_first_token_makes_chunks_pay(term):
    """Where the first token of a batch is free, one-token chunks are best, and the solver finds them."""
    free_first = PiecewiseLinear((0, 1), (Fraction(0), Fraction(100)))
    cost = CostModel(name="free", step=Fraction(1), **{term: free_first})
    instance = instance_of([(3, 1)], kv_blocks=20, cost=cost)
    result = solve_exactly(instance, Objective.MAKESPAN, SearchLimits(time_limit_s=240))

    assert result.primal_ns == exhaustive_optimum(instance)


@pytest.mark.parametrize("switches", [None, NO_PREEMPTION])
def test_solver_takes_the_proof_of_the_search(switches):
    """Four mixed requests: proven by the state search, without a CP-SAT model."""
    result = solve_exactly(four_mixed(switches), Objective.LATENCY, SearchLimits(time_limit_s=60))

    assert result.status is Status.OPTIMAL
    assert result.certificate == STATE_SEARCH
    assert result.violations() == []


def test_full_tables_and_time_keep_a_valid_bound():
    """Out of room or time, the bound is that of the open states: between nothing and the optimum."""
    instance = four_mixed()
    upper = best_incumbent(instance, Objective.MAKESPAN, list_schedules(instance)).value_ns
    space = build_state_space(instance, Objective.MAKESPAN, upper)
    full = search_states(space, talk(upper), most_labels=100)
    late = search_states(space, talk(upper, 0.0))

    assert full.stop_reason is StopReason.TOO_LARGE
    assert 0 < full.bound_ns <= E4_RECOMPUTE_NS
    assert (late.stop_reason, late.bound_ns, late.decisions) == (StopReason.TIME_LIMIT, 0, None)
