"""A cost model flattened to int64 arrays, if its numbers are small enough for that."""

from __future__ import annotations

from typing import Any

import numpy as np

from cspsched.compiled.batch_time import Row, Term, constants_of, flat_rows, terms_of
from cspsched.problem.cost import BatchFeatures, CostModel, IntArray
from cspsched.simulate.kernel.rules import Rules

MOST_MOVES = 4
"""A block moves to host memory or back a few times at a boundary, at most."""
LARGEST_TERM = 2**58
"""Fifteen terms and a clock of less than 2^61 ns stay below 2^63."""


def flatten_cost(cost: CostModel, rules: Rules, largest_peak: int) -> IntArray | None:
    """Flat form of a cost model; None if a batch could take a term beyond 64 bits.

    `flat_rows` as int64, and last the time of a block that is swapped (numerator, denominator, 0, 0).

    Parameters
    ----------
    largest_peak
        Most KV entries that a request of the workload holds.
    """
    worst = _largest_features(rules, largest_peak)
    for feature, function in (*cost.functions(mixed=False), *cost.functions(mixed=True)):
        # One further, so that the last slope is covered, too.
        largest = worst[feature]
        if max(function.numerator(largest + 1) + function.denominator, largest) >= LARGEST_TERM:
            return None
    rows = _rows(cost, terms_of(cost, lambda position: worst[position]))
    numerator, denominator = rows[-1][:2]
    moved = numerator * MOST_MOVES * rules.kv_blocks + denominator
    if moved >= LARGEST_TERM or any(max(row) >= LARGEST_TERM for row in rows):
        return None
    return np.array(rows, dtype=np.int64)


def flatten_exactly(cost: CostModel) -> Any:
    """Flat form of a cost model for plain Python, in whole numbers of any size, with all knots."""
    rows = np.empty((0, 4), dtype=object)
    return np.concatenate([rows, np.array(_rows(cost, terms_of(cost)), dtype=object)])


def _rows(cost: CostModel, terms: list[Term]) -> list[Row]:
    swap = cost.swap_block.numerator, cost.swap_block.denominator, 0, 0
    return [*flat_rows(constants_of(cost), terms), swap]


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
