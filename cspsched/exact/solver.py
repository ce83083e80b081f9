"""Solves an instance exactly: incumbent, certified horizon, model, search, and a result with its proof."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cspsched.bounds import best_bound
from cspsched.errors import InternalError
from cspsched.exact.batch_model import BatchModel
from cspsched.exact.horizon import certified_horizon
from cspsched.exact.list_schedule import list_schedules
from cspsched.exact.model import ExactModel
from cspsched.exact.search import Progress, SearchLimits, SearchOutcome, add_hint, complete_hint, search
from cspsched.exact.start_model import StartModel
from cspsched.exact.timeline import WORST_SUM
from cspsched.problem.instance import Instance
from cspsched.problem.metrics import Objective, measure
from cspsched.problem.referee import find_violations
from cspsched.problem.result import Result, Status, StopReason, tool_versions
from cspsched.problem.schedule import Schedule
from cspsched.problem.timing import schedule_asap

MOST_CELLS = 30_000
"""Requests times batches beyond which no model is built."""


@dataclass(frozen=True, kw_only=True)
class Incumbent:
    """A feasible schedule, its objective value in nanoseconds, and what found it."""

    schedule: Schedule
    value_ns: int
    found_by: str


def solve_exactly(
    instance: Instance,
    objective: Objective,
    limits: SearchLimits,
    *,
    candidates: Iterable[tuple[str, Schedule]] = (),
    on_progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Best schedule and proven lower bound of an instance whose requests all fit.

    Parameters
    ----------
    candidates
        Named schedules, for instance of policies. Those that the referee accepts under the instance's
        switches compete for the first incumbent; the result is never worse than any of them.

    Notes
    -----
    The model's bound counts only if its horizon is certified; otherwise the dual bound is a closed-form
    certificate, and the result says so.
    """
    incumbent = best_incumbent(instance, objective, [*list_schedules(instance), *candidates])
    bound = best_bound(instance, objective)
    dual, certificate = bound.value_ns, bound.name
    if dual == incumbent.value_ns:
        return _result(instance, objective, incumbent, dual, certificate, StopReason.PROVEN, limits, {})
    horizon, certified = _horizon(instance, objective, incumbent)
    if horizon is None:
        return _result(instance, objective, incumbent, dual, certificate, StopReason.TOO_LARGE, limits, {})
    model = _build(instance, objective, horizon)
    if model.worst_sum >= WORST_SUM:
        return _result(instance, objective, incumbent, dual, certificate, StopReason.TOO_LARGE, limits, {})
    model.bound_objective(dual, incumbent.value_ns)
    hint = complete_hint(model, incumbent.schedule)
    if hint is not None:
        _expect(
            hint[0] == incumbent.value_ns, f"the model prices {incumbent.found_by} at {hint[0]} ns", incumbent
        )
        add_hint(model, hint[1])
    outcome = search(model, limits, on_progress)
    incumbent = _improved(instance, objective, model, outcome, incumbent)
    stop_reason = outcome.stop_reason
    if certified and outcome.bound_ns is not None and outcome.bound_ns > dual:
        dual, certificate = outcome.bound_ns, model.name
        _expect(dual <= incumbent.value_ns, f"{certificate} proves a bound of {dual} ns", incumbent)
    elif stop_reason is StopReason.PROVEN:
        stop_reason = StopReason.FINISHED
    details = {"model": model.name, "horizon_batches": horizon, "horizon_certified": certified}
    return _result(instance, objective, incumbent, dual, certificate, stop_reason, limits, details)


def _expect(condition: bool, claim: str, incumbent: Incumbent) -> None:
    """Two numbers that must agree do not: say so instead of reporting either."""
    if not condition:
        raise InternalError(f"{claim}, the referee at {incumbent.value_ns} ns; please report this instance")


def best_incumbent(
    instance: Instance, objective: Objective, candidates: Iterable[tuple[str, Schedule]]
) -> Incumbent:
    """Best of the named schedules that the referee accepts."""
    accepted = [
        Incumbent(
            schedule=schedule, value_ns=measure(instance, schedule).objective_ns(objective), found_by=name
        )
        for name, schedule in candidates
        if not find_violations(instance, schedule)
    ]
    return min(accepted, key=lambda candidate: candidate.value_ns)


def _build(instance: Instance, objective: Objective, num_batches: int) -> ExactModel:
    kind = StartModel if instance.switches.run_to_completion else BatchModel
    return kind(instance, objective, num_batches)


def _horizon(instance: Instance, objective: Objective, incumbent: Incumbent) -> tuple[int | None, bool]:
    """Batches to model, and whether they are proven to be enough; None if even the incumbent is too long."""
    affordable = MOST_CELLS // len(instance.requests)
    needed = certified_horizon(instance, objective, incumbent.value_ns)
    if needed is not None and needed <= affordable:
        return max(needed, incumbent.schedule.num_batches), True
    if incumbent.schedule.num_batches > affordable:
        return None, False
    return min(affordable, incumbent.schedule.num_batches * 5 // 4), False


def _improved(
    instance: Instance,
    objective: Objective,
    model: ExactModel,
    outcome: SearchOutcome,
    incumbent: Incumbent,
) -> Incumbent:
    """Better of the incumbent and the solution of the model, timed and judged from its decisions alone."""
    if outcome.decisions is None:
        return incumbent
    schedule = schedule_asap(instance, *outcome.decisions)
    found = best_incumbent(
        instance, objective, [(incumbent.found_by, incumbent.schedule), (model.name, schedule)]
    )
    return incumbent if found.value_ns == incumbent.value_ns else found


def _result(
    instance: Instance,
    objective: Objective,
    incumbent: Incumbent,
    dual_ns: int,
    certificate: str,
    stop_reason: StopReason,
    limits: SearchLimits,
    details: dict[str, str | int],
) -> Result:
    proven = dual_ns == incumbent.value_ns
    parameters = {
        "time_limit_s": limits.time_limit_s,
        "num_workers": limits.num_workers,
        "seed": limits.seed,
    }
    return Result(
        instance=instance,
        objective=objective,
        schedule=incumbent.schedule,
        primal_ns=incumbent.value_ns,
        dual_ns=dual_ns,
        status=Status.OPTIMAL if proven else Status.FEASIBLE,
        stop_reason=StopReason.PROVEN if proven else stop_reason,
        found_by=incumbent.found_by,
        certificate=certificate,
        provenance={"versions": tool_versions(), "parameters": parameters, **details},
    )
