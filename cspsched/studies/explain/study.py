"""Everything that explains policies on an instance, against one reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from cspsched.errors import UsageError
from cspsched.exact.watch import SILENT, Listener
from cspsched.improve.long_runs import MOST_ENTRIES
from cspsched.improve.rivals import Rival, run_rivals
from cspsched.policies.base import DEFAULT_HEURISTICS, make_policy
from cspsched.problem.excess import Excess
from cspsched.problem.instance import Instance, Rejection
from cspsched.problem.objectives import AnyObjective, Objective
from cspsched.problem.result import StopReason, tool_versions, unit_of
from cspsched.referee.history import follow
from cspsched.studies.explain.causes import Cause, Target, find_causes
from cspsched.studies.explain.information import InformationLadder, Pool, climb_information, run_pool
from cspsched.studies.explain.prices import PriceTask, Resource, ShadowPrice, find_price
from cspsched.studies.explain.waiting import Timeline, follow_request, position_of
from cspsched.studies.provenance import Provenance
from cspsched.studies.reference import Reference, ReferenceLimits, find_reference

EXPLANATION_SCHEMA = "cspsched/explanation/1"


class Part(StrEnum):
    """What is explained."""

    CAUSES = "causes"
    INFORMATION = "information"
    PRICES = "prices"


@dataclass(frozen=True, kw_only=True, eq=False)
class ExplainedPolicy:
    """A policy's value, how far it is above the optimum, and its causes; empty if they were not asked for."""

    policy: str
    value_ns: int
    excess: Excess
    causes: tuple[Cause, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """Policies on the servable part of an instance, and why they are above the optimum.

    Attributes
    ----------
    information
        The ladder of each policy named, then of all built-in ones; empty if it was not asked for.
    skipped
        Built-in policies that cannot run here, each with the reason.
    prices
        Of each limit; empty if they were not asked for.
    timelines
        Of the request that was asked about, under each policy.
    interrupted
        Ctrl-C ended it: what comes after is missing.
    warnings
        What of the trace or of the policies' settings does nothing, in sentences.
    provenance
        Where all this comes from, if it was stated.
    """

    instance: Instance
    objective: AnyObjective
    policies: tuple[ExplainedPolicy, ...]
    reference: Reference
    rejections: tuple[Rejection, ...]
    limits: ReferenceLimits
    information: tuple[InformationLadder, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    prices: tuple[ShadowPrice, ...] = ()
    timelines: tuple[Timeline, ...] = ()
    interrupted: bool = False
    warnings: tuple[str, ...] = ()
    provenance: Provenance | None = None

    def to_json(self) -> dict[str, Any]:
        """Everything that a report shows, with a schema version and units in the names."""
        reference, count = self.reference, len(self.instance.requests)
        return {
            "schema": EXPLANATION_SCHEMA,
            "objective": self.objective.value,
            "unit": unit_of(self.objective),
            "fingerprint": self.instance.fingerprint(),
            "versions": tool_versions(),
            "num_requests": count,
            "rejected": [rejection.reason for rejection in self.rejections],
            "seed": self.limits.seed,
            "repeats": self.limits.repeats,
            "interrupted": self.interrupted,
            "warnings": list(self.warnings),
            "provenance": None if self.provenance is None else self.provenance.to_json(),
            "reference": reference.to_json(self.objective, count),
            "policies": [
                {
                    "policy": one.policy,
                    "value_ns": one.value_ns,
                    "value_s": self.objective.mean_s(one.value_ns, count),
                    "excess_at_least": one.excess.at_least,
                    "excess_at_most": one.excess.at_most,
                    "causes": [cause.to_json() for cause in one.causes],
                }
                for one in self.policies
            ],
            "information": [one.to_json() for one in self.information],
            "skipped": [{"policy": name, "reason": reason} for name, reason in self.skipped],
            "prices": [one.to_json() for one in self.prices],
            "timelines": [one.to_json() for one in self.timelines],
        }


@dataclass(frozen=True, kw_only=True)
class ExplanationTask:
    """What is to be explained.

    Attributes
    ----------
    heuristics
        Policies with their settings.
    parts
        What is explained of each.
    request
        Name of a request whose timeline is wanted.
    limits
        How much goes into the reference, and again into that of each widened limit.
    """

    instance: Instance
    objective: AnyObjective = Objective.LATENCY
    heuristics: Sequence[str] = DEFAULT_HEURISTICS
    parts: Sequence[Part] = tuple(Part)
    request: str | None = None
    limits: ReferenceLimits = field(default_factory=ReferenceLimits)


def explain(task: ExplanationTask, *, listener: Listener = SILENT) -> Explanation:
    """Say why policies are above the optimum; every schedule is judged by the referee.

    Ctrl-C ends it once there is a reference, and what was found is returned.

    Raises
    ------
    UsageError
        If a policy is unknown, named twice, or cannot run, the request is unknown, the trace is so long that
        schedules are not kept, or causes are asked for under restricted switches.
    """
    tell = listener.step
    servable, rejections = task.instance.split_rejected()
    _refuse_long(servable)
    watched = None if task.request is None else position_of(servable, task.request)
    rivals = run_rivals(servable, task.objective, task.heuristics, tell)
    pool = Pool(unaware=(), aware=(), skipped=())
    if Part.INFORMATION in task.parts:
        pool = run_pool(servable, task.objective, rivals, tell)
    known = {rival.policy: rival for rival in (*rivals, *pool.as_they_are())}
    reference = find_reference(
        servable,
        task.objective,
        tuple(known.values()),
        pool.rivals,
        limits=task.limits,
        listener=listener,
    )
    work = _Work(task, servable, rivals, pool, reference, tell)
    interrupted = reference.stop_reason is StopReason.INTERRUPTED
    try:
        work.go_on(watched)
    except KeyboardInterrupt:
        interrupted = True
    return Explanation(
        instance=servable,
        objective=task.objective,
        policies=tuple(
            ExplainedPolicy(
                policy=rival.policy,
                value_ns=rival.value_ns,
                excess=reference.excess(rival.value_ns),
                causes=work.causes.get(rival.policy, ()),
            )
            for rival in rivals
        ),
        reference=reference,
        rejections=rejections,
        limits=task.limits,
        information=tuple(work.information),
        skipped=pool.skipped,
        prices=tuple(work.prices),
        timelines=tuple(work.timelines),
        interrupted=interrupted,
    )


class _Work:
    """What is found one after another, and is kept where Ctrl-C ends it."""

    def __init__(
        self,
        task: ExplanationTask,
        instance: Instance,
        rivals: Sequence[Rival],
        pool: Pool,
        reference: Reference,
        tell: Callable[[str], None],
    ) -> None:
        self._task, self._instance, self._rivals = task, instance, rivals
        self._pool, self._reference, self._tell = pool, reference, tell
        self.causes: dict[str, tuple[Cause, ...]] = {}
        self.information: list[InformationLadder] = []
        self.prices: list[ShadowPrice] = []
        self.timelines: list[Timeline] = []

    @property
    def _named(self) -> list[tuple[str, Rival]]:
        """Policies as they were named, with what they reach."""
        return list(zip(self._task.heuristics, self._rivals, strict=True))

    def go_on(self, watched: int | None) -> None:
        """Find all that is asked for; the fastest first."""
        if watched is not None:
            for rival in self._rivals:
                history = rival.whole_run.metrics.history
                self.timelines.append(follow_request(rival.policy, history, watched))
        if Part.INFORMATION in self._task.parts:
            names = {rival.policy for rival in self._rivals}
            others = [(one.policy, one) for one in self._pool.as_they_are() if one.policy not in names]
            for text, rival in (*self._named, *others):
                self.information.append(climb_information(rival, text, self._pool, self._reference))
        if Part.CAUSES in self._task.parts:
            self._find_causes()
        if Part.PRICES in self._task.parts:
            self._find_prices()

    def _find_causes(self) -> None:
        schedule = self._reference.schedule
        assert schedule is not None, "schedules of instances that are not long are kept"
        target = Target(
            history=follow(self._instance, schedule),
            objective=self._task.objective,
            value_ns=self._reference.best_known_ns,
        )
        for text, rival in self._named:
            self.causes[rival.policy] = find_causes(make_policy(text), rival, target, self._tell)

    def _find_prices(self) -> None:
        task = PriceTask(
            instance=self._instance,
            objective=self._task.objective,
            policies=self._named,
            reference=self._reference,
            limits=self._task.limits,
        )
        for resource in Resource:
            self.prices.append(find_price(task, resource, self._tell))


def _refuse_long(instance: Instance) -> None:
    tokens = int(instance.columns.output_tokens.sum())
    if tokens > MOST_ENTRIES:
        raise UsageError(
            f"the trace generates {tokens:,} tokens, and schedules are compared entry by entry up to "
            f"{MOST_ENTRIES:,}; shorten the trace (--limit)"
        )
