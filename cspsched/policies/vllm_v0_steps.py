"""The two modes of vLLM's V0 scheduler (vllm 0.9.2): whole prompts first, or chunks beside decodes.

With preemption by swap a victim enters the end of the swapped queue. Its head comes back, in a step in which
no request was preempted, once the blocks of its known tokens are free above the watermark. Where the real
scheduler stops, a run here goes on or says why not:

* A victim that host memory has no room for is an error, as in vLLM ("lack of CPU swap space").
* A request that makes room for a more important one waits with the others in vLLM, which then fails an
  assertion if that request was swapped; here it is recomputed.
* A swapped prefill comes back in one piece, and in vLLM never if that is more than the budget of a batch;
  here it is cut then.
* While nothing is running the watermark is waived, as for admissions.
"""

from __future__ import annotations

import numpy as np

from cspsched.compiled.jit import inner, merged
from cspsched.policies.sarathi_family import (
    admit_with,
    continue_with,
    enqueue,
    forget_in_ring,
    keep_with,
    known_blocks,
    list_started,
    preempt_to_front,
    push_front,
    queued,
    schedule_decodes,
    whole_prompt,
)
from cspsched.simulate.kernel.actions import (
    decodes,
    known_tokens,
    lacking_tokens,
    missing_blocks,
    preempt,
    schedule,
)
from cspsched.simulate.kernel.cancel import position_in
from cspsched.simulate.kernel.columns import FIRST_LIST, HELD_TOKENS, LISTED, SECOND_LIST, TO_COME
from cspsched.simulate.kernel.layout import BY_RANK, HEAP, HOST_FULL, Kernel
from cspsched.simulate.kernel.lists import append_listed, next_arrival, sort_by_key
from cspsched.simulate.kernel.lockstep import can_go_on, decode_all, locked_growth
from cspsched.simulate.kernel.loops import make_loop
from cspsched.simulate.kernel.records import NO_REQUEST
from cspsched.simulate.kernel.swap import swap_in, swap_out
from cspsched.simulate.kernel.together import unlock_listed

SWAPPED = BY_RANK
"""Column of `orders` with the swapped requests in a ring, next first."""


@inner
def _submit(k: Kernel) -> None:
    """Queue all arrivals at the end."""
    request = next_arrival(k)
    while request >= 0:
        k.requests[request].key = k.requests[request].importance
        enqueue(k, request)
        request = next_arrival(k)


# The swapped queue.


@inner
def _swap_to_end(k: Kernel, request: int) -> None:
    """Move a request to host memory; without room for it there the policy refuses to go on."""
    now, own = k.now, k.own
    if now.refused != NO_REQUEST:
        return
    if known_blocks(k, request) > now.free_host_blocks:
        now.refused, now.refusal = request, HOST_FULL
        return
    swap_out(k, request)
    k.orders[(own.swapped_start + own.num_swapped) % len(k.orders), SWAPPED] = request
    own.num_swapped += 1


def forget(k: Kernel, request: int) -> None:
    """Take a request that is cancelled out of its queue."""
    own, ring = k.own, k.orders[:, SWAPPED]
    places = (own.swapped_start + np.arange(own.num_swapped)) % len(ring)
    position = position_in(ring[places], request)
    if position is None:
        forget_in_ring(k, request)
    else:
        ring[places[position:-1]] = ring[places[position + 1 :]]
        own.num_swapped -= 1


@inner
def _may_return(k: Kernel, spare: int) -> bool:
    """Whether the first of the swapped requests fits into so many blocks beside those that run."""
    now = k.now
    if not k.own.num_swapped or now.num_running >= now.max_running:
        return False
    kept_free = int(now.watermark_blocks) if now.num_running else 0
    return bool(known_blocks(k, int(k.orders[k.own.swapped_start, SWAPPED])) + kept_free <= spare)


