"""What one minorant says about batches and tokens: unavoidable work, and what is paid beyond it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import floor

import numpy as np

from cspsched.bounds.parts.minorant import Minorant
from cspsched.problem.cost import IntArray, triangle
from cspsched.problem.instance import Instance


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """What one minorant says about batches and tokens."""

    decode_or_prefill: int
    """Constant cost of any batch."""
    surcharge: int
    decode: int
    """Constant cost of a batch of decodes."""
    prefill: int
    hybrid: int
    cheaper: IntArray
    """Unavoidable work from each g on: of each token the cheaper of decode and refill."""
    refill: IntArray
    """What a refill for the next token costs beyond it."""
    decode_extra: IntArray
    """What a decode for the next token costs beyond it."""


def work_of(instance: Instance, minorant: Minorant, targets: IntArray, scale: int) -> Work:
    """What a minorant says, rounded down to whole parts.

    Parameters
    ----------
    targets
        Tokens of each request that count, shape (requests,).
    scale
        Parts of a nanosecond.
    """
    cost = instance.cost
    width = max(request.output_tokens for request in instance.requests) + 1
    cheaper = np.zeros((len(instance.requests), width), dtype=np.int64)
    refill, decode_extra = np.zeros_like(cheaper), np.zeros_like(cheaper)
    for i, request in enumerate(instance.requests):
        for g in reversed(range(int(targets[i]))):
            known = request.prompt_tokens + g
            prefill = floor(scale * _prefill_price(minorant, known))
            decode = floor(scale * _decode_price(minorant, known))
            least = prefill if g == 0 else min(prefill, decode)
            cheaper[i, g] = cheaper[i, g + 1] + least
            refill[i, g] = prefill - least
            decode_extra[i, g] = decode - least if g else 0
    # The minorant's price of a batch has the cheaper of the two constants in it.
    bare = minorant.batch - min(cost.prefill_batch_ceil, cost.decode_batch_ceil)
    return Work(
        decode_or_prefill=floor(minorant.batch * scale),
        surcharge=floor(minorant.prefill_batch * scale),
        decode=floor((bare + cost.decode_batch_ceil) * scale),
        prefill=floor((bare + cost.prefill_batch_ceil) * scale),
        hybrid=floor((bare + cost.prefill_batch_ceil + cost.decode_batch_ceil) * scale),
        cheaper=cheaper,
        refill=refill,
        decode_extra=decode_extra,
    )


def _prefill_price(minorant: Minorant, tokens: int) -> Fraction:
    per_token = minorant.tokens + minorant.prefill_tokens
    fixed = minorant.prefill_request + minorant.head
    return tokens * per_token + triangle(tokens) * minorant.prefill_attention + fixed


def _decode_price(minorant: Minorant, known: int) -> Fraction:
    fixed = minorant.tokens + minorant.decode_request + minorant.head
    return (known - 1) * minorant.decode_context + fixed
