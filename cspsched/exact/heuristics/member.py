"""Local search as a member of the portfolio."""

from __future__ import annotations

from itertools import count

from cspsched.exact.heuristics.local_search import LOCAL_SEARCH, SLICE, can_dispatch, improve
from cspsched.exact.members import Clock
from cspsched.exact.record import Ending, Record
from cspsched.problem.instance import Preemption
from cspsched.problem.result import StopReason

MOVES_PER_PAIR = 500
"""Moves for each pair of requests: few requests have few plans, and complete searches prove more."""
CELL_S = 2e-7
"""What a request in a batch of a plan takes on a typical machine; a deterministic clock runs by it."""


class LocalSearchMember:
    """Anneals plans of a parametric scheduler; finds schedules and proves nothing."""

    name = LOCAL_SEARCH

    def applies(self, record: Record) -> bool:
        """Whether local search may evict as it does, and has no ceilings to keep to."""
        may_evict = record.instance.switches.preemption is not Preemption.SWAP
        return may_evict and not record.ceilings and can_dispatch(record.instance)

    def run(self, record: Record, clock: Clock) -> Ending:
        """Offer ever better schedules, as long as the clock says and the moves last."""
        num_requests, allotted_s = len(record.instance.requests), clock.time_left()
        cells = num_requests * record.incumbent.schedule.num_batches
        shares = count(0, SLICE / (MOVES_PER_PAIR * num_requests**2))

        def next_slice() -> float:
            record.watch.spend(SLICE * cells * CELL_S)
            return min(clock.time_left(), allotted_s * (1 - next(shares)))

        for decisions in improve(record.instance, record.objective, clock.limits.seed, next_slice):
            record.offer(self.name, decisions)
        return StopReason.TIME_LIMIT, {}
