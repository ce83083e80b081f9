"""What the solver promises around the search: incumbents, limits, honesty about horizons, Ctrl-C."""

import re

import pytest

from cspsched.bounds import best_bound
from cspsched.errors import InfeasibleError
from cspsched.exact.heuristics.list_schedule import list_schedules, one_at_a_time
from cspsched.exact.model import member as model_member
from cspsched.exact.record import best_incumbent
from cspsched.exact.solver import solve_exactly
from cspsched.exact.timed.member import TimedMember
from cspsched.exact.watch import SearchLimits
from cspsched.policies.base import make_policy
from cspsched.problem.instance import Switches
from cspsched.problem.objectives import Objective
from cspsched.problem.result import Result, Status, StopReason
from cspsched.referee.metrics import measure
from cspsched.referee.rules import find_violations
from cspsched.simulate import simulate
from cspsched.studies.solving import solve
from tests.support.instances import (
    NO_PREEMPTION,
    RUN_TO_COMPLETION,
    four_mixed,
    instance_of,
    late_mixed,
    three_equal,
)
from tests.support.members import leave_out

SHORT = SearchLimits(time_limit_s=5)


@pytest.mark.parametrize("objective", Objective)
def test_result_is_never_worse_than_a_policy(objective):
    """Whatever the time limit, the result is at least as good as vLLM and Sarathi."""
    instance = four_mixed()
    result = solve(instance, objective, limits=SearchLimits(time_limit_s=0.01)).result

    assert result.violations() == []
    for name in ("vllm", "sarathi"):
        schedule = simulate(instance, make_policy(name)).schedule
        assert result.primal_ns <= measure(instance, schedule).objective_ns(objective)


def test_candidates_of_another_class_are_not_taken():
    """A preempting schedule is no incumbent where preemption is off."""
    instance = three_equal(NO_PREEMPTION)
    preempting = simulate(three_equal(), make_policy("vllm")).schedule
    incumbent = best_incumbent(
        instance, Objective.MAKESPAN, [*list_schedules(instance), ("vllm", preempting)]
    )

    assert preempting.num_preemptions > 0
    assert incumbent.found_by != "vllm"


@pytest.fixture
def no_timed_search(monkeypatch):
    """As if the instance were too large for the timed state search."""
    leave_out(monkeypatch, TimedMember)


def test_time_limit_keeps_the_incumbent_and_says_so():
    """Out of time: the best schedule, the closed-form bound, its name, and the reason."""
    result = solve_exactly(late_mixed(), Objective.LATENCY, SearchLimits(time_limit_s=0.05))

    assert result.status is Status.FEASIBLE
    assert result.stop_reason is StopReason.TIME_LIMIT
    assert result.dual_ns < result.primal_ns
    assert result.certificate


@pytest.mark.usefixtures("no_timed_search")
def test_interruption_keeps_the_incumbent(monkeypatch):
    """Ctrl-C while the hint is completed: the incumbent and the bound are returned."""

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(model_member, "complete_hint", interrupted)
    result = solve_exactly(late_mixed(), Objective.LATENCY, SHORT)

    assert result.stop_reason is StopReason.INTERRUPTED
    assert result.violations() == []


@pytest.mark.usefixtures("no_timed_search")
def test_a_disagreement_between_model_and_referee_is_said(monkeypatch):
    """If the model prices the incumbent differently from the referee it proves nothing, and is named."""
    monkeypatch.setattr(model_member, "complete_hint", lambda *_, **__: (1, []))
    result = solve_exactly(late_mixed(), Objective.LATENCY, SHORT)

    assert result.violations() == []
    assert result.certificate == best_bound(late_mixed(), Objective.LATENCY).name
    (failure,) = result.provenance["failures"]
    assert re.search(r"the model prices .* at 1 ns", failure["message"])


@pytest.mark.usefixtures("no_timed_search")
def test_bound_of_an_uncertified_horizon_is_not_used(monkeypatch):
    """A model that is cut short proves nothing about longer schedules: only closed-form bounds remain."""
    instance = late_mixed()
    closed_form = best_bound(instance, Objective.MAKESPAN)
    longest = best_incumbent(instance, Objective.MAKESPAN, list_schedules(instance)).schedule.num_batches
    monkeypatch.setattr(model_member, "MOST_CELLS", longest * len(instance.requests))
    monkeypatch.setattr(model_member, "certified_horizon", lambda *_: 10**6)
    result = solve_exactly(instance, Objective.MAKESPAN, SearchLimits(time_limit_s=60))

    assert result.provenance["model"]["horizon_certified"] is False
    assert result.stop_reason is StopReason.FINISHED
    assert (result.dual_ns, result.certificate) == (closed_form.value_ns, closed_form.name)


