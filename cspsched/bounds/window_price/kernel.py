"""Compiled: the least cost of every request under prices per window."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cspsched.compiled.jit import inner, outer
from cspsched.problem.cost import IntArray

FloatArray = npt.NDArray[np.float64]
PRICE_UNIT, RATE_UNIT, DOUBLE_RATE, STRETCH_UNIT, ROOT_BITS = 1024, 2**12, 2**13, 16, 10
WINDOW_NS, INVERSE, HEIGHT, MEMORY, CAPACITY, LOWEST, LEAST_PREFILL_PRICE = range(7)
"""Scalars; LOWEST is a window of the lowest price."""
COST, PROMPT_WINDOW, LAST_WINDOW, LINE = range(4)
NUM_ROWS = 4
LINED, PROMPT, WHERE, YOUNG_ROOT, OLD_ROOT, TOKENS, LEAST_TOKENS, NEEDED, STEADY = range(9)
"""Of a line: the time since the arrival less what it gives; the least, over the prompt's windows so far, of
its cost and time less that; the window where that is; and what does not change during a request."""
NUM_STATES = 9
STOP_EVERY = 4
"""Windows after which it is asked whether any later end could cost less."""
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
    prefill_prices: IntArray
    arrivals: IntArray
    ends: IntArray
    first: IntArray
    last: IntArray
    least: IntArray
    prefill: IntArray
    length: IntArray
    area: IntArray
    scalars: IntArray


class LineInputs(NamedTuple):
    """What the tables of the lines are made of; int64. All but `kinds` have the shape (longest + 1,)."""

    kinds: IntArray
    """Rows of alpha at the slope, rounded down and up, and the reference price; shape (num_lines, 3)."""
    work: IntArray
    """Work of a decode that is not paid by memory, rounded down."""
    more_work: IntArray
    """The same of one nanosecond more, rounded up."""
    held: IntArray
    """What a decode's memory pays of alpha, rounded down."""
    more_held: IntArray
    """The same, rounded up."""
    refills: IntArray
    """Work of a refill."""
    cheapest: IntArray
    """The same at the least price of all windows."""


