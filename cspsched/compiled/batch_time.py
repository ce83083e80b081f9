"""Batch time from tables, compiled: the same integers as `CostModel.batch_time_ns`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cspsched.compiled.jit import inner
from cspsched.problem.cost import (
    FUNCTION_FEATURES,
    MIXED_FEATURES,
    BatchFeatures,
    CostModel,
    IntArray,
    PiecewiseLinear,
)

LINEAR_TERMS = ("tokens", "prefill_attention", "prefill_tokens")
"""Terms that are left unrounded in parts of a nanosecond; all others are rounded up to whole ones."""
MIXED = (*MIXED_FEATURES, "mixed_request_term")
PRICED = (*FUNCTION_FEATURES, "prefill_request_term", "decode_request_term", *MIXED)
FEATURE_OF = {
    **FUNCTION_FEATURES,
    **MIXED_FEATURES,
    "prefill_request_term": "num_prefills",
    "decode_request_term": "num_decodes",
    "mixed_request_term": "num_decodes",
}


class CostTables(NamedTuple):
    """Batch time: constants, and the pieces of every term, shape (num_terms, num_pieces)."""

    step: int
    prefill_batch: int
    decode_batch: int
    feature: IntArray
    knots: IntArray
    bases: IntArray
    slopes: IntArray
    denominators: IntArray
    rounded: npt.NDArray[np.bool_]
    mixed: npt.NDArray[np.bool_]
    """Whether only batches with a prefill pay a term."""
    scale: int


def cost_tables(cost: CostModel, scale: int) -> CostTables:
    """Terms of the cost model as tables, in `scale` parts of a nanosecond."""
    functions: list[PiecewiseLinear] = [getattr(cost, name) for name in PRICED]
    width = max(len(function.knots) for function in functions)
    never = 2**62

    def table(rows: list[tuple[int, ...]], filler: int) -> IntArray:
        return np.array([[*row, *[filler] * (width - len(row))] for row in rows], dtype=np.int64)

    return CostTables(
        step=cost.step_ceil * scale,
        prefill_batch=cost.prefill_batch_ceil * scale,
        decode_batch=cost.decode_batch_ceil * scale,
        feature=np.array([BatchFeatures._fields.index(FEATURE_OF[name]) for name in PRICED]),
        knots=table([function.knots for function in functions], never),
        bases=table([function.knot_numerators for function in functions], 0),
        slopes=table([function.slope_numerators for function in functions], 0),
        denominators=np.array([function.denominator for function in functions], dtype=np.int64),
        rounded=np.array([scale == 1 or name not in LINEAR_TERMS for name in PRICED]),
        mixed=np.array([name in MIXED for name in PRICED]),
        scale=scale,
    )


@inner
def batch_time(costs: CostTables, features: IntArray) -> int:
    """Time of a batch from its features, in the order of `BatchFeatures`, in parts of a nanosecond."""
    total = costs.step
    if features[6]:
        total += costs.prefill_batch
    if features[7]:
        total += costs.decode_batch
    for term in range(len(costs.feature)):
        x = features[costs.feature[term]]
        if x == 0 or (costs.mixed[term] and not features[6]):
            continue
        piece = 0
        while piece + 1 < costs.knots.shape[1] and costs.knots[term, piece + 1] <= x:
            piece += 1
        numerator = costs.bases[term, piece] + costs.slopes[term, piece] * (x - costs.knots[term, piece])
        denominator = costs.denominators[term]
        if denominator == 1:
            total += numerator * costs.scale
        elif costs.rounded[term]:
            total += -(-numerator // denominator) * costs.scale
        else:
            total += numerator * (costs.scale // denominator)
    return total
