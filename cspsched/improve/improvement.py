"""Schedules better than every policy: the policies first, then the search, then the referee."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cspsched.bounds import best_bound
from cspsched.bounds.certificate import Certificate
from cspsched.errors import InternalError, UsageError
from cspsched.exact.search import Progress
from cspsched.improve.list_scheduler import refuse_unsuited
from cspsched.improve.search import Search, SearchState, new_state
from cspsched.improve.state import read_state, write_state
from cspsched.policies.base import make_policy
from cspsched.problem.instance import Instance, Rejection
from cspsched.problem.metrics import Metrics, Objective, measure
from cspsched.problem.referee import find_violations
from cspsched.problem.result import Result, Status, StopReason, tool_versions
from cspsched.problem.schedule import Schedule
from cspsched.simulate.kernel import run_policy

IMPROVEMENT_SCHEMA = "cspsched/improvement/1"
DEFAULT_RIVALS = ("vllm", "sarathi", "mc-sf", "smallest-volume")
"""Policies to be beaten: two of real engines, two clairvoyant ones."""
SECONDS_BETWEEN_STATES = 30.0


@dataclass(frozen=True, kw_only=True)
class ImproveLimits:
    """When a search stops, whatever comes first.

    Attributes
    ----------
    time_limit_s
        Seconds of search, policies and bound not counted.
    max_steps
        Steps in all, those before a resume included; with this limit alone the result repeats exactly.
    seed
        Of the random moves; a resumed search goes on with its own.
    """

    time_limit_s: float | None = 60.0
    max_steps: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.time_limit_s is None and self.max_steps is None:
            raise UsageError("a search without time limit and without a number of steps never ends")


@dataclass(frozen=True, kw_only=True, eq=False)
class Rival:
    """A policy's schedule of the instance. The value is in nanoseconds."""

    policy: str
    value_ns: int
    schedule: Schedule
    metrics: Metrics


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """A schedule that the referee accepts, its value in nanoseconds, and what made it."""

    schedule: Schedule
    value_ns: int
    found_by: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Improvement:
    """Best known schedule of an instance beside the best policy and a proven bound, in nanoseconds."""

    instance: Instance
    objective: Objective
    rivals: tuple[Rival, ...]
    schedule: Schedule
    value_ns: int
    found_by: str
    bound: Certificate
    steps: int
    stop_reason: StopReason
    seed: int
    rejections: tuple[Rejection, ...]

    @property
    def best_policy(self) -> Rival:
        """The best of the policies."""
        return min(self.rivals, key=lambda rival: rival.value_ns)

    @property
    def gap(self) -> float:
        """(U - L) / U."""
        return (self.value_ns - self.bound.value_ns) / self.value_ns

    @property
    def gain(self) -> float:
        """Share of the best policy's value that the search took off."""
        return 1 - self.value_ns / self.best_policy.value_ns

    def to_result(self) -> Result:
        """The schedule with its bound, as `solve` returns it."""
        return Result(
            instance=self.instance,
            objective=self.objective,
            schedule=self.schedule,
            primal_ns=self.value_ns,
            dual_ns=self.bound.value_ns,
            status=Status.OPTIMAL if self.value_ns == self.bound.value_ns else Status.FEASIBLE,
            stop_reason=self.stop_reason,
            found_by=self.found_by,
            certificate=self.bound.name,
            provenance={"versions": tool_versions(), "seed": self.seed, "steps": self.steps},
        )

    def to_json(self) -> dict[str, Any]:
        """Values without the schedule, with a schema version and units in the names."""
        count = len(self.instance.requests)
        best = self.best_policy
        return {
            "schema": IMPROVEMENT_SCHEMA,
            "objective": self.objective.value,
            "fingerprint": self.instance.fingerprint(),
            "versions": tool_versions(),
            "num_requests": count,
            "rejected": [rejection.reason for rejection in self.rejections],
            "best_policy": best.policy,
            "best_policy_ns": best.value_ns,
            "best_policy_s": self.objective.mean_s(best.value_ns, count),
            "improved_ns": self.value_ns,
            "improved_s": self.objective.mean_s(self.value_ns, count),
            "found_by": self.found_by,
            "gain": self.gain,
            "bound_ns": self.bound.value_ns,
            "bound_s": self.objective.mean_s(self.bound.value_ns, count),
            "certificate": self.bound.name,
            "gap": self.gap,
            "steps": self.steps,
            "seed": self.seed,
            "stop_reason": self.stop_reason.value,
            "policies": [{"policy": rival.policy, "value_ns": rival.value_ns} for rival in self.rivals],
        }


