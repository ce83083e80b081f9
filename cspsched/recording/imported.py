"""A recorded log as a schedule that is judged and compared like any policy's.

The engine's decisions are kept: who is processed in which batch, in which order, who is preempted. The
durations are the cost model's, for a schedule is only comparable with an optimum under the same prices; what
the engine measured is kept beside it, in the provenance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np

from cspsched.errors import InputError, UsageError
from cspsched.problem.cost import CostModel
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import Objective
from cspsched.problem.request import Request
from cspsched.problem.result import Result, Status, StopReason, tool_versions
from cspsched.problem.schedule import Schedule
from cspsched.recording.decisions import Decisions
from cspsched.recording.engines import cost_of, engine_of, limits_of, switches_of
from cspsched.recording.log import Recording
from cspsched.referee.history import follow
from cspsched.referee.metrics import Metrics, measure
from cspsched.referee.rules import find_violations
from cspsched.units import ns_to_seconds

NO_PREFIXES = (
    "; give a trace that says which prompts share a prefix (prefix_id, prefix_tokens), or record the engine "
    "with prefix caching off"
)


class Times(StrEnum):
    """When an imported batch starts; it always lasts as long as the cost model says."""

    MODEL = "model"
    """As early as its requests and the batch before allow."""
    RECORDED = "recorded"
    """And not before the engine started it: pauses between batches stay."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ImportedSchedule:
    """What came of a log.

    Attributes
    ----------
    result
        Instance and schedule of the requests that finished.
    metrics
        What the schedule is worth.
    notes
        What was left out or is not as asked for, a sentence each.
    """

    result: Result
    metrics: Metrics
    notes: tuple[str, ...]


def import_recording(
    recording: Recording,
    requests: tuple[Request, ...],
    config: Mapping[str, Any],
    *,
    cost: CostModel | None = None,
    times: Times = Times.MODEL,
    objective: Objective = Objective.MAKESPAN,
    where: str = "log",
) -> ImportedSchedule:
    """Schedule of a log, priced by a cost model.

    Requests that never finished are left out, with what was processed of them. The output length of the
    others is what the engine generated, whatever the trace asked for.

    Parameters
    ----------
    requests
        Arrivals and prompt lengths, on the clock of the log.
    config
        The engine's configuration, by its own names.
    cost
        Prices the batches; default: the configuration's own, as recordings on a virtual clock have.
    where
        Name of the log, for messages.

    Raises
    ------
    InputError
        If the log names an unknown request, contradicts itself or the rules of the problem, or no request
        finished.
    UsageError
        If there is no cost model.
    """
    cost = cost or cost_of(config, where)
    if cost is None:
        raise UsageError(f"{where}: the log holds measured times; name a cost model to price its batches")
    limits = limits_of(engine_of(recording.source, config), config, where)
    served, notes = _served(recording, requests, where)
    instance = Instance(requests=served, limits=limits, cost=cost, switches=switches_of(config))
    rejections = instance.split_rejected()[1]
    if rejections:
        raise InputError(
            f"{where}: {rejections[0].reason}, yet the log serves it; is it the right configuration?"
        )
    decisions = _decisions(recording, instance, where)
    first_ns = min(request.arrival_ns for request in served)
    schedule = _timed(instance, decisions, first_ns, times)
    instance = replace(instance, requests=_rebased(served, first_ns))
    schedule = replace(schedule, start_ns=schedule.start_ns - first_ns, end_ns=schedule.end_ns - first_ns)
    violations = find_violations(instance, schedule)
    if violations:
        hint = NO_PREFIXES if violations[0].rule == "prefix cache" else ""
        raise InputError(f"{where}: the log breaks a rule of the problem: {violations[0].message}{hint}")
    metrics = measure(instance, schedule)
    result = Result(
        instance=instance,
        objective=objective,
        schedule=schedule,
        primal_ns=metrics.objective_ns(objective),
        dual_ns=None,
        status=Status.FEASIBLE,
        stop_reason=StopReason.FINISHED,
        found_by=recording.source or "recorded",
        provenance={
            "versions": tool_versions(),
            "recorded": _provenance(recording, decisions, first_ns, times),
        },
    )
    notes += _more_notes(decisions, schedule, first_ns)
    return ImportedSchedule(result=result, metrics=metrics, notes=tuple(notes))


