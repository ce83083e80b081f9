"""A cost model flattened to int64 arrays, if its numbers are small enough for that."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np

from cspsched.problem.cost import BatchFeatures, CostModel, IntArray, PiecewiseLinear
from cspsched.simulate.kernel.rules import Rules

MOST_MOVES = 4
"""A block moves to host memory or back a few times at a boundary, at most."""
LARGEST_TERM = 2**58
"""Fifteen terms and a clock of less than 2^61 ns stay below 2^63."""


def flatten_cost(cost: CostModel, rules: Rules, largest_peak: int) -> IntArray | None:
    """Flat form of a cost model; None if a batch could take a term beyond 64 bits.

    Rows of four numbers, int64: step, b_p and b_d rounded up, in nanoseconds, and the row of the first knot;
    each non-zero term (feature, denominator, rows from and to of its knots; features of terms that only
    batches with a prefill pay come after all others, as -1 - feature); each knot (where, value there and
    slope from there, both times the denominator, 0); last the time of a block that is swapped (numerator,
    denominator, 0, 0).

    Parameters
    ----------
    largest_peak
        Most KV entries that a request of the workload holds.
    """
    worst = _largest_features(rules, largest_peak)
    for feature, function in _functions(cost):
        largest = worst[feature if feature >= 0 else -1 - feature]
        # One further, so that the last slope is covered, too.
        if max(function.numerator(largest + 1) + function.denominator, largest) >= LARGEST_TERM:
            return None
    rows = _rows(cost, lambda feature: worst[feature if feature >= 0 else -1 - feature])
    numerator, denominator = rows[-1][:2]
    moved = numerator * MOST_MOVES * rules.kv_blocks + denominator
    if moved >= LARGEST_TERM or any(max(row) >= LARGEST_TERM for row in rows):
        return None
    return np.array(rows, dtype=np.int64)


def flatten_exactly(cost: CostModel) -> Any:
    """Flat form of a cost model for plain Python, in whole numbers of any size, with all knots."""
    rows = np.empty((0, 4), dtype=object)
    return np.concatenate([rows, np.array(_rows(cost, lambda feature: inf), dtype=object)])


def _rows(cost: CostModel, reach: Callable[[int], float]) -> list[tuple[int, ...]]:
    """Rows of the flat form, with the knots up to which a feature reaches."""
    functions = _functions(cost)
    terms: list[tuple[int, ...]] = []
    knots: list[tuple[int, ...]] = []
    for feature, function in functions:
        reached = bisect_right(function.knots, reach(feature))
        columns = (function.knots, function.knot_numerators, function.slope_numerators, [0] * reached)
        row = 1 + len(functions) + len(knots)
        terms.append((feature, function.denominator, row, row + reached))
        knots += list(zip(*(column[:reached] for column in columns), strict=True))
    constants = cost.step_ceil, cost.prefill_batch_ceil, cost.decode_batch_ceil
    swap = cost.swap_block.numerator, cost.swap_block.denominator, 0, 0
    return [(*constants, 1 + len(functions)), *terms, *knots, swap]


def _functions(cost: CostModel) -> list[tuple[int, PiecewiseLinear]]:
    """Non-zero terms with the position of their feature, -1 - position where it counts beside a prefill."""
    mixed = [(-1 - feature, function) for feature, function in cost.functions(mixed=True)]
    return cost.functions(mixed=False) + mixed


def _largest_features(rules: Rules, largest_peak: int) -> BatchFeatures[int]:
    """No batch has more of anything."""
    kv_tokens = rules.kv_blocks * rules.block_tokens
    if rules.restarts_output:
        largest_peak = kv_tokens
    # Some price a prompt alone before it is cut.
    tokens = max(min(rules.max_tokens + rules.max_running, kv_tokens), largest_peak)
    requests = min(rules.max_running, kv_tokens)
    if rules.has_deadlines:
        # Others price chunks before they look whether memory has room for them.
        tokens = max(tokens, rules.max_tokens)
    return BatchFeatures(
        tokens=tokens,
        prefill_attention=tokens * (largest_peak + 1),
        prefill_tokens=tokens,
        prefill_context=kv_tokens,
        decode_context=kv_tokens,
        num_generating=requests,
        num_prefills=requests,
        num_decodes=requests,
    )