def improve(
    instance: Instance,
    objective: Objective = Objective.LATENCY,
    *,
    heuristics: Iterable[str] = DEFAULT_RIVALS,
    limits: ImproveLimits | None = None,
    state_file: Path | None = None,
    on_step: Callable[[str], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Improvement:
    """Search for a schedule that is better than that of every policy; never worse than any of them.

    Requests that can never be served are left out. Ctrl-C ends the search, and what it found is returned.

    Parameters
    ----------
    heuristics
        Policies with their settings; each schedule is judged by the referee, and the best is where to start.
    state_file
        The search goes on from it if it exists, and is written to it every half minute and at the end.
    on_step
        Told in words what is being done.

    Raises
    ------
    UsageError
        If there is no policy, one is unknown or breaks the instance's switches, or prefill and decode may not
        share a batch.
    InputError
        If the state file cannot be read or written, or belongs to another search.
    """
    limits, tell = limits or ImproveLimits(), on_step or (lambda _: None)
    servable, rejections = instance.split_rejected()
    refuse_unsuited(servable)
    resumed = state_file is not None and state_file.exists()
    state = read_state(state_file, servable, objective) if state_file and resumed else new_state(limits.seed)
    rivals = run_rivals(servable, objective, heuristics, tell)
    tell(f"bounding {objective}")
    bound = best_bound(servable, objective)
    tell(f"improving the order of {len(servable.requests)} requests")
    best = min(rivals, key=lambda rival: rival.value_ns)
    search = Search(servable, objective, state)
    run = _Run(search, limits, best.value_ns, bound.value_ns, on_progress)
    stop_reason = run.until_stopped(lambda: _keep(state_file, servable, objective, state))
    better = _better(search, servable, objective, best.value_ns)
    found = better or Found(schedule=best.schedule, value_ns=best.value_ns, found_by=best.policy)
    return Improvement(
        instance=servable,
        objective=objective,
        rivals=rivals,
        schedule=found.schedule,
        value_ns=found.value_ns,
        found_by=found.found_by,
        bound=bound,
        steps=state.steps,
        stop_reason=StopReason.PROVEN if found.value_ns == bound.value_ns else stop_reason,
        seed=limits.seed,
        rejections=rejections,
    )


def find_better(
    instance: Instance,
    objective: Objective,
    known_ns: int,
    bound_ns: int,
    limits: ImproveLimits,
    on_progress: Callable[[Progress], None] | None = None,
) -> tuple[Found | None, StopReason]:
    """Search for a schedule below a known value; None if there was none within the limits.

    Parameters
    ----------
    instance
        All of its requests can be served.
    known_ns, bound_ns
        Value of the best known schedule, and a proven bound, for the progress.

    Raises
    ------
    UsageError
        If prefill and decode may not share a batch.
    """
    search = Search(instance, objective, new_state(limits.seed))
    run = _Run(search, limits, known_ns, bound_ns, on_progress)
    stop_reason = run.until_stopped(lambda: None)
    return _better(search, instance, objective, known_ns), stop_reason


def run_rivals(
    instance: Instance, objective: Objective, heuristics: Iterable[str], tell: Callable[[str], None]
) -> tuple[Rival, ...]:
    """Schedules of policies that the referee accepts.

    Raises
    ------
    UsageError
        If there is no policy, or one is unknown or does what the instance does not allow.
    """
    rivals = []
    for policy in map(make_policy, heuristics):
        if getattr(getattr(policy, "settings", None), "enable_prefix_caching", False):
            raise UsageError(f"policy {policy.label} caches prefixes, which no bound knows; leave it out")
        tell(f"simulating {policy.label} on {len(instance.requests)} requests")
        schedule = run_policy(instance, policy).schedule
        violations = find_violations(instance, schedule)
        if violations:
            raise UsageError(
                f"policy {policy.label} does what the instance does not allow: {violations[0].message}; "
                "allow it or choose another policy"
            )
        metrics = measure(instance, schedule)
        value_ns = metrics.objective_ns(objective)
        rivals.append(Rival(policy=policy.label, value_ns=value_ns, schedule=schedule, metrics=metrics))
    if not rivals:
        raise UsageError("name at least one policy to improve on")
    return tuple(rivals)


class _Run:
    """A search against its limits."""

    def __init__(
        self,
        search: Search,
        limits: ImproveLimits,
        rival_ns: int,
        bound_ns: int,
        listener: Callable[[Progress], None] | None,
    ) -> None:
        self._search, self._limits = search, limits
        self._rival_ns, self._bound_ns = rival_ns, bound_ns
        self._listener = listener
        self._started = time.monotonic()

    def until_stopped(self, keep: Callable[[], None]) -> StopReason:
        """Search until a limit or Ctrl-C; the state is kept now and then, and at the end."""
        reason, kept = StopReason.TIME_LIMIT, self._started
        try:
            while not self._is_over():
                self._search.step()
                self._report()
                if time.monotonic() - kept > SECONDS_BETWEEN_STATES:
                    keep()
                    kept = time.monotonic()
            if self._limits.max_steps == self._search.state.steps:
                reason = StopReason.FINISHED
        except KeyboardInterrupt:
            reason = StopReason.INTERRUPTED
        keep()
        return reason

    def _is_over(self) -> bool:
        limits, state = self._limits, self._search.state
        if limits.max_steps is not None and state.steps >= limits.max_steps:
            return True
        elapsed_s = time.monotonic() - self._started
        return limits.time_limit_s is not None and elapsed_s >= limits.time_limit_s

    def _report(self) -> None:
        if self._listener is None:
            return
        best_ns = min(self._search.state.best_ns or self._rival_ns, self._rival_ns)
        elapsed_s = time.monotonic() - self._started
        self._listener(Progress(elapsed_s=elapsed_s, best_ns=best_ns, bound_ns=self._bound_ns))


def _keep(path: Path | None, instance: Instance, objective: Objective, state: SearchState) -> None:
    if path is not None:
        write_state(path, instance, objective, state)


def _better(search: Search, instance: Instance, objective: Objective, known_ns: int) -> Found | None:
    """What the search found, with the referee's word on it, if it is below a known value."""
    state = search.state
    if state.best is None or state.best_ns is None or state.best_ns >= known_ns:
        return None
    schedule = search.scheduler.schedule(state.best)
    _judge(instance, objective, schedule, state.best_ns)
    return Found(schedule=schedule, value_ns=state.best_ns, found_by=state.found_by)


def _judge(instance: Instance, objective: Objective, schedule: Schedule, value_ns: int) -> None:
    """The referee's word on what the search found."""
    violations = find_violations(instance, schedule)
    if violations:
        raise InternalError(f"the improvement search breaks a rule: {violations[0].message}; please report")
    measured_ns = measure(instance, schedule).objective_ns(objective)
    if measured_ns != value_ns:
        raise InternalError(
            f"the improvement search states {value_ns} ns, its schedule has {measured_ns} ns; please report"
        )
