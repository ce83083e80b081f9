"""What a search offers to take part in the portfolio, and the time that it gets."""

from __future__ import annotations

from enum import Enum, auto
from typing import Protocol, runtime_checkable

from cspsched.exact.record import Ending, Record
from cspsched.exact.watch import SearchLimits


class Clock:
    """The time of a member: a share of what is left when the clock is made, and limits for who wants them."""

    def __init__(self, record: Record, limits: SearchLimits, share: float = 1.0) -> None:
        self.limits, self._watch = limits, record.watch
        self._deadline_s = record.watch.remaining_s * (1 - share)

    def time_left(self) -> float:
        """Seconds left; 0 when there is nothing left to do."""
        return 0.0 if self._watch.is_over else self._watch.remaining_s - self._deadline_s


class Member(Protocol):
    """A search of the portfolio. It tells the common record what it finds; an object serves one solve."""

    @property
    def name(self) -> str:
        """What failures of the member are named by."""

    def applies(self, record: Record) -> bool:
        """Whether the member can find or prove anything; it may prepare itself."""

    def run(self, record: Record, clock: Clock) -> Ending:
        """Search until the gap is closed or the clock is at 0. Returns why it stopped."""


class Company(Enum):
    """The members that help most beside a search that leads."""

    MODEL = auto()
    """CP-SAT: requests run to completion."""
    SCHEDULES = auto()
    """Searches for schedules: neither bounds nor schedules of CP-SAT get near those of the leader."""
    ALL = auto()
    """All others; also where no search leads."""


@runtime_checkable
class Leader(Member, Protocol):
    """A member that is exact on its own where it applies: the first of them gets a thread."""

    def company(self, record: Record) -> Company:
        """Return the members that help most beside this one."""
