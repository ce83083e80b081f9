"""The gap ladder: the same requests under fewer and fewer restrictions, and what each of them costs.

Every rung contains the one before, so its optimum is never worse. Schedules are handed on upwards as first
incumbents, bounds downwards; the optimum of every rung is proven or lies in a certified interval.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from cspsched.errors import InternalError, UsageError
from cspsched.exact.watch import SILENT, Listener, SearchLimits
from cspsched.policies.base import DEFAULT_HEURISTICS
from cspsched.problem.instance import Instance, Preemption, Rejection
from cspsched.problem.lifting import Restriction, lift, lift_all, without_swap
from cspsched.problem.objectives import AnyObjective, Mixture, Objective
from cspsched.problem.result import Result, Status, StopReason, status_of, tool_versions
from cspsched.studies.solving import Candidate, servable_part, solve

LADDER_SCHEMA = "cspsched/ladder/1"
NO_PREEMPTION, RECOMPUTE, RECOMPUTE_OR_SWAP = "no preemption", "recompute", "recompute or swap"
AS_GIVEN = "as given"
NO_HOST_MEMORY = "there is no host memory to swap to"
CUT_SHORT = "interrupted before its turn"


@dataclass(frozen=True, kw_only=True)
class Step:
    """What is to be solved for one rung."""

    name: str
    instance: Instance
    lifted: tuple[Restriction, ...] = ()
    """Limits that the rung does not have; switches are in the instance's policy class."""
    skipped: str | None = None
    """Why the rung is left out, if it is."""

    @property
    def policy_class(self) -> str:
        """Class of schedules, with the limits that are gone."""
        without = [f"without {restriction}" for restriction in self.lifted]
        return ", ".join([self.instance.switches.policy_class, *without])


@dataclass(frozen=True, kw_only=True, eq=False)
class Rung:
    """One class of schedules with the best schedule and the best bound for it."""

    name: str
    policy_class: str
    result: Result | None
    """None if the rung was skipped."""
    skipped: str | None = None

    @property
    def interval_ns(self) -> tuple[int, int]:
        """Certified interval of the optimum: bound and value.

        Raises
        ------
        InternalError
            If the rung was skipped.
        """
        if self.result is None or self.result.primal_ns is None or self.result.dual_ns is None:
            raise InternalError(f"the rung {self.name!r} has no result; please report")
        return self.result.dual_ns, self.result.primal_ns

    def to_json(self, objective: AnyObjective, num_requests: int) -> dict[str, Any]:
        """Plain values; null where the rung was skipped."""
        result = self.result
        bound_ns, value_ns = (None, None) if result is None else self.interval_ns
        return {
            "rung": self.name,
            "policy_class": self.policy_class,
            "skipped": self.skipped,
            "status": result and result.status.value,
            "stop_reason": result and result.stop_reason.value,
            "value_ns": value_ns,
            "bound_ns": bound_ns,
            "value_s": None if value_ns is None else objective.mean_s(value_ns, num_requests),
            "bound_s": None if bound_ns is None else objective.mean_s(bound_ns, num_requests),
            "gap_ns": result and result.gap_ns,
            "gap": result and result.gap,
            "found_by": result and result.found_by,
            "certificate": result and result.certificate,
            "fingerprint": result and result.instance.fingerprint(),
        }


