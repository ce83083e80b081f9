"""What every policy is measured against: one procedure, whichever policies are asked about.

A fixed set of policies runs first. Where that shows the instance to be small the exact solver goes on from
them, else a search by steps, and a closed-form bound. None of this knows the policies that are asked about.
So one of them that is added changes nothing, or lowers the best known schedule for all.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cspsched.errors import InternalError, UsageError
from cspsched.exact.heuristics.list_schedule import list_schedules
from cspsched.exact.watch import SILENT, Listener, SearchLimits
from cspsched.improve.ends import lower_end
from cspsched.improve.improvement import UNKNOWN_NS, ImproveLimits, find_better
from cspsched.improve.outcome import Found
from cspsched.improve.rivals import Rival, run_reference
from cspsched.problem.excess import Excess
from cspsched.problem.failure import Failure
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import AnyObjective
from cspsched.problem.result import Status, StopReason
from cspsched.problem.schedule import Schedule
from cspsched.referee.metrics import measure

SMALL_CELLS = 1_500
"""Requests times batches up to which the exact solver is tried."""
WORK_S = 1.0
"""Work of the exact solver where no clock limits it, in its own units (docs/solve.md)."""
MOST_STEPS = 200
"""Steps of the search: its starts, and some changes of their shape (docs/brackets.md has what they bring)."""
STEP_TOKENS = 82_500_000
"""Steps times output tokens, about a CPU second; a trace with more of them gets fewer steps."""
FEWEST_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class ReferenceLimits:
    """How much goes into a reference.

    Attributes
    ----------
    time_limit_s
        Seconds for everything, policies and bound included; what they leave is for the exact solver or the
        search. None: work and steps are counted instead, and the result repeats to the byte.
    work_s
        Work of the exact solver without a clock, in its own units; 0 leaves it out.
    steps
        Most steps of the search. None: as many as `default_steps` says, or, with a clock, as time allows.
    num_workers
        Threads of the exact solver; with a clock only.
    seed
        Of the exact solver and the search.
    """

    time_limit_s: float | None = None
    work_s: float = WORK_S
    steps: int | None = None
    num_workers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.time_limit_s is None and self.num_workers != 1:
            raise UsageError(f"{self.num_workers} workers without a time limit, expected 1: threads race")

    @property
    def repeats(self) -> bool:
        """Whether nothing depends on the clock."""
        return self.time_limit_s is None

    def exact(self) -> SearchLimits:
        """Limits of the exact solver."""
        if self.time_limit_s is None:
            return SearchLimits(time_limit_s=self.work_s, num_workers=1, seed=self.seed, deterministic=True)
        return SearchLimits(time_limit_s=self.time_limit_s, num_workers=self.num_workers, seed=self.seed)

    def search(self, instance: Instance) -> ImproveLimits:
        """Limits of the search of an instance."""
        steps = default_steps(instance) if self.repeats and self.steps is None else self.steps
        return ImproveLimits(time_limit_s=self.time_limit_s, max_steps=steps, seed=self.seed)

    def after(self, seconds: float) -> ReferenceLimits:
        """What is left after some time; all of it where no clock runs."""
        if self.time_limit_s is None:
            return self
        return replace(self, time_limit_s=max(0.0, self.time_limit_s - seconds))

    def share(self, part: float) -> ReferenceLimits:
        """Limits of one of several references that are found one after another."""
        return self if self.time_limit_s is None else replace(self, time_limit_s=self.time_limit_s * part)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What is known about the optimum. Values in nanoseconds, or in what the objective counts.

    Attributes
    ----------
    failures
        Searches of the exact solver that failed and were passed over.
    schedule
        A schedule of the best known value; None where it is too long to be kept.
    """

    best_known_ns: int
    best_known_by: str
    bound_ns: int
    certificate: str
    status: Status
    stop_reason: StopReason
    failures: tuple[Failure, ...] = ()
    schedule: Schedule | None = None

    @property
    def is_optimum(self) -> bool:
        """Whether the best known schedule is proven optimal."""
        return self.best_known_ns == self.bound_ns

    def excess(self, value_ns: int) -> Excess:
        """How far a value is above the optimum."""
        return Excess.of(value_ns, best_ns=self.best_known_ns, bound_ns=self.bound_ns)

    def to_json(self, objective: AnyObjective, num_requests: int) -> dict[str, Any]:
        """Plain values without the schedule; those in seconds as people read them."""
        return {
            "status": self.status.value,
            "is_optimum": self.is_optimum,
            "best_known_s": objective.mean_s(self.best_known_ns, num_requests),
            "best_known_by": self.best_known_by,
            "bound_s": objective.mean_s(self.bound_ns, num_requests),
            "best_known_ns": self.best_known_ns,
            "bound_ns": self.bound_ns,
            "certificate": self.certificate,
            "stop_reason": self.stop_reason.value,
            "failures": [failure.to_json() for failure in self.failures],
        }


