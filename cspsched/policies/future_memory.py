"""The memory that running requests will need at their peak, if each decodes one token a batch from now on.

The closed form of LightLLM's router and of MC-SF (arXiv 2502.07115), carried from tokens to KV blocks.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import itemgetter


def peak_blocks(profile: Iterable[tuple[int, int]], block_tokens: int) -> int:
    r"""Largest number of KV blocks that requests occupy together until the last has finished.

    $\max_k \sum_{j \le k} \lceil (a_j + b_k) / B \rceil$ over requests in descending order of b: memory only
    grows until the next request finishes, so the peak lies at one of the ends.

    Parameters
    ----------
    profile
        For each request the tokens that it holds (a) and those that it will still add (b), one a batch.
    block_tokens
        B: tokens of a KV block.
    """
    full_blocks = peak = 0
    rests = [0] * block_tokens
    for alive, (held, to_come) in enumerate(sorted(profile, key=itemgetter(1), reverse=True), start=1):
        blocks, rest = divmod(held, block_tokens)
        full_blocks += blocks
        rests[rest] += 1
        steps, extra = divmod(to_come, block_tokens)
        # Beside its full blocks a request needs one for its rest and the extra tokens: none if both are 0,
        # two if they are more than a block.
        partial_blocks = alive - (0 if extra else rests[0]) + sum(rests[block_tokens - extra + 1 :])
        peak = max(peak, full_blocks + alive * steps + partial_blocks)
    return peak
