"""CP-SAT as a member of the portfolio: chooses a model, builds it as far as it is affordable, searches it."""

from __future__ import annotations

from collections.abc import Sequence

from cspsched.errors import InternalError
from cspsched.exact.members import Clock
from cspsched.exact.model.batch_model import BatchModel
from cspsched.exact.model.exact_model import Ceiling, ExactModel
from cspsched.exact.model.horizon import certified_horizon
from cspsched.exact.model.start_model import StartModel
from cspsched.exact.record import Details, Ending, Incumbent, Record
from cspsched.exact.search import add_hint, complete_hint, search
from cspsched.exact.watch import SearchLimits
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import AnyObjective, Objective
from cspsched.problem.result import StopReason

MODEL = "CP-SAT"
"""Name of the model before it is chosen."""
MOST_CELLS = 30_000
"""Requests times batches beyond which no model is built."""
FIRST_CELLS, CELLS_PER_S = 2_000, 500
"""The same for a short time limit, and more for each second of it: building takes time too."""


class ModelMember:
    """Searches a model of the instance with CP-SAT, whatever the objective and the switches."""

    name = MODEL

    def applies(self, record: Record) -> bool:
        """Any instance has a model."""
        return True

    def run(self, record: Record, clock: Clock) -> Ending:
        """Search with CP-SAT, as far as the model is affordable and the time goes.

        Others may find better schedules meanwhile: horizon, limit and hint are those of one reading.
        """
        watch, incumbent = record.watch, record.incumbent
        horizon, certified = _horizon(record, incumbent, clock.limits)
        if horizon is None:
            return StopReason.TOO_LARGE, {}
        model = build_model(record.instance, record.objective, horizon, record.ceilings)
        details: Details = {"name": model.name, "horizon_batches": horizon, "horizon_certified": certified}
        if not model.fits:
            return StopReason.TOO_LARGE, details
        model.bound_objective(record.proof.dual_ns, incumbent.value_ns)
        _hint_incumbent(record, incumbent, model, clock.limits)
        outcome = search(model, clock.limits, watch, count_bound=certified)
        if outcome.schedule is not None:
            record.offer_schedule(model.name, outcome.schedule)
        if certified:
            record.raise_bound(model.name, outcome.bound_ns, details)
        elif outcome.stop_reason is StopReason.PROVEN:
            return StopReason.FINISHED, details
        return outcome.stop_reason, details


def _hint_incumbent(record: Record, incumbent: Incumbent, model: ExactModel, limits: SearchLimits) -> None:
    """Hint every variable with a schedule, whose price in the model must be the referee's.

    Raises
    ------
    InternalError
        If it is another one. Lower is fine where idle time pays: the model chooses the times anew.
    """
    hint = complete_hint(
        model, incumbent.schedule, record.watch.remaining_s / 2, deterministic=limits.deterministic
    )
    if hint is None:
        return
    value, values = hint
    if value < incumbent.value_ns and not model.is_regular:
        record.offer_schedule(incumbent.found_by, model.schedule(lambda variable: values[variable.index]))
    elif value != incumbent.value_ns:
        raise InternalError(
            f"the model prices {incumbent.found_by} at {value} ns, the referee at "
            f"{incumbent.value_ns} ns; please report this instance"
        )
    add_hint(model, values)


def build_model(
    instance: Instance, objective: AnyObjective, num_batches: int, ceilings: Sequence[Ceiling] = ()
) -> ExactModel:
    """Model of start variables where it knows the objective and all requests run to completion.

    Everything else is for the batch-indexed one.
    """
    if instance.switches.run_to_completion and isinstance(objective, Objective) and not ceilings:
        return StartModel(instance, objective, num_batches)
    return BatchModel(instance, objective, num_batches, ceilings)


def is_affordable(record: Record, limits: SearchLimits) -> bool:
    """Whether at least the incumbent fits into a model."""
    return record.incumbent.schedule.num_batches <= _most_batches(record, limits)


def _most_batches(record: Record, limits: SearchLimits) -> int:
    cells = min(MOST_CELLS, FIRST_CELLS + int(CELLS_PER_S * limits.time_limit_s))
    return cells // len(record.instance.requests)


def _horizon(record: Record, incumbent: Incumbent, limits: SearchLimits) -> tuple[int | None, bool]:
    """Batches to model, and whether they are proven to be enough; None if even the incumbent is too long."""
    affordable, own = _most_batches(record, limits), incumbent.schedule.num_batches
    if own > affordable:
        return None, False
    needed = certified_horizon(record.instance, record.objective, incumbent.value_ns, record.ceilings)
    if needed <= affordable:
        return max(needed, own), True
    return min(affordable, own * 5 // 4), False
