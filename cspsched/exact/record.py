"""What is known while members search side by side: the best schedule and the best proven bound."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cspsched.errors import InternalError
from cspsched.exact.model.exact_model import Ceiling, Decisions
from cspsched.exact.watch import Watch
from cspsched.problem.failure import Failure
from cspsched.problem.instance import Instance
from cspsched.problem.linear_form import linear_form
from cspsched.problem.objectives import AnyObjective
from cspsched.problem.result import StopReason
from cspsched.problem.schedule import Schedule
from cspsched.referee.metrics import measure
from cspsched.referee.retiming import timings
from cspsched.referee.rules import find_violations
from cspsched.referee.timing import schedule_asap

Details = Mapping[str, str | int | bool]
Ending = tuple[StopReason, Details]
"""Why a member stopped, and what is known of its search."""
Outcome = TypeVar("Outcome")


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
    certificate_details: Mapping[str, int | str] = field(default_factory=dict)
    """What a closed-form certificate was applied to."""


def best_incumbent(
    instance: Instance,
    objective: AnyObjective,
    candidates: Iterable[tuple[str, Schedule]],
    ceilings: Sequence[Ceiling] = (),
) -> Incumbent:
    """Best of the named schedules that the referee accepts and no ceiling excludes."""
    accepted = [
        found
        for name, schedule in candidates
        # The optimum is one without prefix cache hits.
        if not schedule.uses_prefix_cache and not find_violations(instance, schedule)
        for found in _priced(instance, objective, name, schedule, ceilings)
    ]
    return min(accepted, key=lambda candidate: candidate.value_ns)


def _priced(
    instance: Instance, objective: AnyObjective, name: str, schedule: Schedule, ceilings: Sequence[Ceiling]
) -> Iterator[Incumbent]:
    """A feasible schedule with its value, as it is and, where idle time may pay, with other times."""
    forms = [linear_form(one, instance) for one in (objective, *(limit.objective for limit in ceilings))]
    is_regular = all(form.is_regular(instance.requests) for form in forms)
    for timed in [schedule] if is_regular else timings(instance, schedule):
        metrics = measure(instance, timed)
        if all(metrics.objective_ns(limit.objective) <= limit.most_ns for limit in ceilings):
            yield Incumbent(schedule=timed, value_ns=metrics.objective_ns(objective), found_by=name)


class Record:
    """Best schedule and proof of a solve, shared by its members; each may be a thread of its own."""

    def __init__(
        self,
        instance: Instance,
        objective: AnyObjective,
        incumbent: Incumbent,
        proof: Proof,
        watch: Watch,
        ceilings: Sequence[Ceiling] = (),
    ) -> None:
        self.instance, self.objective, self.watch = instance, objective, watch
        self.ceilings = ceilings
        self._incumbent, self._proof = incumbent, proof
        self._given, self._proofs = proof, {proof.certificate: proof}
        self._failures: list[Failure] = []
        self._made: dict[Callable[[Record], Any], Any] = {}
        self._lock = threading.Lock()

    @property
    def incumbent(self) -> Incumbent:
        """Best schedule so far; read it once where two of its properties must belong together."""
        return self._incumbent

    @property
    def proof(self) -> Proof:
        """Best bound so far."""
        return self._proof

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Members that failed."""
        return tuple(self._failures)

    @property
    def is_closed(self) -> bool:
        """Whether value and bound are equal."""
        return self._proof.dual_ns >= self._incumbent.value_ns

    def once(self, make: Callable[[Record], Outcome]) -> Outcome:
        """What `make` gives for this record, made for the first member that asks and shared by all."""
        if make not in self._made:
            self._made[make] = make(self)
        outcome: Outcome = self._made[make]
        return outcome

    def attempt(self, name: str, task: Callable[[], Outcome], otherwise: Outcome) -> Outcome:
        """Do a member's work. If it fails it costs its proof: what others find stands, and it is named."""
        try:
            return task()
        except Exception as error:  # noqa: BLE001 - whatever goes wrong in one member, the others go on
            self.pass_over(Failure.of(name, error))
            return otherwise

    def pass_over(self, failure: Failure) -> None:
        """Take note of a member that failed."""
        with self._lock:
            self._failures.append(failure)

    def offer(self, name: str, decisions: Decisions | None) -> None:
        """Take a schedule over if it is better, timed and judged from its decisions alone."""
        if decisions is not None:
            self.offer_schedule(name, schedule_asap(self.instance, *decisions))

    def offer_schedule(self, name: str, schedule: Schedule) -> None:
        """Take a schedule over if it is better, after the referee has judged it."""
        if find_violations(self.instance, schedule):
            raise InternalError(f"{name} made a schedule that breaks a rule; please report this instance")
        for found in _priced(self.instance, self.objective, name, schedule, self.ceilings):
            with self._lock:
                if found.value_ns < self._incumbent.value_ns:
                    self._incumbent = found
            self.watch.tell(best_ns=found.value_ns, best_by=name)

    def raise_bound(self, name: str, dual_ns: int | None, details: Details) -> None:
        """Take a bound over if it is higher."""
        if dual_ns is None:
            return
        proof = Proof(dual_ns=dual_ns, certificate=name, details=details)
        with self._lock:
            if name not in self._proofs or dual_ns > self._proofs[name].dual_ns:
                self._proofs[name] = proof
            if dual_ns > self._proof.dual_ns:
                self._proof = proof
        self.watch.tell(bound_ns=dual_ns, bound_by=name)

    def check(self) -> None:
        """Take back what the best schedule refutes: a bound above its value. The result names the member.

        Raises
        ------
        InternalError
            If the bound is the one that was given, which leaves none.
        """
        incumbent = self._incumbent
        while self._proof.dual_ns > incumbent.value_ns:
            wrong = self._proofs.pop(self._proof.certificate)
            message = (
                f"{wrong.certificate} proves {wrong.dual_ns} ns, the referee prices {incumbent.found_by} at "
                f"{incumbent.value_ns} ns; please report this instance"
            )
            if wrong is self._given:
                raise InternalError(message)
            self.pass_over(
                Failure(
                    name=wrong.certificate, error=InternalError.__name__, message=message, where="referee"
                )
            )
            self._proof = max(self._proofs.values(), key=lambda proof: proof.dual_ns)
