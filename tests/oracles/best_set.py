"""Sorted-F's sets, by trying every one, and by filling the device token by token.

A profile is a request's tokens as it starts, all of which it holds, and those that it will still add.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations

Profile = tuple[int, int]
Rank = tuple[Fraction, int]
"""F of a set, its outputs over the square of its size, and then its size, negative: the least is best."""


def naive_peak_blocks(profiles: Sequence[Profile], block_tokens: int) -> int:
    """Go forward token by token: each request adds one until it has added all, then it is gone."""
    most, alive = 0, list(profiles)
    while alive:
        most = max(most, sum(-(-held // block_tokens) for held, _ in alive))
        alive = [(held + 1, to_come - 1) for held, to_come in alive if to_come]
    return most


def rank_of(profiles: Sequence[Profile]) -> Rank:
    """Least F first, of equals the larger set. The last token is generated and not added."""
    outputs = sum(to_come + 1 for _, to_come in profiles)
    return Fraction(outputs, len(profiles) ** 2), -len(profiles)


def least_rank(profiles: Sequence[Profile], kv_blocks: int, block_tokens: int) -> Rank:
    """That of the best of all sets that fit the device if they start together."""
    subsets = (subset for size in range(1, len(profiles) + 1) for subset in combinations(profiles, size))
    return min(rank_of(subset) for subset in subsets if naive_peak_blocks(subset, block_tokens) <= kv_blocks)


def naive_filling(profiles: Sequence[Profile], kv_blocks: int, block_tokens: int) -> list[Profile]:
    """What fits of an order, up to where the rank is least."""
    chosen: list[Profile] = []
    for profile in profiles:
        if naive_peak_blocks([*chosen, profile], block_tokens) <= kv_blocks:
            chosen.append(profile)
    return min((chosen[:count] for count in range(1, len(chosen) + 1)), key=rank_of)
