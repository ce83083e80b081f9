"""Values beyond what floats hold: the exact solver's integers stay exact, or the model is not built."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from ortools.sat.python import cp_model

from cspsched.costs.presets import load_cost
from cspsched.exact import portfolio, solver
from cspsched.exact.closed_form import ClosedForm
from cspsched.exact.heuristics.first_schedules import first_schedules
from cspsched.exact.model.batch_model import BatchModel
from cspsched.exact.record import best_incumbent
from cspsched.exact.search import InvalidModelError, complete_hint, safe_bound, search, solve_briefly
from cspsched.exact.solver import solve_exactly
from cspsched.exact.watch import SearchLimits, Watch
from cspsched.problem.cost import CostModel
from cspsched.problem.linear_form import read_objectives
from cspsched.problem.objectives import Objective
from cspsched.problem.result import Status, StopReason
from cspsched.referee.rules import find_violations
from tests.support.instances import RUN_TO_COMPLETION, instance_of

MODERATE = SearchLimits(time_limit_s=60)
SHAPES = [(2, 3), (1, 4), (3, 2)]


def slow(factor: int) -> CostModel:
    """Batches of so many nanoseconds each."""
    return CostModel(name="slow", step=Fraction(factor))


def late(factor, *, switches=None):
    """Three requests, all times multiples of a factor."""
    shapes = [(prompt, output, factor * i) for i, (prompt, output) in enumerate(SHAPES)]
    return instance_of(shapes, kv_blocks=7, cost=slow(factor), switches=switches)


@pytest.fixture
def only_the_model(monkeypatch):
    """No other member, and no bound that would do without."""
    monkeypatch.setattr(portfolio, "PORTFOLIO", portfolio.PORTFOLIO[-1:])
    monkeypatch.setattr(solver, "closed_form_bound", lambda *_: ClosedForm(0, "nothing", {}))


@pytest.mark.usefixtures("only_the_model")
@pytest.mark.parametrize("switches", [None, RUN_TO_COMPLETION], ids=["batches", "starts"])
@pytest.mark.parametrize(
    ("text", "power"),
    [("makespan", 52), ("latency", 52), ("ttft", 52), ("latency+3*ttft", 50), ("mean-latency+max-itl", 50)],
)
def test_the_model_is_exact_beyond_floats(text, power, switches):
    """All times times an odd number beyond 2^50: the proven optimum is the same multiple, exactly."""
    factor = 2**power + 1
    values = []
    for one in (1, factor):
        instance = late(one, switches=switches)
        (objective,) = read_objectives(text, instance)
        result = solve_exactly(instance, objective, MODERATE)
        assert result.provenance["failures"] == []
        assert (result.status, result.violations()) == (Status.OPTIMAL, [])
        values.append(result.primal_ns)

    assert values[1] == factor * values[0] > 2**53


@pytest.mark.usefixtures("only_the_model")
def test_what_could_leave_64_bits_is_not_built():
    """Beyond 2^60 there is no model, and incumbent and bound are kept."""
    result = solve_exactly(late(2**57), Objective.LATENCY, MODERATE)

    assert result.stop_reason is StopReason.TOO_LARGE
    assert result.provenance["failures"] == []
    assert find_violations(result.instance, result.schedule) == []


@pytest.mark.parametrize(
    ("bound", "largest", "least"),
    [
        (4.9996, 10, 5),
        (5.0, 10, 5),
        (2.0**53, 0, 2**53 - 8),
        (5.0, 2**53, -3),
        (2.0**60, 2**60, 2**60 - 1024),
    ],
)
def test_float_bounds_are_rounded_outward(bound, largest, least):
    """Up where floats are exact to the integer, else down by all roundings there may have been."""
    assert safe_bound(bound, largest) == least


def test_no_bound_is_no_number():
    """Infinity is not known."""
    assert safe_bound(-math.inf, 1) is None


def test_large_bounds_never_exceed_the_integer_they_stand_for():
    """Whatever an offset swallows: the sum of two rounded parts, rounded, is above the safe bound."""
    for inner in (-(2**58) - 1, -(2**59) + 3, 7):
        for offset in (2**58 + 5, 2**59 + 129, 2**59):
            told = float(inner) + float(offset)
            assert safe_bound(told, 2**59 + 129) <= inner + offset


def invalid_model():
    """Domains that do not add up in 64 bits."""
    model = cp_model.CpModel()
    for i in range(8):
        model.new_int_var(0, 2**62, f"x{i}")
    return model


def test_an_invalid_model_is_not_an_infeasible_one():
    """A question that CP-SAT cannot read has no answer; it is an error with CP-SAT's reason."""
    watch = Watch(SearchLimits(), 1, 0, None)
    with pytest.raises(InvalidModelError, match=r"CP-SAT calls the model invalid: .*int64"):
        solve_briefly(invalid_model(), 1.0, 1.0, watch)


def test_every_search_says_that_a_model_is_invalid():
    """Neither the hint nor the search takes it for a model without a schedule."""
    instance, limits = late(1), SearchLimits()
    _, schedule = next(first_schedules(instance, Objective.LATENCY))
    model = BatchModel(instance, Objective.LATENCY, schedule.num_batches)
    for i in range(8):
        model.model.new_int_var(0, 2**62, f"x{i}")

    assert not model.fits
    with pytest.raises(InvalidModelError):
        complete_hint(model, schedule, 10)
    with pytest.raises(InvalidModelError):
        search(model, limits, Watch(limits, 2**60, 0, None))


def test_mixtures_with_a_fine_scale_are_modelled():
    """Four requests of 38 to 48 tokens: mean TPOT is counted in 12,263,428ths of a nanosecond, and fits."""
    shapes = [(8, 38), (8, 42), (8, 44), (8, 48)]
    instance = instance_of(shapes, kv_blocks=400, max_batch_tokens=64, cost=load_cost("infermax-70b"))
    (objective,) = read_objectives("mean-tpot+mean-latency", instance)
    _, schedule = next(first_schedules(instance, objective))
    model = BatchModel(instance, objective, 168)

    assert model.fits
    assert model.model.validate() == ""
    assert (
        complete_hint(model, schedule, 60)[0]
        == best_incumbent(instance, objective, [("it", schedule)]).value_ns
    )
