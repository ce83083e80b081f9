"""What each decision of a policy costs: a chain of schedules from its own to the best known one.

Each schedule takes one more decision from the best known one, is simulated, and is judged by the referee. The
differences between neighbours are the causes; so they add up to the whole difference exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from cspsched.errors import InternalError, PolicyCrashError, PolicyError, UsageError
from cspsched.improve.rivals import Rival
from cspsched.problem.instance import Instance, Limits, Switches
from cspsched.problem.objectives import AnyObjective
from cspsched.referee.history import History
from cspsched.referee.judge import Judged, judge
from cspsched.referee.metrics import Metrics
from cspsched.simulate import Policy, Simulation, simulate
from cspsched.studies.explain.following import Follow, Gate, Guide, Habits


class Decision(StrEnum):
    """What is replaced, in the order in which it is."""

    ORDER = "admission order"
    """Requests reach the policy in the order in which the best known schedule admits them."""
    OTHER_RULES = "other rules"
    """The plain rule (`Follow`) with the habits of the policy, in place of the policy."""
    APART = "prefill apart from decode"
    """A batch may hold both."""
    WHOLE_PROMPTS = "whole prompts"
    """Prompts may be cut into chunks."""
    RESERVATION = "reservation"
    """Only the known tokens of a request have to fit at its admission, not those to come."""
    BUDGET = "token budget"
    """The most tokens of a batch are those of the best known schedule."""
    SEATS = "request limit"
    """The most requests with KV cache are those of the best known schedule."""
    CHUNKS = "chunk sizes"
    """Each prompt is cut as in the best known schedule."""
    TIME = "admission time"
    """No request is admitted before it is in the best known schedule."""
    PREEMPTIONS = "preemptions"
    """Victims, and the times of their eviction and return, are those of the best known schedule."""
    REST = "batch composition"
    """What is left: the best known schedule itself, request by request and batch by batch."""


@dataclass(frozen=True, kw_only=True)
class Cause:
    """A decision and what it is worth; nanoseconds, or what the objective counts.

    Attributes
    ----------
    value_ns
        Of the schedule that takes this decision and all before from the best known one.
    saved_ns
        By how much that is better than without this one; less than 0 if it is worse.
    alone_ns
        What the policy saves if this decision alone is replaced; None where that is not possible without
        changing the policy's code.
    differs
        Whether it was replaced; else policy and best known schedule agree in it, or were equal before.
    """

    decision: Decision
    value_ns: int
    saved_ns: int
    alone_ns: int | None = None
    differs: bool = True

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "decision": self.decision.value,
            "value_ns": self.value_ns,
            "saved_ns": self.saved_ns,
            "alone_saved_ns": self.alone_ns,
            "differs": self.differs,
        }


@dataclass(frozen=True, kw_only=True)
class Target:
    """The best known schedule, with its value, and what is minimised."""

    history: History
    objective: AnyObjective
    value_ns: int


@dataclass(frozen=True, kw_only=True)
class _State:
    """How the next schedule of the chain is made."""

    gate: Gate
    habits: Habits
    chunks_of: Guide | None = None
    preemptions_of: Guide | None = None


def find_causes(
    policy: Policy, rival: Rival, target: Target, on_step: Callable[[str], None]
) -> tuple[Cause, ...]:
    """Causes of a policy's excess over the best known schedule, all decisions in their order.

    Parameters
    ----------
    rival
        What the policy reaches.
    on_step
        Told in words what is being simulated.

    Raises
    ------
    UsageError
        If switches of the instance beside preemption are restricted: the plain rule knows all freedoms.
    """
    return _Chain(policy, target, on_step).causes(rival.value_ns)


class _Chain:
    """Simulates schedules from a policy's to the best known one."""

    def __init__(self, policy: Policy, target: Target, tell: Callable[[str], None]) -> None:
        self._policy, self._target, self._tell = policy, target, tell
        self._instance: Instance = target.history.instance
        switches = self._instance.switches
        if replace(switches, preemption=Switches().preemption) != Switches():
            raise UsageError(
                f"causes are found for all schedules, not for those with {switches.policy_class}"
            )
        self._guide = Guide(target.history)
        self._habits = Habits.of(target.history, target.history.schedule.start_ns * 0)

    def causes(self, value_ns: int) -> tuple[Cause, ...]:
        """The chain from a policy's value on."""
        guide, limits = self._guide, self._instance.limits
        gate = Gate.of(self._instance, guide.in_order_ns, guide.rank)
        ordered, judged = self._run(self._policy, gate, limits, Decision.ORDER)
        ordered_ns = self._worth(judged.metrics)
        alone = {Decision.ORDER: value_ns - ordered_ns} | self._alone(value_ns)
        habits = Habits.of(judged.history, ordered.held_blocks)
        # Without recomputing none may be evicted, so that the plain rule has to reserve.
        recomputes = self._instance.switches.preemption.recomputes
        state = _State(gate=gate, habits=replace(habits, reserves=habits.reserves or not recomputes))
        steps = self._replacements(state, reserves=habits.reserves, may_evict=recomputes)
        values_ns = {Decision.ORDER: ordered_ns}
        for decision, after in steps:
            if after == state and decision is not Decision.OTHER_RULES:
                continue
            state = after
            judged = self._follow(state, decision)
            values_ns[decision] = self._worth(judged.metrics)
            if judged.schedule == self._target.history.schedule:
                break
        return self._differences(value_ns, values_ns | {Decision.REST: self._target.value_ns}, alone)

    def _differences(
        self, value_ns: int, values_ns: dict[Decision, int], alone: dict[Decision, int | None]
    ) -> tuple[Cause, ...]:
        """All decisions in their order; one that was not replaced saves nothing."""
        found = []
        for decision in Decision:
            reached_ns = values_ns.get(decision, value_ns)
            cause = Cause(
                decision=decision,
                value_ns=reached_ns,
                saved_ns=value_ns - reached_ns,
                alone_ns=alone.get(decision),
                differs=decision in values_ns,
            )
            found.append(cause)
            value_ns = reached_ns
        return tuple(found)

    def _replacements(
        self, state: _State, *, reserves: bool, may_evict: bool
    ) -> list[tuple[Decision, _State]]:
        """What is replaced after the policy's own rules, each step with all before.

        Parameters
        ----------
        reserves
            Whether the policy itself does, not only the plain rule in its place.
        """
        target, guide = self._habits, self._guide
        # Where peaks are reserved, it is they that keep other requests out.
        unreserved = {"reserves": not may_evict, "seats": self._instance.limits.kv_blocks}
        open_habits: list[tuple[Decision, dict[str, Any]]] = [
            (Decision.APART, {"apart": False}),
            (Decision.WHOLE_PROMPTS, {"whole_prompts": False}),
            (Decision.RESERVATION, unreserved if reserves else {}),
            (Decision.BUDGET, {"batch_tokens": target.batch_tokens}),
            (Decision.SEATS, {"seats": target.seats}),
        ]
        steps = [(Decision.OTHER_RULES, state)]
        for decision, habits in open_habits:
            state = replace(state, habits=replace(state.habits, **habits))
            steps.append((decision, state))
        state = replace(state, chunks_of=guide)
        gate = Gate.of(self._instance, guide.begins_ns, guide.rank)
        timed = replace(state, gate=gate)
        last = replace(timed, preemptions_of=guide if may_evict else None)
        return [*steps, (Decision.CHUNKS, state), (Decision.TIME, timed), (Decision.PREEMPTIONS, last)]

    def _alone(self, value_ns: int) -> dict[Decision, int | None]:
        """What the policy itself saves under one thing of the best known schedule."""
        guide, limits, instance = self._guide, self._instance.limits, self._instance
        as_given = Gate.of(instance, instance.columns.arrival_ns, guide.rank * 0)
        in_time = Gate.of(instance, guide.begins_ns, guide.rank)
        tight = replace(limits, max_batch_tokens=self._habits.batch_tokens)
        few = replace(limits, max_batch_requests=min(self._habits.seats, limits.max_batch_requests))
        runs = {
            Decision.BUDGET: (as_given, tight),
            Decision.SEATS: (as_given, few),
            Decision.TIME: (in_time, limits),
        }
        saved: dict[Decision, int | None] = {}
        for decision, (gate, under) in runs.items():
            try:
                _, judged = self._run(self._policy, gate, under, decision)
                saved[decision] = value_ns - self._worth(judged.metrics)
            except PolicyCrashError:
                raise
            except (PolicyError, UsageError) as reason:
                self._tell(f"{self._policy.label} does not run with that {decision}: {reason}")
        return saved

    def _follow(self, state: _State, decision: Decision) -> Judged:
        """What the plain rule makes of a state."""
        follow = Follow(
            habits=state.habits,
            order=state.gate.order,
            chunks_of=state.chunks_of,
            preemptions_of=state.preemptions_of,
        )
        limits = replace(self._instance.limits, max_batch_tokens=state.habits.batch_tokens)
        return self._run(follow, state.gate, limits, decision)[1]

    def _run(
        self, policy: Policy, gate: Gate, limits: Limits, decision: Decision
    ) -> tuple[Simulation, Judged]:
        """Simulate behind a gate and under limits that are no wider, and judge in the whole instance."""
        self._tell(f"simulating {self._policy.label}, {decision} replaced")
        simulation = simulate(replace(gate.instance, limits=limits), policy)
        judged = judge(self._instance, gate.outside(simulation.schedule))
        if judged.violations:
            message = judged.violations[0].message
            raise InternalError(f"explaining {self._policy.label} breaks a rule: {message}; please report")
        return simulation, judged

    def _worth(self, metrics: Metrics) -> int:
        return metrics.objective_ns(self._target.objective)
