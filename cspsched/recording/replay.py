"""A recorded case replayed: our policy on the same requests, compared iteration by iteration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import zip_longest
from typing import Any, NamedTuple

from cspsched.errors import InputError, UsageError
from cspsched.problem.cost import CostModel
from cspsched.problem.instance import Instance
from cspsched.recording.cases import RecordedCase
from cspsched.recording.engines import NotSimulatedError
from cspsched.recording.log import Entry, Iteration, Recording, hash_of
from cspsched.recording.setup import Setup, make_setup
from cspsched.simulate import PolicyError, Simulation
from cspsched.simulate.kernel import Engine, simulate
from cspsched.units import ns_to_seconds

ROUNDINGS_PER_BATCH = 4
"""Terms of the recorded cost that are rounded up to a nanosecond, where they are no whole numbers."""


class Verdict(StrEnum):
    """What came of a replay."""

    EQUAL = "equal"
    DIFFERS = "differs"
    NOT_SIMULATED = "not simulated"
    UNREADABLE = "unreadable"


class Row(NamedTuple):
    """What is compared of an iteration. Times in nanoseconds."""

    sched: tuple[Entry, ...]
    preempted: tuple[str, ...]
    kv_used: int
    waiting: int
    start_ns: int
    end_ns: int

    def to_json(self) -> dict[str, Any]:
        """Plain values, times in seconds."""
        return {
            "sched": [list(entry) for entry in self.sched],
            "preempted": list(self.preempted),
            "kv_used": self.kv_used,
            "waiting": self.waiting,
            "start_s": ns_to_seconds(self.start_ns),
            "end_s": ns_to_seconds(self.end_ns),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first iteration in which recording and simulation part; None is a side that has ended."""

    iteration: int
    recorded: Row | None
    simulated: Row | None

    @property
    def fields(self) -> list[str]:
        """Names of what differs."""
        if self.recorded is None or self.simulated is None:
            return ["end"]
        pairs = zip(Row._fields, self.recorded, self.simulated, strict=True)
        return [name for name, recorded, simulated in pairs if recorded != simulated]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Verdict on a case.

    Attributes
    ----------
    policy
        Label of the policy that was simulated.
    num_iterations
        Iterations of the recording.
    sha256, recorded_sha256
        Hashes of the canonical lines of the simulation and of the recording.
    reason
        Why it is not equal, where no iteration shows it.
    """

    case: str
    verdict: Verdict
    source: str = ""
    policy: str | None = None
    num_iterations: int | None = None
    sha256: str | None = None
    recorded_sha256: str | None = None
    reason: str | None = None
    difference: Difference | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        difference = self.difference
        return {
            "case": self.case,
            "verdict": self.verdict.value,
            "source": self.source,
            "policy": self.policy,
            "num_iterations": self.num_iterations,
            "sha256": self.sha256,
            "recorded_sha256": self.recorded_sha256,
            "reason": self.reason,
            "difference": None
            if difference is None
            else {
                "iteration": difference.iteration,
                "fields": difference.fields,
                "recorded": difference.recorded and difference.recorded.to_json(),
                "simulated": difference.simulated and difference.simulated.to_json(),
            },
            "notes": list(self.notes),
        }


def replay_case(case: RecordedCase, engine: Engine = Engine.PLAIN) -> Replay:
    """Read a case, simulate it, compare: tokens, order, preemptions, KV blocks, queue, times.

    What keeps a case from being replayed becomes its verdict, so that one bad case does not stop the others.

    Parameters
    ----------
    engine
        Which one simulates. The kernel leaves alone what it has no rules for: not simulated.
    """
    try:
        recording = case.read_recording()
        _require_manifest_hash(case, recording)
        config, requests = case.read_config(recording), case.read_requests(recording)
        source = recording.source or str(case.entry.get("source", ""))
        setup = make_setup(recording, source, config, requests, str(case.config or case.log))
    except NotSimulatedError as error:
        return Replay(case=case.name, verdict=Verdict.NOT_SIMULATED, reason=str(error))
    except InputError as error:
        return Replay(case=case.name, verdict=Verdict.UNREADABLE, reason=str(error))
    return _replayed(case.name, source, recording, setup, engine)


def _require_manifest_hash(case: RecordedCase, recording: Recording) -> None:
    """The log is the one that the manifest means."""
    stated = case.entry.get("schedule_sha256")
    if stated is not None and stated != recording.sha256:
        raise InputError(
            f"{case.log}: its schedule hashes to {recording.sha256}, the manifest says {stated}; "
            "copy the case again"
        )


def _replayed(name: str, source: str, recording: Recording, setup: Setup, engine: Engine) -> Replay:
    facts: dict[str, Any] = {
        "case": name,
        "source": source,
        "policy": setup.policy.label,
        "num_iterations": len(recording.iterations),
        "recorded_sha256": recording.sha256,
        "notes": setup.notes,
    }
    try:
        simulation = simulate(setup.instance, setup.policy, engine)
    except PolicyError as error:
        return Replay(verdict=Verdict.DIFFERS, reason=f"the simulation stops: {error}", **facts)
    except UsageError as error:
        return Replay(verdict=Verdict.NOT_SIMULATED, reason=str(error), **facts)
    ours = list(simulated_rows(setup.instance, simulation))
    theirs = _recorded_rows(recording, setup.instance.cost)
    if not recording.is_complete:
        ours = ours[: len(theirs)]
        facts["notes"] = (*setup.notes, "the log is not complete, only what it has is compared")
    digest = hash_of((row.sched, row.preempted) for row in ours)
    tolerance_ns = 0 if _is_whole(setup.instance.cost) else ROUNDINGS_PER_BATCH
    difference = _first_difference(theirs, ours, tolerance_ns)
    verdict = Verdict.EQUAL if difference is None else Verdict.DIFFERS
    return Replay(verdict=verdict, sha256=digest, difference=difference, **facts)


def simulated_rows(instance: Instance, simulation: Simulation) -> Iterator[Row]:
    """What a simulation did, in the words of a recording."""
    schedule = simulation.schedule
    names = [request.request_id for request in instance.requests]
    before = schedule.kv_tokens - schedule.tokens
    preempted: dict[int, list[str]] = {}
    for j, i in simulation.preempted:
        preempted.setdefault(j, []).append(names[i])
    for j in range(schedule.num_batches):
        entries = slice(int(schedule.first_entry[j]), int(schedule.first_entry[j + 1]))
        columns = (schedule.request[entries], schedule.tokens[entries], before[entries])
        rows = zip(*(column.tolist() for column in columns), strict=True)
        yield Row(
            sched=tuple(Entry(names[i], tokens, kv) for i, tokens, kv in rows),
            preempted=tuple(preempted.get(j, ())),
            kv_used=int(simulation.held_blocks[j]),
            waiting=int(simulation.num_waiting[j]),
            start_ns=int(schedule.start_ns[j]),
            end_ns=int(schedule.end_ns[j]),
        )


def _recorded_rows(recording: Recording, cost: CostModel) -> list[Row]:
    """Iterations with a batch; what an empty one preempted counts for the next, as in a schedule."""
    rows = []
    carried: tuple[str, ...] = ()
    for iteration in recording.iterations:
        carried += iteration.preempted
        if iteration.scheduled:
            rows.append(_recorded_row(iteration, carried, cost))
            carried = ()
    return rows


def _recorded_row(iteration: Iteration, preempted: tuple[str, ...], cost: CostModel) -> Row:
    return Row(
        sched=iteration.scheduled,
        preempted=preempted,
        kv_used=iteration.kv_used,
        waiting=iteration.waiting,
        # A recording counts the time of moved KV blocks to the batch, a schedule to the boundary before it.
        start_ns=iteration.start_ns + cost.swap_time_ns(iteration.moved_blocks),
        end_ns=iteration.end_ns,
    )


def _first_difference(
    recorded: Sequence[Row], simulated: Sequence[Row], tolerance_ns: int
) -> Difference | None:
    for j, (theirs, ours) in enumerate(zip_longest(recorded, simulated)):
        if theirs is None or ours is None or not _agree(theirs, ours, tolerance_ns * (j + 1)):
            return Difference(iteration=j, recorded=theirs, simulated=ours)
    return None


def _agree(theirs: Row, ours: Row, tolerance_ns: int) -> bool:
    late = max(abs(theirs.start_ns - ours.start_ns), abs(theirs.end_ns - ours.end_ns))
    return theirs[:-2] == ours[:-2] and late <= tolerance_ns


def _is_whole(cost: CostModel) -> bool:
    """Whether a recorded cost is in whole nanoseconds, so that nothing is rounded."""
    slopes = (*cost.tokens.slopes, *cost.decode_context.slopes, cost.step, cost.swap_block)
    return all(slope.denominator == 1 for slope in slopes)
