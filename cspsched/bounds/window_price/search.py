"""Chooses the prices of the `window-price` certificate: a few shapes, then steps along the subgradient.

Nothing here proves anything: every choice gives a bound, and `window_price.outcome` evaluates it. Effort is
counted in what the kernel looks at, so that it is the same everywhere: shapes are compared on some requests,
windows are wider and steps fewer the more requests there are, and one evaluation of all of them certifies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import numpy as np

from cspsched.bounds.certificate import Certificate
from cspsched.bounds.parts.price_windows import PriceWindows
from cspsched.bounds.parts.tables import Tables
from cspsched.bounds.parts.work import WorkTable
from cspsched.bounds.time_price.bound import Columns, total
from cspsched.bounds.time_price.details import PRICE_UNIT, STRETCH_UNIT
from cspsched.bounds.window_price.bound import FloatArray, Outcome, WindowTable, outcome
from cspsched.bounds.window_price.details import WINDOW_PRICE, WindowPrices
from cspsched.problem.cost import IntArray
from cspsched.problem.objectives import Objective

FEWEST_REQUESTS = 32
"""With fewer there is hardly a crowd."""
WORK, WORK_OF_CROWD = 150_000_000, 300_000_000
"""Windows of stays times lines that a search looks at, about a CPU second: steps end when it is used up, and
windows are so wide that it does for EVALUATIONS of all requests, if each of these has LEAST_VISITS. From
there on (about 70,000 requests) work grows with the requests. Prices that fall need more steps."""
EVALUATIONS, LEAST_VISITS = 4, 16
SAMPLE_REQUESTS, LEAST_SAMPLE, SAMPLE_OF_CROWD, SHAPES_OF_CROWD = 2_000, 500, 1_000, 500
"""Shapes are compared on the first requests, steps made with all of them. Of a crowd that is there at once
every so manieth request does for both, if still as many as CROWD are in the same window."""
CROWD = 256
STEPS, FIRST_STEP, LONGEST_STEP, LEAST_STEP, FASTER, SLOWER = 60, 0.25, 0.4, 0.01, 1.3, 0.6
SMOOTHED_STAY = 4
"""Gradients are averaged over a part of a request's mean least stay."""
WINDOWS_PER_STAY, PROBED_PER_STAY, COARSE_WINDOWS_PER_STAY = 48, 8, 8
MOST_FALLING_WINDOWS = 2**8
"""Where batches cost next to nothing, the work lasts for millions of least stays."""
NUM_REFERENCES, FEW_REFERENCES = 8, 4
"""Steps from one price have few where all were too much work; the last evaluation all, if work is left."""
SLOPES, STEEP_SLOPES = (24, 48, 60, 68, 76, 88, 112, 160), (2, 4, 8, 16, 32, 56, 80, 112)
"""s in 1 / 64; the second ones for a crowd that waits for long."""
MEMORY_SHARES, SPANS, HEIGHTS, POWERS = (2, 4), (1.3, 1.6, 2.0), (0.6, 0.9), (2.0,)
"""Of a price that falls from the first arrival on; spans in times of the whole work, heights in requests."""
HOLDS, PACES = (12, 14, 16), (16, 18, 20, 22, 24, 28)
"""Heights and lengths of mu, in sixteenths, beside one price."""
USUAL = (14, 18)
"""The best of these for most."""
LEAST_PRICE = PRICE_UNIT // 64