@inner
def _bring_back(k: Kernel) -> None:
    """Let the first of the swapped requests run again."""
    own = k.own
    swap_in(k, int(k.orders[own.swapped_start, SWAPPED]))
    own.swapped_start = (own.swapped_start + 1) % len(k.orders)
    own.num_swapped -= 1


# Whole prompts first.


@inner
def _may_admit(k: Kernel) -> bool:
    """Whether none is swapped, and the earliest arrival has waited for the delay, or nothing runs."""
    now, own = k.now, k.own
    if own.num_swapped:
        return False
    if not own.delay or own.was_idle or not now.heap_size:
        return True
    earliest = k.requests[queued(k, 0)].arrival_ns
    for position in range(1, now.heap_size):
        earliest = min(earliest, k.requests[queued(k, position)].arrival_ns)
    return bool(now.clock_ns - earliest > own.delay * own.prompt_ns)


@inner
def _give_way(k: Kernel, request: int) -> None:
    """Evict a request to host memory, or to the front of the queue."""
    if k.own.swaps:
        _swap_to_end(k, request)
    else:
        preempt_to_front(k, request)


@inner
def _as_listed(k: Kernel, column: int, count: int) -> None:
    """Leave a column as it is."""


_continue_prefills = continue_with(whole_prompt)
_admit_prompts = admit_with(whole_prompt, may_admit=_may_admit)
_keep_decodes = keep_with(_give_way, _as_listed)


@merged
def whole_prompts_step(k: Kernel) -> None:
    """Prompts; if there is none, room for a more important request, decodes, and what was swapped."""
    now, own = k.now, k.own
    if own.last_was_prompt:
        own.prompt_ns = now.clock_ns - own.step_ns
    own.step_ns, own.was_idle = now.clock_ns, now.num_running == 0
    used = _continue_prefills(k, list_started(k), 0)
    _admit_prompts(k, used, int(now.free_blocks))
    own.last_was_prompt = now.num_in_batch > 0
    if now.num_in_batch:
        return
    if own.by_priority:
        _prefer_important(k)
    if own.num_swapped:
        unlock_listed(k)
    num_evictions = int(now.num_evictions)
    schedule_decodes(k, _keep_decodes(k)[0])
    if now.num_evictions == num_evictions:
        _return_all(k)


@inner
def _return_all(k: Kernel) -> None:
    """Bring back from host memory, in order, what fits; decodes go on at the end of the batch."""
    while _may_return(k, int(k.now.free_blocks)):
        request = int(k.orders[k.own.swapped_start, SWAPPED])
        _bring_back(k)
        append_listed(k, request)
        if decodes(k, request):
            schedule(k, request, 1, missing_blocks(k, request, 1))


@inner
def _prefer_important(k: Kernel) -> None:
    """Recompute what the head of the queue surpasses until it can be admitted; only then sort the queue."""
    now = k.now
    if not now.is_locked or _is_surpassed(k):
        unlock_listed(k)
        sort_by_key(k, LISTED, int(now.num_listed))
        if now.heap_size:
            _make_way(k, queued(k, 0))
    _sort_queue(k)


@inner
def _make_way(k: Kernel, request: int) -> None:
    """Preempt the least important for the sake of a request."""
    now, blocks = k.now, known_blocks(k, request) + int(k.now.watermark_blocks)
    while now.num_listed:
        last = int(k.slots[now.num_listed - 1, LISTED])
        has_room = now.num_listed < now.max_running and blocks <= now.free_blocks
        if k.requests[last].key <= k.requests[request].key or has_room:
            return
        now.num_listed -= 1
        preempt_to_front(k, last)


@inner
def _is_surpassed(k: Kernel) -> bool:
    """Whether the head of the queue may surpass a running request; those in lockstep are in order."""
    now = k.now
    if now.num_listed:
        return True
    if not now.heap_size:
        return False
    request = queued(k, 0)
    blocks = known_blocks(k, request) + now.watermark_blocks
    has_room = now.num_running < now.max_running and blocks <= now.free_blocks
    return bool(now.last_rank > k.requests[request].key and not has_room)