@pytest.mark.usefixtures("no_timed_search")
def test_too_large_instances_get_the_closed_form_bound(monkeypatch):
    """Where no model is affordable the result says so and is still certified."""
    monkeypatch.setattr(model_member, "MOST_CELLS", 3)
    result = solve_exactly(late_mixed(), Objective.LATENCY, SHORT)

    assert result.stop_reason is StopReason.TOO_LARGE
    assert result.violations() == []


@pytest.mark.usefixtures("no_timed_search")
def test_no_horizon_is_certified_for_a_model_that_is_not_built(monkeypatch):
    """The horizon costs a bound for each request: on a large trace it would outlast any time limit."""

    def too_dear(*_):
        raise AssertionError("certified the horizon of a model that is too large")

    monkeypatch.setattr(model_member, "MOST_CELLS", 3)
    monkeypatch.setattr(model_member, "certified_horizon", too_dear)

    assert solve_exactly(late_mixed(), Objective.LATENCY, SHORT).stop_reason is StopReason.TOO_LARGE


def test_a_tight_closed_form_bound_needs_no_search():
    """One request: the critical path is the optimum, proven without a model."""
    result = solve_exactly(instance_of([(5, 3)], kv_blocks=10), Objective.LATENCY, SHORT)

    assert result.status is Status.OPTIMAL
    assert result.provenance["model"] == {}


def test_rejected_requests_are_left_out_and_counted():
    """A request that never fits is left out with the reason; if all are so, that is proven infeasible."""
    instance = instance_of([(2, 2), (9, 9)], kv_blocks=8)

    with pytest.raises(InfeasibleError, match="request 'r0' alone needs 17 KV blocks, the device offers 8"):
        solve(instance_of([(9, 9)], kv_blocks=8), limits=SHORT)
    solution = solve(instance, limits=SHORT)
    assert [rejection.request.request_id for rejection in solution.rejections] == ["r1"]
    assert len(solution.result.instance.requests) == 1


def test_result_survives_its_json():
    """A result written and read again is judged the same."""
    result = solve_exactly(three_equal(), Objective.MAKESPAN, SearchLimits(time_limit_s=60))
    again = Result.from_json(result.to_json())

    assert again.violations() == []
    assert again.to_json() == result.to_json()


def test_policy_class_is_named():
    """A restricted optimum carries its class, so that it is never called the optimum."""
    result = solve_exactly(three_equal(RUN_TO_COMPLETION), Objective.MAKESPAN, SHORT)

    assert result.to_json()["policy_class"] == "no chunking, no holding, no preemption"
    assert three_equal().switches.policy_class == "full"


@pytest.mark.parametrize(
    "switches",
    [Switches(hybrid_batches=False, holding=False), Switches(reservation=True), RUN_TO_COMPLETION],
)
def test_first_incumbents_are_feasible_in_every_class(switches):
    """List schedules obey whatever switches the instance has, with arrivals and prompts beyond the budget."""
    chunked = instance_of([(7, 3), (2, 2, 10**7), (5, 1)], kv_blocks=9, max_batch_tokens=4, switches=switches)
    whole = instance_of([(3, 3), (2, 2, 10**7), (4, 1)], kv_blocks=6, max_batch_tokens=4, switches=switches)

    for instance in (whole,) if not switches.chunked_prefill else (whole, chunked):
        for _, schedule in list_schedules(instance):
            assert find_violations(instance, schedule) == []


def test_one_at_a_time_uses_as_few_chunks_as_possible():
    """E1: ceil(I / C) + O - 1 batches, I + O - 1 tokens, peak I + O - 1."""
    instance = instance_of([(10, 4)], kv_blocks=13, max_batch_tokens=4)
    schedule = one_at_a_time(instance, [0])

    assert find_violations(instance, schedule) == []
    assert schedule.num_batches == 3 + 3
    assert int(schedule.tokens.sum()) == 13 == int(schedule.kv_tokens.max())
