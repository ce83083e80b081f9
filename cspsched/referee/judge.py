"""A schedule judged once: what it breaks, what it implies, and what it is worth, from one walk."""

from __future__ import annotations

from dataclasses import dataclass

from cspsched.errors import InternalError
from cspsched.problem.instance import Instance
from cspsched.problem.runs import RunSchedule
from cspsched.problem.schedule import Schedule
from cspsched.referee.history import History, follow
from cspsched.referee.metrics import Metrics
from cspsched.referee.rules import check_form, violations_of
from cspsched.referee.violation import Violation

FEWEST_COMPILED = 1_500_000
"""Entries from which on it pays to load the compiled walk."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """What the referee says of a schedule.

    Attributes
    ----------
    schedule
        As it was given.
    violations
        All rules that it breaks, as `find_violations` lists them; empty if it is feasible.
    """

    schedule: Schedule
    violations: tuple[Violation, ...]
    _metrics: Metrics | None

    @property
    def metrics(self) -> Metrics:
        """Times; of a schedule that breaks a rule, whatever its decisions make of them.

        Raises
        ------
        InternalError
            If the schedule is malformed, so that it implies nothing.
        """
        if self._metrics is None:
            raise InternalError(f"a malformed schedule was measured: {self.violations[0].message}")
        return self._metrics

    @property
    def history(self) -> History:
        """What the decisions imply; raises as `metrics`."""
        return self.metrics.history


def judge(instance: Instance, schedule: Schedule) -> Judged:
    """Judge a schedule by every rule, and measure it.

    Many runs are walked as runs, in compiled code, where they break no rule; everything else entry by entry.
    """
    if isinstance(schedule, RunSchedule) and schedule.first_entry[-1] >= FEWEST_COMPILED:
        from cspsched.referee.runs import measure_runs

        metrics = measure_runs(instance, schedule)
        if metrics is not None:
            return Judged(schedule=schedule, violations=(), _metrics=metrics)
    malformed = tuple(check_form(instance, schedule))
    if malformed:
        return Judged(schedule=schedule, violations=malformed, _metrics=None)
    history = follow(instance, schedule)
    return Judged(
        schedule=schedule, violations=tuple(violations_of(history)), _metrics=Metrics(history=history)
    )
