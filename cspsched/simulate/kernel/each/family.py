"""Compiled: the Sarathi family and vLLM V0 (`FamilyRun`), where the aggregated loop does not know them."""

from __future__ import annotations

from cspsched.simulate.kernel.batch import blocks_of
from cspsched.simulate.kernel.each.batch import decodes, known_tokens, missing_blocks, schedule
from cspsched.simulate.kernel.each.family_parts import (
    admit_waiting,
    continue_prefills,
    give_way,
    preempt_to_front,
    queued,
)
from cspsched.simulate.kernel.each.layout import (
    FIRST_LIST,
    LISTED,
    SECOND_LIST,
    SORTED_LIST,
)
from cspsched.simulate.kernel.each.lists import append_listed, sort_by_key
from cspsched.simulate.kernel.each.lockstep import can_decode_all, decode_all, locked_growth
from cspsched.simulate.kernel.each.rules import Mode
from cspsched.simulate.kernel.each.together import unlock_listed
from cspsched.simulate.kernel.each.v0_swap import bring_back, may_return
from cspsched.simulate.kernel.jit import inner, merged
from cspsched.simulate.kernel.layout import HEAP, Kernel

PREFILL_ONLY = int(Mode.PREFILL_ONLY)


@merged
def family_step(k: Kernel) -> None:
    """Decide a batch."""
    if k.now.mode == PREFILL_ONLY:
        _prompts_first(k)
    else:
        _mixed(k)


@inner
def _mixed(k: Kernel) -> None:
    """Started prefills, the queue, and the decodes, which were kept before."""
    promised = _keep_decodes(k)
    num_decodes, num_started = int(k.now.num_idle), int(k.now.group_left)
    used = continue_prefills(k, num_started, num_decodes)
    admit_waiting(k, used, int(k.now.free_blocks) - promised)
    _schedule_decodes(k, num_decodes)


@inner
def _prompts_first(k: Kernel) -> None:
    """Prompts alone (vLLM V0); else room for a more important request, then decodes."""
    now = k.now
    if now.last_was_prompt:
        now.last_prompt_ns = now.clock_ns - now.batch_start_ns
    now.batch_start_ns = now.clock_ns
    num_started = 0
    for position in range(now.num_listed):
        request = int(k.slots[position, LISTED])
        if not decodes(k, request):
            k.slots[num_started, SECOND_LIST] = request
            num_started += 1
    used = continue_prefills(k, num_started, 0)
    admit_waiting(k, used, int(now.free_blocks))
    now.last_was_prompt = now.num_in_batch > 0
    if not now.num_in_batch:
        if now.by_importance:
            _prefer_important(k)
        if now.num_swapped:
            unlock_listed(k)
        num_preferred = int(now.num_evictions)
        _keep_decodes(k)
        _schedule_decodes(k, int(now.num_idle))
        if now.num_evictions == num_preferred:
            _return(k)


@inner
def _return(k: Kernel) -> None:
    """Bring back from host memory, in order, what fits; decodes go on at the end of the batch."""
    while may_return(k, int(k.now.free_blocks)):
        request = bring_back(k)
        append_listed(k, request)
        if decodes(k, request):
            schedule(k, request, 1, missing_blocks(k, request, 1))


@inner
def _keep_decodes(k: Kernel) -> int:
    """Split the running requests into decodes that can be kept and started prefills.

    Returns the blocks that the decodes will take; their numbers are NUM_IDLE and GROUP_LEFT.
    """
    now, num_decodes, num_started = k.now, 0, 0
    if now.is_locked and not can_decode_all(k):
        unlock_listed(k)
    promised = locked_growth(k)
    start, end = 0, int(now.num_listed)
    for position in range(end):
        k.slots[position, SORTED_LIST] = k.slots[position, LISTED]
    if now.by_arrival:
        sort_by_key(k, SORTED_LIST, end)
    while start < end:
        request = int(k.slots[start, SORTED_LIST])
        start += 1
        if not decodes(k, request):
            k.slots[num_started, SECOND_LIST] = request
            num_started += 1
            continue
        while now.free_blocks == promised and start < end:
            end -= 1
            give_way(k, int(k.slots[end, SORTED_LIST]))
        if now.free_blocks == promised:
            give_way(k, request)
            continue
        k.slots[num_decodes, FIRST_LIST] = request
        num_decodes += 1
        promised += missing_blocks(k, request, 1)
    now.num_listed = 0
    for position in range(num_decodes):
        append_listed(k, int(k.slots[position, FIRST_LIST]))
    for position in range(num_started):
        append_listed(k, int(k.slots[position, SECOND_LIST]))
    now.num_idle, now.group_left = num_decodes + now.num_locked, num_started
    return promised


@inner
def _schedule_decodes(k: Kernel, count: int) -> None:
    """One token each."""
    if k.now.is_locked:
        decode_all(k)
        return
    for position in range(count):
        request = int(k.slots[position, FIRST_LIST])
        schedule(k, request, 1, missing_blocks(k, request, 1))


@inner
def _prefer_important(k: Kernel) -> None:
    """Preempt whom the head of the queue surpasses until it can be admitted; then sort the queue."""
    now = k.now
    if now.is_locked and not _is_surpassed(k):
        _sort_queue(k)
        return
    unlock_listed(k)
    _sort_running(k)
    if now.heap_size:
        request = queued(k, 0)
        blocks = blocks_of(k, known_tokens(k, request)) + now.watermark_blocks
        while now.num_listed:
            last = int(k.slots[now.num_listed - 1, LISTED])
            if k.requests[last].importance <= k.requests[request].importance:
                break
            if now.num_listed < now.max_running and blocks <= now.free_blocks:
                break
            now.num_listed -= 1
            preempt_to_front(k, last)
    _sort_queue(k)


@inner
def _is_surpassed(k: Kernel) -> bool:
    """Whether the head of the queue may surpass somebody who runs; those in lockstep are in order."""
    now = k.now
    if now.num_listed:
        return True
    if not now.heap_size:
        return False
    request = queued(k, 0)
    blocks = blocks_of(k, known_tokens(k, request)) + now.watermark_blocks
    has_room = now.num_running < now.max_running and blocks <= now.free_blocks
    return bool(now.last_rank > k.requests[request].importance and not has_room)


@inner
def _sort_running(k: Kernel) -> None:
    """The most important first; equals keep their order."""
    for position in range(1, k.now.num_listed):
        request, place = k.slots[position, LISTED], position
        while place and k.requests[k.slots[place - 1, LISTED]].importance > k.requests[request].importance:
            k.slots[place, LISTED] = k.slots[place - 1, LISTED]
            place -= 1
        k.slots[place, LISTED] = request


@inner
def _sort_queue(k: Kernel) -> None:
    """The most important first; equals keep their order."""
    queue, size, start = k.orders[:, HEAP], len(k.orders), int(k.now.queue_start)
    for position in range(1, k.now.heap_size):
        request, place = queue[(start + position) % size], position
        while place:
            before = queue[(start + place - 1) % size]
            if k.requests[before].importance <= k.requests[request].importance:
                break
            queue[(start + place) % size] = before
            place -= 1
        queue[(start + place) % size] = request
