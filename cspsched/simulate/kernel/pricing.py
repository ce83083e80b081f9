"""Compiled: the duration of a batch, from the flat cost model."""

from __future__ import annotations

from cspsched.compiled.jit import inner
from cspsched.problem.cost import IntArray
from cspsched.simulate.kernel.layout import Kernel


@inner
def term_ns(prices: IntArray, position: int, x: int) -> int:
    """Value of a piecewise-linear term of the flat cost model at x > 0, rounded up."""
    term = prices[position]
    low, high = term[2], term[3]
    while high - low > 1:
        middle = (low + high) >> 1
        if prices[middle, 0] <= x:
            low = middle
        else:
            high = middle
    numerator = prices[low, 1] + prices[low, 2] * (x - prices[low, 0])
    return int((numerator + term[1] - 1) // term[1])


@inner
def batch_time_ns(k: Kernel, num_decodes: int) -> int:
    """Duration of the batch: every term rounded up once."""
    now = k.now
    prices = k.prices
    time_ns = prices[0, 0]
    if now.num_prefills:
        time_ns += prices[0, 1]
    if num_decodes:
        time_ns += prices[0, 2]
    for position in range(1, prices[0, 3]):
        x = feature(k, prices[position, 0], num_decodes)
        if x:
            time_ns += term_ns(prices, position, x)
    return int(time_ns)


@inner
def feature(k: Kernel, position: int, num_decodes: int) -> int:
    """What a term is over, in the order of BatchFeatures; -1 - position is 0 in a batch without a prefill."""
    now = k.now
    if position < 0:
        if not now.num_prefills:
            return 0
        position = -1 - position
    if position == 0:
        return int(now.prefill_tokens + num_decodes)
    if position == 1:
        return int(now.attention)
    if position == 2:
        return int(now.prefill_tokens)
    if position == 3:
        return int(now.prefill_context)
    if position == 4:
        return int(now.decode_context) if num_decodes else 0
    if position == 5:
        return int(now.num_generating + num_decodes)
    return int(now.num_prefills) if position == 6 else num_decodes
