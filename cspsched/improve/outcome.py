"""What a search comes to: the best known schedule, the policies it was to beat, and a proven bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cspsched.bounds.certificate import Certificate
from cspsched.improve.ends import LowerEnd
from cspsched.improve.rivals import Rival
from cspsched.problem.instance import Instance, Rejection
from cspsched.problem.objectives import AnyObjective
from cspsched.problem.result import Result, Status, StopReason, short_details, tool_versions, unit_of
from cspsched.problem.schedule import Schedule

IMPROVEMENT_SCHEMA = "cspsched/improvement/1"


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """A schedule that the referee accepts, its value in nanoseconds, and what made it.

    The schedule is None where it is too long to be held whole; it was judged in parts then.
    """

    schedule: Schedule | None
    value_ns: int
    found_by: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Improvement:
    """Best known schedule of an instance beside the best policy and a proven bound, in nanoseconds.

    Attributes
    ----------
    rivals
        Policies that were asked for.
    reference
        Policies of the fixed reference set, as far as they can run; asked for or not.
    """

    instance: Instance
    objective: AnyObjective
    rivals: tuple[Rival, ...]
    reference: tuple[Rival, ...]
    schedule: Schedule | None
    """None where it is too long to be held whole."""
    value_ns: int
    found_by: str
    bound: Certificate | LowerEnd
    steps: int
    stop_reason: StopReason
    seed: int
    rejections: tuple[Rejection, ...]

    @property
    def best_policy(self) -> Rival:
        """The best of the policies, those of the reference included."""
        return min((*self.reference, *self.rivals), key=lambda rival: rival.value_ns)

    @property
    def gap(self) -> float:
        """(U - L) / U; 0 if both are 0."""
        return (self.value_ns - self.bound.value_ns) / self.value_ns if self.value_ns else 0.0

    @property
    def gain(self) -> float:
        """Share of the best policy's value that the search took off."""
        best_ns = self.best_policy.value_ns
        return 1 - self.value_ns / best_ns if best_ns else 0.0

    def to_result(self) -> Result:
        """The schedule with its bound, as `solve` returns it."""
        details = short_details(self.bound.details) if isinstance(self.bound, Certificate) else {}
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
            certificate_details=details,
            provenance={"versions": tool_versions(), "seed": self.seed, "steps": self.steps},
        )

    def to_json(self) -> dict[str, Any]:
        """Values without the schedule, with a schema version and units in the names."""
        count = len(self.instance.requests)
        best = self.best_policy
        return {
            "schema": IMPROVEMENT_SCHEMA,
            "objective": self.objective.value,
            "unit": unit_of(self.objective),
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
