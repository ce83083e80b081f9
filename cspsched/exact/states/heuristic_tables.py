"""Tables for the heuristic of the state search: sizes, work and prices of all tokens still to come.

Sizes come from dual-feasible functions of the KV blocks (Fekete and Schepers 2001), prices from the pattern
linear program (`cspsched.exact.prices.batch_pattern_prices`), and better ones, where there is time, from
paths of resident states (`cspsched.exact.prices.resident_path_prices`). Amounts of time are in `scale` parts
of a nanosecond.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from cspsched.bounds.parts.minorant import minorants
from cspsched.exact.parts.token_work import Work, work_of
from cspsched.exact.prices.batch_pattern_prices import Tokens, token_prices
from cspsched.exact.prices.resident_path_prices import ResidentPathPrices, resident_path_prices
from cspsched.exact.prices.resident_paths import Moves
from cspsched.exact.prices.resident_states import Column, Residents, count_residents, list_residents
from cspsched.problem.cost import IntArray
from cspsched.problem.instance import Instance, Preemption
from cspsched.problem.objectives import Objective

MOST_CUTS = 16
MOST_ROUNDINGS = 8
SAMPLES = 200
"""States at which dual-feasible functions compete; those that never win are left out."""
MOST_RESIDENT_STATES = 300_000
"""Beyond it, prices from paths of resident states take too long."""
PRICE_ORDERS = 2
"""Orders of completion for which prices are optimised, if waits are summed."""


class HeuristicTables(NamedTuple):
    """Lower bounds on what is left, for the heuristic. Tables have shape (number, requests, tokens + 1)."""

    targets: IntArray
    """Tokens that a request waits for, shape (requests,)."""
    areas: IntArray
    """Dual-feasible sizes of all tokens still to come."""
    sizes: IntArray
    """Dual-feasible size of the next token alone."""
    capacities: IntArray
    """Shape (number,): what the sizes of one batch sum up to at most."""
    alphas: IntArray
    """Shape (num_minorants,): time of a batch."""
    surcharges: IntArray
    """Shape (num_minorants,): what a batch with a prefill costs on top."""
    work: IntArray
    """Unavoidable work of the tokens still to come, by minorant."""
    refill: IntArray
    """What is added if the request is not on the device, by minorant."""
    prices: IntArray
    """Prices and unavoidable work of the tokens still to come."""
    price_refill: IntArray
    """What is added to them if the request is not on the device."""
    resident_path_prices: IntArray
    """Prices of the tokens still to come that no path of resident states beats."""
    path_values: IntArray
    """What is added by resident state, shape (number, states)."""
    resident_codes: IntArray
    resident_slots: Column


def build_heuristic_tables(
    instance: Instance, blocks: IntArray, objective: Objective, scale: int
) -> HeuristicTables:
    """Tables of an instance.

    Parameters
    ----------
    blocks
        KV blocks occupied while the token after the g-th is generated, shape (requests, tokens + 1).
    """
    outputs = np.array([request.output_tokens for request in instance.requests], dtype=np.int64)
    targets = np.ones_like(outputs) if objective is Objective.TTFT else outputs
    works = [work_of(instance, minorant, targets, scale) for minorant in minorants(instance)]
    areas, sizes, capacities = _areas(blocks, targets, instance.limits.kv_blocks)
    strongest = _strongest(works, areas, capacities)
    priced = list(_prices(instance, strongest, blocks, targets, objective))
    empty = np.zeros((0, *blocks.shape), dtype=np.int64)
    return HeuristicTables(
        targets=targets,
        areas=areas,
        sizes=sizes,
        capacities=capacities,
        alphas=np.array([work.decode_or_prefill for work in works], dtype=np.int64),
        surcharges=np.array([work.surcharge for work in works], dtype=np.int64),
        work=np.stack([work.cheaper for work in works]),
        refill=np.stack([work.refill for work in works]),
        prices=np.stack([prices for prices, _ in priced]) if priced else empty,
        price_refill=np.stack([refill for _, refill in priced]) if priced else empty,
        resident_path_prices=empty,
        path_values=np.zeros((0, 0), dtype=np.int64),
        resident_codes=np.zeros(0, dtype=np.int64),
        resident_slots=np.zeros(0, dtype=np.int32),
    )


def sharpen_heuristic_tables(
    tables: HeuristicTables,
    instance: Instance,
    blocks: IntArray,
    strides: IntArray,
    objective: Objective,
    scale: int,
    go_on: Callable[[int, int], bool],
) -> HeuristicTables:
    """Tables with prices from paths through the resident states on top; the same ones if those are too many.

    Parameters
    ----------
    strides
        Weight of each request's tokens in the code of a resident state.
    go_on
        As for `resident_path_prices`.
    """
    preemptive = instance.switches.preemption is not Preemption.NONE
    targets, capacity = tables.targets, instance.limits.kv_blocks
    if not can_sharpen(tables, instance, blocks, objective):
        return tables
    works = [work_of(instance, minorant, targets, scale) for minorant in minorants(instance)]
    work = _strongest(works, tables.areas, tables.capacities)
    own = -np.diff(work.cheaper, axis=1, append=0)
    moves = Moves(
        blocks=blocks,
        counts=targets,
        strides=strides,
        capacity=capacity,
        batch=np.array([work.decode, work.prefill, work.hybrid], dtype=np.int64),
        decode=own + work.decode_extra,
        prefill=own + work.refill,
        preemptive=preemptive,
        holding=instance.switches.holding,
    )
    residents = list_residents(blocks, targets, strides, capacity)
    start = tables.prices[0] if len(tables.prices) else np.zeros_like(blocks)
    found = list(_path_prices(moves, residents, -np.diff(start, axis=1, append=0), objective, go_on))
    to_come = [np.cumsum(one.prices[:, ::-1], axis=1)[:, ::-1] for one in found]
    return tables._replace(
        resident_path_prices=np.stack(to_come),
        path_values=np.stack([one.value for one in found]),
        resident_codes=residents.codes,
        resident_slots=residents.slots,
    )


def can_sharpen(tables: HeuristicTables, instance: Instance, blocks: IntArray, objective: Objective) -> bool:
    """Whether prices from paths of resident states hold for the objective and can be afforded."""
    preemptive = instance.switches.preemption is not Preemption.NONE
    # Without evictions a cache kept may also be a burden, which a sum of waits does not take in.
    return (preemptive or objective is Objective.MAKESPAN) and count_residents(
        blocks, tables.targets, instance.limits.kv_blocks
    ) <= MOST_RESIDENT_STATES


def _path_prices(
    moves: Moves,
    residents: Residents,
    start: IntArray,
    objective: Objective,
    go_on: Callable[[int, int], bool],
) -> Iterator[ResidentPathPrices]:
    """Prices for the time of the last token; where waits are summed, before them those for the sum."""
    if objective is not Objective.MAKESPAN:
        yield resident_path_prices(moves, residents, start, go_on, waits=True)
    yield resident_path_prices(moves, residents, start, go_on, waits=False)


def _strongest(works: list[Work], areas: IntArray, capacities: IntArray) -> Work:
    """The work of the minorant that says most about the whole instance."""
    batches = max(-(-areas[:, :, 0].sum(axis=1) // capacities))
    return max(works, key=lambda work: work.decode_or_prefill * batches + work.cheaper[:, 0].sum())


def _areas(blocks: IntArray, targets: IntArray, capacity: int) -> tuple[IntArray, IntArray, IntArray]:
    """Sums from each g on, the sizes, and what a batch holds, of the functions that are ever best."""
    counted = np.arange(blocks.shape[1]) < targets[:, None]
    functions = list(_dual_feasible(np.where(counted, blocks, 0), capacity))
    sizes = np.stack([size for size, _ in functions])
    capacities = np.array([most for _, most in functions], dtype=np.int64)
    areas = np.cumsum(sizes[:, :, ::-1], axis=2)[:, :, ::-1]
    best = _winners(areas, capacities, targets)
    return areas[best], sizes[best], capacities[best]


def _dual_feasible(blocks: IntArray, capacity: int) -> Iterator[tuple[IntArray, int]]:
    """Sizes and capacity of every function: whatever fits into a batch sums up to at most the capacity.

    First f_e: the capacity M above M - e, 0 below e, the blocks between; e = 0 is the plain KV volume. On top
    of it the rounding u_k: x if (k + 1) x / M is whole, else floor((k + 1) x / M) M / k, times k.
    """
    small = sorted({int(size) for size in blocks.flat if 0 < 2 * size <= capacity})
    cuts = [0, *small[:: max(1, len(small) // MOST_CUTS)], (capacity + 1) // 2]
    for cut in cuts:
        size = np.where(blocks > capacity - cut, capacity, blocks)
        size = np.where(blocks < cut, 0, size)
        yield size, capacity
        for k in range(1, MOST_ROUNDINGS + 1):
            times, rest = np.divmod((k + 1) * size, capacity)
            yield np.where(rest == 0, size * k, times * capacity), capacity * k


def _winners(areas: IntArray, capacities: IntArray, targets: IntArray) -> IntArray:
    """Indices of functions that need the most batches at some state drawn, and of the plain volume."""
    rng = np.random.default_rng(0)
    generated = rng.integers(0, targets + 1, size=(SAMPLES, len(targets)))
    generated[0] = 0
    totals = areas[:, np.arange(len(targets)), generated].sum(axis=2)
    counts = totals / capacities[:, None]
    best: IntArray = np.unique(np.append(counts.argmax(axis=0), 0))
    return best


def _prices(
    instance: Instance, work: Work, blocks: IntArray, targets: IntArray, objective: Objective
) -> Iterator[tuple[IntArray, IntArray]]:
    """Prices with the work of the tokens to come, and what a missing cache adds to them."""
    tokens = Tokens(
        blocks=blocks,
        counts=targets,
        capacity=instance.limits.kv_blocks,
        decode_batch=work.decode,
        prefill_batch=work.prefill,
        hybrid_batch=work.hybrid,
        decode_extra=work.decode_extra,
        refill_extra=work.refill,
        refills=instance.switches.preemption is not Preemption.NONE,
    )
    # Sums of waits without refills: sizes alone prove as much, and prices take seconds.
    if not tokens.is_priced or not (tokens.refills or objective is Objective.MAKESPAN):
        return
    for credit in (False, True) if tokens.refills else (False,):
        refill = work.refill if credit else np.zeros_like(work.refill)
        for prices in _priced(tokens, work, objective, credit=credit):
            to_come = np.cumsum(prices[:, ::-1], axis=1)[:, ::-1]
            yield to_come + work.cheaper, refill


def _priced(tokens: Tokens, work: Work, objective: Objective, *, credit: bool) -> Iterator[IntArray]:
    """Prices for a sum over all tokens; where waits are summed, those of early completions weigh more."""
    count = len(tokens.counts)
    if objective is Objective.MAKESPAN:
        yield token_prices(tokens, np.ones(count, dtype=np.int64), credit=credit)
        return
    amounts = np.array([tokens.blocks[i, :k].sum() for i, k in enumerate(tokens.counts)])
    for _ in range(PRICE_ORDERS):
        weights = np.empty(count, dtype=np.int64)
        weights[np.argsort(amounts, kind="stable")] = np.arange(count, 0, -1)
        prices = token_prices(tokens, weights, credit=credit)
        yield prices
        amounts = prices.sum(axis=1) + work.cheaper[:, 0]
