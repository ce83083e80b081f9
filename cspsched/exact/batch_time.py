"""Batch time from tables, compiled: the same integers as `CostModel.batch_time_ns`."""

from __future__ import annotations

from cspsched.exact.jit import inner
from cspsched.exact.states.space import Prices
from cspsched.problem.cost import IntArray


@inner
def duration_of(prices: Prices, features: IntArray) -> int:
    """Time of a batch from its features."""
    total = prices.step
    if features[6]:
        total += prices.prefill_batch
    if features[7]:
        total += prices.decode_batch
    for term in range(len(prices.feature)):
        x = features[prices.feature[term]]
        if x == 0 or (prices.mixed[term] and not features[6]):
            continue
        piece = 0
        while piece + 1 < prices.knots.shape[1] and prices.knots[term, piece + 1] <= x:
            piece += 1
        numerator = prices.bases[term, piece] + prices.slopes[term, piece] * (x - prices.knots[term, piece])
        denominator = prices.denominators[term]
        if denominator == 1:
            total += numerator * prices.scale
        elif prices.rounded[term]:
            total += -(-numerator // denominator) * prices.scale
        else:
            total += numerator * (prices.scale // denominator)
    return total