@inner
def _sort_queue(k: Kernel) -> None:
    """The most important first; equals keep their order."""
    queue, size, start = k.orders[:, HEAP], len(k.orders), int(k.now.queue_start)
    for position in range(1, k.now.heap_size):
        request, place = queue[(start + position) % size], position
        while place:
            before = queue[(start + place - 1) % size]
            if k.requests[before].key <= k.requests[request].key:
                break
            queue[(start + place) % size] = before
            place -= 1
        queue[(start + place) % size] = request


run_whole_prompts = make_loop("run_v0_whole_prompts", submit=_submit, step=whole_prompts_step)


# Chunks.


@inner
def _chunk(k: Kernel, request: int, used: int) -> int:
    """What the budget leaves, at most the share of one prefill."""
    return max(min(lacking_tokens(k, request), int(k.now.max_tokens) - used, int(k.own.share_tokens)), 0)


@inner
def _is_long(k: Kernel, request: int) -> bool:
    return bool(lacking_tokens(k, request) > k.own.long_tokens)


@inner
def _is_passed_over(k: Kernel, request: int) -> bool:
    """Whether a prompt is long and as many long ones run already."""
    own = k.own
    if own.most_partial == 1 or not _is_long(k, request):
        return False
    own.long_left -= 1
    return bool(own.long_left < 0)


_admit_chunks = admit_with(_chunk, is_passed_over=_is_passed_over)


@merged
def chunked_step(k: Kernel) -> None:
    """Visit the running requests, restore, admit, hand over: new prefills, started ones, decodes.

    New prefills are tried even after a preemption, but not with the victims of the same step.
    """
    now, own = k.now, k.own
    own.num_victims = 0
    _split_budget(k)
    if own.num_swapped:
        unlock_listed(k)
    used, promised = _visit(k)
    num_decodes, num_chunks = int(own.num_decodes), int(own.num_chunks)
    if own.num_swapped and not now.num_evictions:
        used, promised = _return_chunks(k, used, promised)
    _list(k, num_decodes, num_chunks)
    _admit_chunks(k, used, int(now.free_blocks) - promised)
    for position in range(own.num_chunks):
        request, tokens = int(k.slots[position, SECOND_LIST]), int(k.slots[position, TO_COME])
        schedule(k, request, tokens, missing_blocks(k, request, tokens))
    if now.is_locked:
        decode_all(k)
    for position in range(own.num_decodes):
        request = int(k.slots[position, FIRST_LIST])
        schedule(k, request, 1, missing_blocks(k, request, 1))
    for position in range(own.num_victims):
        push_front(k, int(k.slots[position, HELD_TOKENS]))


@inner
def _list(k: Kernel, num_decodes: int, num_chunks: int) -> None:
    """List what was visited behind what was not: what came back, decodes, prefills that end, other ones."""
    for position in range(num_decodes, k.own.num_decodes):
        append_listed(k, int(k.slots[position, FIRST_LIST]))
    for position in range(num_chunks, k.own.num_chunks):
        append_listed(k, int(k.slots[position, SECOND_LIST]))
    for position in range(num_decodes):
        append_listed(k, int(k.slots[position, FIRST_LIST]))
    for ends in (1, 0):
        for position in range(num_chunks):
            request = int(k.slots[position, SECOND_LIST])
            if (k.slots[position, TO_COME] == lacking_tokens(k, request)) == ends:
                append_listed(k, request)


