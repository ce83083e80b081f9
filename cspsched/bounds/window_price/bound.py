"""Sum of latencies: a price on machine time for each window of time, shared by work and by memory.

Theorem (docs/bounds.md, section 10). Let P(t) >= 0 be a step function in some periods, 0 outside, B in
[0, 1]. A decode with work w and r resident tokens pays the share (1 - B) w / (V - alpha) + B r / M of the
time V of its batch without prefills. For every line (s, p), s > 0, with

    lambda(r) = (sqrt(s alpha + p alpha B r / M) + sqrt(p (1 - B) w(r)))^2,
    h(P)      = max over r of (sqrt(lambda(r)) - sqrt(P (1 - B) w(r)))^2 / alpha - P B r / M   (at least 0),

what the decodes of a request pay and the integral of h(P(t)) over their batches are at least the sum of its
lambda(r). Everything else is as in `time_price`: prefill work pays P + Q, and mu_i is paid back; but here
mu_i is S from the arrival for L_i, and 0 after that.

Integers, rounded against the bound: prices in 1 / 1024, slopes in 1 / 64, shares in sixteenths, rates in
2^-12.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cspsched.bounds.parts.price_windows import Placed
from cspsched.bounds.time_price.bound import Columns, integer_root, total
from cspsched.bounds.time_price.details import PRICE_UNIT, STRETCH_UNIT
from cspsched.bounds.window_price.details import DOUBLE_RATE, RATE_UNIT, SLOPE_UNIT, WindowPrices
from cspsched.bounds.window_price.kernel import (
    COST,
    NUM_ROWS,
    NUM_STATES,
    Given,
    LineInputs,
    add_gradient,
    fill_lines,
    least_costs,
)
from cspsched.compiled.jit import compiled
from cspsched.problem.cost import INT64_SAFE, IntArray
from cspsched.units import ceil_div

FloatArray = npt.NDArray[np.float64]

ROOT_BITS, INVERSE_BITS = 10, 40
"""Square roots are in units of 2^-10; 1 / (256 alpha) is in units of 2^-40."""
MAX_ROOTED = 2**41


class Holds(NamedTuple):
    """mu_i of all requests: how long, and what others pay for it; int64."""

    length: IntArray
    """L_i, 0 where it would end after the request's period; shape (num_requests,)."""
    area: IntArray
    """Integral of mu_i over all time, rounded up; shape (num_requests,)."""
    waiting_prices: IntArray
    """Q of those whose mu_i covers the whole window, in 1 / 1024; shape (num_windows,)."""


