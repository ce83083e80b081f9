"""The rest of the machine as seen from a few requests: what decodes beside them in every batch."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace

from cspsched.problem.cost import CostModel, PiecewiseLinear
from cspsched.problem.instance import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """A constant load: so many requests decode in every batch and hold their KV cache.

    Attributes
    ----------
    num_decodes
        Requests that generate a token in every batch.
    context_tokens
        KV entries that each batch reads for decodes of the background.
    held_blocks
        KV blocks that are never free.
    """

    num_decodes: int
    context_tokens: int
    held_blocks: int

    def leaves_room(self, limits: Limits) -> bool:
        """Whether anything is left of memory, token budget and seats."""
        left = (
            limits.kv_blocks - self.held_blocks,
            limits.max_batch_tokens - self.num_decodes,
            limits.max_batch_requests - self.num_decodes,
        )
        return min(left) > 0

    def limits(self, limits: Limits) -> Limits:
        """What is left of the limits."""
        return replace(
            limits,
            kv_blocks=limits.kv_blocks - self.held_blocks,
            max_batch_tokens=limits.max_batch_tokens - self.num_decodes,
            max_batch_requests=limits.max_batch_requests - self.num_decodes,
        )

    def cost(self, cost: CostModel) -> CostModel:
        """Duration of a batch in which the background decodes, too, as a function of the other requests.

        Equal to that of the whole batch but for the rounding of each term to nanoseconds.
        """
        if not self.num_decodes:
            return cost
        decodes, context = self.num_decodes, self.context_tokens
        constant = cost.step + cost.decode_batch + cost.decode_request * decodes
        constant += cost.tokens.exact(decodes) + cost.head.exact(decodes) + cost.decode_context.exact(context)
        beside_prefill = cost.mixed_request * decodes + cost.mixed_context.exact(context)
        return replace(
            cost,
            name=f"{cost.name} beside {decodes} decodes",
            step=constant,
            decode_batch=type(constant)(0),
            prefill_batch=cost.prefill_batch + beside_prefill,
            tokens=beyond(cost.tokens, decodes),
            head=beyond(cost.head, decodes),
            decode_context=beyond(cost.decode_context, context),
            mixed_context=beyond(cost.mixed_context, context),
        )


def beyond(function: PiecewiseLinear, origin: int) -> PiecewiseLinear:
    """f(origin + x) - f(origin) as a function of x."""
    first = bisect_right(function.knots, origin) - 1
    knots = (0, *(knot - origin for knot in function.knots[first + 1 :]))
    return PiecewiseLinear(knots, function.slopes[first:])