@dataclass(frozen=True, kw_only=True)
class Saving:
    """By how much the optimum of a wider class is better: certified intervals."""

    from_rung: str
    to_rung: str
    least_ns: int
    most_ns: int
    least_share: float
    """Of the optimum of the narrower class."""
    most_share: float

    @property
    def verdict(self) -> str:
        """`yes` if it is proven that something is saved, `no` that nothing is, else `open`."""
        if self.least_ns > 0:
            return "yes"
        return "no" if self.most_ns == 0 else "open"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "from_rung": self.from_rung,
            "to_rung": self.to_rung,
            "saving_at_least_ns": self.least_ns,
            "saving_at_most_ns": self.most_ns,
            "saving_at_least": self.least_share,
            "saving_at_most": self.most_share,
            "verdict": self.verdict,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Ladder:
    """Rungs on the servable part of an instance, from the narrowest class to the widest."""

    instance: Instance
    objective: AnyObjective
    rungs: tuple[Rung, ...]
    rejections: tuple[Rejection, ...]

    @property
    def solved(self) -> tuple[Rung, ...]:
        """The rungs that were not skipped."""
        return tuple(rung for rung in self.rungs if rung.result is not None)

    @property
    def savings(self) -> tuple[Saving, ...]:
        """What each solved rung saves over the solved one before."""
        return tuple(saving(narrow, wide) for narrow, wide in pairwise(self.solved))

    @property
    def preemption(self) -> Saving | None:
        """What preemption saves: the widest rung with a memory limit over the one without preemption."""
        by_name = {rung.name: rung for rung in self.solved}
        narrow = by_name.get(NO_PREEMPTION)
        wide = by_name.get(RECOMPUTE_OR_SWAP, by_name.get(RECOMPUTE))
        return None if narrow is None or wide is None else saving(narrow, wide)

    @property
    def is_interrupted(self) -> bool:
        """Whether Ctrl-C ended the climb."""
        return any(
            rung.result is not None and rung.result.stop_reason is StopReason.INTERRUPTED
            for rung in self.rungs
        )

    def to_json(self) -> dict[str, Any]:
        """Everything that the table shows, with a schema version and units in the names."""
        requests, preemption = len(self.instance.requests), self.preemption
        return {
            "schema": LADDER_SCHEMA,
            "objective": self.objective.value,
            "fingerprint": self.instance.fingerprint(),
            "versions": tool_versions(),
            "num_requests": requests,
            "rejected": [rejection.reason for rejection in self.rejections],
            "rungs": [rung.to_json(self.objective, requests) for rung in self.rungs],
            "savings": [one.to_json() for one in self.savings],
            "preemption": None if preemption is None else preemption.to_json(),
        }


def ladder_steps(instance: Instance) -> list[Step]:
    """Reservation, no preemption, recompute, recompute or swap, without C, without M (and C).

    The last two allow swap too, if there is host memory; else the rung of swap is skipped.
    """
    plain = without_swap(instance)
    none, recompute, either = (
        replace(one, switches=replace(one.switches, preemption=preemption, reservation=False))
        for one, preemption in (
            (plain, Preemption.NONE), (plain, Preemption.RECOMPUTE), (instance, Preemption.EITHER)
        )
    )  # fmt: skip
    reserving = replace(none, switches=replace(none.switches, reservation=True))
    can_swap = instance.limits.host_kv_blocks > 0
    no_budget = lift(either if can_swap else recompute, Restriction.BUDGET)
    budget, memory = Restriction.BUDGET, Restriction.MEMORY
    return [
        Step(name="reservation", instance=reserving),
        Step(name=NO_PREEMPTION, instance=none),
        Step(name=RECOMPUTE, instance=recompute),
        Step(name=RECOMPUTE_OR_SWAP, instance=either, skipped=None if can_swap else NO_HOST_MEMORY),
        Step(name="without C", instance=no_budget, lifted=(budget,)),
        Step(name="without M", instance=lift(no_budget, memory), lifted=(budget, memory)),
    ]


def relaxing_steps(instance: Instance, restrictions: Sequence[Restriction]) -> list[Step]:
    """The instance as given, and without some restrictions.

    Raises
    ------
    UsageError
        If a restriction binds nobody.
    """
    lifted = lift_all(instance, restrictions)
    limits = (Restriction.MEMORY, Restriction.BUDGET, Restriction.REQUESTS)
    gone = tuple(one for one in restrictions if one in limits)
    return [
        Step(name=AS_GIVEN, instance=instance),
        Step(name=f"without {', '.join(restrictions)}", instance=lifted, lifted=gone),
    ]


def climb(
    instance: Instance,
    objective: AnyObjective = Objective.MAKESPAN,
    *,
    relax: Sequence[Restriction] = (),
    limits: SearchLimits | None = None,
    heuristics: Iterable[str] = DEFAULT_HEURISTICS,
    candidates: Sequence[Candidate] = (),
    listener: Listener = SILENT,
) -> Ladder:
    """Solve every rung: of the gap ladder, or, with `relax`, the instance as given and without restrictions.

    Parameters
    ----------
    relax
        What to lift; empty for the whole ladder, which sets preemption and reservation itself.
    limits
        For the whole climb: every rung gets an equal share of the time that is left.
    candidates
        Schedules that compete for the first incumbent of every rung in which they are feasible.
    listener
        Told which rung is being solved.

    Raises
    ------
    UsageError
        If a restriction to relax binds nobody, or the objective counts requests.
    InfeasibleError, InputError
        As `cspsched.studies.solving.solve`.
    """
    if isinstance(objective, Mixture) and objective.counts:
        raise UsageError(
            f"objective {objective} counts requests, and rungs are compared in time; add a time to it, such "
            f"as {objective}+latency, or leave --ladder and --relax out"
        )
    servable, rejections = servable_part(instance)
    steps = relaxing_steps(servable, relax) if relax else ladder_steps(servable)
    limits, heuristics = limits or SearchLimits(), tuple(heuristics)
    shares = _Shares(limits, sum(step.skipped is None for step in steps))
    rungs: list[Rung] = []
    carried, interrupted = list(candidates), False
    for step in steps:
        skipped = step.skipped or (CUT_SHORT if interrupted else None)
        result = None
        if skipped is None:
            listener.step(f"rung {step.name!r}")
            result = solve(
                step.instance,
                objective,
                limits=shares.next_limits(),
                heuristics=heuristics,
                candidates=carried,
                on_progress=listener.progress,
            ).result
            carried = _carried(carried, step.name, result)
            interrupted = result.stop_reason is StopReason.INTERRUPTED
        rungs.append(Rung(name=step.name, policy_class=step.policy_class, result=result, skipped=skipped))
    return Ladder(
        instance=servable,
        objective=objective,
        rungs=hand_down_bounds(rungs),
        rejections=rejections,
    )


