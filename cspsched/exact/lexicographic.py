"""Objectives one after the other: solve the first, fix its value, solve the next; each with its proof."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from cspsched.exact.model.exact_model import Ceiling
from cspsched.exact.solver import solve_exactly
from cspsched.exact.watch import Progress, SearchLimits
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import AnyObjective
from cspsched.problem.result import Result, Stage, Status, StopReason, status_of
from cspsched.problem.schedule import Schedule
from cspsched.referee.metrics import measure


def solve_in_order(
    instance: Instance,
    objectives: Sequence[AnyObjective],
    limits: SearchLimits,
    *,
    candidates: Iterable[tuple[str, Schedule]] = (),
    on_stage: Callable[[AnyObjective], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Result of the last objective, with the earlier ones at most at the best values found for them.

    Every stage gets an equal share of the time that is left. The bound of a stage holds for all schedules
    that keep to the values found before; the result is optimal if every stage is.

    Parameters
    ----------
    on_stage
        Told which objective is being solved.
    """
    known, results, started = list(candidates), list[Result](), time.monotonic()
    for position, objective in enumerate(objectives):
        if on_stage is not None:
            on_stage(objective)
        ceilings = [Ceiling(objective=one.objective, most_ns=_value(one)) for one in results]
        result = solve_exactly(
            instance,
            objective,
            _share(limits, len(objectives), position, time.monotonic() - started, results),
            candidates=known,
            ceilings=ceilings,
            on_progress=on_progress,
        )
        results.append(result)
        if result.schedule is not None:
            known.append((result.found_by or "", result.schedule))
    return _joined(results)


def _share(
    limits: SearchLimits, num_stages: int, position: int, spent_s: float, results: Sequence[Result]
) -> SearchLimits:
    """Limits of the next stage; none is searched after Ctrl-C."""
    if results and results[-1].stop_reason is StopReason.INTERRUPTED:
        return replace(limits, time_limit_s=0.0)
    if limits.deterministic:
        return replace(limits, time_limit_s=limits.time_limit_s / num_stages)
    return replace(limits, time_limit_s=max(0.0, limits.time_limit_s - spent_s) / (num_stages - position))


def _value(result: Result) -> int:
    assert result.primal_ns is not None
    return result.primal_ns


def _joined(results: Sequence[Result]) -> Result:
    """The last result, with what is proven of the earlier stages for its schedule."""
    last = results[-1]
    assert last.schedule is not None
    metrics = measure(last.instance, last.schedule)
    # Where a stage is open a later one may have found better.
    earlier = tuple(_stage(one, metrics.objective_ns(one.objective), last.schedule) for one in results[:-1])
    reasons = [one.stop_reason for one in results if one.stop_reason is not StopReason.PROVEN]
    interrupted = StopReason.INTERRUPTED in reasons
    return replace(
        last,
        earlier=earlier,
        status=_weakest([*(stage.status for stage in earlier), last.status]),
        stop_reason=StopReason.INTERRUPTED if interrupted else [*reasons, StopReason.PROVEN][0],
        provenance=last.provenance
        | {"failures": [failure.to_json() for one in results for failure in one.failures]},
    )


def _stage(result: Result, reached_ns: int, schedule: Schedule) -> Stage:
    """What is proven of an earlier stage, for the value that the last schedule reaches in it."""
    dual_ns = result.dual_ns or 0
    interval_ns = dual_ns, reached_ns
    return Stage(
        objective=result.objective,
        primal_ns=reached_ns,
        dual_ns=dual_ns,
        certificate=result.certificate or "",
        status=status_of(result.instance, result.objective, schedule, interval_ns, result.stop_reason),
    )


def _weakest(stages: Sequence[Status]) -> Status:
    """An order is proven as far as the least proven of its stages is."""
    return max(stages, key=(Status.OPTIMAL, Status.OPTIMAL_UP_TO_ROUNDING, Status.FEASIBLE).index)
