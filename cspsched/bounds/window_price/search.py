"""Chooses the prices of the `window-price` certificate: a few shapes, then steps along the subgradient.

Nothing here proves anything: every choice gives a bound, and `window_price.outcome` evaluates it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np

from cspsched.bounds.certificate import Certificate
from cspsched.bounds.parts.price_windows import PriceWindows
from cspsched.bounds.parts.tables import Tables
from cspsched.bounds.parts.work import WorkTable
from cspsched.bounds.time_price.bound import Columns, total
from cspsched.bounds.time_price.details import PRICE_UNIT, STRETCH_UNIT, Prices
from cspsched.bounds.window_price.bound import FloatArray, WindowTable, outcome, window_bound_ns
from cspsched.bounds.window_price.details import WINDOW_PRICE, WindowPrices
from cspsched.problem.cost import IntArray
from cspsched.problem.objectives import Objective

FEWEST_REQUESTS, MOST_REQUESTS = 32, 12_000
"""With fewer there is hardly a crowd; with more the search takes minutes."""
STEPS, FIRST_STEP, LONGEST_STEP, FASTER, SLOWER = 40, 0.1, 0.4, 1.4, 0.4
SMOOTHED_STAY = 4
"""Gradients are averaged over a part of a request's mean least stay."""
WINDOWS_PER_STAY, COARSE_WINDOWS_PER_STAY = 48, 8
MOST_FALLING_WINDOWS = 2**12
"""Where batches cost next to nothing, the work lasts for millions of least stays."""
NUM_REFERENCES = 8
SLOPES, STEEP_SLOPES = (24, 48, 60, 68, 76, 88, 112, 160), (2, 4, 8, 16, 32, 56, 80, 112)
"""s in 1 / 64; the second ones for a crowd that waits for long."""
MEMORY_SHARES, SPANS, HEIGHTS, POWERS = (2, 4), (1.3, 1.6, 2.0), (0.6, 0.9), (2.0,)
"""Of a price that falls from the first arrival on; spans in times of the whole work, heights in requests."""
HOLDS, PACES = (12, 14, 16), (16, 18, 20, 22, 24, 28)
"""Heights and lengths of mu, in sixteenths, beside one price."""
LEAST_PRICE = PRICE_UNIT // 64


def window_price_certificates(
    tables: Tables, work: WorkTable, table: Columns, flat: Prices
) -> list[Certificate]:
    """The certificate `window-price` on the sum of latencies; none for few or very many requests.

    Parameters
    ----------
    work, table
        The minorant, and the columns under it.
    flat
        The best prices that `time_price` found: one for all windows.
    """
    if not FEWEST_REQUESTS <= len(table.arrivals) <= MOST_REQUESTS:
        return []
    limits = tables.instance.limits
    windows = WindowTable(table, limits.kv_blocks * limits.block_tokens)
    found = [
        (value_ns, chosen)
        for chosen in (*_even(table, flat), *falling_prices(windows))
        for value_ns in [window_bound_ns(windows, chosen)]
        if value_ns is not None
    ]
    if not found:
        return []
    value_ns, chosen = _climb(windows, max(found, key=lambda pair: pair[0])[1])
    details = chosen.to_details() | work.minorant.to_details()
    return [Certificate(WINDOW_PRICE, Objective.LATENCY, value_ns, details)] if value_ns > 0 else []


def _even(table: Columns, flat: Prices) -> Iterator[WindowPrices]:
    """One price for all windows, and some mu."""
    window_ns = max(1, table.mean_stay_ns // WINDOWS_PER_STAY)
    price = max(flat.price * 11 // 10, LEAST_PRICE)
    windows = PriceWindows.covering(*flat.windows().periods_ns(), window_ns)
    for height, pace in ((0, STRETCH_UNIT), *product(HOLDS, PACES)):
        yield WindowPrices(
            prices=(price,) * windows.num_windows,
            window_ns=window_ns,
            height=height,
            pace=pace,
            memory=0,
            slopes=SLOPES,
            references=(price,),
            idle=windows.idle,
        )


def falling_prices(windows: WindowTable) -> Iterator[WindowPrices]:
    """Prices that fall as if all were there at once and nobody came later; nobody is paid for waiting."""
    table = windows.columns
    held = table.alpha * (table.last - table.first) * (table.last + table.first) // (2 * windows.capacity)
    decodes = np.cumsum(table.decodes)
    busy_ns = total(table.prefill + held + decodes[table.last] - decodes[table.first])
    if busy_ns < int(table.arrivals[-1]):
        return
    shortest_ns = int(max(SPANS) * busy_ns) // MOST_FALLING_WINDOWS + 1
    window_ns = max(table.mean_stay_ns // COARSE_WINDOWS_PER_STAY, shortest_ns)
    for span, height, power, memory in product(SPANS, HEIGHTS, POWERS, MEMORY_SHARES):
        count = int(span * busy_ns / window_ns) + 1
        rest = 1 - (np.arange(count) + 0.5) / count
        prices = _whole(height * len(table.arrivals) * PRICE_UNIT * rest**power)
        yield WindowPrices(
            prices=tuple(prices.tolist()),
            window_ns=window_ns,
            height=0,
            pace=STRETCH_UNIT,
            memory=memory,
            slopes=STEEP_SLOPES,
            references=_references(prices),
        )


def _climb(windows: WindowTable, chosen: WindowPrices) -> tuple[int, WindowPrices]:
    """Steps along the subgradient of the logarithm of the prices, each from the best so far."""
    best_ns, best, step, direction = -1, chosen, FIRST_STEP, np.zeros(len(chosen.prices))
    averaged = max(1, windows.columns.mean_stay_ns // SMOOTHED_STAY // chosen.window_ns)
    for _ in range(STEPS):
        found = outcome(windows, chosen)
        if found is not None and found.value_ns > best_ns:
            best_ns, best, step = found.value_ns, chosen, step * FASTER
            direction = _averaged(found.gradient, averaged)
        else:
            step *= SLOWER
        moved = np.array(best.prices) * np.exp(np.clip(step * direction, -LONGEST_STEP, LONGEST_STEP))
        prices = _whole(moved)
        chosen = replace(best, prices=tuple(prices.tolist()), references=_references(prices))
    return best_ns, best


def _averaged(gradient: FloatArray, count: int) -> FloatArray:
    """Mean over the neighbours of each window; the first and last windows count again beyond the ends."""
    padded = np.pad(gradient, (count // 2, count - 1 - count // 2), mode="edge")
    return np.convolve(padded, np.full(count, 1 / count), mode="valid")


def _references(prices: IntArray) -> tuple[int, ...]:
    """Some prices that occur, evenly by rank."""
    ranks = (2 * np.arange(NUM_REFERENCES) + 1) * len(prices) // (2 * NUM_REFERENCES)
    return tuple(np.unique(np.sort(prices)[ranks]).tolist())


def _whole(prices: FloatArray) -> IntArray:
    return np.maximum(np.rint(prices), LEAST_PRICE).astype(np.int64)
