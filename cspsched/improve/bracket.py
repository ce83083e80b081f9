"""Both ends of what is known about the optimum: a proven bound, the best known schedule, policies between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cspsched.improve.improvement import Improvement, Rival
from cspsched.problem.result import tool_versions

BRACKET_SCHEMA = "cspsched/bracket/1"


@dataclass(frozen=True, kw_only=True, eq=False)
class Bracket:
    """The interval that holds the optimum, from an improvement."""

    improvement: Improvement

    @property
    def low_ns(self) -> int:
        """L: no schedule is below."""
        return self.improvement.bound.value_ns

    @property
    def high_ns(self) -> int:
        """U: a schedule that the referee accepts."""
        return self.improvement.value_ns

    def excess(self, rival: Rival) -> tuple[float, float]:
        """Interval of (policy - optimum) / optimum: over the best known schedule, over the bound."""
        return rival.value_ns / self.high_ns - 1, rival.value_ns / self.low_ns - 1

    def to_json(self) -> dict[str, Any]:
        """Both ends with what gave them, and every policy, with a schema version and units in the names."""
        found, count = self.improvement, len(self.improvement.instance.requests)

        def mean_s(value_ns: int) -> float:
            return found.objective.mean_s(value_ns, count)

        return {
            "schema": BRACKET_SCHEMA,
            "objective": found.objective.value,
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
            "ratio": self.high_ns / self.low_ns,
            "steps": found.steps,
            "seed": found.seed,
            "stop_reason": found.stop_reason.value,
            "policies": [
                {
                    "policy": rival.policy,
                    "value_ns": rival.value_ns,
                    "value_s": mean_s(rival.value_ns),
                    "excess_at_least": self.excess(rival)[0],
                    "excess_at_most": self.excess(rival)[1],
                }
                for rival in found.rivals
            ],
        }
