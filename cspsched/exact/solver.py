"""Solves an instance exactly: incumbent, certified horizon, model, search, and a result with its proof."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace

from cspsched.bounds import best_bound
from cspsched.errors import InternalError
from cspsched.exact.batch_model import BatchModel
from cspsched.exact.horizon import certified_horizon
from cspsched.exact.list_schedule import list_schedules
from cspsched.exact.model import Decisions, ExactModel
from cspsched.exact.search import (
    Progress,
    SearchLimits,
    Watch,
    add_hint,
    complete_hint,
    search,
)
from cspsched.exact.start_model import StartModel
from cspsched.exact.state_search import STATE_SEARCH, search_states
from cspsched.exact.state_space import build_state_space
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
    watch = Watch(limits, incumbent.value_ns, bound.value_ns, on_progress)
    proof = Proof(dual_ns=bound.value_ns, certificate=bound.name, stop_reason=StopReason.PROVEN)
    try:
        watch.tell()
        for member in (_search_states, _search_model):
            if proof.dual_ns < incumbent.value_ns and not proof.is_final:
                incumbent, proof = member(instance, objective, limits, incumbent, proof, watch)
    except KeyboardInterrupt:
        proof = replace(proof, stop_reason=StopReason.INTERRUPTED)
    return _result(instance, objective, incumbent, proof, limits)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Lower bound, the name of its certificate, why the search for it stopped, and on which model."""

    dual_ns: int
    certificate: str
    stop_reason: StopReason
    is_final: bool = False
    """No further search: what remains of the gap is rounding, or the user asked to stop."""
    model: Mapping[str, str | int | bool] = field(default_factory=dict)


def _search_states(
    instance: Instance,
    objective: Objective,
    limits: SearchLimits,
    incumbent: Incumbent,
    proof: Proof,
    watch: Watch,
) -> tuple[Incumbent, Proof]:
    """Find a better incumbent and bound by the state search, where it is exact, in half of the time.

    Run-to-completion instances are left to the model of start variables, which proves them sooner.
    """
    if instance.switches.run_to_completion or limits.time_limit_s <= 0:
        return incumbent, proof
    space = build_state_space(instance, objective, incumbent.value_ns)
    if space is None:
        return incumbent, proof
    deadline = watch.remaining_s / 2
    outcome = search_states(
        space,
        incumbent.value_ns,
        lambda: watch.remaining_s - deadline,
        lambda bound_ns: watch.tell(bound_ns=bound_ns),
    )
    incumbent = _improved(instance, objective, STATE_SEARCH, outcome.decisions, incumbent)
    watch.tell(best_ns=incumbent.value_ns)
    details: dict[str, str | int | bool] = {"name": STATE_SEARCH, "states": outcome.num_states}
    if outcome.bound_ns > proof.dual_ns:
        proof = replace(proof, dual_ns=outcome.bound_ns, certificate=STATE_SEARCH, model=details)
        _expect(proof.dual_ns <= incumbent.value_ns, f"{STATE_SEARCH} proves {proof.dual_ns} ns", incumbent)
    is_final = outcome.stop_reason in (StopReason.ROUNDING, StopReason.INTERRUPTED)
    return incumbent, replace(proof, stop_reason=outcome.stop_reason, is_final=is_final)


def _search_model(
    instance: Instance,
    objective: Objective,
    limits: SearchLimits,
    incumbent: Incumbent,
    proof: Proof,
    watch: Watch,
) -> tuple[Incumbent, Proof]:
    """Find a better incumbent and bound by CP-SAT, as far as the model is affordable and the time goes."""
    horizon, certified = _horizon(instance, objective, incumbent)
    if horizon is None:
        return incumbent, replace(proof, stop_reason=StopReason.TOO_LARGE)
    model = _build(instance, objective, horizon)
    details: dict[str, str | int | bool] = {
        "name": model.name,
        "horizon_batches": horizon,
        "horizon_certified": certified,
    }
    if model.worst_sum >= WORST_SUM:
        return incumbent, replace(proof, stop_reason=StopReason.TOO_LARGE, model=details)
    model.bound_objective(proof.dual_ns, incumbent.value_ns)
    hint = complete_hint(model, incumbent.schedule, watch.remaining_s / 2)
    if hint is not None:
        value, values = hint
        _expect(
            value == incumbent.value_ns, f"the model prices {incumbent.found_by} at {value} ns", incumbent
        )
        add_hint(model, values)
    outcome = search(model, limits, watch)
    incumbent = _improved(instance, objective, model.name, outcome.decisions, incumbent)
    proof = replace(proof, stop_reason=outcome.stop_reason, model=details)
    if certified and outcome.bound_ns is not None and outcome.bound_ns > proof.dual_ns:
        proof = replace(proof, dual_ns=outcome.bound_ns, certificate=model.name)
        _expect(proof.dual_ns <= incumbent.value_ns, f"{model.name} proves {proof.dual_ns} ns", incumbent)
    elif outcome.stop_reason is StopReason.PROVEN and not certified:
        proof = replace(proof, stop_reason=StopReason.FINISHED)
    return incumbent, proof


def _expect(condition: bool, claim: str, incumbent: Incumbent) -> None:  # noqa: FBT001 - reads as assert
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
    if incumbent.schedule.num_batches > affordable:
        return None, False
    needed = certified_horizon(instance, objective, incumbent.value_ns)
    if needed <= affordable:
        return max(needed, incumbent.schedule.num_batches), True
    return min(affordable, incumbent.schedule.num_batches * 5 // 4), False


def _improved(
    instance: Instance,
    objective: Objective,
    name: str,
    decisions: Decisions | None,
    incumbent: Incumbent,
) -> Incumbent:
    """Better of the incumbent and what a search decided, timed and judged from its decisions alone."""
    if decisions is None:
        return incumbent
    schedule = schedule_asap(instance, *decisions)
    found = best_incumbent(instance, objective, [(incumbent.found_by, incumbent.schedule), (name, schedule)])
    return incumbent if found.value_ns == incumbent.value_ns else found


def _result(
    instance: Instance, objective: Objective, incumbent: Incumbent, proof: Proof, limits: SearchLimits
) -> Result:
    proven = proof.dual_ns == incumbent.value_ns
    return Result(
        instance=instance,
        objective=objective,
        schedule=incumbent.schedule,
        primal_ns=incumbent.value_ns,
        dual_ns=proof.dual_ns,
        status=Status.OPTIMAL if proven else Status.FEASIBLE,
        stop_reason=StopReason.PROVEN if proven else proof.stop_reason,
        found_by=incumbent.found_by,
        certificate=proof.certificate,
        provenance={
            "versions": tool_versions(),
            "parameters": asdict(limits),
            "model": dict(proof.model),
        },
    )
