"""When chunks can be left out: the condition under which the state search is exact for chunked prefill too.

Theorem (all requests at 0, regular objective). Take a schedule in which a prefill or refill of s tokens is
processed in several batches, and move all its chunks into the batch of the last one. Memory there is s as
before and nowhere more; no batch gets another request; what was processed in vain before an eviction is
dropped. If the token budget cannot be exceeded and batch time is linear in tokens, prefill tokens and prefill
attention, the sum of these terms over the batches does not grow, every other term only shrinks, and the time
moves from earlier batches to a later one: no token is emitted later. So some optimal schedule has no chunks.

Rounding up once per batch can break the equality by a nanosecond where those slopes are not whole. Then the
search prices these three terms unrounded, which bounds the optimum from below.
"""

from __future__ import annotations

from fractions import Fraction
from math import lcm

from cspsched.compiled.batch_time import LINEAR_TERMS
from cspsched.problem.cost import PiecewiseLinear, triangle
from cspsched.problem.instance import Instance


def chunks_are_dominated(instance: Instance) -> bool:
    """Whether some optimal schedule of the instance processes every prompt and refill in one batch."""
    if any(request.arrival_ns for request in instance.requests):
        return False
    if not instance.switches.chunked_prefill:
        return True
    peaks = [request.peak_kv_tokens for request in instance.requests]
    # What a batch processes is on the device at its end.
    tokens = min(sum(peaks), instance.limits.kv_tokens)
    cost, attention = instance.cost, sum(map(triangle, peaks))
    return (
        tokens <= instance.limits.max_batch_tokens
        and is_linear(cost.tokens, tokens)
        and is_linear(cost.prefill_tokens, tokens)
        and is_linear(cost.prefill_attention, attention)
    )


def is_linear(function: PiecewiseLinear, most: int) -> bool:
    """Whether a term has one slope on [1, most] and no smaller one before it.

    Moving tokens into a batch that has some costs that slope; a batch that is left without any saves at
    least as much.
    """
    ends = (*function.knots[1:], most + 1)
    slopes = [
        slope
        for knot, slope, end in zip(function.knots, function.slopes, ends, strict=True)
        if knot < most and end > 1
    ]
    return len(set(slopes)) <= 1 and function.slopes[0] >= max(slopes, default=Fraction(0))


def unrounded_scale(instance: Instance) -> int:
    """Parts of a nanosecond in which the linear terms are whole: 1 if rounding cannot matter."""
    if not instance.switches.chunked_prefill:
        return 1
    slopes = [getattr(instance.cost, name) for name in LINEAR_TERMS]
    return lcm(*(function.denominator for function in slopes))
