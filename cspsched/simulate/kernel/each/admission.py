"""Compiled: how a prefill is cut, what an admission takes, and the tests that it has to pass (`QueueRun`)."""

from __future__ import annotations

from cspsched.simulate.kernel.batch import blocks_of
from cspsched.simulate.kernel.each.batch import decodes, known_tokens
from cspsched.simulate.kernel.each.layout import (
    LISTED,
)
from cspsched.simulate.kernel.each.lists import bit_length
from cspsched.simulate.kernel.each.lockstep import locked_growth
from cspsched.simulate.kernel.jit import inner
from cspsched.simulate.kernel.layout import (
    SUBMISSION,
    Kernel,
)
from cspsched.simulate.kernel.rules import Chunk, Reserve

NEVER, WHOLE_BLOCKS, BEYOND = int(Chunk.NEVER), int(Chunk.WHOLE_BLOCKS), int(Chunk.BEYOND_BUDGET)
PEAK, WHOLE_OUTPUT = int(Reserve.PEAK), int(Reserve.OUTPUT)


@inner
def growth(k: Kernel, request: int) -> int:
    """Blocks that a running request takes to process one more token: 1 if all its blocks are full."""
    row = k.requests[request]
    return 1 if row.kv_tokens == row.blocks * k.now.block_tokens else 0


@inner
def growing_blocks(k: Kernel) -> int:
    """KV blocks that the running requests lack to decode a token each."""
    blocks = locked_growth(k)
    for position in range(k.now.num_listed):
        blocks += growth(k, int(k.slots[position, LISTED]))
    return blocks


@inner
def most_blocks(k: Kernel, tokens: int) -> int:
    """KV blocks of a number of tokens, at most the whole device."""
    return min(blocks_of(k, tokens), int(k.now.kv_blocks))


@inner
def reserved_tokens(k: Kernel, request: int) -> int:
    """Tokens whose KV blocks a request takes at its admission."""
    row, mode = k.requests[request], k.now.reserve
    if mode == PEAK:
        return int(row.prompt_tokens) + int(row.output_tokens) - 1
    if mode == WHOLE_OUTPUT:
        return int(row.prompt_tokens) + int(row.output_tokens)
    return known_tokens(k, request)


@inner
def chunk_tokens(k: Kernel, lacking: int) -> int:
    """Tokens of a prefill that go into this batch: all, or what the budget leaves if it may be cut."""
    now = k.now
    budget, mode = now.max_tokens - now.used_tokens, now.chunk
    if lacking <= budget:
        return lacking
    if mode == NEVER or budget <= 0 or (mode == BEYOND and lacking <= now.max_tokens):
        return 0
    if mode == WHOLE_BLOCKS:
        return int(budget // now.block_tokens * now.block_tokens)
    return int(budget)


@inner
def fits(k: Kernel, request: int) -> bool:
    """Whether the head of the queue may be admitted beside the running requests."""
    now = k.now
    if now.groups:
        return bool(now.group_left)
    spare = now.free_blocks - (growing_blocks(k) if now.decodes_follow else 0)
    needed = reserved_tokens(k, request)
    if now.learns_lengths:
        needed = max(needed, _expected_tokens(k, int(k.requests[request].prompt_tokens)))
    return bool(most_blocks(k, needed) <= spare)


@inner
def num_decoding(k: Kernel) -> int:
    """Running requests that decode."""
    count = int(k.now.num_locked)
    for position in range(k.now.num_listed):
        count += decodes(k, int(k.slots[position, LISTED]))
    return count


@inner
def _expected_tokens(k: Kernel, prompt: int) -> int:
    """Mean length of finished requests of like prompt, rounded up; 0 if it is not to be looked at."""
    bits = bit_length(prompt)
    count = int(k.now.length_count[bits])
    if prompt < k.now.length_threshold or not count:
        return 0
    return (int(k.now.length_sum[bits]) + count - 1) // count


@inner
def form_group(k: Kernel) -> None:
    """When the last group has finished, the next: the first in order of arrival whose reservations fit."""
    now = k.now
    if now.num_running or now.group_left:
        return
    free, first = now.free_blocks, now.num_submitted - now.num_waiting
    for position in range(min(now.num_waiting, now.max_running)):
        request = int(k.orders[first + position, SUBMISSION])
        free -= most_blocks(k, reserved_tokens(k, request))
        if free < 0:
            break
        now.group_left += 1
