"""Policies that a search is to beat: their schedules, judged by the referee, whole or in parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cspsched.errors import UsageError
from cspsched.improve.long_runs import is_long, parts_of_run
from cspsched.policies.base import make_policy
from cspsched.problem.instance import Instance
from cspsched.problem.metrics import Metrics, Objective, measure
from cspsched.problem.objectives import AnyObjective
from cspsched.problem.parts import judge_parts
from cspsched.problem.referee import find_violations
from cspsched.problem.schedule import Schedule
from cspsched.problem.violation import Violation
from cspsched.simulate import Policy
from cspsched.simulate.kernel import run_policy, simulate_fast
from cspsched.simulate.kernel.api import kernel_rules


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A policy's schedule with its metrics."""

    schedule: Schedule
    metrics: Metrics


@dataclass(frozen=True, kw_only=True, eq=False)
class Rival:
    """What a policy reaches on an instance.

    Attributes
    ----------
    value_ns
        In nanoseconds, or what the objective counts.
    run
        None where the schedule is too long to be held whole; the referee has judged it in parts then.
    """

    policy: str
    value_ns: int
    run: Run | None

    @property
    def schedule(self) -> Schedule | None:
        """The schedule, if it is held whole."""
        return None if self.run is None else self.run.schedule

    @property
    def whole_run(self) -> Run:
        """The run.

        Raises
        ------
        UsageError
            If the schedule is too long.
        """
        if self.run is None:
            raise UsageError(
                f"the schedule of {self.policy} is too long for this; shorten the trace (--limit)"
            )
        return self.run


def run_rivals(
    instance: Instance, objective: AnyObjective, heuristics: Iterable[str], tell: Callable[[str], None]
) -> tuple[Rival, ...]:
    """Schedules of policies that the referee accepts.

    Raises
    ------
    UsageError
        If there is no policy, or one is unknown, does what the instance does not allow, or cannot run on a
        trace of that length.
    """
    rivals = []
    for policy in map(make_policy, heuristics):
        if getattr(getattr(policy, "settings", None), "enable_prefix_caching", False):
            raise UsageError(f"policy {policy.label} caches prefixes, which no bound knows; leave it out")
        tell(f"simulating {policy.label} on {len(instance.requests)} requests")
        if is_long(instance):
            rivals.append(_long_rival(instance, objective, policy))
        else:
            rivals.append(_rival(instance, objective, policy))
    if not rivals:
        raise UsageError("name at least one policy to improve on")
    return tuple(rivals)


def _rival(instance: Instance, objective: AnyObjective, policy: Policy) -> Rival:
    schedule = run_policy(instance, policy).schedule
    _refuse(policy, find_violations(instance, schedule))
    metrics = measure(instance, schedule)
    value_ns = metrics.objective_ns(objective)
    return Rival(policy=policy.label, value_ns=value_ns, run=Run(schedule=schedule, metrics=metrics))


def _long_rival(instance: Instance, objective: AnyObjective, policy: Policy) -> Rival:
    if not isinstance(objective, Objective):
        raise UsageError(f"objective {objective} needs whole schedules; shorten the trace (--limit)")
    if kernel_rules(instance, policy) is None:
        raise UsageError(
            f"policy {policy.label} runs in the clear engine only, which takes hours on a trace this long; "
            "leave it out or shorten the trace (--limit)"
        )
    verdict = judge_parts(instance, parts_of_run(simulate_fast(instance, policy)))
    _refuse(policy, verdict.violations)
    return Rival(policy=policy.label, value_ns=verdict.objective_ns(instance, objective), run=None)


def _refuse(policy: Policy, violations: list[Violation]) -> None:
    if violations:
        raise UsageError(
            f"policy {policy.label} does what the instance does not allow: {violations[0].message}; "
            "allow it or choose another policy"
        )
