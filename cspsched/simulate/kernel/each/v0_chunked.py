"""Compiled: vLLM V0 with chunks, one prompt's budget at a time (`V0ChunkedRun`)."""

from __future__ import annotations

from cspsched.simulate.kernel.each.batch import (
    decodes,
    known_tokens,
    lacking_tokens,
    missing_blocks,
    preempt,
    schedule,
)
from cspsched.simulate.kernel.each.family_parts import (
    admit_waiting,
    is_long,
    prefill_tokens,
    push_front,
    queued,
)
from cspsched.simulate.kernel.each.layout import (
    FIRST_LIST,
    HELD_TOKENS,
    LISTED,
    SECOND_LIST,
    TO_COME,
)
from cspsched.simulate.kernel.each.lists import append_listed
from cspsched.simulate.kernel.each.lockstep import can_go_on, decode_all, locked_growth
from cspsched.simulate.kernel.each.together import unlock_listed
from cspsched.simulate.kernel.each.v0_swap import bring_back, first_swapped, may_return, swap_to_end
from cspsched.simulate.kernel.jit import inner, merged
from cspsched.simulate.kernel.layout import Kernel


@merged
def chunked_step(k: Kernel) -> None:
    """Visit the running requests, admit, hand over: new prefills, started ones, decodes."""
    now = k.now
    now.group_left = 0
    _split_budget(k)
    if now.num_swapped:
        unlock_listed(k)
    used, promised = _visit(k)
    num_decodes, num_chunks = int(now.num_idle), int(now.num_steps)
    if now.num_swapped and not now.num_evictions:
        used, promised = _return(k, used, promised)
        for position in range(num_decodes, now.num_idle):
            append_listed(k, int(k.slots[position, FIRST_LIST]))
        for position in range(num_chunks, now.num_steps):
            append_listed(k, int(k.slots[position, SECOND_LIST]))
    for position in range(num_decodes):
        append_listed(k, int(k.slots[position, FIRST_LIST]))
    for ends in (1, 0):
        for position in range(num_chunks):
            request = int(k.slots[position, SECOND_LIST])
            if (k.slots[position, TO_COME] == lacking_tokens(k, request)) == ends:
                append_listed(k, request)
    admit_waiting(k, used, int(now.free_blocks) - promised)
    num_decodes, num_chunks = int(now.num_idle), int(now.num_steps)
    for position in range(num_chunks):
        request, tokens = int(k.slots[position, SECOND_LIST]), int(k.slots[position, TO_COME])
        schedule(k, request, tokens, missing_blocks(k, request, tokens))
    if now.is_locked:
        decode_all(k)
    for position in range(num_decodes):
        request = int(k.slots[position, FIRST_LIST])
        schedule(k, request, 1, missing_blocks(k, request, 1))
    for position in range(now.group_left):
        push_front(k, int(k.slots[position, HELD_TOKENS]))


@inner
def _split_budget(k: Kernel) -> None:
    """Split the budget among the prefills that run and those that may start."""
    now, num_prefills, position = k.now, 0, 0
    now.slot_tokens = now.max_tokens
    if now.most_partial == 1:
        return
    now.long_left = now.most_long
    for place in range(now.num_listed):
        request = int(k.slots[place, LISTED])
        if not decodes(k, request):
            num_prefills += 1
            now.long_left -= is_long(k, request)
    long_left = int(now.long_left)
    while position < now.heap_size and num_prefills < now.most_partial:
        counts_as_long = is_long(k, queued(k, position))
        num_prefills += long_left > 0 or not counts_as_long
        long_left -= counts_as_long
        position += 1
    num_prefills = max(min(num_prefills, int(now.most_partial)), 1)
    now.slot_tokens = max(int(now.max_tokens) // num_prefills, 1)


@inner
def _return(k: Kernel, used: int, promised: int) -> tuple[int, int]:
    """Bring back from host memory, in order, what fits into batch and blocks; both are returned.

    A swapped prefill comes back in one piece, unless it is more than a whole budget.
    """
    now = k.now
    while may_return(k, int(now.free_blocks) - promised):
        request = first_swapped(k)
        tokens = min(known_tokens(k, request) - int(k.notes[request].host_tokens), int(now.max_tokens))
        if tokens > now.max_tokens - used:
            break
        bring_back(k)
        promised += missing_blocks(k, request, tokens)
        used += tokens
        if decodes(k, request):
            k.slots[now.num_idle, FIRST_LIST] = request
            now.num_idle += 1
        else:
            k.slots[now.num_steps, SECOND_LIST], k.slots[now.num_steps, TO_COME] = request, tokens
            now.num_steps += 1
    return used, promised


@inner
def _visit(k: Kernel) -> tuple[int, int]:
    """Decodes and chunks as far as the budget goes; the tokens used and the blocks that decodes will take."""
    now, start, end = k.now, 0, int(k.now.num_listed)
    num_decodes = num_chunks = 0
    if now.is_locked and not _can_visit_all(k):
        unlock_listed(k)
        end = int(now.num_listed)
    used, promised = int(now.num_locked), locked_growth(k)
    while start < end and used < now.max_tokens:
        request = int(k.slots[start, LISTED])
        start += 1
        is_decode = decodes(k, request)
        if is_decode or known_tokens(k, request) % now.block_tokens:
            while now.free_blocks == promised and start < end:
                end -= 1
                _set_aside(k, int(k.slots[end, LISTED]))
            if now.free_blocks == promised and (is_decode or num_decodes or num_chunks):
                _set_aside(k, request)
                continue
        if is_decode:
            k.slots[num_decodes, FIRST_LIST] = request
            num_decodes += 1
            promised += missing_blocks(k, request, 1)
            used += 1
        else:
            tokens = prefill_tokens(k, request, lacking_tokens(k, request), used)
            k.slots[num_chunks, SECOND_LIST], k.slots[num_chunks, TO_COME] = request, tokens
            num_chunks += 1
            used += tokens
    now.num_listed = end - start
    for position in range(end - start):
        k.slots[position, LISTED] = k.slots[start + position, LISTED]
    now.num_idle, now.num_steps = num_decodes, num_chunks
    return used, promised


@inner
def _can_visit_all(k: Kernel) -> bool:
    """Whether neither tokens nor blocks run out before the last of the running requests."""
    now, used = k.now, int(k.now.num_locked)
    for position in range(now.num_listed):
        if used >= now.max_tokens:
            return False
        used += min(lacking_tokens(k, int(k.slots[position, LISTED])), int(now.slot_tokens))
    if now.num_locked > now.max_tokens or not can_go_on(k):
        return False
    return bool(not now.num_running or locked_growth(k) < now.free_blocks)


@inner
def _set_aside(k: Kernel, request: int) -> None:
    """Evict a request; unless it is swapped it is queued after the admissions of this step."""
    if k.now.swaps:
        swap_to_end(k, request)
        return
    preempt(k, request)
    k.slots[k.now.group_left, HELD_TOKENS] = request
    k.now.group_left += 1
