"""The timed state search as a member of the portfolio."""

from __future__ import annotations

from cspsched.exact.members import Clock, Company
from cspsched.exact.record import Ending, Record
from cspsched.exact.timed.search import (
    TIMED_SEARCH,
    TimedSearch,
    TimedSpace,
    TimedTalk,
    build_timed_space,
)


class TimedMember:
    """Proves the optimum of small instances with arrivals, swap and weighted sums."""

    name = TIMED_SEARCH

    def __init__(self) -> None:
        self._space: TimedSpace | None = None

    def applies(self, record: Record) -> bool:
        """Whether the instance is small enough, and there are no ceilings."""
        if not record.ceilings:
            self._space = build_timed_space(record.instance, record.objective)
        return self._space is not None

    def run(self, record: Record, clock: Clock) -> Ending:
        """Search the timed states."""
        assert self._space is not None
        talk = TimedTalk(
            time_left=clock.time_left,
            upper=lambda: record.watch.best_ns,
            tell_bound=lambda bound: record.raise_bound(self.name, bound, {"name": self.name}),
            tell_schedule=lambda schedule: record.offer_schedule(self.name, schedule),
            spend=record.watch.spend,
        )
        search = TimedSearch(self._space, talk)
        return search.prove(), {"name": self.name, "states": search.num_states}

    def company(self, record: Record) -> Company:
        """All others: the search finds worse schedules than they do."""
        return Company.ALL
