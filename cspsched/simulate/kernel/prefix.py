"""A KV block pool with identities: full blocks keep what they hold until their room is needed.

The order in which blocks are reused is that of vLLM 0.33.0 (`vllm/v1/core/block_pool.py`), because it decides
what a later request, or a preempted one when it comes back, still finds. The free blocks are a queue. New
blocks are taken from its front and forget what they held. Of the blocks that a request leaves, last first,
those with content in the cache go to the end and the others to the front. Blocks of equal content are all
kept; the first that was entered is found.
"""

from __future__ import annotations

from cspsched.compiled.jit import inner
from cspsched.simulate.kernel.layout import PREFILLS, Kernel
from cspsched.simulate.kernel.records import NO_REQUEST

CACHES = True
"""Of compiled code a constant: whether it knows of the prefix cache. Plain, `now.caches_prefixes` says so."""


@inner
def find_cached(k: Kernel, request: int) -> int:
    """Full blocks that a request without KV cache finds; one of its known tokens is left to be processed."""
    row, first = k.requests[request], int(k.notes[request].first_place)
    most = int((row.prompt_tokens + row.generated - 1) // k.now.block_tokens)
    count = 0
    while count < most and k.cache.contents[k.cache.places[first + count].content].first != NO_REQUEST:
        count += 1
    return count


@inner
def num_free_of(k: Kernel, request: int, count: int) -> int:
    """Of the blocks that a request found those that none holds: to reuse them takes free blocks."""
    first, free = int(k.notes[request].first_place), 0
    for position in range(count):
        block = k.cache.contents[k.cache.places[first + position].content].first
        free += k.cache.blocks[block].num_holders == 0
    return free


@inner
def reuse(k: Kernel, request: int, count: int) -> None:
    """Let a request without KV cache start with so many blocks that were found for it."""
    now, row, notes = k.now, k.requests[request], k.notes[request]
    first = int(notes.first_place)
    for position in range(count):
        place = k.cache.places[first + position]
        block = int(k.cache.contents[place.content].first)
        if not k.cache.blocks[block].num_holders:
            _take_free(k, block)
            now.free_blocks -= 1
        k.cache.blocks[block].num_holders += 1
        place.block = block
    notes.num_entered = count
    notes.hit_tokens = row.kv_tokens = count * now.block_tokens
    row.blocks = count
    row.phase = PREFILLS
    now.num_running += 1
    now.num_waiting -= 1


@inner
def take(k: Kernel, request: int, count: int) -> None:
    """Give a request, which holds `blocks` of its record, so many more from the front of the free ones."""
    first = int(k.notes[request].first_place + k.requests[request].blocks)
    for position in range(count):
        block = int(k.now.first_free)
        _take_free(k, block)
        _forget(k, block)
        k.cache.blocks[block].num_holders = 1
        k.cache.places[first + position].block = block


@inner
def release(k: Kernel, request: int) -> int:
    """Take all blocks of a request back; how many are free by that."""
    notes, freed = k.notes[request], 0
    for position in range(k.requests[request].blocks - 1, -1, -1):
        block = int(k.cache.places[notes.first_place + position].block)
        state = k.cache.blocks[block]
        state.num_holders -= 1
        if not state.num_holders:
            _free(k, block)
            freed += 1
    notes.num_entered = notes.hit_tokens = 0
    return freed


@inner
def freed_by(k: Kernel, request: int) -> int:
    """KV blocks that are free once a request has left the device."""
    return release(k, request) if CACHES and k.now.caches_prefixes else int(k.requests[request].blocks)


@inner
def enter(k: Kernel, request: int, tokens: int) -> None:
    """Let others find the full blocks of a request's first tokens, as far as these have been seen."""
    row, notes = k.requests[request], k.notes[request]
    tokens = min(tokens, int(row.prompt_tokens + row.generated - notes.num_unseen))
    for position in range(notes.num_entered, tokens // k.now.block_tokens):
        place = k.cache.places[notes.first_place + position]
        block, same = k.cache.blocks[place.block], k.cache.contents[place.content]
        block.content = place.content
        block.next_same, block.previous_same = NO_REQUEST, same.last
        if same.last == NO_REQUEST:
            same.first = place.block
        else:
            k.cache.blocks[same.last].next_same = place.block
        same.last = place.block
        notes.num_entered = position + 1


@inner
def _forget(k: Kernel, block: int) -> None:
    """Let a block be found no more."""
    state = k.cache.blocks[block]
    if state.content == NO_REQUEST:
        return
    same = k.cache.contents[state.content]
    if state.previous_same == NO_REQUEST:
        same.first = state.next_same
    else:
        k.cache.blocks[state.previous_same].next_same = state.next_same
    if state.next_same == NO_REQUEST:
        same.last = state.previous_same
    else:
        k.cache.blocks[state.next_same].previous_same = state.previous_same
    state.content = NO_REQUEST


@inner
def _take_free(k: Kernel, block: int) -> None:
    """Take a block out of the queue of free ones."""
    now, state = k.now, k.cache.blocks[block]
    if state.previous == NO_REQUEST:
        now.first_free = state.next
    else:
        k.cache.blocks[state.previous].next = state.next
    if state.next == NO_REQUEST:
        now.last_free = state.previous
    else:
        k.cache.blocks[state.next].previous = state.previous


@inner
def _free(k: Kernel, block: int) -> None:
    """Put a block into the queue of free ones: with content at its end, else at its front."""
    now, state = k.now, k.cache.blocks[block]
    if state.content == NO_REQUEST:
        state.previous, state.next = NO_REQUEST, now.first_free
        if now.first_free == NO_REQUEST:
            now.last_free = block
        else:
            k.cache.blocks[now.first_free].previous = block
        now.first_free = block
    else:
        state.previous, state.next = now.last_free, NO_REQUEST
        if now.last_free == NO_REQUEST:
            now.first_free = block
        else:
            k.cache.blocks[now.last_free].next = block
        now.last_free = block