@outer
def fill_lines(
    given: LineInputs, costs: IntArray, least_costs: IntArray, needed: IntArray, roots: IntArray
) -> None:
    """Fill the tables of all lines, each of shape (num_lines, longest + 1), and as in `LineTables`."""
    longest = len(given.work) - 1
    for line in range(len(given.kinds)):
        below, above, price = given.kinds[line, 0], given.kinds[line, 1], given.kinds[line, 2]
        sum_of_costs = sum_of_least = 0
        for resident in range(longest + 1):
            own = below + given.held[resident] * price // PRICE_UNIT
            paid = given.work[resident] * price // PRICE_UNIT
            # No request has 0 resident tokens, and no request decodes into 1.
            cost = own + paid + 2 * _root(own * paid) if resident > 1 else 0
            sum_of_costs += cost
            sum_of_least += min(cost, given.cheapest[resident])
            costs[line, resident], least_costs[line, resident] = sum_of_costs, sum_of_least
            needed[line, resident] = -(-cost * PRICE_UNIT // max(given.refills[resident], 1))
            own = above - (-given.more_held[resident] * price // PRICE_UNIT)
            paid = -(-given.more_work[resident] * price // PRICE_UNIT)
            roots[line, resident] = _root(own << 2 * ROOT_BITS) + _root(paid << 2 * ROOT_BITS) + 2
        for resident in range(longest - 1, -1, -1):
            needed[line, resident] = max(needed[line, resident], needed[line, resident + 1])


@inner
def _root(value: int) -> int:
    """Floor of the square root, exact below 2^62."""
    root = int(np.sqrt(float(value)))
    root -= root * root > value
    root += (root + 1) * (root + 1) <= value
    return root


@outer
def least_costs(g: Given, found: IntArray, state: IntArray) -> int:
    """Fill the rows COST, PROMPT_WINDOW, LAST_WINDOW and LINE of `found` for every request; windows visited.

    Integrals over time are in 2^-13 nanoseconds. `state` has NUM_STATES rows and a column for each line.

    One line has to do for all ends inside a window: its cost is concave in the end, so both borders of the
    window decide, but the largest of several lines is not concave.
    """
    num_lines, window_ns = g.costs.shape[0], g.scalars[WINDOW_NS]
    mu = 2 * g.scalars[HEIGHT] * (RATE_UNIT // STRETCH_UNIT)
    visited = 0
    for i in range(len(g.arrivals)):
        arrival, waited, decodes = g.arrivals[i], 0, g.last[i] > g.first[i]
        window, past = arrival // window_ns, g.ends[i] // window_ns
        late = max(g.ends[i] - arrival, g.least[i] + g.prefill[i]) - g.area[i]
        best = late * DOUBLE_RATE
        found[PROMPT_WINDOW, i] = found[LAST_WINDOW, i] = found[LINE, i] = -1
        young, old = min(g.first[i] + 1, g.last[i]), g.last[i]
        _begin(g, i, young, state)
        earliest = (arrival + g.least[i]) // window_ns
        cheapest, start = MUCH, arrival
        while window < past and (start - arrival - g.area[i]) * DOUBLE_RATE < best:
            end = (window + 1) * window_ns
            held = min(max(arrival + g.length[i] - start, 0), end - start)
            cheapest = min(cheapest, g.prices[window])
            prompt_cost = g.prefill[i] * g.prefill_prices[window] // PRICE_UNIT * DOUBLE_RATE
            opening = mu * max(arrival + g.length[i] - start, 0)
            closing = opening - mu * held
            young_less, old_less = _taken(g, window, young), _taken(g, window, old)
            young_memory, old_memory = _memory(g, window, young), _memory(g, window, old)
            chosen, most = 0, -MUCH
            for line in range(num_lines):
                lined, prompt = state[LINED, line], state[PROMPT, line]
                if waited - lined + prompt_cost < prompt:
                    prompt = waited - lined + prompt_cost
                    state[PROMPT, line], state[WHERE, line] = prompt, window
                rate = 0
                if decodes:
                    root = state[YOUNG_ROOT, line] - young_less
                    if root > 0:
                        rate = max(rate, _rate_of(root, g.scalars[INVERSE]) - young_memory)
                    root = state[OLD_ROOT, line] - old_less
                    if root > 0:
                        rate = max(rate, _rate_of(root, g.scalars[INVERSE]) - old_memory)
                after = lined + (end - start) * (DOUBLE_RATE - 2 * rate) - held * max(mu - 2 * rate, 0)
                state[LINED, line] = after
                if earliest <= window:
                    row = TOKENS if cheapest >= state[NEEDED, line] else LEAST_TOKENS
                    cost = min(lined - opening, after - closing) + prompt + state[row, line]
                    if cost > most:
                        chosen, most = line, cost
            waited += (end - start) * DOUBLE_RATE - held * mu
            visited += 1
            if earliest <= window:
                # Without any line: it is there until the window begins, and that is all.
                cost = max(most, (start - arrival - g.area[i]) * DOUBLE_RATE)
                if cost < best:
                    best = cost
                    found[PROMPT_WINDOW, i] = state[WHERE, chosen]
                    found[LAST_WINDOW, i], found[LINE, i] = window, chosen
                if (window - earliest) % STOP_EVERY == 0:
                    prompt_cost = g.prefill[i] * g.scalars[LEAST_PREFILL_PRICE] // PRICE_UNIT * DOUBLE_RATE
                    if _least_to_come(g, state, waited + prompt_cost) - closing >= best:
                        break
            window, start = window + 1, end
        found[COST, i] = best // DOUBLE_RATE
    return visited


@inner
def _begin(g: Given, i: int, young: int, state: IntArray) -> None:
    """What the lines say about a request that has just arrived."""
    first, last = g.first[i], g.last[i]
    lowest = g.scalars[LOWEST]
    young_less, last_less = _taken(g, lowest, young), _taken(g, lowest, last)
    for line in range(g.costs.shape[0]):
        state[LINED, line], state[PROMPT, line], state[WHERE, line] = 0, MUCH, -1
        state[YOUNG_ROOT, line], state[OLD_ROOT, line] = g.roots[line, young], g.roots[line, last]
        state[TOKENS, line] = (g.costs[line, last] - g.costs[line, first]) * DOUBLE_RATE
        state[LEAST_TOKENS, line] = (g.least_costs[line, last] - g.least_costs[line, first]) * DOUBLE_RATE
        state[NEEDED, line] = g.needed[line, young]
        rate = 0
        if last > first:
            rate = _rate_of(max(state[YOUNG_ROOT, line] - young_less, 0), g.scalars[INVERSE])
            rate = max(rate, _rate_of(max(state[OLD_ROOT, line] - last_less, 0), g.scalars[INVERSE]))
        state[STEADY, line] = 2 * rate <= DOUBLE_RATE


@inner
def _least_to_come(g: Given, state: IntArray, waited: int) -> int:
    """The most that a line shows at least for all later ends, before what mu gives back is taken off.

    Of a line that gives at most 1 for a nanosecond at the lowest price, the cost rises with the end but for
    what a later window of the prompt may save; `waited` is that cost at the least prefill price of all.
    """
    most = -MUCH
    for line in range(g.costs.shape[0]):
        if state[STEADY, line]:
            row = TOKENS if g.prices[g.scalars[LOWEST]] >= state[NEEDED, line] else LEAST_TOKENS
            most = max(most, min(state[LINED, line] + state[PROMPT, line], waited) + state[row, line])
    return most


@inner
def _taken(g: Given, window: int, resident: int) -> int:
    """Root of what a decode pays for its work in a window, which is taken off the line's."""
    return int(g.price_roots[window] * g.work_roots[resident] >> ROOT_BITS)


@inner
def _memory(g: Given, window: int, resident: int) -> int:
    """What a decode pays for its memory in a window."""
    return int(g.prices[window] * g.scalars[MEMORY] * resident // (4 * g.scalars[CAPACITY]))


@inner
def _rate_of(root: int, inverse: int) -> int:
    """Square of a root over alpha, rounded up."""
    return int((((root * root >> 20) + 1) * inverse >> 20) + 1)


@inner
def _rate(g: Given, line: int, window: int, resident: int) -> int:
    """What a line gives at most for one token at the price of a window (h), rounded up."""
    root = g.roots[line, resident] - _taken(g, window, resident)
    paid = _rate_of(root, g.scalars[INVERSE]) if root > 0 else 0
    return int(paid - _memory(g, window, resident))


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
