"""Questions about counts of batches as a member of the portfolio."""

from __future__ import annotations

from cspsched.exact.members import Clock
from cspsched.exact.model.batch_counts import BATCH_COUNTS, SCALE, CountSearch, CountTalk, can_count
from cspsched.exact.record import Ending, Record
from cspsched.problem.objectives import Objective
from cspsched.problem.result import StopReason, most_rounding_ns

MOST_TIME = 2**60
"""Beyond it, products of times might not fit into 64 bits."""


class CountMember:
    """Bounds the makespan of requests that run to completion, and finds schedules for it."""

    name = BATCH_COUNTS

    def applies(self, record: Record) -> bool:
        """Whether counts of batches bound the objective, and may give better schedules."""
        may_count = record.objective is Objective.MAKESPAN and not record.ceilings
        return may_count and record.incumbent.value_ns * SCALE < MOST_TIME and can_count(record.instance)

    def run(self, record: Record, clock: Clock) -> Ending:
        """Ask how many batches are enough.

        If counts tell no more and the gap is still open, what is left of it may be the rounding of batch
        times.
        """
        talk = CountTalk(
            watch=record.watch,
            time_left=clock.time_left,
            tell_bound=lambda bound_ns: record.raise_bound(self.name, bound_ns, {"name": self.name}),
            tell_schedule=lambda decisions: record.offer(self.name, decisions),
        )
        search = CountSearch(record.instance, talk)
        is_settled = search.run()
        incumbent = record.incumbent
        rounding_ns = most_rounding_ns(record.instance, record.objective, incumbent.schedule)
        is_rounding = is_settled and incumbent.value_ns - record.proof.dual_ns <= rounding_ns
        reason = StopReason.ROUNDING if is_rounding else StopReason.TIME_LIMIT
        return reason, {"name": self.name, "questions": search.num_questions}