def _served(
    recording: Recording, requests: tuple[Request, ...], where: str
) -> tuple[tuple[Request, ...], list[str]]:
    """Requests that finished, each with the output that it got, and what to tell about the others."""
    emitted = Counter(name for iteration in recording.iterations for name in iteration.emitted)
    finished = {name for iteration in recording.iterations for name in iteration.finished}
    scheduled = {entry.name for iteration in recording.iterations for entry in iteration.scheduled}
    known = {request.request_id for request in requests}
    unknown = sorted(scheduled - known)
    if unknown:
        raise InputError(
            f"{where}: schedules request {unknown[0]!r}, which the trace does not have "
            f"({len(unknown)} such); is it the right trace?"
        )
    served = [request for request in requests if request.request_id in finished]
    if not served:
        raise InputError(f"{where}: none of the {len(requests)} requests finishes in this log")
    given = tuple(request.generating(emitted[request.request_id]) for request in served)
    other = sum(new.output_tokens != old.output_tokens for new, old in zip(given, served, strict=True))
    notes = []
    if len(served) < len(requests):
        missing = len(requests) - len(served)
        notes.append(f"{missing} of {len(requests)} requests never finish and are left out")
    if other:
        notes.append(f"{other} requests got another number of output tokens than asked for; the log's counts")
    return given, notes


def _decisions(recording: Recording, instance: Instance, where: str) -> Decisions:
    positions = {request.request_id: i for i, request in enumerate(instance.requests)}
    decisions = Decisions(positions, where)
    for iteration in recording.iterations:
        decisions.add(iteration)
    return decisions


def _timed(instance: Instance, decisions: Decisions, first_ns: int, times: Times) -> Schedule:
    """Times by rule 7, from the first arrival on."""
    schedule = decisions.untimed()
    history = follow(instance, schedule)
    durations = instance.cost.batch_times_ns(history.features).tolist()
    swaps = [instance.cost.swap_time_ns(blocks) for blocks in history.moved_blocks.tolist()]
    arrivals = [request.arrival_ns for request in instance.requests]
    batches = np.split(schedule.request, schedule.first_entry[1:-1])
    clock, starts, ends = first_ns, [], []
    for j, batch in enumerate(batches):
        start = max([clock + swaps[j], *(arrivals[i] for i in batch.tolist())])
        if times is Times.RECORDED:
            start = max(start, decisions.recorded_start_ns[j] + swaps[j])
        clock = start + durations[j]
        starts.append(start)
        ends.append(clock)
    return replace(schedule, start_ns=np.array(starts), end_ns=np.array(ends))


def _rebased(requests: Iterable[Request], first_ns: int) -> tuple[Request, ...]:
    return tuple(replace(request, arrival_ns=request.arrival_ns - first_ns) for request in requests)


def _provenance(recording: Recording, decisions: Decisions, first_ns: int, times: Times) -> dict[str, Any]:
    return {
        "source": recording.source,
        "sha256": recording.sha256,
        "times": times.value,
        "start_ns": [start - first_ns for start in decisions.recorded_start_ns],
        "end_ns": [end - first_ns for end in decisions.recorded_end_ns],
    }


def _more_notes(decisions: Decisions, schedule: Schedule, first_ns: int) -> list[str]:
    measured_ns = decisions.recorded_end_ns[-1] - first_ns
    notes = [
        f"makespan {ns_to_seconds(int(schedule.end_ns[-1])):.6g} s by the cost model, "
        f"{ns_to_seconds(measured_ns):.6g} s as recorded"
    ]
    if decisions.num_wasted_tokens:
        wasted = decisions.num_wasted_tokens
        notes.append(f"{wasted} tokens that the engine processed for finished requests are left out")
    if schedule.uses_prefix_cache:
        notes.append("it uses the prefix cache, so 'compare' measures it against the best schedule with hits")
    return notes