class _Shares:
    """Divides the time of a climb among the rungs that are left."""

    def __init__(self, limits: SearchLimits, num_rungs: int) -> None:
        self._limits, self._left, self._started = limits, num_rungs, time.monotonic()
        self._equal = limits.time_limit_s / num_rungs

    def next_limits(self) -> SearchLimits:
        """Limits of the next rung; those of a deterministic climb know no clock."""
        spent = time.monotonic() - self._started
        share = max(0.0, self._limits.time_limit_s - spent) / self._left
        self._left -= 1
        return replace(self._limits, time_limit_s=self._equal if self._limits.deterministic else share)


def _carried(carried: Sequence[Candidate], rung: str, result: Result) -> list[Candidate]:
    """Candidates of the next rung: as before, and the best schedule of this one if it is new."""
    names = {name for name, _ in carried}
    if result.schedule is None or result.found_by in names:
        return list(carried)
    return [*carried, (f"{result.found_by} ({rung})", result.schedule)]


def hand_down_bounds(rungs: Sequence[Rung]) -> tuple[Rung, ...]:
    """Rungs with the bounds of wider classes taken over where they are higher.

    Raises
    ------
    InternalError
        If a class has a better schedule than a wider one, or than a bound on a wider one allows.
    """
    handed: list[Rung] = []
    best: tuple[int, str] | None = None
    best_is_rounded = False
    wider_ns = 0
    for rung in reversed(rungs):
        if rung.result is None:
            handed.append(rung)
            continue
        bound_ns, value_ns = rung.interval_ns
        if value_ns < max(wider_ns, best[0] if best else 0):
            raise InternalError(
                f"the rung {rung.name!r} has a schedule of {value_ns} ns, wider ones have {wider_ns} ns and "
                f"the bound {best}; please report this instance"
            )
        wider_ns = value_ns
        if best is None or bound_ns >= best[0]:
            best = (bound_ns, f"{rung.result.certificate} ({rung.name})")
            best_is_rounded = rung.result.status is Status.OPTIMAL_UP_TO_ROUNDING
            handed.append(rung)
        else:
            result = _with_bound(rung.result, *best, is_rounded=best_is_rounded)
            handed.append(replace(rung, result=result))
    return tuple(reversed(handed))


def _with_bound(result: Result, dual_ns: int, certificate: str, *, is_rounded: bool) -> Result:
    """The result with a higher bound, which may be the end of a search that priced batches unrounded."""
    assert result.primal_ns is not None
    interval_ns = dual_ns, result.primal_ns
    reason = StopReason.ROUNDING if is_rounded else result.stop_reason
    status = status_of(result.instance, result.objective, result.schedule, interval_ns, reason)
    reasons = {Status.OPTIMAL: StopReason.PROVEN, Status.OPTIMAL_UP_TO_ROUNDING: StopReason.ROUNDING}
    return replace(
        result,
        dual_ns=dual_ns,
        certificate=certificate,
        certificate_details={},
        status=status,
        stop_reason=reasons.get(status, result.stop_reason),
    )


def saving(narrow: Rung, wide: Rung) -> Saving:
    """What a wider class saves over a narrower one, from their certified intervals."""
    (narrow_bound, narrow_value), (wide_bound, wide_value) = narrow.interval_ns, wide.interval_ns
    return Saving(
        from_rung=narrow.name,
        to_rung=wide.name,
        # The wider class is never worse, whatever the intervals alone allow.
        least_ns=max(0, narrow_bound - wide_value),
        most_ns=narrow_value - wide_bound,
        least_share=max(0.0, 1 - wide_value / narrow_bound) if narrow_bound else 0.0,
        most_share=1 - wide_bound / narrow_value if narrow_value else 0.0,
    )
