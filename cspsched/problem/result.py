"""What a solver returns: the best schedule, what is proven about it, and how it came about."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cspsched.errors import InputError
from cspsched.problem.failure import Failure
from cspsched.problem.instance import Instance
from cspsched.problem.json_io import require_int, require_keys, require_schema, require_text
from cspsched.problem.linear_form import read_objectives
from cspsched.problem.objectives import AnyObjective, Mixture, Objective
from cspsched.problem.schedule import Schedule

if TYPE_CHECKING:
    from cspsched.referee.violation import Violation

RESULT_SCHEMA = "cspsched/result/2"
FIRST_SCHEMA = "cspsched/result/1"
"""Without a status of its own for what rounding leaves open, and without details of certificates."""
MOST_DETAIL_LETTERS = 50_000


class Status(StrEnum):
    """What we know."""

    OPTIMAL = "optimal"
    """No schedule is better."""
    OPTIMAL_UP_TO_ROUNDING = "optimal_up_to_rounding"
    """The search is complete; what is left of the gap is what batch times lose when they are rounded."""
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"
    UNKNOWN = "unknown"

    @property
    def is_optimal(self) -> bool:
        """Whether no schedule is better by more than rounding."""
        return self in (Status.OPTIMAL, Status.OPTIMAL_UP_TO_ROUNDING)


class StopReason(StrEnum):
    """Why we stopped."""

    PROVEN = "proven"
    ROUNDING = "proven up to rounding"
    FINISHED = "finished"
    TIME_LIMIT = "time limit"
    INTERRUPTED = "interrupted"
    TOO_LARGE = "too large"
    HITS = "prefix cache hits"
    """The exact solver does not know them."""
    FAILED = "failed"
    """Every search ended with an error; the failures are in the provenance."""


def status_of(
    instance: Instance,
    objective: AnyObjective,
    schedule: Schedule | None,
    interval_ns: tuple[int, int],
    stop_reason: StopReason,
) -> Status:
    """What a bound and the value of a schedule say, given why the search stopped.

    Parameters
    ----------
    interval_ns
        Bound and value.
    stop_reason
        `ROUNDING` if the search was complete and priced batches without rounding.
    """
    dual_ns, primal_ns = interval_ns
    if dual_ns == primal_ns:
        return Status.OPTIMAL
    if schedule is None or stop_reason is not StopReason.ROUNDING:
        return Status.FEASIBLE
    is_rounding = primal_ns - dual_ns <= most_rounding_ns(instance, objective, schedule)
    return Status.OPTIMAL_UP_TO_ROUNDING if is_rounding else Status.FEASIBLE


def most_rounding_ns(instance: Instance, objective: AnyObjective, schedule: Schedule) -> int:
    """What a schedule loses at most because each term of a batch's time is rounded up.

    Every batch delays its own end, so a sum over requests pays it once for each of them. No complete search
    prices mixtures unrounded: nothing of their gaps is rounding.
    """
    if not isinstance(objective, Objective):
        return 0
    delayed = 1 if objective is Objective.MAKESPAN else len(instance.requests)
    return instance.cost.num_rounded_terms * schedule.num_batches * delayed


def short_details(details: Mapping[str, int | str]) -> Mapping[str, int | str]:
    """Details of a certificate that a file can hold; long ones are made anew when they are checked."""
    letters = sum(len(str(value)) for value in details.values())
    return details if letters <= MOST_DETAIL_LETTERS else {}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """An earlier stage of a lexicographic order: the later ones were solved with it at most `primal_ns`."""

    objective: AnyObjective
    primal_ns: int
    dual_ns: int
    certificate: str
    status: Status

    @property
    def gap_ns(self) -> int:
        """U - L, in the unit of the objective."""
        return self.primal_ns - self.dual_ns

    def to_json(self) -> dict[str, Any]:
        """Plain values, in the unit of the objective."""
        return {
            "objective": self.objective.value,
            "unit": unit_of(self.objective),
            "primal_ns": self.primal_ns,
            "dual_ns": self.dual_ns,
            "gap_ns": self.gap_ns,
            "status": self.status.value,
            "certificate": self.certificate,
        }

    @classmethod
    def from_json(cls, data: Any, instance: Instance, where: str) -> Stage:
        """Read what `to_json` wrote; files of the first schema have no status of a stage."""
        numbers = ("primal_ns", "dual_ns")
        optional = ("unit", "gap_ns", "status")
        require_keys(data, where, required=("objective", *numbers, "certificate"), optional=optional)
        primal_ns, dual_ns = (require_int(data, name, where) for name in numbers)
        known = Status.OPTIMAL if primal_ns == dual_ns else Status.FEASIBLE
        return cls(
            objective=_read_objective(data, instance, where),
            primal_ns=primal_ns,
            dual_ns=dual_ns,
            certificate=require_text(data, "certificate", where),
            status=_read_status(data, where) if "status" in data else known,
        )


def _read_status(data: dict[str, Any], where: str) -> Status:
    try:
        return Status(data["status"])
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None


def _read_objective(data: dict[str, Any], instance: Instance, where: str) -> AnyObjective:
    """The one objective that a text in a file names."""
    text = require_text(data, "objective", where)
    try:
        first, *others = read_objectives(text, instance)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    if others:
        raise InputError(f"{where}: objective is {text!r}, expected one stage; earlier ones go to 'earlier'")
    return first


def _read_details(data: Any, where: str) -> dict[str, int | str]:
    if not isinstance(data, dict) or not all(type(value) in (int, str) for value in data.values()):
        raise InputError(
            f"{where}: certificate_details is {data!r}, expected a table of whole numbers and text"
        )
    return data


def _read_stages(data: Any, instance: Instance, where: str) -> tuple[Stage, ...]:
    if not isinstance(data, list):
        raise InputError(f"{where} is {data!r}, expected a list of stages")
    return tuple(Stage.from_json(stage, instance, where) for stage in data)


def unit_of(objective: AnyObjective) -> str:
    """What one of an objective's integers is worth."""
    if not isinstance(objective, Mixture):
        return "ns"
    what = "request" if objective.counts else "ns"
    return what if objective.scale == 1 else f"1/{objective.scale} {what}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """Outcome of solving or simulating an instance; None means not known.

    Values are integers: nanoseconds, or what the objective says (`unit_of`).
    """

    instance: Instance
    objective: AnyObjective
    """Of a lexicographic order, the last stage; see `earlier`."""
    schedule: Schedule | None
    primal_ns: int | None
    dual_ns: int | None
    status: Status
    stop_reason: StopReason
    found_by: str | None = None
    """What made the schedule: a model or a policy."""
    certificate: str | None = None
    """Name of the proof behind the dual bound."""
    certificate_details: Mapping[str, int | str] = field(default_factory=dict)
    """What a closed-form certificate was applied to; empty for a search, a sum of several, or if long."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Tool versions, parameters, seed, what failed."""
    earlier: tuple[Stage, ...] = ()
    """Stages before this one, in their order; empty unless objectives were solved one after the other."""

    @property
    def gap_ns(self) -> int | None:
        """U - L, in the unit of the objective."""
        if self.primal_ns is None or self.dual_ns is None:
            return None
        return self.primal_ns - self.dual_ns

    @property
    def verdict(self) -> str:
        """What to call the schedule: its status in words."""
        return self.status.value.replace("_", " ")

    @property
    def gap(self) -> float | None:
        """(U - L) / U: how far the proof is from closed."""
        if not self.primal_ns or self.dual_ns is None:
            return None
        return (self.primal_ns - self.dual_ns) / self.primal_ns

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Members of the portfolio and heuristics that failed and were passed over."""
        return tuple(Failure(**failure) for failure in self.provenance.get("failures", ()))

    def to_json(self) -> dict[str, Any]:
        """Everything that is needed to check the result, with a schema version."""
        return {
            "schema": RESULT_SCHEMA,
            "objective": self.objective.value,
            **({"unit": unit_of(self.objective)} if isinstance(self.objective, Mixture) else {}),
            **({"earlier": [stage.to_json() for stage in self.earlier]} if self.earlier else {}),
            "status": self.status.value,
            "stop_reason": self.stop_reason.value,
            "policy_class": self.instance.switches.policy_class,
            "primal_ns": self.primal_ns,
            "dual_ns": self.dual_ns,
            "gap_ns": self.gap_ns,
            "gap": self.gap,
            "found_by": self.found_by,
            "certificate": self.certificate,
            **({"certificate_details": dict(self.certificate_details)} if self.certificate_details else {}),
            "fingerprint": self.instance.fingerprint(),
            "provenance": self.provenance,
            "instance": self.instance.to_json(),
            "schedule": None if self.schedule is None else self.schedule.to_json(),
        }

    @classmethod
    def from_json(cls, data: Any, where: str = "result") -> Result:
        """Read what `to_json` wrote, or what it wrote in the first schema.

        Raises
        ------
        InputError
            If the schema is another one, or a value is missing or wrong.
        """
        is_first = isinstance(data, dict) and data.get("schema") == FIRST_SCHEMA
        if not is_first:
            require_schema(data, RESULT_SCHEMA, where)
        require_keys(data, where, required=("instance", "schedule", "objective", "status", "stop_reason"))
        for key in ("primal_ns", "dual_ns"):
            if data.get(key) is not None and (type(data[key]) is not int or data[key] < 0):
                raise InputError(f"{where}: {key} is {data[key]!r}, expected a whole number >= 0 or null")
        for key in ("found_by", "certificate"):
            if not isinstance(data.get(key), str | None):
                raise InputError(f"{where}: {key} is {data[key]!r}, expected text or null")
        if not isinstance(data.get("provenance", {}), dict):
            raise InputError(f"{where}: provenance is {data['provenance']!r}, expected a table")
        status = _read_status(data, where)
        try:
            stop_reason = StopReason(data["stop_reason"])
        except ValueError as error:
            raise InputError(f"{where}: {error}") from None
        instance = Instance.from_json(data["instance"], f"{where}: instance")
        stated = data.get("fingerprint", instance.fingerprint())
        if stated != instance.fingerprint():
            raise InputError(
                f"{where}: fingerprint is {stated!r}, its instance has {instance.fingerprint()!r}; "
                "the instance was changed after the result was written"
            )
        schedule = data["schedule"]
        result = cls(
            instance=instance,
            objective=_read_objective(data, instance, where),
            earlier=_read_stages(data.get("earlier", []), instance, f"{where}: earlier"),
            schedule=None if schedule is None else Schedule.from_json(schedule, f"{where}: schedule"),
            primal_ns=data.get("primal_ns"),
            dual_ns=data.get("dual_ns"),
            status=status,
            stop_reason=stop_reason,
            found_by=data.get("found_by"),
            certificate=data.get("certificate"),
            certificate_details=_read_details(data.get("certificate_details", {}), where),
            provenance=data.get("provenance", {}),
        )
        return result._upgraded() if is_first else result

    def _upgraded(self) -> Result:
        """A result of the first schema, where what rounding leaves open was called feasible.

        Of several stages it is not known which one that was; they stay feasible.
        """
        if self.status is not Status.FEASIBLE or self.earlier:
            return self
        if self.primal_ns is None or self.dual_ns is None:
            return self
        interval_ns = self.dual_ns, self.primal_ns
        status = status_of(self.instance, self.objective, self.schedule, interval_ns, self.stop_reason)
        return replace(self, status=status)

    def write(self, path: Path) -> None:
        """Write the result as JSON.

        Raises
        ------
        InputError
            If the file cannot be written.
        """
        try:
            path.write_text(json.dumps(self.to_json()) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from None

    def violations(self) -> list[Violation]:
        """What the referee objects to: broken rules, and an objective value that is not the schedule's."""
        if self.schedule is None:
            return []
        # The referee stands above the problem; here a result asks it, when it is asked.
        from cspsched.referee.judge import judge
        from cspsched.referee.violation import Violation

        judged = judge(self.instance, self.schedule)
        if judged.violations:
            return list(judged.violations)
        broken: list[Violation] = []
        metrics = judged.metrics
        value, unit = metrics.objective_ns(self.objective), unit_of(self.objective)
        for stage in self.earlier:
            reached = metrics.objective_ns(stage.objective)
            if not stage.dual_ns <= reached == stage.primal_ns:
                message = f"states {stage.objective} {stage.primal_ns}, the schedule's is {reached}"
                broken.append(Violation(rule="objective", message=message))
        if value != self.primal_ns:
            message = f"states {self.objective} {self.primal_ns} {unit}, the schedule's is {value} {unit}"
            broken.append(Violation(rule="objective", message=message))
        if self.dual_ns is not None and self.dual_ns > value:
            message = f"states the bound {self.dual_ns} {unit}, above its own schedule's {value} {unit}"
            broken.append(Violation(rule="bound", message=message))
        if self.status.is_optimal and not self._supports_status(value):
            message = (
                f"states that it is {self.verdict}, its bound is {self.dual_ns} {unit} and its value "
                f"{value} {unit}"
            )
            broken.append(Violation(rule="status", message=message))
        return broken

    def _supports_status(self, value: int) -> bool:
        """Whether the gaps of all stages are closed, or, if so stated, no more than rounding."""
        assert self.schedule is not None
        most = [0] * (len(self.earlier) + 1)
        if self.status is Status.OPTIMAL_UP_TO_ROUNDING:
            objectives = (*(stage.objective for stage in self.earlier), self.objective)
            most = [most_rounding_ns(self.instance, one, self.schedule) for one in objectives]
        gaps = [
            *(stage.gap_ns for stage in self.earlier),
            None if self.dual_ns is None else value - self.dual_ns,
        ]
        return all(gap is not None and 0 <= gap <= limit for gap, limit in zip(gaps, most, strict=True))


def tool_versions() -> dict[str, str]:
    """Versions of cspsched and OR-Tools, as installed."""
    versions = {}
    for package in ("cspsched", "ortools"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions
