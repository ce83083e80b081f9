"""A cost model flattened to int64 arrays, if its numbers are small enough for that."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

from cspsched.problem.cost import BatchFeatures, CostModel, IntArray, PiecewiseLinear
from cspsched.simulate.kernel.each.rules import AnyRules, EachRules

LARGEST_TERM = 2**58
"""Fifteen terms and a clock of less than 2^61 ns stay below 2^63."""


def flatten_cost(cost: CostModel, rules: AnyRules, largest_peak: int) -> IntArray | None:
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
    constants = cost.step_ceil, cost.prefill_batch_ceil, cost.decode_batch_ceil
    functions = _functions(cost)
    terms: list[tuple[int, ...]] = []
    knots: list[tuple[int, ...]] = []
    for feature, function in functions:
        largest = worst[feature if feature >= 0 else -1 - feature]
        # One further, so that the last slope is covered, too.
        if max(function.numerator(largest + 1) + function.denominator, largest) >= LARGEST_TERM:
            return None
        reached = bisect_right(function.knots, largest)
        columns = (function.knots, function.knot_numerators, function.slope_numerators, [0] * reached)
        row = 1 + len(functions) + len(knots)
        terms.append((feature, function.denominator, row, row + reached))
        knots += list(zip(*(column[:reached] for column in columns), strict=True))
    if max(constants) >= LARGEST_TERM or any(max(knot) >= LARGEST_TERM for knot in knots):
        return None
    swap = cost.swap_block.numerator, cost.swap_block.denominator, 0, 0
    most_moved = max(rules.kv_blocks, 1) * 4
    if max(swap[0] * most_moved + swap[1], swap[1]) >= LARGEST_TERM:
        return None
    return np.array([(*constants, 1 + len(functions)), *terms, *knots, swap], dtype=np.int64)


def _functions(cost: CostModel) -> list[tuple[int, PiecewiseLinear]]:
    """Non-zero terms with the position of their feature, -1 - position where it counts beside a prefill."""
    mixed = [(-1 - feature, function) for feature, function in cost.functions(mixed=True)]
    return cost.functions(mixed=False) + mixed


def _largest_features(rules: AnyRules, largest_peak: int) -> BatchFeatures[int]:
    """No batch has more of anything."""
    kv_tokens = rules.kv_blocks * rules.block_tokens
    if rules.restarts_output:
        largest_peak = kv_tokens
    tokens = min(rules.max_tokens + rules.max_running, kv_tokens)
    if isinstance(rules, EachRules):
        # Some price a prompt alone before it is cut.
        tokens = max(tokens, largest_peak)
    requests = min(rules.max_running, kv_tokens)
    if isinstance(rules, EachRules) and rules.has_deadlines:
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
