"""Which part of a trace is kept, and how fast its clock runs."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from cspsched.errors import TraceError, UsageError
from cspsched.trace.cells import MAX_ARRIVAL_S
from cspsched.units import NS_PER_S, ns_to_seconds, seconds_to_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A window of the trace, then its first requests, then a faster or slower clock."""

    window: tuple[float, float] | None = None
    """Seconds since the first arrival, half open; the end may be infinite."""
    limit: int | None = None
    """Most requests kept, the first ones by arrival."""
    scale_rate: float | None = None
    """Factor on the arrival rate: 2.0 halves every arrival."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"limit is {self.limit}, expected at least 1 request")
        if self.scale_rate is not None and not 0 < self.scale_rate < math.inf:
            raise UsageError(f"scale_rate is {self.scale_rate}, expected a finite factor above 0")
        if self.window is not None and not 0 <= self.window[0] < self.window[1]:
            raise UsageError(
                f"window is {self.window[0]}:{self.window[1]}, expected seconds start:end, 0 <= start < end"
            )

    def kept(self, elapsed_ns: Sequence[int]) -> range:
        """Positions of the requests that are kept.

        Parameters
        ----------
        elapsed_ns : Sequence[int]
            Sorted arrivals since the first one; not empty.

        Raises
        ------
        TraceError
            If no request arrives in the window.
        """
        first, behind = 0, len(elapsed_ns)
        if self.window is not None:
            first, behind = (_position(elapsed_ns, second) for second in self.window)
        if first == behind:
            raise TraceError(self._empty_window(elapsed_ns))
        return range(first, behind if self.limit is None else min(behind, first + self.limit))

    def rebased(self, elapsed_ns: Sequence[int]) -> list[int]:
        """Arrivals since the first of these, divided by the factor and rounded to the nearest, halves up.

        The factor is the decimal number that the float prints as: 1.1 divides by 11/10, exactly.

        Raises
        ------
        TraceError
            If the arrivals span more than 9e9 seconds.
        UsageError
            If they do so only because of the factor.
        """
        factor = Fraction(repr(float(1 if self.scale_rate is None else self.scale_rate)))
        origin, up, down = elapsed_ns[0], factor.denominator, factor.numerator
        self._check_span((elapsed_ns[-1] - origin) / factor)
        return [(2 * (t - origin) * up + down) // (2 * down) for t in elapsed_ns]

    def _check_span(self, span_ns: Fraction) -> None:
        """Refuse times that do not fit into 64 bits of nanoseconds."""
        if span_ns <= MAX_ARRIVAL_S * NS_PER_S:
            return
        if self.scale_rate is None:
            raise TraceError(
                f"the arrivals span {ns_to_seconds(int(span_ns))} s, expected at most {MAX_ARRIVAL_S} s "
                "(repair them, or use --window to leave some out)"
            )
        raise UsageError(
            f"scale_rate is {self.scale_rate}, which spreads the trace over more than {MAX_ARRIVAL_S} s; "
            "expected a larger factor"
        )

    def _empty_window(self, elapsed_ns: Sequence[int]) -> str:
        start, end = self.window or (0.0, math.inf)
        return (
            f"no request arrives in the window from {start} s to {end} s; the arrivals go from 0 s to "
            f"{ns_to_seconds(elapsed_ns[-1])} s (choose a window that overlaps them)"
        )


def _position(elapsed_ns: Sequence[int], second: float) -> int:
    """Number of arrivals before a time."""
    return len(elapsed_ns) if second == math.inf else bisect_left(elapsed_ns, seconds_to_ns(second))