def holds(table: Columns, placed: Placed, chosen: WindowPrices) -> Holds:
    """How requests make each other wait."""
    window_ns, count = chosen.window_ns, len(chosen.prices)
    length = table.least * chosen.pace // STRETCH_UNIT
    length[placed.arrivals + length > placed.ends] = 0
    first, end = -(-placed.arrivals // window_ns), (placed.arrivals + length) // window_ns
    covers = end > first
    steps = np.bincount(first[covers], minlength=count + 1) - np.bincount(end[covers], minlength=count + 1)
    return Holds(
        length=length,
        area=-(-chosen.height * length // STRETCH_UNIT),
        waiting_prices=np.cumsum(steps)[:count] * (PRICE_UNIT // STRETCH_UNIT * chosen.height),
    )


class LineTables(NamedTuple):
    """What the kernel reads of the lines; int64, shape (num_lines, longest + 1) unless said otherwise."""

    costs: IntArray
    """Running sum over r of lambda(r)."""
    least_costs: IntArray
    """The same if a refill may cost as little as the least price of all windows."""
    needed: IntArray
    """Price from which on no refill of r or more tokens is cheaper than lambda."""
    roots: IntArray
    """sqrt(lambda(r)), rounded up, in 2^-10."""
    work_roots: IntArray
    """sqrt((1 - B) w(r)), rounded down, in 2^-10; shape (longest + 1,)."""
    price_roots: IntArray
    """sqrt(P) of each window, rounded down, in 2^-10; shape (num_windows,)."""


class WindowTable(NamedTuple):
    """An instance under one minorant, and the shape of the prices."""

    columns: Columns
    capacity: int
    """KV cache in tokens."""
    counts_memory: bool = True
    """Residents take no more than that together: no two share blocks."""


def line_tables(table: WindowTable, chosen: WindowPrices) -> LineTables | None:
    """Tables of all lines; None where 64-bit integers might overflow."""
    columns = table.columns
    resident = np.arange(len(columns.decodes), dtype=np.int64)
    share = STRETCH_UNIT - chosen.memory
    work = columns.decodes * share // STRETCH_UNIT
    more_work = -(-(columns.decodes + 1) * share // STRETCH_UNIT)
    held = columns.alpha * chosen.memory * resident // (STRETCH_UNIT * table.capacity)
    more_held = -(-columns.alpha * chosen.memory * resident // (STRETCH_UNIT * table.capacity))
    kinds = [
        (columns.alpha * slope // SLOPE_UNIT, ceil_div(columns.alpha * slope, SLOPE_UNIT), price)
        for price in chosen.references
        for slope in chosen.slopes
    ]
    given = LineInputs(
        kinds=np.array(kinds, dtype=np.int64),
        work=work,
        more_work=more_work,
        held=held,
        more_held=more_held,
        refills=columns.refills,
        cheapest=columns.refills * min(chosen.prices) // PRICE_UNIT,
    )
    sums, least_sums, needed, roots = np.empty((4, len(kinds), len(resident)), dtype=np.int64)
    compiled(fill_lines)(given, sums, least_sums, needed, roots)
    if int(sums[:, -1].max()) * 2 * DOUBLE_RATE >= INT64_SAFE:
        return None
    return LineTables(
        costs=sums,
        least_costs=least_sums,
        needed=needed,
        roots=roots,
        work_roots=integer_root(work << (2 * ROOT_BITS)),
        price_roots=integer_root(np.array(chosen.prices, dtype=np.int64) << ROOT_BITS),
    )


class Outcome(NamedTuple):
    """The bound under some prices."""

    value_ns: int
    """An estimate that proves nothing where only every so manieth request was looked at."""
    gradient: FloatArray
    """What a little more of each price adds, per nanosecond of its window; floats that prove nothing."""
    visited: int
    """Windows that were looked at, summed over requests."""
    work: int
    """The same times the lines: what the time is spent on."""


def outcome(table: WindowTable, chosen: WindowPrices, every: int = 1) -> Outcome | None:
    """The bound on the sum of latencies; None where 64-bit integers might overflow.

    With `every`, an estimate from every so manieth request, each in place of so many.
    """
    columns, placed = table.columns, chosen.windows().placed(table.columns.arrivals)
    held = holds(columns, placed, chosen)
    lines = None if _overflows(table, chosen, held) else line_tables(table, chosen)
    if lines is None:
        return None
    prices = np.array(chosen.prices, dtype=np.int64)
    inverse = ceil_div(2**INVERSE_BITS, 256 * columns.alpha)
    prefill_prices = prices + held.waiting_prices
    scalars = [chosen.window_ns, inverse, chosen.height, chosen.memory, table.capacity]
    scalars += [int(prices.argmin()), int(prefill_prices.min())]

    def some(column: IntArray) -> IntArray:
        return np.ascontiguousarray(column[::every])

    given = Given(
        *lines,
        prices=prices,
        prefill_prices=prefill_prices,
        arrivals=some(placed.arrivals),
        ends=some(placed.ends),
        first=some(columns.first),
        last=some(columns.last),
        least=some(columns.least),
        prefill=some(columns.prefill),
        length=some(held.length),
        area=some(held.area),
        scalars=np.array(scalars, dtype=np.int64),
    )
    count, num_lines = len(columns.arrivals), len(lines.costs)
    found = np.empty((NUM_ROWS, len(given.arrivals)), dtype=np.int64)
    visited = compiled(least_costs)(given, found, np.empty((NUM_STATES, num_lines), dtype=np.int64))
    gradient = np.zeros(len(prices))
    compiled(add_gradient)(given, found, gradient)
    costs_ns, paid = total(found[COST]), ceil_div(sum(chosen.prices) * chosen.window_ns, PRICE_UNIT)
    if every > 1:
        costs_ns, gradient = costs_ns * count // len(given.arrivals), gradient * count / len(given.arrivals)
    return Outcome(costs_ns - paid, gradient / chosen.window_ns - 1, visited, visited * num_lines)


def window_bound_ns(table: WindowTable, chosen: WindowPrices) -> int | None:
    """The bound on the sum of latencies in nanoseconds, or None where 64-bit integers might overflow."""
    found = outcome(table, chosen)
    return None if found is None else found.value_ns


def _overflows(table: WindowTable, chosen: WindowPrices, held: Holds) -> bool:
    """Whether a product might not fit into 64 bits."""
    columns, highest = table.columns, max((*chosen.references, *chosen.prices))
    alpha, longest = columns.alpha, len(columns.decodes)
    share = alpha * chosen.memory * longest // (STRETCH_UNIT * table.capacity) + 1
    own = alpha * max(chosen.slopes) // SLOPE_UNIT + share * highest // PRICE_UNIT + 2
    paid = (int(columns.decodes.max()) + 1) * highest // PRICE_UNIT + 1
    cost = 2 * (own + paid)
    length = int(columns.least.max()) * chosen.pace // STRETCH_UNIT
    area = length * max(chosen.height, STRETCH_UNIT) // STRETCH_UNIT + 1
    prefill_price, prefill = highest + int(held.waiting_prices.max()), int(columns.prefill.max())
    # At the earliest end no line shows more than the time until then, what its prompt pays in the first
    # window, and all tokens; so no request is looked at for longer than that and what mu gives back.
    stay = int(columns.least.max()) + area + prefill * prefill_price // PRICE_UNIT + cost * longest
    span = min(len(chosen.prices), stay // chosen.window_ns + 3) * chosen.window_ns
    rate = cost * RATE_UNIT // alpha + RATE_UNIT * max(chosen.height, STRETCH_UNIT)
    products = (
        span * rate * 4,
        rate << INVERSE_BITS // 2,
        cost * longest,
        prefill * prefill_price * (DOUBLE_RATE // PRICE_UNIT),
        int(columns.refills.max()) * highest,
        cost * PRICE_UNIT,
        alpha * chosen.memory * longest,
        highest * chosen.memory * longest * 4,
        area * STRETCH_UNIT * RATE_UNIT,
        PRICE_UNIT * max(chosen.height, STRETCH_UNIT) * len(columns.arrivals),
        (int(columns.least.max()) + prefill + len(chosen.prices) * chosen.window_ns) * DOUBLE_RATE * 2,
    )
    return max(products) >= INT64_SAFE or max(own, paid, highest) >= MAX_ROOTED
