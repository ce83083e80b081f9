"""Both ends of what is known about the optimum: a proven bound, the best known schedule, policies between."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cspsched.exact.watch import SILENT
from cspsched.improve.curve import Curve, curve_of
from cspsched.improve.ends import why_open
from cspsched.improve.improvement import ImproveLimits, improve
from cspsched.improve.outcome import Improvement
from cspsched.improve.rivals import Rival
from cspsched.policies.base import DEFAULT_HEURISTICS
from cspsched.problem.excess import Excess
from cspsched.problem.instance import Instance
from cspsched.problem.linear_form import read_objectives
from cspsched.problem.result import tool_versions, unit_of

CURVE_SHARE = 0.4
"""Part of a time limit that the bounds of a curve get."""
BRACKET_SCHEMA = "cspsched/bracket/1"


@dataclass(frozen=True, kw_only=True, eq=False)
class Bracket:
    """The interval that holds the optimum, from an improvement.

    Attributes
    ----------
    curve
        Bound and policies over time, if it was asked for and there is one.
    """

    improvement: Improvement
    curve: Curve | None = None

    @property
    def low_ns(self) -> int:
        """L: no schedule is below."""
        return self.improvement.bound.value_ns

    @property
    def high_ns(self) -> int:
        """U: a schedule that the referee accepts."""
        return self.improvement.value_ns

    @property
    def ratio(self) -> float | None:
        """U / L; None if L is 0."""
        return self.high_ns / self.low_ns if self.low_ns else None

    def excess(self, rival: Rival) -> Excess:
        """How far a policy is above the optimum."""
        return Excess.of(rival.value_ns, best_ns=self.high_ns, bound_ns=self.low_ns)

    def to_json(self) -> dict[str, Any]:
        """Both ends with what gave them, and every policy, with a schema version and units in the names."""
        found, count = self.improvement, len(self.improvement.instance.requests)

        def mean_s(value_ns: int) -> float:
            return found.objective.mean_s(value_ns, count)

        return {
            "schema": BRACKET_SCHEMA,
            "objective": found.objective.value,
            "unit": unit_of(found.objective),
            "fingerprint": found.instance.fingerprint(),
            "versions": tool_versions(),
            "num_requests": count,
            "rejected": [rejection.reason for rejection in found.rejections],
            "low_ns": self.low_ns,
            "low_s": mean_s(self.low_ns),
            "certificate": found.bound.name,
            "high_ns": self.high_ns,
            "high_s": mean_s(self.high_ns),
            "found_by": found.found_by,
            "gap": found.gap,
            "ratio": self.ratio,
            "why_open": why_open(found.objective),
            "steps": found.steps,
            "seed": found.seed,
            "stop_reason": found.stop_reason.value,
            "policies": [
                {
                    "policy": rival.policy,
                    "value_ns": rival.value_ns,
                    "value_s": mean_s(rival.value_ns),
                    "excess_at_least": self.excess(rival).at_least,
                    "excess_at_most": self.excess(rival).at_most,
                }
                for rival in found.rivals
            ],
            **({"curve": self.curve.to_json()} if self.curve else {}),
        }


@dataclass(frozen=True, kw_only=True)
class BracketTask:
    """A bracket to be found, wherever that is done; fields as those of `improve`.

    `objective` is a text such as `latency`, `mean-tpot` or `misses`; `curve_points` of 0 means no curve.
    """

    instance: Instance
    objective: str
    heuristics: tuple[str, ...] = DEFAULT_HEURISTICS
    limits: ImproveLimits
    curve_points: int = 0


def find_bracket(task: BracketTask, options: Mapping[str, Any] | None = None) -> Bracket:
    """The bracket of a task; `options` are further ones of `improve`."""
    started, options = time.monotonic(), dict(options or {})
    tell: Callable[[str], None] = options.get("listener", SILENT).step
    servable = task.instance.split_rejected()[0]
    (objective,) = read_objectives(task.objective, servable)
    limits, share = task.limits, 1 - CURVE_SHARE if task.curve_points else 1.0
    if limits.time_limit_s is not None:
        limits = replace(limits, time_limit_s=limits.time_limit_s * share)
    found = improve(task.instance, objective, heuristics=task.heuristics, limits=limits, **options)
    curve = curve_of(
        found,
        task.curve_points,
        time_left=task.limits.clock(started),
        on_moment=lambda done, count: tell(f"bounding moment {done + 1} of {count}"),
    )
    return Bracket(improvement=found, curve=curve)


def find_light_bracket(task: BracketTask) -> Bracket:
    """The same without the schedules of the policies, which are long to send."""
    bracket = find_bracket(task)
    found = bracket.improvement
    rivals, reference = (
        tuple(replace(rival, run=None) for rival in runs) for runs in (found.rivals, found.reference)
    )
    return replace(bracket, improvement=replace(found, rivals=rivals, reference=reference))
