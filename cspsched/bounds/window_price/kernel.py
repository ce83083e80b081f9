"""Compiled: the least cost of every request under prices per window. Loads numba."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cspsched.compiled.jit import outer
from cspsched.problem.cost import IntArray

FloatArray = npt.NDArray[np.float64]
PRICE_UNIT, RATE_UNIT, DOUBLE_RATE, STRETCH_UNIT, ROOT_BITS = 1024, 2**12, 2**13, 16, 10
WINDOW_NS, INVERSE, HEIGHT, MEMORY, CAPACITY = range(5)
COST, PROMPT_WINDOW, LAST_WINDOW, LINE = range(4)
NUM_ROWS = 4
MUCH = 2**62


class Given(NamedTuple):
    """Everything that is read; int64. Names as in `LineTables`, `Placed`, `Columns` and `Holds`."""

    costs: IntArray
    least_costs: IntArray
    needed: IntArray
    roots: IntArray
    work_roots: IntArray
    price_roots: IntArray
    prices: IntArray
    tolls: IntArray
    arrivals: IntArray
    ends: IntArray
    first: IntArray
    last: IntArray
    least: IntArray
    prefill: IntArray
    length: IntArray
    area: IntArray
    scalars: IntArray


@outer
def least_costs(g: Given, found: IntArray, state: IntArray) -> None:
    """Fill the rows COST, PROMPT_WINDOW, LAST_WINDOW and LINE of `found` for every request.

    Integrals over time are in 2^-13 nanoseconds. `state` has a column for each line: the time since the
    arrival less what the line gives; the least, over the prompt's windows so far, of toll and time less that;
    the window where that is; and the cost if the request ends when the window begins.

    One line has to do for all ends inside a window: its cost is concave in the end, so both borders of the
    window decide, but the largest of several lines is not concave.
    """
    num_lines, window_ns = g.costs.shape[0], g.scalars[WINDOW_NS]
    mu = 2 * g.scalars[HEIGHT] * (RATE_UNIT // STRETCH_UNIT)
    for i in range(len(g.arrivals)):
        arrival, waited = g.arrivals[i], 0
        window, past = arrival // window_ns, g.ends[i] // window_ns
        late = max(g.ends[i] - arrival, g.least[i] + g.prefill[i]) - g.area[i]
        best = late * DOUBLE_RATE
        found[PROMPT_WINDOW, i] = found[LAST_WINDOW, i] = found[LINE, i] = -1
        for line in range(num_lines):
            state[0, line], state[1, line], state[2, line] = 0, MUCH, -1
        earliest = (arrival + g.least[i]) // window_ns
        cheapest, start = MUCH, arrival
        while window < past and (start - arrival - g.area[i]) * DOUBLE_RATE < best:
            end = (window + 1) * window_ns
            held = min(max(arrival + g.length[i] - start, 0), end - start)
            cheapest = min(cheapest, g.prices[window])
            toll = g.prefill[i] * g.tolls[window] // PRICE_UNIT * DOUBLE_RATE
            rest = mu * max(arrival + g.length[i] - start, 0)
            for line in range(num_lines):
                if waited - state[0, line] + toll < state[1, line]:
                    state[1, line], state[2, line] = waited - state[0, line] + toll, window
                state[3, line] = state[0, line] + state[1, line] - rest
                given = _given(g, i, line, window)
                state[0, line] += (end - start) * (DOUBLE_RATE - given) - held * max(mu - given, 0)
            waited += (end - start) * DOUBLE_RATE - held * mu
            if earliest <= window:
                # Without any line: it is there until the window begins, and that is all.
                line, cost = _dearest_line(g, i, state, cheapest, rest - mu * held)
                cost = max(cost, (start - arrival - g.area[i]) * DOUBLE_RATE)
                if cost < best:
                    best = cost
                    found[PROMPT_WINDOW, i] = state[2, line]
                    found[LAST_WINDOW, i], found[LINE, i] = window, line
            window, start = window + 1, end
        found[COST, i] = best // DOUBLE_RATE


@outer
def _dearest_line(g: Given, i: int, state: IntArray, cheapest: int, rest: int) -> tuple[int, int]:
    """The line that shows the largest cost if the request ends in the window, and that cost."""
    chosen, most = 0, -MUCH
    for line in range(g.costs.shape[0]):
        table = g.costs if cheapest >= g.needed[line, min(g.first[i] + 1, g.last[i])] else g.least_costs
        tokens = table[line, g.last[i]] - table[line, g.first[i]]
        cost = min(state[3, line], state[0, line] + state[1, line] - rest) + tokens * DOUBLE_RATE
        if cost > most:
            chosen, most = line, cost
    return chosen, most


@outer
def _given(g: Given, i: int, line: int, window: int) -> int:
    """Twice the most that a line gives for a nanosecond of a window, in rate units."""
    if g.last[i] <= g.first[i]:
        return 0
    return int(2 * max(_rate(g, line, window, g.first[i] + 1), _rate(g, line, window, g.last[i]), 0))


@outer
def _rate(g: Given, line: int, window: int, resident: int) -> int:
    """What a line gives at most for one token at the price of a window (h), rounded up."""
    memory = 0
    if g.scalars[MEMORY]:
        memory = g.prices[window] * g.scalars[MEMORY] * resident // (4 * g.scalars[CAPACITY])
    root = g.roots[line, resident] - (g.price_roots[window] * g.work_roots[resident] >> ROOT_BITS)
    if root <= 0:
        return int(-memory)
    return int((((root * root >> 20) + 1) * g.scalars[INVERSE] >> 20) + 1 - memory)


@outer
def add_gradient(g: Given, found: IntArray, gradient: FloatArray) -> None:
    """Add what a little more of each price adds to the least costs, in nanoseconds; it proves nothing."""
    window_ns, alpha = g.scalars[WINDOW_NS], 2.0**40 / 256 / g.scalars[INVERSE]
    for i in range(len(g.arrivals)):
        line, window = found[LINE, i], found[PROMPT_WINDOW, i]
        if window >= 0:
            gradient[window] += g.prefill[i]
        while line >= 0 and g.last[i] > g.first[i] and window <= found[LAST_WINDOW, i]:
            start = max(window * window_ns, g.arrivals[i])
            first, last = _rate(g, line, window, g.first[i] + 1), _rate(g, line, window, g.last[i])
            resident = g.first[i] + 1 if first > last else g.last[i]
            held = start < g.arrivals[i] + g.length[i]
            if max(first, last, 0) > held * g.scalars[HEIGHT] * (RATE_UNIT // STRETCH_UNIT):
                root = g.roots[line, resident] - (g.price_roots[window] * g.work_roots[resident] >> ROOT_BITS)
                slope = g.scalars[MEMORY] / STRETCH_UNIT * resident / g.scalars[CAPACITY]
                if root > 0 and g.price_roots[window] > 0:
                    slope += (root / 1024) * g.work_roots[resident] / g.price_roots[window] / alpha
                gradient[window] += slope * ((window + 1) * window_ns - start)
            window += 1