def default_steps(instance: Instance) -> int:
    """Steps of the search where neither steps nor a clock limit it."""
    tokens = int(instance.columns.output_tokens.sum())
    return max(FEWEST_STEPS, min(MOST_STEPS, STEP_TOKENS // tokens))


def find_reference(
    instance: Instance,
    objective: AnyObjective,
    policies: Sequence[Rival],
    given: Sequence[Rival] = (),
    *,
    limits: ReferenceLimits,
    listener: Listener = SILENT,
) -> Reference:
    """Best known schedule and proven bound of an instance whose requests can all be served.

    Parameters
    ----------
    policies, given
        What was asked about: runs of policies, and other schedules by name. They count where they are the
        best, and have no other influence.
    """
    started = time.monotonic()
    reference = run_reference(instance, objective, policies, listener.step)
    listener.step(f"bounding {objective.label}")
    left = limits.after(time.monotonic() - started)
    small = _is_small(instance, reference) and not instance.switches.prefix_caching
    if small and left.exact().time_limit_s > 0:
        found = _exact(instance, objective, reference, left, listener)
    else:
        why = StopReason.TIME_LIMIT if small else StopReason.TOO_LARGE
        # The exact solver proves optima without prefix cache hits only.
        why = StopReason.HITS if instance.switches.prefix_caching else why
        found = _searched(instance, objective, reference, left, why, listener)
    best = min((*policies, *given), key=lambda one: one.value_ns, default=None)
    if best is None or best.value_ns >= found.best_known_ns:
        return found
    is_proven = best.value_ns == found.bound_ns
    return replace(
        found,
        best_known_ns=best.value_ns,
        best_known_by=best.policy,
        schedule=best.schedule,
        status=Status.OPTIMAL if is_proven else Status.FEASIBLE,
        stop_reason=StopReason.PROVEN if is_proven else found.stop_reason,
    )


def _is_small(instance: Instance, reference: Sequence[Rival]) -> bool:
    """Whether the exact solver has a chance, by the reference: the policies asked about may not decide."""
    runs = [one.run.schedule.num_batches for one in reference if one.run is not None]
    batches = min(runs, default=int(instance.columns.output_tokens.sum()))
    return batches * len(instance.requests) <= SMALL_CELLS


def _exact(
    instance: Instance,
    objective: AnyObjective,
    reference: Sequence[Rival],
    limits: ReferenceLimits,
    listener: Listener,
) -> Reference:
    from cspsched.exact.solver import solve_exactly

    listener.step("solving")
    candidates = [(one.policy, one.run.schedule) for one in reference if one.run is not None]
    result = solve_exactly(
        instance, objective, limits.exact(), candidates=candidates, on_progress=listener.progress
    )
    if result.primal_ns is None or result.dual_ns is None:
        raise InternalError("the exact solver returned no value for an instance that can be served")
    return Reference(
        best_known_ns=result.primal_ns,
        best_known_by=result.found_by or "",
        bound_ns=result.dual_ns,
        certificate=result.certificate or "",
        status=result.status,
        stop_reason=result.stop_reason,
        failures=result.failures,
        schedule=result.schedule,
    )


def _searched(
    instance: Instance,
    objective: AnyObjective,
    reference: Sequence[Rival],
    limits: ReferenceLimits,
    reason: StopReason,
    listener: Listener,
) -> Reference:
    started, limit_s = time.monotonic(), limits.time_limit_s
    time_left = None if limit_s is None else lambda: limit_s - (time.monotonic() - started)
    bound = lower_end(instance, objective, time_left=time_left)
    known = [Found(schedule=one.schedule, value_ns=one.value_ns, found_by=one.policy) for one in reference]
    search = limits.after(time.monotonic() - started).search(instance)
    if instance.switches.hybrid_batches and search.max_steps != 0:
        listener.step("searching for a better schedule than the policies of the reference")
        least_ns = min((one.value_ns for one in known), default=UNKNOWN_NS)
        found, why = find_better(instance, objective, least_ns, bound.value_ns, search, listener.progress)
        known += [found] if found else []
        reason = why if why is StopReason.INTERRUPTED else reason
    if not known:
        # No policy of the set may run here; lists run under all limits and switches.
        known = [
            Found(schedule=made, value_ns=measure(instance, made).objective_ns(objective), found_by=name)
            for name, made in list_schedules(instance)
        ]
    best = min(known, key=lambda one: one.value_ns)
    is_proven = best.value_ns == bound.value_ns
    return Reference(
        best_known_ns=best.value_ns,
        best_known_by=best.found_by,
        bound_ns=bound.value_ns,
        certificate=bound.name,
        status=Status.OPTIMAL if is_proven else Status.FEASIBLE,
        stop_reason=StopReason.PROVEN if is_proven else reason,
        schedule=best.schedule,
    )
