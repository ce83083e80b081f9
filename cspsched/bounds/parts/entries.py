"""What an entry of a batch adds to its time at least, whatever else is in the batch.

Theorem (docs/bounds.md, section 13): the time of a batch is at least that of one of its entries alone (or
step + min(b_p, b_d)) plus, for each other entry, the sum over the features of the least amount by which the
feature's term can grow when it grows by what the entry brings.

*Proof.* Put the entries into the batch one after the other. Every term is non-decreasing, and a term rounded
up grows by at least its exact growth rounded down.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cspsched.bounds.parts.minorant import reachable_maxima
from cspsched.problem.cost import BatchFeatures, CostModel, IntArray, PiecewiseLinear, triangle
from cspsched.problem.instance import Instance

FRACTION_BITS = 16
"""Growth per token of a refill is in units of 2^-16 ns."""


def least_growth_ns(function: PiecewiseLinear, top: int, amounts: IntArray) -> IntArray:
    """Least of f(x + amount) - f(x) over 0 <= x <= top - amount, rounded down; shape of `amounts`.

    It is piecewise linear in x, so only x = 0, x = top - amount and the x with a knot at one end
    count. Amounts above `top` count as `top`.
    """
    if function.is_zero:
        return np.zeros_like(amounts)
    amounts = np.minimum(amounts, top)
    last = top - amounts
    starts = [np.zeros_like(amounts), last]
    for knot in function.knots:
        if knot <= top:
            starts += [np.minimum(knot, last), np.clip(knot - amounts, 0, last)]
    growth = [function.numerators(start + amounts) - function.numerators(start) for start in starts]
    least: IntArray = np.minimum.reduce(growth) // function.denominator
    return least.astype(np.int64)


@dataclass(frozen=True, eq=False)
class EntryTable:
    """Least growth of batch times by an entry, in nanoseconds; up to `longest` tokens."""

    instance: Instance
    longest: int

    @property
    def _cost(self) -> CostModel:
        return self.instance.cost

    @cached_property
    def _top(self) -> BatchFeatures[int]:
        return reachable_maxima(self.instance)

    @property
    def largest_chunk(self) -> int:
        """Tokens of the largest chunk."""
        return min(self.instance.limits.max_batch_tokens, self.longest)

    @cached_property
    def chunks_ns(self) -> IntArray:
        """By a chunk of c tokens, shape (largest_chunk + 1,)."""
        cost, top, chunk = self._cost, self._top, np.arange(self.largest_chunk + 1, dtype=np.int64)
        growth: IntArray = (
            least_growth_ns(cost.tokens, top.tokens, chunk)
            + least_growth_ns(cost.prefill_tokens, top.prefill_tokens, chunk)
            + least_growth_ns(cost.prefill_attention, top.prefill_attention, triangle(chunk))
            + int(cost.prefill_request)
        )
        growth[0] = 0
        return growth

    @cached_property
    def lone_chunks_ns(self) -> IntArray:
        """Time of a batch of a lone chunk of c tokens at least, shape (largest_chunk + 1,), 0 for c = 0."""
        chunk = np.arange(self.largest_chunk + 1, dtype=np.int64)
        one, zero = np.ones_like(chunk), np.zeros_like(chunk)
        times = self._cost.batch_times_ns(
            BatchFeatures(
                tokens=chunk,
                prefill_attention=triangle(chunk),
                prefill_tokens=chunk,
                prefill_context=zero,
                decode_context=zero,
                num_generating=zero,
                num_prefills=one,
                num_decodes=zero,
            )
        )
        times[0] = 0
        return times

    @cached_property
    def later_tokens_ns(self) -> IntArray:
        """By a later token that leaves s tokens resident, shape (longest + 1,), non-decreasing, 0 for s < 2.

        The cheaper of its decode and all chunks of a refill.
        """
        cost, top = self._cost, self._top
        resident = np.arange(self.longest + 1, dtype=np.int64)
        one = np.ones(1, dtype=np.int64)
        decodes = (
            int(least_growth_ns(cost.tokens, top.tokens, one)[0])
            + int(cost.decode_request)
            + least_growth_ns(cost.decode_context, top.decode_context, np.maximum(resident - 1, 0))
            + int(least_growth_ns(cost.head, top.num_generating, one)[0])
        )
        growth: IntArray = np.minimum(decodes, self.refills_ns)
        growth[:2] = 0
        return growth

    @cached_property
    def refills_ns(self) -> IntArray:
        """By all chunks of a refill of s tokens together: each token as much as in the cheapest chunk.

        With a prefix cache the first tokens may be found there instead, and are the context of the rest.
        """
        cost, top = self._cost, self._top
        resident = np.arange(self.longest + 1, dtype=np.int64)
        chunks = np.arange(1, self.largest_chunk + 1, dtype=np.int64)
        per_token = int((self.chunks_ns[1:] * 2**FRACTION_BITS // chunks).min())
        growth: IntArray = resident * per_token
        if self.instance.switches.prefix_caching:
            context = least_growth_ns(cost.prefill_context, top.prefill_context, resident) << FRACTION_BITS
            growth[1:] += np.minimum.accumulate(context - growth)[:-1]
        return growth >> FRACTION_BITS
