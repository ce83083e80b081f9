"""Compiled: a step of vLLM V1, running requests in order of admission under one token budget, then the queue.

vLLM walks the running list and preempts the last admitted (or least important) whenever a
request finds no block. The walk over a remaining set fails somewhere exactly if all that it takes together is
more than what is free; so it is enough to evict until the sum fits. Where the budget ends before the list
does, the rest of the list sits out and leaves the lockstep.
"""

from __future__ import annotations

from cspsched.compiled.jit import inner, merged
from cspsched.simulate.aggregated.batch import (
    add_chunk,
    admit,
    decode_growth,
    enter_decode,
    evict,
    leave_decode,
)
from cspsched.simulate.aggregated.columns import LISTED, STARTED, STARTED_TOKENS
from cspsched.simulate.aggregated.queues import queue_head, victim
from cspsched.simulate.aggregated.state import ALL_SERVED
from cspsched.simulate.kernel.actions import blocks_of, known_tokens
from cspsched.simulate.kernel.layout import DECODES, HELD, PREFILLS, Kernel
from cspsched.simulate.kernel.records import NO_REQUEST
from cspsched.simulate.kernel.rules import Chunk

NEVER_CUT = int(Chunk.NEVER)


@merged
def running_first(k: Kernel) -> None:
    """Decide a batch."""
    now = k.now
    longest = now.kv_blocks * now.block_tokens
    if k.own.long_prefill and now.num_running + now.num_waiting > 1:
        longest = k.own.long_prefill
    now.decode_now = 1
    if k.own.victim:
        used = _serve_by_importance(k)
    else:
        used = now.num_decodes
        if k.own.num_started or k.own.served_end != ALL_SERVED or used > now.max_tokens:
            used = _share_budget(k, longest)
        _make_room(k, _started_blocks(k))
    _process_started(k)
    if not now.num_evictions and now.num_waiting:
        _admit_waiting(k, now.max_tokens - used, longest)


@inner
def _serve_by_importance(k: Kernel) -> int:
    """Make room for the decodes, then for the one started prefill; return the tokens used.

    The prefill, the last of the list, is offered what the decodes left. What is evicted for its sake
    returns tokens to the budget, but not to the prefill.
    """
    now = k.now
    _make_room(k, 0)
    used = now.num_decodes
    if k.own.num_started:
        request = k.slots[0, STARTED]
        lacking = known_tokens(k, request) - k.requests[request].kv_tokens
        k.slots[0, STARTED_TOKENS] = min(lacking, k.now.max_tokens - used)
        used += k.slots[0, STARTED_TOKENS]
        _make_room(k, _started_blocks(k))
    return int(used)


@inner
def _share_budget(k: Kernel, longest: int) -> int:
    """Give the running requests their tokens in order, as far as the budget goes; return the tokens used."""
    now = k.now
    if k.own.served_end >= k.own.running_end:
        k.own.served_end = ALL_SERVED
    used, served = now.num_decodes, 0
    for position in range(k.own.num_started):
        request = k.slots[position, STARTED]
        k.slots[position, STARTED_TOKENS] = 0
        if k.requests[request].place < k.own.served_end:
            k.slots[position, STARTED_TOKENS] = min(
                known_tokens(k, request) - k.requests[request].kv_tokens, longest
            )
            used += k.slots[position, STARTED_TOKENS]
            served += 1
    if used > k.now.max_tokens:
        return _cut_end(k, used, served)
    if k.own.served_end != ALL_SERVED:
        return _extend_end(k, used, served, longest)
    return int(used)


@inner
def _cut_end(k: Kernel, used: int, served: int) -> int:
    """Take tokens from the end of the list until the budget holds."""
    budget = k.now.max_tokens
    place = min(k.own.served_end, k.own.running_end)
    while used > budget:
        place -= 1
        request = k.slots[place, LISTED]
        if request == NO_REQUEST:
            continue
        is_decode = k.requests[request].phase == DECODES
        own = 1
        if not is_decode:
            served -= 1
            own = k.slots[served, STARTED_TOKENS]
        if used - own < budget:
            k.slots[served, STARTED_TOKENS] -= used - budget
            return int(budget)
        used -= own
        k.own.served_end = place
        if is_decode:
            leave_decode(k, request)
        else:
            k.slots[served, STARTED_TOKENS] = 0
    return int(used)


@inner
def _extend_end(k: Kernel, used: int, served: int, longest: int) -> int:
    """Serve further requests of the list while tokens are left."""
    budget = k.now.max_tokens
    place = k.own.served_end
    while place < k.own.running_end and used < budget:
        request = k.slots[place, LISTED]
        place += 1
        if request == NO_REQUEST:
            continue
        if k.requests[request].phase == HELD:
            enter_decode(k, request)
            used += 1
        else:
            lacking = known_tokens(k, request) - k.requests[request].kv_tokens
            k.slots[served, STARTED_TOKENS] = min(lacking, longest, budget - used)
            used += k.slots[served, STARTED_TOKENS]
            served += 1
    k.own.served_end = place if place < k.own.running_end else ALL_SERVED
    return int(used)


@inner
def _own_blocks(k: Kernel, position: int) -> int:
    """KV blocks that a started prefill takes for its tokens."""
    row = k.requests[k.slots[position, STARTED]]
    tokens = k.slots[position, STARTED_TOKENS]
    return blocks_of(k, row.kv_tokens + tokens) - row.blocks if tokens else 0


@inner
def _started_blocks(k: Kernel) -> int:
    """KV blocks that all started prefills take."""
    blocks = 0
    for position in range(k.own.num_started):
        blocks += _own_blocks(k, position)
    return blocks


@inner
def _make_room(k: Kernel, prefill_blocks: int) -> None:
    """Evict until what decodes and started prefills take is free."""
    now = k.now
    while decode_growth(k) + prefill_blocks > now.free_blocks:
        request = victim(k)
        if k.requests[request].phase == PREFILLS:
            # It is the last of those that are left, whatever the order of eviction.
            k.own.num_started -= 1
            if prefill_blocks:
                prefill_blocks -= _own_blocks(k, k.own.num_started)
        evict(k, request)


@inner
def _process_started(k: Kernel) -> None:
    """Put the chunks into the batch; keep those with prefill left."""
    kept = 0
    for position in range(k.own.num_started):
        request, tokens = int(k.slots[position, STARTED]), int(k.slots[position, STARTED_TOKENS])
        if not tokens or not add_chunk(k, request, tokens):
            k.slots[kept, STARTED] = request
            kept += 1
    k.own.num_started = kept


@inner
def _admit_waiting(k: Kernel, budget: int, longest: int) -> None:
    """Admit from the head of the queue, strictly in its order, until something does not fit."""
    now = k.now
    while budget > 0 and now.num_waiting and now.num_running < now.max_running:
        request = queue_head(k)
        known = known_tokens(k, request)
        tokens = min(known, longest)
        if tokens > budget and now.chunk == NEVER_CUT:
            break
        tokens = min(tokens, budget)
        kept_free = now.watermark_blocks if now.num_running else 0
        tested = known if k.own.test_known else tokens
        # The decodes have not taken theirs yet.
        if blocks_of(k, tested) + kept_free + decode_growth(k) > now.free_blocks:
            break
        if not admit(k, request, tokens, 0):
            k.slots[k.own.num_started, STARTED] = request
            k.own.num_started += 1
        budget -= tokens