@inner
def _split_budget(k: Kernel) -> None:
    """Split the budget among the prefills that run and those that may start."""
    now, own, num_prefills, position = k.now, k.own, 0, 0
    own.share_tokens = now.max_tokens
    if own.most_partial == 1:
        return
    own.long_left = own.most_long
    for place in range(now.num_listed):
        request = int(k.slots[place, LISTED])
        if not decodes(k, request):
            num_prefills += 1
            own.long_left -= _is_long(k, request)
    long_left = int(own.long_left)
    while position < now.heap_size and num_prefills < own.most_partial:
        counts_as_long = _is_long(k, queued(k, position))
        num_prefills += long_left > 0 or not counts_as_long
        long_left -= counts_as_long
        position += 1
    num_prefills = max(min(num_prefills, int(own.most_partial)), 1)
    own.share_tokens = max(int(now.max_tokens) // num_prefills, 1)


@inner
def _return_chunks(k: Kernel, used: int, promised: int) -> tuple[int, int]:
    """Bring back from host memory, in order, what fits into batch and blocks; both are returned.

    A swapped prefill comes back in one piece, unless it is more than a whole budget.
    """
    now, own = k.now, k.own
    while _may_return(k, int(now.free_blocks) - promised):
        request = int(k.orders[own.swapped_start, SWAPPED])
        tokens = min(known_tokens(k, request) - int(k.notes[request].host_tokens), int(now.max_tokens))
        if tokens > now.max_tokens - used:
            break
        _bring_back(k)
        promised += missing_blocks(k, request, tokens)
        used += tokens
        if decodes(k, request):
            _note_decode(k, request)
        else:
            _note_chunk(k, request, tokens)
    return used, promised


@inner
def _note_decode(k: Kernel, request: int) -> None:
    k.slots[k.own.num_decodes, FIRST_LIST] = request
    k.own.num_decodes += 1


@inner
def _note_chunk(k: Kernel, request: int, tokens: int) -> None:
    k.slots[k.own.num_chunks, SECOND_LIST], k.slots[k.own.num_chunks, TO_COME] = request, tokens
    k.own.num_chunks += 1


@inner
def _visit(k: Kernel) -> tuple[int, int]:
    """Decodes and chunks as far as the budget goes; the tokens used and the blocks that decodes will take.

    A started prefill, too, wants to see a free block, unless its tokens fill its blocks; if no other request
    is left it goes on without (vLLM evicts it again and again).
    """
    now, own = k.now, k.own
    own.num_decodes = own.num_chunks = 0
    if now.is_locked and not _can_visit_all(k):
        unlock_listed(k)
    start, end = 0, int(now.num_listed)
    used, promised = int(now.num_locked), locked_growth(k)
    while start < end and used < now.max_tokens:
        request = int(k.slots[start, LISTED])
        start += 1
        is_decode = decodes(k, request)
        if is_decode or known_tokens(k, request) % now.block_tokens:
            while now.free_blocks == promised and start < end:
                end -= 1
                _set_aside(k, int(k.slots[end, LISTED]))
            if now.free_blocks == promised and (is_decode or own.num_decodes or own.num_chunks):
                _set_aside(k, request)
                continue
        if is_decode:
            _note_decode(k, request)
            promised += missing_blocks(k, request, 1)
            used += 1
        else:
            tokens = _chunk(k, request, used)
            _note_chunk(k, request, tokens)
            used += tokens
    now.num_listed = end - start
    for position in range(end - start):
        k.slots[position, LISTED] = k.slots[start + position, LISTED]
    return used, promised


@inner
def _can_visit_all(k: Kernel) -> bool:
    """Whether neither tokens nor blocks run out before the last of the running requests."""
    now, used = k.now, int(k.now.num_locked)
    for position in range(now.num_listed):
        if used >= now.max_tokens:
            return False
        used += min(lacking_tokens(k, int(k.slots[position, LISTED])), int(k.own.share_tokens))
    if now.num_locked > now.max_tokens or not can_go_on(k):
        return False
    return bool(not now.num_running or locked_growth(k) < now.free_blocks)


@inner
def _set_aside(k: Kernel, request: int) -> None:
    """Evict a request; unless it is swapped it is queued after the admissions of this step."""
    if k.own.swaps:
        _swap_to_end(k, request)
        return
    preempt(k, request)
    k.slots[k.own.num_victims, HELD_TOKENS] = request
    k.own.num_victims += 1


run_chunked = make_loop("run_v0_chunked", submit=_submit, step=chunked_step)
