"""Compiled: how a prefill is cut, what an admission takes, and the tests that it has to pass (`QueueRun`)."""

from __future__ import annotations

from cspsched.simulate.kernel.batch import blocks_of
from cspsched.simulate.kernel.each.batch import decodes, known_tokens
from cspsched.simulate.kernel.each.layout import (
    CUT,
    DECODES_FOLLOW,
    GROUP_LEFT,
    GROUPS,
    LEARNS_LENGTHS,
    LENGTH_COUNT,
    LENGTH_SUM,
    LENGTH_THRESHOLD,
    LISTED,
    NUM_LISTED,
    NUM_LOCKED,
    RESERVES,
    USED_TOKENS,
)
from cspsched.simulate.kernel.each.lists import bit_length
from cspsched.simulate.kernel.each.lockstep import locked_growth
from cspsched.simulate.kernel.jit import inner
from cspsched.simulate.kernel.layout import (
    BLOCK_TOKENS,
    BLOCKS,
    CONTEXT,
    FREE,
    KV_BLOCKS,
    MAX_RUNNING,
    MAX_TOKENS,
    OUTPUT,
    PROMPT,
    RUNNING,
    SUBMISSION,
    SUBMITTED,
    WAITING,
    Kernel,
)
from cspsched.simulate.kernel.rules import Chunk, Reserve

NEVER, WHOLE_BLOCKS, BEYOND = int(Chunk.NEVER), int(Chunk.WHOLE_BLOCKS), int(Chunk.BEYOND_BUDGET)
PEAK, WHOLE_OUTPUT = int(Reserve.PEAK), int(Reserve.OUTPUT)


@inner
def growth(k: Kernel, request: int) -> int:
    """Blocks that a running request takes to process one more token: 1 if all its blocks are full."""
    row = k.rows[request]
    return 1 if row[CONTEXT] == row[BLOCKS] * k.now[BLOCK_TOKENS] else 0


@inner
def growing_blocks(k: Kernel) -> int:
    """KV blocks that the running requests lack to decode a token each."""
    blocks = locked_growth(k)
    for position in range(k.now[NUM_LISTED]):
        blocks += growth(k, int(k.slots[position, LISTED]))
    return blocks


@inner
def most_blocks(k: Kernel, tokens: int) -> int:
    """KV blocks of a number of tokens, at most the whole device."""
    return min(blocks_of(k, tokens), int(k.now[KV_BLOCKS]))


@inner
def reserved_tokens(k: Kernel, request: int) -> int:
    """Tokens whose KV blocks a request takes at its admission."""
    row, mode = k.rows[request], k.now[RESERVES]
    if mode == PEAK:
        return int(row[PROMPT]) + int(row[OUTPUT]) - 1
    if mode == WHOLE_OUTPUT:
        return int(row[PROMPT]) + int(row[OUTPUT])
    return known_tokens(k, request)


@inner
def chunk_tokens(k: Kernel, lacking: int) -> int:
    """Tokens of a prefill that go into this batch: all, or what the budget leaves if it may be cut."""
    now = k.now
    budget, mode = now[MAX_TOKENS] - now[USED_TOKENS], now[CUT]
    if lacking <= budget:
        return lacking
    if mode == NEVER or budget <= 0 or (mode == BEYOND and lacking <= now[MAX_TOKENS]):
        return 0
    if mode == WHOLE_BLOCKS:
        return int(budget // now[BLOCK_TOKENS] * now[BLOCK_TOKENS])
    return int(budget)


@inner
def fits(k: Kernel, request: int) -> bool:
    """Whether the head of the queue may be admitted beside the running requests."""
    now = k.now
    if now[GROUPS]:
        return bool(now[GROUP_LEFT])
    spare = now[FREE] - (growing_blocks(k) if now[DECODES_FOLLOW] else 0)
    needed = reserved_tokens(k, request)
    if now[LEARNS_LENGTHS]:
        needed = max(needed, _expected_tokens(k, int(k.rows[request, PROMPT])))
    return bool(most_blocks(k, needed) <= spare)


@inner
def num_decoding(k: Kernel) -> int:
    """Running requests that decode."""
    count = int(k.now[NUM_LOCKED])
    for position in range(k.now[NUM_LISTED]):
        count += decodes(k, int(k.slots[position, LISTED]))
    return count


@inner
def _expected_tokens(k: Kernel, prompt: int) -> int:
    """Mean length of finished requests of like prompt, rounded up; 0 if it is not to be looked at."""
    bits = bit_length(prompt)
    count = int(k.now[LENGTH_COUNT + bits])
    if prompt < k.now[LENGTH_THRESHOLD] or not count:
        return 0
    return (int(k.now[LENGTH_SUM + bits]) + count - 1) // count


@inner
def form_group(k: Kernel) -> None:
    """When the last group has finished, the next: the first in order of arrival whose reservations fit."""
    now = k.now
    if now[RUNNING] or now[GROUP_LEFT]:
        return
    free, first = now[FREE], now[SUBMITTED] - now[WAITING]
    for position in range(min(now[WAITING], now[MAX_RUNNING])):
        request = int(k.orders[first + position, SUBMISSION])
        free -= most_blocks(k, reserved_tokens(k, request))
        if free < 0:
            break
        now[GROUP_LEFT] += 1
