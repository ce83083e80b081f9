"""Sum of latencies: a price on machine time, and a price on making all requests present wait.

Theorem (docs/bounds.md, section 7). Let P >= 0 be a price of machine time in some periods that last H in
all, 0 outside. For each request let mu_i(t) = S - (t - a_i) / L_i from its arrival until this is 0 (nowhere
if that is after its period), and Q(t) the sum of all mu_i(t). For every schedule

    sum of latencies >= sum_i v_i - P H,

where v_i is the least that request i pays for: its decodes, each in a batch of alpha + x without prefills, of
which it has the share w / x; its prefill work at P + Q(t); its latency, less mu_i while prefills run.

Everything is in integers and rounded against the bound. Prices are in 1 / 1024, the stretch S in sixteenths.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cspsched.bounds.parts.tables import Tables
from cspsched.bounds.parts.work import WorkTable
from cspsched.bounds.time_price.details import CHORDS, FINE, PRICE_UNIT, STRETCH_UNIT, Prices
from cspsched.bounds.time_price.kernel import Given, fill_least_costs
from cspsched.compiled.jit import compiled
from cspsched.problem.cost import INT64_SAFE, IntArray
from cspsched.units import ceil_div

MAX_STAY_NS, MAX_SPAN_NS = 2**46, 2**55
"""Nineteen hours of a request and a year of arrivals: beyond that, products might not fit into 64 bits."""


@dataclass(frozen=True, eq=False)
class Columns:
    """What the bound reads of an instance under one minorant, int64, in nanoseconds, all rounded down."""

    alpha: int
    """What a batch costs."""
    arrivals: IntArray
    """From the first arrival on, ascending; shape (num_requests,)."""
    first: IntArray
    """Tokens resident at the first output token, shape (num_requests,)."""
    last: IntArray
    """Tokens resident at the last output token, shape (num_requests,)."""
    chunks: IntArray
    """Batches that the prompt needs, shape (num_requests,)."""
    prefill: IntArray
    """Prefill work of the prompt, shape (num_requests,)."""
    decodes: IntArray
    """Work of a decode that leaves s tokens resident, shape (longest + 1,)."""
    refills: IntArray
    """Work of a refill that leaves s tokens resident, shape (longest + 1,)."""

    @property
    def least(self) -> IntArray:
        """Time of the request's batches without any work in them, shape (num_requests,)."""
        return self.alpha * self.chunks + self.decoding

    @property
    def decoding(self) -> IntArray:
        """The same of its later tokens' batches."""
        return self.alpha * (self.last - self.first)

    @property
    def mean_stay_ns(self) -> int:
        """What windows are measured by: mean time of a request's batches without work, or of its prefills.

        Where batches cost next to nothing, who waits does so for the work of others.
        """
        return max(1, total(self.least) // len(self.least), total(self.prefill) // len(self.prefill))

    def periods_ns(self, tail_ns: int) -> tuple[list[int], list[int]]:
        """First arrivals of the periods in which a request can be there, and a tail after their last ones.

        A period ends where the next arrival is later than its tail and than the time at which all would be
        served if they were served one after another. Floats tell the latter: any periods give a bound.
        """
        served = (self.least + self.prefill).astype(np.float64)
        running = np.cumsum(served)
        all_served = running + np.maximum.accumulate(self.arrivals - running + served)
        breaks = np.flatnonzero(self.arrivals[1:] > np.maximum(all_served, self.arrivals + tail_ns)[:-1])
        ends = self.arrivals[np.append(breaks, -1)] + tail_ns
        return self.arrivals[np.append(0, breaks + 1)].tolist(), ends.tolist()

    def first_requests(self, count: int) -> Columns:
        """The first requests to arrive."""
        head, tokens = slice(count), slice(int(self.last[:count].max()) + 1)
        return Columns(
            self.alpha, self.arrivals[head], self.first[head], self.last[head], self.chunks[head],
            self.prefill[head], self.decodes[tokens], self.refills[tokens],
        )  # fmt: skip


def columns(tables: Tables, work: WorkTable) -> Columns | None:
    """Columns under the minorant of a work table; None if its batches are free or products would overflow."""
    minorant, budget = work.minorant, tables.instance.limits.max_batch_tokens
    order = np.argsort(tables.arrivals_ns, kind="stable")
    prompts, outputs = tables.prompts[order], tables.outputs[order]
    surcharge = minorant.scaled("prefill_batch") * tables.charged_prompts.astype(object) // budget
    prefill = ((work.firsts(tables.prompts) + surcharge) // minorant.scale)[order]
    decodes = np.maximum(work.decodes // minorant.scale, 0)
    refills = work.refills // minorant.scale
    alpha, span = int(minorant.batch), int(np.ptp(tables.arrivals_ns))
    chunks = tables.chunks[order]
    longest_ns = alpha * int((chunks + outputs).max())
    stays = (longest_ns, int(prefill.max()), int(decodes.max()))
    if alpha < 1 or max(stays) >= MAX_STAY_NS or span >= MAX_SPAN_NS:
        return None
    return Columns(
        alpha=alpha,
        arrivals=tables.arrivals_ns[order] - tables.arrivals_ns[order[0]],
        first=prompts,
        last=prompts + outputs - 1,
        chunks=chunks,
        prefill=prefill.astype(np.int64),
        decodes=decodes.astype(np.int64),
        refills=np.minimum(refills, MAX_STAY_NS).astype(np.int64),
    )


def bound_ns(table: Columns, prices: Prices) -> int | None:
    """The bound on the sum of latencies, or None where 64-bit integers might overflow."""
    if _overflows(table, prices):
        return None
    waits = Waits(table, prices)
    paid = ceil_div(prices.price * prices.horizon_ns, PRICE_UNIT)
    return total(least_costs(waits)) - total(waits.area) - paid


class Waits:
    """mu_i of all requests: who makes whom wait, at what price."""

    def __init__(self, table: Columns, prices: Prices) -> None:
        self.table, self.prices = table, prices
        self.arrivals, self.ends = prices.windows().placed(table.arrivals)
        length = table.least * prices.pace // STRETCH_UNIT
        end = self.arrivals + -(-length * prices.stretch // STRETCH_UNIT)
        self.length: IntArray = np.where((end <= self.ends) & (prices.stretch > 0), length, 0)
        """L_i, 0 where mu_i is 0; shape (num_requests,)."""
        self.reach: IntArray = prices.stretch * self.length // STRETCH_UNIT
        """How long after the arrival mu_i is positive."""
        self.waiting_prices = self._sum_by_window()
        """Q, rounded down to the least value in each window, in 1 / 1024."""

    @property
    def area(self) -> IntArray:
        """Integral of mu_i over all time, rounded up: S^2 L / 2."""
        return -(-(self.prices.stretch**2) * self.length // (2 * STRETCH_UNIT**2))

    def _sum_by_window(self) -> IntArray:
        """Sum of all mu_i at the end of each window, for they fall; a request's own first window is left out.

        Each mu_i is taken as a straight fall from its first value, in whole steps, so that sums of values and
        of steps over the requests that are there give all windows at once.
        """
        window, count = self.prices.window_ns, self.prices.num_windows
        there = self.reach > 0
        arrivals, length, reach = self.arrivals[there], self.length[there], self.reach[there]
        first = -(-arrivals // window)
        since = (first + 1) * window - arrivals
        value = FINE * (reach - since) // length
        step = -(-FINE * window // length)
        windows = np.where(value >= 0, value // step + 1, 0)
        sums = np.zeros((2, count + 1), dtype=np.int64)
        for row, amount in enumerate((value + first * step, step)):
            np.add.at(sums[row], np.minimum(first, count), np.where(windows > 0, amount, 0))
            np.add.at(sums[row], np.minimum(first + windows, count), np.where(windows > 0, -amount, 0))
        values, steps = np.cumsum(sums, axis=1)[:, :count]
        return np.asarray((values - np.arange(count) * steps) // (FINE // PRICE_UNIT), dtype=np.int64)


def least_costs(waits: Waits) -> IntArray:
    """v_i plus the integral of mu_i: the least over the windows in which the prompt may be processed.

    After its prompt's work in some window all its decodes are still to come, so it is there until then and
    for its decodes; that takes over from the cheapest cost of its own batches.
    """
    table, prices = waits.table, waits.prices
    given = Given(
        arrivals=waits.arrivals,
        ends=waits.ends,
        length=waits.length,
        reach=waits.reach,
        least=table.least,
        decoding=table.decoding,
        prefill=table.prefill,
        free=_free_costs(waits),
        lone=_lone_decodes(table, prices.price),
        prefill_prices=prices.price + waits.waiting_prices,
    )
    found = np.empty_like(waits.arrivals)
    compiled(fill_least_costs)(given, prices.window_ns, prices.stretch, found)
    return found


def _lone_decodes(table: Columns, price: int) -> IntArray:
    """Cost of a request's later tokens if a nanosecond of their batches costs 1."""
    running = np.cumsum(token_costs(table, STRETCH_UNIT, price))
    costs: IntArray = running[table.last] - running[table.first]
    return costs


def _free_costs(waits: Waits) -> IntArray:
    """Least cost of a request's batches, less what mu_i pays back, plus the integral of mu_i.

    With y nanoseconds of own batches this is phi(y) = (1 + S) y - y^2 / (2 L) up to y = L and (S - 1/2) L + y
    after it, concave. Chords below it give one line each.
    """
    table, length, prices = waits.table, waits.length, waits.prices
    flat = np.maximum((2 * prices.stretch - STRETCH_UNIT) * length // (2 * STRETCH_UNIT), 0)
    free: IntArray = flat + _batch_costs(table, STRETCH_UNIT, prices.price)
    for chord in range(CHORDS if length.any() else 0):
        start = length * (chord * (chord + 1)) // (2 * CHORDS**2)
        line = start + _batch_costs(table, STRETCH_UNIT + prices.stretch - 2 * chord - 1, prices.price)
        # A chord over times that are too short for the request's batches does not count.
        counts = (chord + 1) * length > CHORDS * table.least
        free = np.where(counts, np.minimum(free, line), free)
    return free


def _batch_costs(table: Columns, slope: int, price: int) -> IntArray:
    """Least cost of all batches of each request, at prices of its own and of machine time."""
    running = np.cumsum(token_costs(table, slope, price))
    later: IntArray = running[table.last] - running[table.first]
    return later + table.chunks * (table.alpha * slope // STRETCH_UNIT)


def token_costs(table: Columns, slope: int, price: int) -> IntArray:
    """Least cost of the token that leaves s tokens resident, shape (longest + 1,).

    slope (alpha + x) + price w (1 + alpha / x) over x >= w for a decode; alpha at the slope and all the work
    at the price for a refill.
    """
    own, work = table.alpha * slope // STRETCH_UNIT, table.decodes * price // PRICE_UNIT
    root = own + work + 2 * integer_root(own * work)
    alone = own + work + table.decodes * slope // STRETCH_UNIT + table.alpha * price // PRICE_UNIT
    inside = table.alpha * price * STRETCH_UNIT >= table.decodes * (slope * PRICE_UNIT)
    refill = own + table.refills * price // PRICE_UNIT
    costs: IntArray = np.minimum(np.where(inside, root, alone), refill)
    return costs


def integer_root(values: IntArray) -> IntArray:
    """Floor of the square root, exact below 2^62."""
    root = np.sqrt(values.astype(np.float64)).astype(np.int64)
    root -= root * root > values
    root += (root + 1) * (root + 1) <= values
    return root


def _overflows(table: Columns, prices: Prices) -> bool:
    """Whether a product might not fit into 64 bits."""
    stretch = prices.stretch
    slope, decode = STRETCH_UNIT + stretch, int(table.decodes.max())
    prefill_price = prices.price + PRICE_UNIT * stretch // STRETCH_UNIT * len(table.arrivals)
    length = int(table.least.max()) * prices.pace // STRETCH_UNIT
    reach = max(stretch, 1) * (length + prices.window_ns)
    products = (
        (table.alpha * slope // STRETCH_UNIT + 1) * (decode * prices.price // PRICE_UNIT + 1),
        STRETCH_UNIT * table.alpha * prices.price,
        PRICE_UNIT * slope * decode,
        int(table.refills.max()) * prices.price,
        int(table.prefill.max()) * prefill_price,
        2 * PRICE_UNIT * reach * max(stretch, 1),
        STRETCH_UNIT * prices.horizon_ns,
        FINE * reach,
        # Partial sums may wrap; each window's sum of values is what has to fit.
        FINE * stretch * len(table.arrivals),
    )
    return max(products) >= INT64_SAFE


def total(values: IntArray) -> int:
    """Exact sum of int64, by halves that cannot overflow."""
    return (int((values >> 20).sum()) << 20) + int((values & (2**20 - 1)).sum())
