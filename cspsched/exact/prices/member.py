"""Prices of paths through aggregated states as a member of the portfolio."""

from __future__ import annotations

from cspsched.exact.members import Clock
from cspsched.exact.prices.aggregated_bound import LEVEL_WALKS, STEP_S, bound_levels, can_bound_levels
from cspsched.exact.record import Ending, Record
from cspsched.problem.objectives import Objective
from cspsched.problem.result import StopReason


class AggregatedPathsMember:
    """Raises the bound on the makespan of many or long requests."""

    name = LEVEL_WALKS

    def applies(self, record: Record) -> bool:
        """Whether the paths bound the objective; for run to completion others prove more."""
        return (
            not (record.ceilings or record.instance.switches.run_to_completion)
            and record.objective is Objective.MAKESPAN
            and can_bound_levels(record.instance)
        )

    def run(self, record: Record, clock: Clock) -> Ending:
        """Raise the bound by better and better prices."""
        details = {"name": self.name}

        def go_on(bound_ns: int, steps: int) -> bool:
            record.watch.spend(steps * STEP_S)
            record.raise_bound(self.name, bound_ns, details)
            return clock.time_left() > 0

        record.raise_bound(self.name, bound_levels(record.instance, go_on), details)
        return StopReason.TIME_LIMIT, details
