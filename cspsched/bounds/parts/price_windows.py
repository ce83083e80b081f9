"""Windows of time in which machine time has a price: equally long, in one or more periods.

Between two periods nothing has a price. So where arrivals are far apart, windows are needed only where a
request can be, and their number grows with the requests and not with the time that they span
(docs/bounds.md, section 7).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from cspsched.bounds.certificate import Details
from cspsched.problem.cost import IntArray


class Idle(NamedTuple):
    """Time without a price between two periods, in windows."""

    before: int
    """Number of the window that comes after it; the first window is 0 and has no idle time before it."""
    skipped: int
    """How long it is."""


class Placed(NamedTuple):
    """Arrivals on an axis of time that leaves out what has no price; int64, shape (num_requests,)."""

    arrivals: IntArray
    ends: IntArray
    """End of the period of the arrival; of an arrival outside of all periods, the arrival itself."""


@dataclass(frozen=True)
class PriceWindows:
    """Windows that have a price, numbered without the idle time; the first begins at the first arrival."""

    window_ns: int
    num_windows: int
    idle: tuple[Idle, ...] = ()

    def __post_init__(self) -> None:
        befores = (0, *(before for before, _ in self.idle), self.num_windows)
        rises = all(left < right for left, right in pairwise(befores))
        if self.window_ns < 1 or not rises or any(skipped < 1 for _, skipped in self.idle):
            raise ValueError(f"windows of time that prove nothing: {self}")

    @classmethod
    def covering(cls, starts_ns: list[int], ends_ns: list[int], window_ns: int) -> PriceWindows:
        """The fewest windows that cover some periods, each closed and rising; one more where one ends."""
        count, last, idle = 0, 0, []
        for start_ns, end_ns in zip(starts_ns, ends_ns, strict=True):
            first, past = start_ns // window_ns, end_ns // window_ns + 1
            if first > last:
                idle.append(Idle(count, first - last))
            first = max(first, last)
            count, last = count + past - first, past
        return cls(window_ns, count, tuple(idle))

    @property
    def total_ns(self) -> int:
        """Time that has a price."""
        return self.num_windows * self.window_ns

    def periods_ns(self) -> tuple[list[int], list[int]]:
        """Starts and ends of all periods, from the first arrival on."""
        befores = [0, *(idle.before for idle in self.idle)]
        skipped = list(accumulate((idle.skipped for idle in self.idle), initial=0))
        lasts = [*befores[1:], self.num_windows]
        starts, ends = (
            [(number + left_out) * self.window_ns for number, left_out in zip(numbers, skipped, strict=True)]
            for numbers in (befores, lasts)
        )
        return starts, ends

    def placed(self, arrivals: IntArray) -> Placed:
        """Arrivals from the first one on, and the ends of their periods, without the idle time before."""
        befores = np.array([0, *(idle.before for idle in self.idle)], dtype=np.int64)
        skipped = np.cumsum([0, *(idle.skipped for idle in self.idle)], dtype=np.int64)
        period = np.searchsorted((befores + skipped) * self.window_ns, arrivals, side="right") - 1
        ends = np.append(befores[1:], self.num_windows)[period] * self.window_ns
        return Placed(np.minimum(arrivals - skipped[period] * self.window_ns, ends), ends)


def idle_details(idle: tuple[Idle, ...]) -> Details:
    """Idle time as text for a certificate; nothing where there is none."""
    return {"idle": ";".join(f"{before} {skipped}" for before, skipped in idle)} if idle else {}


def idle_from_details(details: Details) -> tuple[Idle, ...]:
    """Read what `idle_details` wrote; `ValueError` if it is something else."""
    rows = [row.split() for row in str(details.get("idle", "")).split(";") if row]
    if any(len(row) != len(Idle._fields) for row in rows):
        raise ValueError("idle time has two numbers")
    return tuple(Idle(*map(int, row)) for row in rows)
