"""What is known while members search side by side: the best schedule and the best proven bound."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cspsched.errors import InternalError
from cspsched.exact.model import Decisions
from cspsched.exact.search import Watch
from cspsched.problem.instance import Instance
from cspsched.problem.metrics import Objective, measure
from cspsched.problem.referee import find_violations
from cspsched.problem.schedule import Schedule
from cspsched.problem.timing import schedule_asap

Details = Mapping[str, str | int | bool]


@dataclass(frozen=True, kw_only=True)
class Incumbent:
    """A feasible schedule, its objective value in nanoseconds, and what found it."""

    schedule: Schedule
    value_ns: int
    found_by: str


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Lower bound, the name of its certificate, and what is known of the member that proved it."""

    dual_ns: int
    certificate: str
    details: Details = field(default_factory=dict)


def best_incumbent(
    instance: Instance, objective: Objective, candidates: Iterable[tuple[str, Schedule]]
) -> Incumbent:
    """Best of the named schedules that the referee accepts."""
    accepted = [
        Incumbent(
            schedule=schedule, value_ns=measure(instance, schedule).objective_ns(objective), found_by=name
        )
        for name, schedule in candidates
        if not find_violations(instance, schedule)
    ]
    return min(accepted, key=lambda candidate: candidate.value_ns)


class Record:
    """Best schedule and proof of a solve, shared by its members; each may be a thread of its own."""

    def __init__(
        self, instance: Instance, objective: Objective, incumbent: Incumbent, proof: Proof, watch: Watch
    ) -> None:
        self.instance, self.objective, self.watch = instance, objective, watch
        self._incumbent, self._proof = incumbent, proof
        self._lock = threading.Lock()

    @property
    def incumbent(self) -> Incumbent:
        """Best schedule so far."""
        return self._incumbent

    @property
    def proof(self) -> Proof:
        """Best bound so far."""
        return self._proof

    @property
    def is_closed(self) -> bool:
        """Whether value and bound are equal."""
        return self._proof.dual_ns >= self._incumbent.value_ns

    def offer(self, name: str, decisions: Decisions | None) -> None:
        """Take a schedule over if it is better, timed and judged from its decisions alone."""
        if decisions is None:
            return
        schedule = schedule_asap(self.instance, *decisions)
        if find_violations(self.instance, schedule):
            raise InternalError(f"{name} made a schedule that breaks a rule; please report this instance")
        value_ns = measure(self.instance, schedule).objective_ns(self.objective)
        with self._lock:
            if value_ns < self._incumbent.value_ns:
                self._incumbent = Incumbent(schedule=schedule, value_ns=value_ns, found_by=name)
        self.watch.tell(best_ns=value_ns, best_by=name)

    def raise_bound(self, name: str, dual_ns: int | None, details: Details) -> None:
        """Take a bound over if it is higher."""
        if dual_ns is None:
            return
        with self._lock:
            if dual_ns > self._proof.dual_ns:
                self._proof = Proof(dual_ns=dual_ns, certificate=name, details=details)
        self.watch.tell(bound_ns=dual_ns, bound_by=name)

    def check(self) -> None:
        """Two numbers that must agree do not: say so instead of reporting either.

        Raises
        ------
        InternalError
            If the bound is above the value of the best schedule.
        """
        if self._proof.dual_ns > self._incumbent.value_ns:
            raise InternalError(
                f"{self._proof.certificate} proves {self._proof.dual_ns} ns, the referee prices "
                f"{self._incumbent.found_by} at {self._incumbent.value_ns} ns; please report this instance"
            )
