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
from cspsched.simulate.kernel.each.family_parts import admit_waiting, prefill_tokens, push_front
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
from cspsched.simulate.kernel.jit import inner, merged
from cspsched.simulate.kernel.layout import Kernel


@merged
def chunked_step(k: Kernel) -> None:
    """Visit the running requests, admit, hand over: new prefills, started ones, decodes."""
    now = k.now
    now.group_left = 0
    used, promised = _visit(k)
    num_decodes, num_chunks = int(now.num_idle), int(now.num_steps)
    for position in range(num_decodes):
        append_listed(k, int(k.slots[position, FIRST_LIST]))
    for ends in (1, 0):
        for position in range(num_chunks):
            request = int(k.slots[position, SECOND_LIST])
            if (k.slots[position, TO_COME] == lacking_tokens(k, request)) == ends:
                append_listed(k, request)
    admit_waiting(k, used, int(now.free_blocks) - promised)
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
        used += lacking_tokens(k, int(k.slots[position, LISTED]))
    if now.num_locked > now.max_tokens or not can_go_on(k):
        return False
    return bool(not now.num_running or locked_growth(k) < now.free_blocks)


@inner
def _set_aside(k: Kernel, request: int) -> None:
    """Evict a request; it is queued after the admissions of this step."""
    preempt(k, request)
    k.slots[k.now.group_left, HELD_TOKENS] = request
    k.now.group_left += 1
