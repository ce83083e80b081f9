"""Cheapest paths of aggregated states, compiled.

An *aggregated state* is how many requests are on the device and how many KV tokens they hold; which requests
they are is forgotten. A batch of d decodes raises it by d tokens and earns the best prices of d tokens that
hold at most so much together (`cspsched.exact.prices.aggregated_decodes`). A prefill raises it by what it
processes. A request that finishes or is evicted lowers it. So every schedule is a path of aggregated states
from the empty device to the empty device. If no cycle earns more than it costs, neither does a schedule, and
the sum of its prices is a bound.

Values are improved in place until nothing changes (Bellman and Ford). What was last improved from where is
a forest as long as no cycle is negative; every cycle in it is a negative one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cspsched.compiled.jit import allocating
from cspsched.exact.prices.aggregated_decodes import NEVER, Lines, trace_pattern
from cspsched.problem.cost import IntArray

Column = npt.NDArray[Any]
DECODE, PREFILL, HYBRID = 0, 1, 2
BETWEEN, WITHIN, BEHIND = 0, 1, 2
"""Where in time a value is from: between batches, in one that is to admit a request, at the end of one."""
UNKNOWN = -1
PROCEED = 0
"""Of what can be done at the end of a batch: nothing. Then one number for each request that finishes."""


class AggregatedMoves(NamedTuple):
    """What batches can do and cost; times in nanoseconds, arrays over (request, tokens generated)."""

    prompts: IntArray
    """Shape (requests,)."""
    outputs: IntArray
    """Shape (requests,)."""
    capacity: int
    """KV tokens."""
    least: IntArray
    """Fewest KV tokens that k requests hold, shape (most residents + 1,)."""
    most: IntArray
    """Most that they hold and that fit."""
    batch: IntArray
    """Constant cost of a batch of decodes, of prefills, and of both."""
    refill: IntArray
    """What a prefill for the next token costs beyond its unavoidable work."""
    preemptive: bool
    holding: bool


class AggregatedPrices(NamedTuple):
    """What paths earn, in nanoseconds."""

    first: IntArray
    """For the first token of each request, shape (requests,), at least 0."""
    later: Lines
    """For each later one, at least 0."""
    finishes: IntArray
    """For each request that finishes, shape (requests,)."""
    evictions: IntArray
    """What evicting so many KV tokens costs, and refilling a request that had held them earns."""


class Offers(NamedTuple):
    """What prices make of the moves of an aggregated state."""

    exact: IntArray
    """Most that d decodes earn if they hold w KV tokens, shape (residents + 1, M + 1)."""
    within: IntArray
    """The same if they hold at most w."""
    admit: IntArray
    """Most that a prefill of s tokens earns beyond its cost, shape (largest size + 1,)."""
    admitted: IntArray
    """Which: request x tokens + tokens generated."""
    admit_order: IntArray
    """Sizes of prefills that there are, those that earn most first."""
    evict_order: IntArray
    """KV tokens that can be evicted, the cheapest first; nothing without preemption."""


class Levels(NamedTuple):
    """Best paths on, shape (3, residents + 1, M + 1): BETWEEN, WITHIN and BEHIND a batch."""

    value: IntArray
    choice: Column
    """BETWEEN: 3 x decodes + kind. WITHIN: 2 x tokens admitted, plus 1 if another request follows. BEHIND:
    PROCEED, the request that finishes + 1, or the number of requests plus the tokens evicted."""


def new_levels(moves: AggregatedMoves) -> Levels:
    """Room for the paths from all aggregated states."""
    shape = (3, len(moves.least), moves.capacity + 1)
    return Levels(value=np.zeros(shape, dtype=np.int64), choice=np.zeros(shape, dtype=np.int32))


@allocating
def _admit(moves: AggregatedMoves, offers: Offers, levels: Levels) -> bool:
    """From within a batch, in each state: how many tokens to process next, most residents first."""
    value, choice, changed = levels.value, levels.choice, False
    for k in range(len(moves.least) - 2, -1, -1):
        low, high = moves.least[k + 1], moves.most[k + 1]
        least_rest = value[BEHIND, k + 1, low : high + 1].min()
        if k + 2 < len(moves.least):
            least_rest = min(least_rest, value[WITHIN, k + 1, low : high + 1].min())
        for level in range(moves.least[k], moves.most[k] + 1):
            best, chosen = value[WITHIN, k, level], UNKNOWN
            for size in offers.admit_order:
                if least_rest - offers.admit[size] >= best:
                    break
                if not low <= level + size <= high:
                    continue
                rest, more = value[BEHIND, k + 1, level + size], 0
                if k + 2 < len(moves.least) and value[WITHIN, k + 1, level + size] < rest:
                    rest, more = value[WITHIN, k + 1, level + size], 1
                if rest - offers.admit[size] < best:
                    best, chosen = rest - offers.admit[size], 2 * size + more
            if chosen != UNKNOWN:
                value[WITHIN, k, level], choice[WITHIN, k, level] = best, chosen
                changed = True
    return changed


@allocating
def _run(moves: AggregatedMoves, offers: Offers, levels: Levels, k: int, level: int) -> bool:
    """Try every batch from an aggregated state."""
    value, last = levels.value, len(moves.least) - 1
    best, chosen = value[BETWEEN, k, level], UNKNOWN
    if k < last and moves.batch[PREFILL] + value[WITHIN, k, level] < best:
        best, chosen = moves.batch[PREFILL] + value[WITHIN, k, level], PREFILL
    for decodes in range(1 if moves.holding else k, min(k, moves.most[k] - level) + 1):
        if decodes == 0:
            continue
        if decodes == k:
            earned = offers.exact[k, level + k]
        else:
            # Who sits out holds something too.
            earned = offers.within[decodes, max(0, level + decodes - moves.least[k - decodes])]
        if earned == NEVER:
            continue
        rest = moves.batch[DECODE] + value[BEHIND, k, level + decodes] - earned
        if rest < best:
            best, chosen = rest, 3 * decodes + DECODE
        if k < last:
            rest = moves.batch[HYBRID] + value[WITHIN, k, level + decodes] - earned
            if rest < best:
                best, chosen = rest, 3 * decodes + HYBRID
    if chosen != UNKNOWN:
        value[BETWEEN, k, level], levels.choice[BETWEEN, k, level] = best, chosen
    return bool(chosen != UNKNOWN)


@allocating
def _leave(
    moves: AggregatedMoves,
    prices: AggregatedPrices,
    offers: Offers,
    levels: Levels,
    k: int,
    level: int,
    least_rest: int,
) -> bool:
    """Try at the end of a batch to go on, and each request that may finish or be evicted.

    `least_rest` is the least value after a request has left.
    """
    value, count = levels.value, len(moves.prompts)
    best, chosen = value[BEHIND, k, level], UNKNOWN
    if value[BETWEEN, k, level] < best:
        best, chosen = value[BETWEEN, k, level], PROCEED
    if k > 0:
        lowest = level - moves.most[k - 1]
        highest = level - moves.least[k - 1]
        for i in range(count):
            size = moves.prompts[i] + moves.outputs[i] - 1
            if lowest <= size <= highest:
                rest = value[BEHIND, k - 1, level - size] - prices.finishes[i]
                if rest < best:
                    best, chosen = rest, 1 + i
        for size in offers.evict_order:
            if least_rest + prices.evictions[size] >= best:
                break
            if lowest <= size <= highest:
                rest = value[BEHIND, k - 1, level - size] + prices.evictions[size]
                if rest < best:
                    best, chosen = rest, count + size
    if chosen != UNKNOWN:
        value[BEHIND, k, level], levels.choice[BEHIND, k, level] = best, chosen
    return bool(chosen != UNKNOWN)


@allocating
def _sweep(moves: AggregatedMoves, prices: AggregatedPrices, offers: Offers, levels: Levels) -> bool:
    """Try everything from every aggregated state once; whether anything got better."""
    changed = _admit(moves, offers, levels)
    for k in range(len(moves.least)):
        least_rest = 0
        if k:
            least_rest = levels.value[BEHIND, k - 1, moves.least[k - 1] : moves.most[k - 1] + 1].min()
        # Decodes lead to more tokens, ends and evictions to fewer requests: both are settled before.
        for level in range(moves.most[k], moves.least[k] - 1, -1):
            changed |= _run(moves, offers, levels, k, level)
            changed |= _leave(moves, prices, offers, levels, k, level, least_rest)
    return changed


@allocating
def _behind(moves: AggregatedMoves, levels: Levels, where: int, k: int, level: int) -> tuple[int, int, int]:
    """Where the best path goes next."""
    choice = levels.choice[where, k, level]
    if where == BETWEEN:
        return (BEHIND if choice % 3 == DECODE else WITHIN), k, level + choice // 3
    if where == WITHIN:
        return (WITHIN if choice % 2 else BEHIND), k + 1, level + choice // 2
    if choice == PROCEED:
        return BETWEEN, k, level
    count = len(moves.prompts)
    if choice <= count:
        return BEHIND, k - 1, level - (moves.prompts[choice - 1] + moves.outputs[choice - 1] - 1)
    return BEHIND, k - 1, level - (choice - count)


@allocating
def _find_cycles(moves: AggregatedMoves, levels: Levels, cycles: IntArray) -> int:
    """Write down one (where, residents, tokens) of every cycle of choices; how many there are."""
    seen = np.zeros(levels.value.shape, dtype=np.int32)
    found, start = 0, 0
    for k in range(len(moves.least)):
        for first in range(moves.least[k], moves.most[k] + 1):
            start += 1
            where, count, level = BETWEEN, k, first
            while seen[where, count, level] == 0 and levels.choice[where, count, level] != UNKNOWN:
                seen[where, count, level] = start
                where, count, level = _behind(moves, levels, where, count, level)
            if levels.choice[where, count, level] == UNKNOWN or seen[where, count, level] != start:
                continue
            cycles[found] = (where, count, level)
            found += 1
            if found == len(cycles):
                return found
    return found


@allocating
def settle(
    moves: AggregatedMoves, prices: AggregatedPrices, offers: Offers, levels: Levels, cycles: IntArray
) -> tuple[int, int]:
    """Improve values, whatever they are, until nothing changes or cycles are found that earn too much.

    Returns how many, written down in `cycles`, shape (number, 3), and the number of sweeps; without any, no
    cycle earns more than it costs.
    """
    levels.choice[:] = UNKNOWN
    sweeps = 1
    while _sweep(moves, prices, offers, levels):
        found = _find_cycles(moves, levels, cycles)
        if found:
            return found, sweeps
        sweeps += 1
    return 0, sweeps


class CycleTally(NamedTuple):
    """What a cycle does."""

    emitted: IntArray
    """How often it emits each token, shape (requests, tokens)."""
    finished: IntArray
    """How often each request finishes, shape (requests,)."""
    evicted: IntArray
    """How much more often so many KV tokens are evicted than refilled."""


@allocating
def follow_cycle(
    moves: AggregatedMoves,
    offers: Offers,
    lines: Lines,
    best: IntArray,
    levels: Levels,
    cycle: IntArray,
    tally: CycleTally,
) -> int:
    """Count what a cycle does, and return what it costs.

    Parameters
    ----------
    lines, best
        Prices of later tokens, and the table of best sets under them.
    cycle
        One (where, residents, tokens) on it.
    """
    width, cost = tally.emitted.shape[1], 0
    where, k, level = cycle[0], cycle[1], cycle[2]
    while True:
        choice = levels.choice[where, k, level]
        if where == BETWEEN:
            cost += moves.batch[choice % 3]
            decodes = choice // 3
            if decodes:
                held = level + decodes
                if decodes < k:
                    held = np.argmax(best[-1, decodes, : held - moves.least[k - decodes] + 1])
                trace_pattern(moves.prompts, moves.outputs, lines, best, decodes, held, tally.emitted)
        elif where == WITHIN:
            size = choice // 2
            i, g = offers.admitted[size] // width, offers.admitted[size] % width
            tally.emitted[i, g] += 1
            cost += moves.refill[i, g]
            if g:
                tally.evicted[size - 1] -= 1
        elif 0 < choice <= len(moves.prompts):
            tally.finished[choice - 1] += 1
        elif choice != PROCEED:
            tally.evicted[choice - len(moves.prompts)] += 1
        where, k, level = _behind(moves, levels, where, k, level)
        if where == cycle[0] and k == cycle[1] and level == cycle[2]:
            return cost
