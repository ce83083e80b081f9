"""Pairs of requests that do not fit on the device together for as long as both are there.

Theorem (docs/bounds.md, section 13): let request j arrive after i, with m tokens of i left then at least. In
the c-th batch in which both emit one of these, i has at least last_i - m + c tokens resident and j at least
first_j + c - 1. So at most c of the m batches are common where these fit together, and j sits out m - c, but
for batches with chunks of its prompt that emit nothing; or j ends first, and i sits out some of j's.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cspsched.bounds.pair_delay.details import Pairs
from cspsched.problem.cost import IntArray
from cspsched.problem.instance import Limits


class Conflict(NamedTuple):
    """Two requests, by their places in the order of arrival, and how many batches they have to be apart."""

    older: int
    younger: int
    younger_waits: int
    """Batches of the older one without the younger one, if the older one ends first."""
    older_waits: int
    """Batches of the younger one without the older one, if the younger one ends first."""


def conflicts(
    limits: Limits, first: IntArray, last: IntArray, found: IntArray, pairs: Pairs
) -> tuple[Conflict, ...]:
    """Disjoint pairs that have to be apart for long, the longest first.

    Parameters
    ----------
    first, last
        Tokens resident at the first and last output token by request, int64.
    found
        Tokens of each request whose blocks count for another one, int64.
    """
    block = limits.block_tokens
    shared = found // block
    blocks = -(-last // block) - shared
    if len(first) < 2 or int(np.partition(blocks, -2)[-2:].sum()) <= limits.kv_blocks:
        return ()
    younger = np.repeat(np.arange(len(first)), np.diff(pairs.starts))
    # Those that fit at their longest always do.
    tight = np.flatnonzero(blocks[pairs.older] + blocks[younger] > limits.kv_blocks)
    younger, older, left = younger[tight], pairs.older[tight].astype(np.int64), pairs.left[tight]
    outputs, room = last - first + 1, limits.kv_blocks + shared[older] + shared[younger]
    mine, theirs = outputs[younger], outputs[older]
    together = _most_common(room, block, last[older] - left + 1, first[younger], np.minimum(left, mine))
    from_start = _most_common(room, block, first[older], first[younger], np.minimum(mine, theirs))
    waits = np.stack([left - together, mine - from_start])
    apart = waits.min(axis=0)
    taken, chosen = np.zeros(len(first), dtype=bool), list[Conflict]()
    for k in np.argsort(-apart, kind="stable").tolist():
        if apart[k] <= 0:
            break
        i, j = int(older[k]), int(younger[k])
        if not taken[i] and not taken[j]:
            taken[[i, j]] = True
            chosen.append(Conflict(i, j, int(waits[0, k]), int(waits[1, k])))
    return tuple(chosen)


def _most_common(room: IntArray, block: int, older: IntArray, younger: IntArray, most: IntArray) -> IntArray:
    """Largest c <= most for which older + c - 1 and younger + c - 1 tokens fit into so many KV blocks."""
    low, high = np.zeros_like(most), most.copy()
    while (low < high).any():
        middle = (low + high + 1) // 2
        blocks = [-(-(tokens + middle - 1) // block) for tokens in (older, younger)]
        fits = blocks[0] + blocks[1] <= room
        low, high = np.where(fits, middle, low), np.where(fits, high, middle - 1)
    return low
