"""Schedules of policies, judged by the referee: those asked for, and the reference's.

What a policy is measured against may not depend on which others are listed beside it. So the best known
schedule comes from a fixed set of policies, beside those listed and a search that knows neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from cspsched.errors import InputError, InternalError, PolicyError, UsageError
from cspsched.improve.long_runs import is_long
from cspsched.policies.base import make_policy
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import AnyObjective
from cspsched.problem.schedule import Schedule
from cspsched.referee.judge import judge
from cspsched.referee.metrics import Metrics
from cspsched.referee.violation import Violation
from cspsched.simulate import Policy, simulate
from cspsched.simulate.kernel.support import kernel_rules

REFERENCE_SET = ("sarathi", "vidur-vllm", "smallest-volume", "fastserve")
"""Policies whose schedules every value is measured against, as far as they can run: those that bring most
(docs/brackets.md, `benchmarks/reference_set.py`)."""

CACHED_SET = ("vllm:enable_prefix_caching=true",)
"""Beside them where prefix cache hits are allowed."""

SWITCHED_RULES = {"preemption", "chunked prefill", "hybrid batches", "holding"}
"""Rules that an instance has or has not: a policy may be unfit for it without being wrong. With reservation
the capacity is such a rule, too."""


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
        None if it was judged and dropped, of a trace so long that it takes much memory.
    """

    policy: str
    value_ns: int
    run: Run | None

    @property
    def schedule(self) -> Schedule | None:
        """The schedule, if it is kept."""
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


def with_hits_of(
    instance: Instance, heuristics: Iterable[str], schedules: Iterable[Schedule] = ()
) -> Instance:
    """The instance, with prefix caching allowed if a policy caches prefixes or a schedule has hits."""
    if any(map(_caches_prefixes, map(make_policy, heuristics))) or any(
        schedule.uses_prefix_cache for schedule in schedules
    ):
        return replace(instance, switches=replace(instance.switches, prefix_caching=True))
    return instance


def _caches_prefixes(policy: Policy) -> bool:
    return bool(getattr(getattr(policy, "settings", None), "enable_prefix_caching", False))


def run_rivals(
    instance: Instance,
    objective: AnyObjective,
    heuristics: Iterable[str],
    tell: Callable[[str], None],
) -> tuple[Rival, ...]:
    """Schedules of policies that the referee accepts, in the order in which they are named.

    Raises
    ------
    UsageError
        If there is no policy, one is named twice or is unknown, does what the instance does not allow, or
        cannot run on a trace of that length.
    """
    policies = list(map(make_policy, heuristics))
    labels = [policy.label for policy in policies]
    if not labels or len(set(labels)) < len(labels):
        raise UsageError(f"name at least one policy, and each once; got: {', '.join(labels) or 'none'}")
    return tuple(_judged(instance, objective, policy, tell) for policy in policies)


def run_reference(
    instance: Instance, objective: AnyObjective, known: Iterable[Rival], tell: Callable[[str], None]
) -> tuple[Rival, ...]:
    """Schedules of the reference set; a policy that cannot run on the instance is passed over.

    Parameters
    ----------
    known
        Rivals of the same instance; who is among them does not run again.
    """
    found = {rival.policy: rival for rival in known}
    reference = []
    for name in (*REFERENCE_SET, *(CACHED_SET if instance.switches.prefix_caching else ())):
        try:
            rival = found.get(name) or _judged(instance, objective, make_policy(name), tell)
            # Of a million requests each run is some hundred megabytes.
            reference.append(replace(rival, run=None) if is_long(instance) else rival)
        except (UsageError, InputError, PolicyError) as reason:
            tell(f"the reference goes without {name}: {reason}")
    return tuple(reference)


def _judged(
    instance: Instance,
    objective: AnyObjective,
    policy: Policy,
    tell: Callable[[str], None],
) -> Rival:
    """What a policy reaches; refused if the bounds would say nothing about it."""
    if _caches_prefixes(policy) and not instance.switches.prefix_caching:
        raise UsageError(
            f"policy {policy.label} caches prefixes, and the optimum here is one without; leave "
            "enable_prefix_caching out, or use 'cspsched compare', 'improve', 'bracket' or 'simulate'"
        )
    tell(f"simulating {policy.label} on {len(instance.requests)} requests")
    if is_long(instance) and kernel_rules(instance, policy) is None:
        raise UsageError(
            f"policy {policy.label} is not compiled, and plain Python takes hours on a trace this long; "
            "leave it out or shorten the trace (--limit)"
        )
    simulation = simulate(instance, policy)
    if simulation.output_changes:
        raise UsageError(
            f"policy {policy.label} gives other numbers of tokens than were asked for to "
            f"{len(simulation.output_changes)} requests: there is no excess; leave emulate_bugs out, or use "
            "'cspsched simulate'"
        )
    judged = judge(instance, simulation.schedule)
    _refuse(instance, policy, judged.violations)
    return Rival(
        policy=policy.label,
        value_ns=judged.metrics.objective_ns(objective),
        run=Run(schedule=simulation.schedule, metrics=judged.metrics),
    )


def _refuse(instance: Instance, policy: Policy, violations: Sequence[Violation]) -> None:
    """What the instance does not allow is wrong use; any other violation is a bug, of ours or the user's."""
    switched = SWITCHED_RULES | ({"capacity"} if instance.switches.reservation else set())
    if violations and violations[0].rule in switched:
        raise UsageError(
            f"policy {policy.label} does what the instance does not allow: {violations[0].message}; "
            "allow it or choose another policy"
        )
    if violations:
        raise InternalError(f"policy {policy.label} breaks a rule: {violations[0].message}; please report")
