"""Compiled: vLLM V1 request by request, for settings that the aggregated loop does not know (`VllmRun`)."""

from __future__ import annotations

from cspsched.simulate.kernel.batch import blocks_of
from cspsched.simulate.kernel.each.batch import (
    decodes,
    is_finishing,
    known_tokens,
    lacking_tokens,
    preempt,
    schedule,
)
from cspsched.simulate.kernel.each.layout import (
    BATCHED,
    LISTED,
)
from cspsched.simulate.kernel.each.lists import append_listed, head, next_arrival, next_number, pop, push
from cspsched.simulate.kernel.each.lockstep import can_go_on, decode_all, locked_growth
from cspsched.simulate.kernel.each.rules import Evict
from cspsched.simulate.kernel.each.together import unlock_listed
from cspsched.simulate.kernel.jit import inner, merged
from cspsched.simulate.kernel.layout import (
    Kernel,
)
from cspsched.simulate.kernel.records import NOBODY
from cspsched.simulate.kernel.rules import Chunk

LEAST_IMPORTANT = int(Evict.LEAST_IMPORTANT)
NEVER = int(Chunk.NEVER)


@inner
def submit_to_vllm(k: Kernel) -> None:
    """Queue all arrivals: at the end, or at their rank."""
    request = next_arrival(k)
    while request >= 0:
        k.requests[request].key = k.requests[request].rank if k.now.order else next_number(k)
        push(k, request)
        request = next_arrival(k)


@merged
def vllm_step(k: Kernel) -> None:
    """Running requests first; the waiting queue only if nobody had to be preempted."""
    now = k.now
    longest, defers = _longest_chunk(k), _defers_prefills(k)
    budget = _serve_running(k, longest, defers)
    has_prefill = now.interval > 1 and _has_prefill(k)
    if not now.num_evictions and _admit_waiting(k, longest, defers, budget):
        has_prefill = True
    if now.num_in_batch:
        now.num_steps += 1
        if has_prefill:
            now.last_prefill_step = now.num_steps


@inner
def _longest_chunk(k: Kernel) -> int:
    """Tokens that a request may be given at most, before the budget is looked at."""
    now = k.now
    num_eligible = now.num_running + now.heap_size
    threshold = now.long_prefill if num_eligible > 1 else 0
    if now.adaptive and threshold:
        threshold = max(threshold, now.max_tokens // num_eligible)
    return int(threshold) if threshold else int(now.kv_blocks * now.block_tokens)


@inner
def _defers_prefills(k: Kernel) -> bool:
    """Whether prefills wait: the last were not long ago, left nobody waiting, and somebody decodes."""
    now = k.now
    if now.interval <= 1 or now.capacity_bound:
        return False
    if now.num_steps + 1 - now.last_prefill_step >= now.interval:
        return False
    some = now.num_locked > 0
    for position in range(now.num_listed):
        some = some or decodes(k, int(k.slots[position, LISTED]))
    return bool(some)


@inner
def _has_prefill(k: Kernel) -> bool:
    """Whether there is a prefill in the batch."""
    for position in range(k.now.num_batched):
        request = k.slots[position, BATCHED]
        if request != NOBODY and not decodes(k, int(request)):
            return True
    return False


@inner
def _serve_running(k: Kernel, longest: int, defers: bool) -> int:  # noqa: FBT001
    """Give every running request what it lacks, in order of admission; return the budget left."""
    now, position = k.now, 0
    if now.is_locked:
        if _can_serve_all(k, longest, defers):
            decode_all(k)
        else:
            unlock_listed(k)
    budget = int(now.max_tokens - now.num_locked)
    while budget and position < now.num_listed:
        request = int(k.slots[position, LISTED])
        if is_finishing(k, request) or (defers and not decodes(k, request)):
            position += 1
            continue
        tokens = lacking_tokens(k, request)
        if tokens > 1:
            tokens = min(tokens, longest, budget)
        row = k.requests[request]
        blocks = _blocks_for(k, request, tokens)
        while blocks > now.free_blocks and row.blocks:
            place = _victim(k)
            budget += _evict_listed(k, place)
            position -= place < position
        if not row.blocks:
            if now.evict == LEAST_IMPORTANT:
                continue
            break
        schedule(k, request, tokens, blocks)
        budget -= tokens
        position += 1
    return budget


@inner
def _blocks_for(k: Kernel, request: int, tokens: int) -> int:
    """KV blocks that a running request lacks for so many more tokens."""
    now, row = k.now, k.requests[request]
    after = int(row.kv_tokens) + tokens
    if now.lookahead:
        after = min(after + int(now.lookahead), int(now.max_model_len))
    return blocks_of(k, after) - int(row.blocks)


@inner
def _can_serve_all(k: Kernel, longest: int, defers: bool) -> bool:  # noqa: FBT001
    """Whether tokens and blocks are enough for all that run, so that their order does not matter.

    The last admitted may be cut: it is given what the others leave in any order.
    """
    now, left, blocks = k.now, int(k.now.max_tokens - k.now.num_locked), locked_growth(k)
    for position in range(now.num_listed):
        request = int(k.slots[position, LISTED])
        if is_finishing(k, request) or (defers and not decodes(k, request)):
            continue
        tokens = lacking_tokens(k, request)
        if tokens > 1:
            tokens = min(tokens, longest)
        if k.requests[request].place == now.last_number and left > 0:
            tokens = min(tokens, left)
        left -= tokens
        blocks += _blocks_for(k, request, tokens)
    return bool(left >= 0 and blocks <= now.free_blocks and can_go_on(k))


@inner
def _victim(k: Kernel) -> int:
    """Place of the request to preempt: the last admitted, or the first of the least important."""
    now = k.now
    found = int(now.num_listed) - 1
    if now.evict == LEAST_IMPORTANT:
        for place in range(now.num_listed - 2, -1, -1):
            importance = k.requests[k.slots[place, LISTED]].importance
            if importance >= k.requests[k.slots[found, LISTED]].importance:
                found = place
    return found


@inner
def _evict_listed(k: Kernel, position: int) -> int:
    """Preempt a running request and queue it again, unless it ends soon; the tokens that it gives back."""
    now, request = k.now, int(k.slots[position, LISTED])
    finishing = is_finishing(k, request)
    returned = preempt(k, request)
    now.num_listed -= 1
    for place in range(position, now.num_listed):
        k.slots[place, LISTED] = k.slots[place + 1, LISTED]
    if finishing:
        return returned
    if not now.order:
        now.front -= 1
        k.requests[request].key = now.front
    push(k, request)
    return returned


@inner
def _admit_waiting(k: Kernel, longest: int, defers: bool, budget: int) -> bool:  # noqa: FBT001
    """Admit in the order of the queue until something does not fit; whether there is prefill work."""
    now, has_prefill = k.now, False
    while budget and now.heap_size and now.num_running < now.max_running:
        request = head(k)
        known = known_tokens(k, request)
        if defers and known > 1:
            break
        tokens = min(known, longest)
        if tokens > budget and now.chunk == NEVER:
            break
        tokens = min(tokens, budget)
        spare = now.free_blocks - (now.watermark_blocks if now.num_running else 0)
        if now.test_known and blocks_of(k, min(known, int(now.max_model_len))) > spare:
            break
        blocks = blocks_of(k, min(tokens + int(now.lookahead), int(now.max_model_len)))
        if blocks > spare:
            break
        pop(k)
        schedule(k, request, tokens, blocks)
        append_listed(k, request)
        budget -= tokens
        has_prefill = has_prefill or known > 1
    if not defers:
        now.capacity_bound = now.heap_size > 0
    return has_prefill
