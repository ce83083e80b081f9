"""The members of the portfolio: each searches in its own way, and tells the common record what it finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from cspsched.errors import InternalError
from cspsched.exact.heuristics.local_search import LOCAL_SEARCH, SLICE, improve
from cspsched.exact.model.batch_counts import BATCH_COUNTS, CountSearch, CountTalk
from cspsched.exact.model.batch_model import BatchModel
from cspsched.exact.model.exact_model import Ceiling, ExactModel
from cspsched.exact.model.horizon import certified_horizon
from cspsched.exact.model.start_model import StartModel
from cspsched.exact.packing.search import PACKING_SEARCH, compile_packing, search_packing
from cspsched.exact.packing.space import PackingSpace
from cspsched.exact.prices.aggregated_bound import LEVEL_WALKS, STEP_S, bound_levels
from cspsched.exact.record import Details, Ending, Incumbent, Record
from cspsched.exact.search import SearchLimits, add_hint, complete_hint, search
from cspsched.exact.states.search import (
    STATE_SEARCH,
    StateOutcome,
    Talk,
    compile_states,
    descend_patiently,
    search_states,
)
from cspsched.exact.states.space import StateSpace
from cspsched.exact.timed.search import TIMED_SEARCH, TimedSearch, TimedSpace, TimedTalk
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import AnyObjective, Objective
from cspsched.problem.result import StopReason, most_rounding_ns

MOST_CELLS = 30_000
"""Requests times batches beyond which no model is built."""
CELL_S = 2e-7
"""What a request in a batch of a plan takes on a typical machine; a deterministic clock runs by it."""
MODEL = "CP-SAT"
"""Name of the model before it is chosen."""
FIRST_CELLS, CELLS_PER_S = 2_000, 500
"""The same for a short time limit, and more for each second of it: building takes time too."""


def prepare_states(space: StateSpace | PackingSpace) -> None:
    """Compile the search of the states before it runs beside others, which wait for it only so long."""
    if isinstance(space, PackingSpace):
        compile_packing(space)
    else:
        compile_states(space)


def name_of(space: StateSpace | PackingSpace) -> str:
    """Name of the search of such states."""
    return PACKING_SEARCH if isinstance(space, PackingSpace) else STATE_SEARCH


def run_states(record: Record, space: StateSpace | PackingSpace, share: float = 1.0) -> Ending:
    """Search the states, in a share of the time that is left. Returns why it stopped."""
    if isinstance(space, PackingSpace):
        return _told(PACKING_SEARCH, search_packing(space, _talk(record, PACKING_SEARCH, share)))
    return _told(STATE_SEARCH, search_states(space, _talk(record, STATE_SEARCH, share)))


def run_descents(record: Record, space: StateSpace) -> Ending:
    """Look for better schedules among the states, beside the search that proves. Returns why it stopped."""
    return _told(STATE_SEARCH, descend_patiently(space, _talk(record, STATE_SEARCH, 1.0)))


def _told(name: str, outcome: StateOutcome) -> Ending:
    return outcome.stop_reason, {"name": name, "states": outcome.num_states}


def _talk(record: Record, name: str, share: float) -> Talk:
    """What a state search of some name hears of the record, and where it tells what it finds."""
    watch = record.watch

    def tell_bound(bound_ns: int) -> None:
        record.raise_bound(name, bound_ns, {"name": name})

    return Talk(
        time_left=_time_left(record, share),
        upper_ns=lambda: watch.best_ns,
        tell_bound=tell_bound,
        tell_schedule=lambda decisions: record.offer(name, decisions),
        spend=watch.spend,
    )


def run_timed(record: Record, space: TimedSpace, share: float = 1.0) -> Ending:
    """Search the timed states, in a share of the time that is left. Returns why it stopped."""
    talk = TimedTalk(
        time_left=_time_left(record, share),
        upper=lambda: record.watch.best_ns,
        tell_bound=lambda bound: record.raise_bound(TIMED_SEARCH, bound, {"name": TIMED_SEARCH}),
        tell_schedule=lambda schedule: record.offer_schedule(TIMED_SEARCH, schedule),
        spend=record.watch.spend,
    )
    search = TimedSearch(space, talk)
    return search.prove(), {"name": TIMED_SEARCH, "states": search.num_states}


def run_levels(record: Record, share: float = 1.0) -> Ending:
    """Raise the bound by prices of ways through levels, in a share of the time that is left."""
    details = {"name": LEVEL_WALKS}
    time_left = _time_left(record, share)

    def go_on(bound_ns: int, steps: int) -> bool:
        record.watch.spend(steps * STEP_S)
        record.raise_bound(LEVEL_WALKS, bound_ns, details)
        return time_left() > 0

    record.raise_bound(LEVEL_WALKS, bound_levels(record.instance, go_on), details)
    return StopReason.TIME_LIMIT, details


def run_counts(record: Record, share: float) -> Ending:
    """Ask how many batches are enough, in a share of the time that is left. Returns why it stopped.

    If counts tell no more and the gap is still open, what is left of it may be the rounding of batch times.
    """
    talk = CountTalk(
        watch=record.watch,
        time_left=_time_left(record, share),
        tell_bound=lambda bound_ns: record.raise_bound(BATCH_COUNTS, bound_ns, {"name": BATCH_COUNTS}),
        tell_schedule=lambda decisions: record.offer(BATCH_COUNTS, decisions),
    )
    search = CountSearch(record.instance, talk)
    is_settled = search.run()
    incumbent = record.incumbent
    rounding_ns = most_rounding_ns(record.instance, record.objective, incumbent.schedule)
    is_rounding = is_settled and incumbent.value_ns - record.proof.dual_ns <= rounding_ns
    reason = StopReason.ROUNDING if is_rounding else StopReason.TIME_LIMIT
    return reason, {"name": BATCH_COUNTS, "questions": search.num_questions}


def _time_left(record: Record, share: float) -> Callable[[], float]:
    """Clock of a member that has a share of the time; it is at 0 when there is nothing left to do."""
    watch = record.watch
    deadline = watch.remaining_s * (1 - share)
    return lambda: 0.0 if watch.is_over else watch.remaining_s - deadline


def run_local_search(record: Record, limits: SearchLimits, share: float = 1.0) -> Ending:
    """Anneal plans of a parametric scheduler in a share of the time; finds schedules and proves nothing."""
    cells = len(record.instance.requests) * record.incumbent.schedule.num_batches
    time_left = _time_left(record, share)

    def next_slice() -> float:
        record.watch.spend(SLICE * cells * CELL_S)
        return time_left()

    for decisions in improve(record.instance, record.objective, limits.seed, next_slice):
        record.offer(LOCAL_SEARCH, decisions)
    return StopReason.TIME_LIMIT, {}


def run_model(record: Record, limits: SearchLimits) -> Ending:
    """Search with CP-SAT, as far as the model is affordable and the time goes. Returns why it stopped.

    Others may find better schedules meanwhile: horizon, limit and hint are those of one reading.
    """
    watch, incumbent = record.watch, record.incumbent
    horizon, certified = _horizon(record, incumbent, limits)
    if horizon is None:
        return StopReason.TOO_LARGE, {}
    model = build_model(record.instance, record.objective, horizon, record.ceilings)
    details: Details = {"name": model.name, "horizon_batches": horizon, "horizon_certified": certified}
    if not model.fits:
        return StopReason.TOO_LARGE, details
    model.bound_objective(record.proof.dual_ns, incumbent.value_ns)
    _hint_incumbent(record, incumbent, model, limits)
    outcome = search(model, limits, watch, count_bound=certified)
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
    """Model of start variables where it knows the objective and everybody runs to completion.

    Everything else is for the batch-indexed one.
    """
    if instance.switches.run_to_completion and isinstance(objective, Objective) and not ceilings:
        return StartModel(instance, objective, num_batches)
    return BatchModel(instance, objective, num_batches, ceilings)


def beside(limits: SearchLimits) -> SearchLimits:
    """What is left for CP-SAT while the state search has a thread of its own."""
    return replace(limits, num_workers=max(1, limits.num_workers - 1))


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