def window_price_certificates(
    tables: Tables, work: WorkTable, table: Columns, price: int, tail_ns: int
) -> list[Certificate]:
    """The certificate `window-price` on the sum of latencies; none for few requests.

    Parameters
    ----------
    work, table
        The minorant, and the columns under it.
    price, tail_ns
        The best price that `time_price` found, one for all windows, and how long time has one after the last
        arrival of a period.
    """
    if len(table.arrivals) < FEWEST_REQUESTS:
        return []
    shares_blocks = tables.hits is not None and bool(tables.hits.found.any())
    capacity = tables.instance.limits.kv_tokens
    search = _Search(WindowTable(table, capacity, counts_memory=not shares_blocks))
    shape = search.shape(max(price * 11 // 10, LEAST_PRICE), tail_ns)
    found = None if shape is None else search.climb(shape)
    if found is None:
        return []
    value_ns, chosen = found
    details = chosen.to_details() | work.minorant.to_details()
    return [Certificate(WINDOW_PRICE, Objective.LATENCY, value_ns, details)] if value_ns > 0 else []


class _Plan(NamedTuple):
    """How the steps go."""

    every: int
    """Every so manieth request counts for them."""
    visited: int
    """Windows of stays that one looks at, about."""
    references: int


class _Search:
    """A search that counts its work."""

    def __init__(self, windows: WindowTable) -> None:
        self.windows, self.left = windows, WORK

    @property
    def count(self) -> int:
        """Number of requests."""
        return len(self.windows.columns.arrivals)

    def value(self, chosen: WindowPrices, every: int = 1, first: int | None = None) -> Outcome | None:
        """The bound, or what every so manieth request, or the first ones, say about it."""
        windows = self.windows
        if first is not None:
            windows = windows._replace(columns=windows.columns.first_requests(first))
        found = outcome(windows, chosen, every)
        self.left -= 0 if found is None else found.work
        return found

    def best_of(self, shapes: list[WindowPrices], every: int, first: int | None) -> WindowPrices | None:
        """The first of the best."""
        values = [
            (found.value_ns, k) for k, one in enumerate(shapes) if (found := self.value(one, every, first))
        ]
        return shapes[-max((value, -k) for value, k in values)[1]] if values else None

    def shape(self, price: int, tail_ns: int) -> WindowPrices | None:
        """Where the steps begin: one price, or prices that fall."""
        table = self.windows.columns
        probe = _even(table, price, tail_ns, max(1, table.mean_stay_ns // PROBED_PER_STAY), *USUAL)
        looked = self.value(probe, self.stride(SHAPES_OF_CROWD))
        if looked is None:
            return None
        # In how many of these windows a request is, and so how wide they have to be.
        visits = max(1, looked.visited * self.stride(SHAPES_OF_CROWD) // self.count)
        lines = len(SLOPES) * FEW_REFERENCES
        most = max(LEAST_VISITS, self.left // (EVALUATIONS * lines * self.count))
        window_ns = max(1, table.mean_stay_ns // WINDOWS_PER_STAY, probe.window_ns * visits // most)
        shapes = [(0, STRETCH_UNIT), *product(HOLDS, PACES)]
        visits = visits * probe.window_ns // window_ns + 1
        first = max(LEAST_SAMPLE, WORK // (EVALUATIONS * len(shapes) * len(SLOPES) * visits))
        first = min(SAMPLE_REQUESTS, first, self.count)
        sample = table.first_requests(first)
        rows = [_even(sample, price, tail_ns, window_ns, *shape) for shape in shapes]
        best = self.best_of(rows, 1, first)
        if best is None:
            return None
        best = _even(table, price, tail_ns, window_ns, best.height, best.pace)
        falling = list(falling_prices(self.windows))
        return self.best_of([best, *falling], self.stride(SHAPES_OF_CROWD), None) if falling else best

    def stride(self, requests: int) -> int:
        """Every so manieth request, so that they are about so many."""
        return max(1, self.count // requests)

    def climb(self, chosen: WindowPrices) -> tuple[int, WindowPrices] | None:
        """Steps along the subgradient of the logarithm of the prices, each from the best so far.

        In the end all requests count.
        """
        plan = self._plan(chosen)
        if plan is None:
            return None
        every, visited, references = plan
        best_ns, best, step, direction = -1, chosen, FIRST_STEP, np.zeros(len(chosen.prices))
        averaged = max(1, self.windows.columns.mean_stay_ns // SMOOTHED_STAY // chosen.window_ns)
        for _ in range(STEPS):
            found = self.value(chosen, every)
            if found is not None and found.value_ns > best_ns:
                best_ns, best, step = found.value_ns, chosen, step * FASTER
                direction, visited = _averaged(found.gradient, averaged), found.visited
            else:
                step *= SLOWER
            moved = np.array(best.prices) * np.exp(np.clip(step * direction, -LONGEST_STEP, LONGEST_STEP))
            prices = _whole(moved)
            chosen = replace(best, prices=tuple(prices.tolist()), references=_references(prices, references))
            if step < LEAST_STEP or visited * _num_lines(chosen) > self.left:
                break
        whole = replace(best, references=_references(np.array(best.prices), NUM_REFERENCES))
        if visited * every * _num_lines(whole) > self.left:
            whole = best
        if every > 1 or whole != best:
            # More lines never prove less, but they may not fit into 64 bits.
            found = self.value(whole)
            if found is not None:
                return found.value_ns, whole
        return (best_ns, best) if every == 1 else None

    def _plan(self, chosen: WindowPrices) -> _Plan | None:
        """What steps from some prices look at."""
        if len(chosen.references) > 1:
            self.left += WORK_OF_CROWD - WORK
        stride = self.stride(SAMPLE_OF_CROWD)
        looked = self.value(chosen, stride)
        if looked is None:
            return None
        there = looked.visited * stride // len(chosen.prices)
        every = max(1, min(stride, there // CROWD))
        visited = looked.visited * stride // every
        work = visited * len(chosen.slopes) * NUM_REFERENCES
        enough = len(chosen.references) > 1 or work * 2 * EVALUATIONS <= self.left
        return _Plan(every, visited, NUM_REFERENCES if enough else FEW_REFERENCES)


def _num_lines(chosen: WindowPrices) -> int:
    return len(chosen.slopes) * len(chosen.references)


def _even(table: Columns, price: int, tail_ns: int, window_ns: int, height: int, pace: int) -> WindowPrices:
    """One price for all windows, and some mu."""
    windows = PriceWindows.covering(*table.periods_ns(tail_ns), window_ns)
    return WindowPrices(
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
    """Prices that fall as if all were there at once and none came later; no request is paid for waiting."""
    table = windows.columns
    held = table.alpha * (table.last - table.first) * (table.last + table.first) // (2 * windows.capacity)
    decodes = np.cumsum(table.decodes)
    busy_ns = total(table.prefill + held + decodes[table.last] - decodes[table.first])
    if busy_ns < int(table.arrivals[-1]):
        return
    most = WORK // (2 * len(STEEP_SLOPES) * NUM_REFERENCES * len(table.arrivals))
    most = max(LEAST_VISITS, min(MOST_FALLING_WINDOWS, most))
    shortest_ns = int(max(SPANS) * busy_ns) // most + 1
    window_ns = max(table.mean_stay_ns // COARSE_WINDOWS_PER_STAY, shortest_ns)
    shares = MEMORY_SHARES if windows.counts_memory else (0,)
    for span, height, power, memory in product(SPANS, HEIGHTS, POWERS, shares):
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
            references=_references(prices, NUM_REFERENCES),
        )


def _averaged(gradient: FloatArray, count: int) -> FloatArray:
    """Mean over the neighbours of each window; the first and last windows count again beyond the ends."""
    padded = np.pad(gradient, (count // 2, count - 1 - count // 2), mode="edge")
    return np.convolve(padded, np.full(count, 1 / count), mode="valid")


def _references(prices: IntArray, count: int) -> tuple[int, ...]:
    """Some prices that occur, evenly by rank."""
    ranks = (2 * np.arange(count) + 1) * len(prices) // (2 * count)
    return tuple(np.unique(np.sort(prices)[ranks]).tolist())


def _whole(prices: FloatArray) -> IntArray:
    return np.maximum(np.rint(prices), LEAST_PRICE).astype(np.int64)
