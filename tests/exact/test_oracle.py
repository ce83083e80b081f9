"""The exact solver answers to exhaustive search, in every combination of switches."""

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspsched.exact.model.horizon import certified_horizon
from cspsched.exact.model.member import build_model
from cspsched.exact.search import complete_hint
from cspsched.exact.solver import solve_exactly
from cspsched.exact.watch import SearchLimits
from cspsched.problem.cost import CostModel, PiecewiseLinear
from cspsched.problem.instance import Preemption, Switches
from cspsched.problem.objectives import Objective
from cspsched.problem.result import Status
from cspsched.referee.metrics import measure
from cspsched.referee.timing import schedule_asap
from tests.oracles.exhaustive import exhaustive_optimum, exhaustive_schedule
from tests.support.exact_cases import STAIRS, run_to_completion, tiny_instances
from tests.support.instances import instance_of

EXACT = SearchLimits(time_limit_s=60, num_workers=2)

NO_STEP = CostModel(name="no step", tokens=PiecewiseLinear.linear(20))
NO_CONSTANT = (
    NO_STEP,
    replace(NO_STEP, prefill_batch=Fraction(30)),
    replace(NO_STEP, decode_batch=Fraction(30), decode_context=PiecewiseLinear.linear("3/2")),
)
"""No batch costs anything but its tokens, or only prefills do, or only decodes."""


@settings(max_examples=25, deadline=None, derandomize=True)
@given(tiny_instances(costs=NO_CONSTANT), st.sampled_from(Objective))
def test_batches_may_cost_nothing_but_their_tokens(instance, objective):
    """Without a step time and a price per batch some bounds have nothing to say, and the rest prove it."""
    result = solve_exactly(instance, objective, EXACT)

    assert result.violations() == []
    assert result.status is Status.OPTIMAL
    assert result.primal_ns == exhaustive_optimum(instance, objective)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(tiny_instances(), st.sampled_from(Objective))
def test_solver_agrees_with_exhaustive_search(instance, objective):
    """On every tiny instance the proven optimum is the one found by trying everything."""
    result = solve_exactly(instance, objective, EXACT)

    assert result.violations() == []
    assert result.status is Status.OPTIMAL
    assert result.primal_ns == exhaustive_optimum(instance, objective)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(tiny_instances(switches=run_to_completion), st.sampled_from(Objective))
def test_run_to_completion_model_agrees_with_exhaustive_search(instance, objective):
    """The model of start variables is exact for its combination of switches."""
    result = solve_exactly(instance, objective, EXACT)

    assert result.primal_ns == result.dual_ns == exhaustive_optimum(instance, objective)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(tiny_instances(), st.sampled_from(Objective))
def test_model_takes_every_optimal_schedule_at_its_price(instance, objective):
    """Two-way check: an optimal schedule, fixed in the model, is feasible and costs what the referee says."""
    value, moves = exhaustive_schedule(instance, objective)
    batches = [[(i, c) for i, (_, c) in enumerate(move) if c] for move in moves]
    evictions = [[i for i, (gone, _) in enumerate(move) if gone] for move in moves]
    schedule = schedule_asap(instance, batches, evictions)
    model = build_model(instance, objective, schedule.num_batches + 1)

    assert measure(instance, schedule).objective_ns(objective) == value
    assert complete_hint(model, schedule, 60)[0] == value


@settings(max_examples=60, deadline=None, derandomize=True)
@given(tiny_instances(), st.sampled_from(Objective))
def test_certified_horizon_holds_an_optimum(instance, objective):
    """Some optimal schedule has at most as many batches as the horizon that its own value certifies.

    For TTFT the search's schedule may go on longer than it must; the horizon only promises that one of the
    optimal schedules is short enough, which the first test shows.
    """
    value, moves = exhaustive_schedule(instance, objective)
    horizon = certified_horizon(instance, objective, value)

    assert objective is Objective.TTFT or len(moves) <= horizon


@pytest.mark.parametrize("objective", Objective)
def test_more_freedom_never_makes_the_optimum_worse(objective):
    """Each switch turned towards more freedom keeps or improves the optimum."""
    shapes, limits = [(3, 3), (2, 3)], {"kv_blocks": 6, "max_batch_tokens": 4}

    def optimum(**changes):
        switches = Switches(**changes)
        instance = instance_of(shapes, cost=STAIRS, switches=switches, **limits)
        result = solve_exactly(instance, objective, EXACT)
        assert result.status is Status.OPTIMAL
        return result.primal_ns

    free = optimum()
    for restriction in (
        {"chunked_prefill": False},
        {"hybrid_batches": False},
        {"holding": False},
        {"preemption": Preemption.NONE},
        {"reservation": True},
    ):
        assert free <= optimum(**restriction)
