"""Resident states: who is on the device, and with how many tokens. All that share the KV cache, numbered.

A resident state forgets how far requests are that are not on the device. There are few: most sets of
requests do not fit. It is written as one number, the sum of tokens times the weight of each request.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cspsched.compiled.jit import allocating, compiled, outer
from cspsched.exact.parts.label_store import HASH_FACTOR
from cspsched.problem.cost import IntArray

Column = npt.NDArray[Any]


class Residents(NamedTuple):
    """Every resident state at the end of a batch, with those that finished in it; fewest residents first."""

    tokens: Column
    """Tokens generated of each resident, 0 for the others, shape (states, requests)."""
    used: IntArray
    """KV blocks occupied, shape (states,)."""
    codes: IntArray
    closed: Column
    """Number of the state once those that finished have left."""
    slots: Column
    """Hash table from codes to numbers + 1, 0 where a slot is free."""


@outer
def state_of(slots: Column, codes: IntArray, code: int) -> int:
    """Number of a resident state, which must exist."""
    mask = len(slots) - 1
    slot = int((np.uint64(code) * HASH_FACTOR) >> np.uint64(20)) & mask
    while codes[slots[slot] - 1] != code:
        slot = (slot + 1) & mask
    return int(slots[slot]) - 1


def count_residents(blocks: IntArray, counts: IntArray, capacity: int) -> float:
    """How many resident states there are."""
    ways = np.zeros(capacity + 1)
    ways[0] = 1
    for sizes, count in zip(blocks, counts, strict=True):
        more = ways.copy()
        for size in sizes[:count]:
            if size <= capacity:
                more[size:] += ways[: capacity + 1 - size]
        ways = more
    return float(ways.sum())


def list_residents(blocks: IntArray, counts: IntArray, strides: IntArray, capacity: int) -> Residents:
    """All resident states.

    Parameters
    ----------
    blocks
        KV blocks occupied after the token before the g-th is there, shape (requests, tokens + 1).
    counts
        Tokens after which a request leaves, shape (requests,).
    strides
        Weight of each request's tokens in a code.
    """
    tokens, used = np.zeros((1, len(counts)), dtype=np.int16), np.zeros(1, dtype=np.int64)
    for i, count in enumerate(counts):
        grown, sizes = [tokens], [used]
        for g in range(1, int(count) + 1):
            fits = used + blocks[i, g - 1] <= capacity
            joined = tokens[fits].copy()
            joined[:, i] = g
            grown.append(joined)
            sizes.append(used[fits] + blocks[i, g - 1])
        tokens, used = np.concatenate(grown), np.concatenate(sizes)
    # Decodes lead to later tokens and finishing to fewer residents: in this order a sweep settles most.
    order = np.lexsort((-tokens.sum(axis=1), (tokens > 0).sum(axis=1)))
    tokens = np.ascontiguousarray(tokens[order])
    codes = tokens.astype(np.int64) @ strides
    slots = np.zeros(1 << (2 * len(codes)).bit_length(), dtype=np.int32)
    compiled(_fill)(slots, codes)
    left = np.where(tokens == counts, 0, tokens).astype(np.int64) @ strides
    return Residents(
        tokens=tokens,
        used=used[order],
        codes=codes,
        closed=compiled(_numbers)(slots, codes, left),
        slots=slots,
    )


@allocating
def _fill(slots: Column, codes: IntArray) -> None:
    mask = len(slots) - 1
    for state in range(len(codes)):
        slot = int((np.uint64(codes[state]) * HASH_FACTOR) >> np.uint64(20)) & mask
        while slots[slot]:
            slot = (slot + 1) & mask
        slots[slot] = state + 1


@allocating
def _numbers(slots: Column, codes: IntArray, wanted: IntArray) -> Column:
    numbers = np.zeros(len(wanted), dtype=np.int32)
    for k in range(len(wanted)):
        numbers[k] = state_of(slots, codes, wanted[k])
    return numbers
