"""Compiled: the least cost of every request under one price of time."""

from __future__ import annotations

from typing import NamedTuple

from cspsched.compiled.jit import inner, outer
from cspsched.problem.cost import IntArray

PRICE_UNIT, STRETCH_UNIT = 1024, 16


class Given(NamedTuple):
    """Everything that is read, int64. Names as in `Waits`, `Columns`. By request but for `prefill_prices`."""

    arrivals: IntArray
    ends: IntArray
    length: IntArray
    reach: IntArray
    least: IntArray
    decoding: IntArray
    prefill: IntArray
    free: IntArray
    """Least cost of its own batches."""
    lone: IntArray
    """Cost of its later tokens if a nanosecond of their batches costs 1."""
    prefill_prices: IntArray
    """What prefill work costs in each window, in 1 / 1024; shape (num_windows,)."""


@outer
def fill_least_costs(given: Given, window_ns: int, stretch: int, found: IntArray) -> int:
    """Fill `found` with the least over the windows of the prompt, request by request; windows visited."""
    visited = 0
    for i in range(len(found)):
        arrival, free = given.arrivals[i], given.free[i]
        best = max(given.ends[i] - arrival, given.least[i] + given.prefill[i])
        for window in range(arrival // window_ns, given.ends[i] // window_ns):
            visited += 1
            since = max(window * window_ns - arrival, 0)
            until = since + given.decoding[i]
            stay = given.lone[i] + since + _integral(given.length[i], given.reach[i], stretch, since, until)
            best = min(best, max(free, stay) + given.prefill[i] * given.prefill_prices[window] // PRICE_UNIT)
            # Staying longer costs more, even if the work were free.
            if stay >= best:
                break
        found[i] = best
    return visited


@inner
def _integral(length: int, reach: int, stretch: int, start: int, end: int) -> int:
    """Integral of mu from `start` to `end` after the arrival, rounded down."""
    if start >= reach:
        return 0
    end = min(end, reach)
    # Within its reach mu is linear: the length times the mean of both ends.
    means = PRICE_UNIT // STRETCH_UNIT * (stretch * length - STRETCH_UNIT * start) // length
    means += PRICE_UNIT // STRETCH_UNIT * (stretch * length - STRETCH_UNIT * end) // length
    return int((end - start) * means // (2 * PRICE_UNIT))
