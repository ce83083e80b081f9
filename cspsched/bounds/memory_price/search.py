"""Chooses rules and prices of the `memory-price` certificate: accelerated gradient steps on soft minima.

Nothing here proves anything: every choice gives a bound, and `volume.least_ends` evaluates it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, partial
from math import log, sqrt

import numpy as np
import numpy.typing as npt

from cspsched.bounds.certificate import Certificate
from cspsched.bounds.memory_price.bound import Pause, Residents, latency_ns, least_ends, residents
from cspsched.bounds.memory_price.details import MEMORY_PRICE, PRICE_UNIT, MemoryPrices, Rule
from cspsched.bounds.memory_price.kernel import Runs, smoothed_costs
from cspsched.bounds.parts.tables import Tables
from cspsched.compiled.jit import compiled
from cspsched.problem.objectives import Objective

FloatArray = npt.NDArray[np.float64]

FEWEST_REQUESTS, MOST_CELLS, MOST_STEP_CELLS = 8, 2 * 10**7, 5 * 10**9
"""Cells are tokens times batches: of one evaluation, and of all steps with all rules (some seconds)."""
STEPS, FIRST_STEPS = 100, 200
"""Most steps at one temperature, and at the first."""
COOLING, COOLEST = 4, 0.5
"""Factor between temperatures, the first being that part of the mean output, and the last one, in batches."""
STRETCH = 1.4
"""Batches with a price, in times of those that the volume takes."""
PAIRS = tuple(Fraction(k, 12) for k in range(11))
"""Peaks above half of the memory of which no two fit, as parts of the other half."""
LARGE, SMALL = (Fraction(7, 10), Fraction(77, 100)), (Fraction(47, 100), Fraction(52, 100), Fraction(57, 100))
"""Peaks of which no three small ones fit, and none beside a large one, as parts of the memory."""
VOLUME_WEIGHT = 0.5
"""Of the volume in the first prices; the rules share the rest."""
LEAST_PRICE = PRICE_UNIT // 128
FIRST_CURVATURE, STEEPER, FLATTER, HALVINGS = 0.05, 2.0, 0.9, 12


def memory_price_certificates(tables: Tables) -> list[Certificate]:
    """The certificate `memory-price` on the sum of latencies.

    None for few requests, for many tokens, and where requests do not arrive together.
    """
    if len(tables.prompts) < FEWEST_REQUESTS or np.ptp(tables.arrivals_ns):
        return []
    table = residents(tables)
    if _cells(table) > MOST_CELLS:
        return []
    chosen = best_prices(table)
    ends = least_ends(table, chosen)
    if ends is None:
        return []
    value_ns, work = max(
        ((latency_ns(tables, work, ends), work) for work in tables.work), key=lambda pair: pair[0]
    )
    details = chosen.to_details() | work.minorant.to_details()
    return [Certificate(MEMORY_PRICE, Objective.LATENCY, value_ns, details)]


def best_prices(table: Residents) -> MemoryPrices:
    """Prices after some steps from those of a single machine; with the volume alone, just these."""
    rules = candidates(table)
    alone = np.stack([single_machine(times, table.counts, _horizon(table)) for times in _times(table, rules)])
    if not rules:
        return _whole(rules, alone)
    weights = np.full((len(alone), 1), (1 - VOLUME_WEIGHT) / len(rules))
    weights[0] = VOLUME_WEIGHT
    search = Search(table, table.shares(rules) / table.unit(rules))
    return _whole(rules, search.cooled(alone * weights))


def candidates(table: Residents) -> tuple[Rule, ...]:
    """Rules that some requests of the instance can break; none where requests may be preempted."""
    if table.pause is Pause.LEAVES:
        return ()
    blocks, highest = table.kv_blocks, int(table.peaks.max())
    pairs = (int(blocks * (1 + part) / 2) + 1 for part in PAIRS)
    found = [Rule(peak, peak, 2) for peak in pairs]
    found += [Rule(int(blocks * large) + 1, int(blocks * small) + 1, 3) for small in SMALL for large in LARGE]
    return tuple(dict.fromkeys(rule for rule in found if rule.small <= highest))


def single_machine(times: FloatArray, counts: npt.NDArray[np.int64], num_batches: int) -> FloatArray:
    """Prices that prove the least sum of completions of a single machine, per batch; shape (num_batches,).

    The price falls at the rate 1 / p while a request with processing time p is served, shortest first.
    """
    order = np.argsort(times, kind="stable")
    served = np.repeat(times[order], counts[order])
    served = served[served > 0]
    ends = np.append(0, np.cumsum(served))
    prices: FloatArray = np.interp(
        np.arange(num_batches) + 0.5, ends, np.arange(len(served), -1, -1), right=0.0
    )
    return prices


@dataclass(frozen=True, eq=False)
class Search:
    """Ascent over all prices at once."""

    table: Residents
    shares: FloatArray
    """Of each rule and token, of 1; shape (rules + 1, num_tokens)."""

    @cached_property
    def firsts(self) -> npt.NDArray[np.int64]:
        """Number of each request's first token that has a share; shape (rules + 1, num_distinct)."""
        starts, outputs = self.table.starts, self.table.outputs
        ages = np.arange(outputs.sum()) - np.repeat(starts, outputs)
        return np.minimum.reduceat(np.where(self.shares > 0, ages, outputs.max()), starts, axis=1)

    def cooled(self, prices: FloatArray) -> FloatArray:
        """Prices after steps at ever lower temperatures."""
        mean = float(np.average(self.table.outputs, weights=self.table.counts))
        stages = max(1, round(log(mean / COOLEST, COOLING)))
        planned = [FIRST_STEPS, *[STEPS] * (stages - 1)]
        affordable = MOST_STEP_CELLS // (_cells(self.table) * len(self.shares))
        for stage, steps in enumerate(planned, start=1):
            temperature = mean / COOLING**stage
            ways = partial(self.value, temperature), partial(self.gradient, temperature)
            prices = ascend(*ways, prices, min(steps, affordable * steps // sum(planned)))
        return prices

    def value(self, temperature: float, prices: FloatArray) -> float:
        """Soft version of the bound on the sum of e_i."""
        return self._value(temperature, prices, prices[:0])

    def gradient(self, temperature: float, prices: FloatArray) -> tuple[float, FloatArray]:
        """The same, and its gradient."""
        gradient = np.full_like(prices, -1.0)
        return self._value(temperature, prices, gradient), gradient

    def _value(self, temperature: float, prices: FloatArray, gradient: FloatArray) -> float:
        table = self.table
        longest = int((table.outputs + table.chunks).max())
        runs, buffer = Runs(*table.runs), np.empty(prices.shape[1] + longest)
        given = (self.shares, self.firsts, prices, runs)
        costs = compiled(smoothed_costs)(*given, temperature, gradient, buffer)
        return float(costs - prices.sum())


def ascend(
    value_of: Callable[[FloatArray], float],
    gradient_of: Callable[[FloatArray], tuple[float, FloatArray]],
    start: FloatArray,
    steps: int,
) -> FloatArray:
    """Maximise a smooth concave function over numbers >= 0 (Beck and Teboulle 2009, with restarts)."""
    best, best_value, ahead, momentum, curvature = start, -np.inf, start, 1.0, FIRST_CURVATURE
    for _ in range(steps):
        value, gradient = gradient_of(ahead)
        for _ in range(HALVINGS):
            moved = np.maximum(ahead + gradient / curvature, 0)
            step = moved - ahead
            reached = value_of(moved)
            if reached >= value + float((gradient * step).sum()) - curvature / 2 * float((step**2).sum()):
                break
            curvature *= STEEPER
        if reached < best_value:
            ahead, momentum = best, 1.0
            continue
        longer = (1 + sqrt(1 + 4 * momentum**2)) / 2
        ahead = np.maximum(moved + (momentum - 1) / longer * (moved - best), 0)
        best, best_value, momentum, curvature = moved, reached, longer, curvature * FLATTER
    return best


def _whole(rules: tuple[Rule, ...], prices: FloatArray) -> MemoryPrices:
    """Prices in whole parts, without the rules that have none."""
    rounded = np.rint(prices * PRICE_UNIT).astype(np.int64)
    rounded[rounded < LEAST_PRICE] = 0
    kept = [b for b in range(len(rounded)) if b == 0 or rounded[b].any()]
    return MemoryPrices(
        rules=tuple(rules[b - 1] for b in kept[1:]),
        prices=tuple(tuple(np.trim_zeros(rounded[b], "b").tolist()) for b in kept),
    )


def _times(table: Residents, rules: tuple[Rule, ...]) -> FloatArray:
    """Sum of each request's shares; shape (rules + 1, num_distinct)."""
    shares = table.shares(rules) / table.unit(rules)
    times: FloatArray = np.add.reduceat(shares, table.starts, axis=1)
    return times


def _horizon(table: Residents) -> int:
    volume = float(_times(table, ())[0] @ table.counts)
    return int(STRETCH * volume) + int((table.outputs + table.chunks).max()) + 1


def _cells(table: Residents) -> int:
    return int(((_horizon(table) + table.outputs) * table.outputs).sum())
