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
    ADAPTIVE,
    BATCHED,
    CAPACITY_BOUND,
    CUT,
    EVICT,
    FRONT,
    HEAP_SIZE,
    INTERVAL,
    IS_LOCKED,
    KEY,
    LAST_NUMBER,
    LAST_PREFILL_STEP,
    LISTED,
    LONG_PREFILL,
    LOOKAHEAD,
    MAX_MODEL_LEN,
    NUM_BATCHED,
    NUM_IN_BATCH,
    NUM_LISTED,
    NUM_LOCKED,
    NUM_STEPS,
    TEST_KNOWN,
    WATERMARK,
)
from cspsched.simulate.kernel.each.lists import append_listed, head, next_arrival, next_number, pop, push
from cspsched.simulate.kernel.each.lockstep import can_go_on, decode_all, locked_growth
from cspsched.simulate.kernel.each.rules import Evict
from cspsched.simulate.kernel.each.together import unlock_listed
from cspsched.simulate.kernel.jit import inner, merged
from cspsched.simulate.kernel.layout import (
    BLOCK_TOKENS,
    BLOCKS,
    CONTEXT,
    EVICTIONS,
    FREE,
    IMPORTANCE,
    KV_BLOCKS,
    MAX_RUNNING,
    MAX_TOKENS,
    NOBODY,
    ORDER,
    PLACE,
    RANK,
    RUNNING,
    Kernel,
)
from cspsched.simulate.kernel.rules import Chunk

LEAST_IMPORTANT = int(Evict.LEAST_IMPORTANT)
NEVER = int(Chunk.NEVER)


@inner
def submit_to_vllm(k: Kernel) -> None:
    """Queue all arrivals: at the end, or at their rank."""
    request = next_arrival(k)
    while request >= 0:
        k.wide[request, KEY] = k.rows[request, RANK] if k.now[ORDER] else next_number(k)
        push(k, request)
        request = next_arrival(k)


@merged
def vllm_step(k: Kernel) -> None:
    """Running requests first; the waiting queue only if nobody had to be preempted."""
    now = k.now
    longest, defers = _longest_chunk(k), _defers_prefills(k)
    budget = _serve_running(k, longest, defers)
    has_prefill = now[INTERVAL] > 1 and _has_prefill(k)
    if not now[EVICTIONS] and _admit_waiting(k, longest, defers, budget):
        has_prefill = True
    if now[NUM_IN_BATCH]:
        now[NUM_STEPS] += 1
        if has_prefill:
            now[LAST_PREFILL_STEP] = now[NUM_STEPS]


@inner
def _longest_chunk(k: Kernel) -> int:
    """Tokens that a request may be given at most, before the budget is looked at."""
    now = k.now
    num_eligible = now[RUNNING] + now[HEAP_SIZE]
    threshold = now[LONG_PREFILL] if num_eligible > 1 else 0
    if now[ADAPTIVE] and threshold:
        threshold = max(threshold, now[MAX_TOKENS] // num_eligible)
    return int(threshold) if threshold else int(now[KV_BLOCKS] * now[BLOCK_TOKENS])


@inner
def _defers_prefills(k: Kernel) -> bool:
    """Whether prefills wait: the last were not long ago, left nobody waiting, and somebody decodes."""
    now = k.now
    if now[INTERVAL] <= 1 or now[CAPACITY_BOUND]:
        return False
    if now[NUM_STEPS] + 1 - now[LAST_PREFILL_STEP] >= now[INTERVAL]:
        return False
    some = now[NUM_LOCKED] > 0
    for position in range(now[NUM_LISTED]):
        some = some or decodes(k, int(k.slots[position, LISTED]))
    return bool(some)


@inner
def _has_prefill(k: Kernel) -> bool:
    """Whether there is a prefill in the batch."""
    for position in range(k.now[NUM_BATCHED]):
        request = k.slots[position, BATCHED]
        if request != NOBODY and not decodes(k, int(request)):
            return True
    return False


@inner
def _serve_running(k: Kernel, longest: int, defers: bool) -> int:  # noqa: FBT001
    """Give every running request what it lacks, in order of admission; return the budget left."""
    now, position = k.now, 0
    if now[IS_LOCKED]:
        if _can_serve_all(k, longest, defers):
            decode_all(k)
        else:
            unlock_listed(k)
    budget = int(now[MAX_TOKENS] - now[NUM_LOCKED])
    while budget and position < now[NUM_LISTED]:
        request = int(k.slots[position, LISTED])
        if is_finishing(k, request) or (defers and not decodes(k, request)):
            position += 1
            continue
        tokens = lacking_tokens(k, request)
        if tokens > 1:
            tokens = min(tokens, longest, budget)
        row = k.rows[request]
        blocks = _blocks_for(k, request, tokens)
        while blocks > now[FREE] and row[BLOCKS]:
            place = _victim(k)
            budget += _evict_listed(k, place)
            position -= place < position
        if not row[BLOCKS]:
            if now[EVICT] == LEAST_IMPORTANT:
                continue
            break
        schedule(k, request, tokens, blocks)
        budget -= tokens
        position += 1
    return budget


@inner
def _blocks_for(k: Kernel, request: int, tokens: int) -> int:
    """KV blocks that a running request lacks for so many more tokens."""
    now, row = k.now, k.rows[request]
    after = int(row[CONTEXT]) + tokens
    if now[LOOKAHEAD]:
        after = min(after + int(now[LOOKAHEAD]), int(now[MAX_MODEL_LEN]))
    return blocks_of(k, after) - int(row[BLOCKS])


@inner
def _can_serve_all(k: Kernel, longest: int, defers: bool) -> bool:  # noqa: FBT001
    """Whether tokens and blocks are enough for all that run, so that their order does not matter.

    The last admitted may be cut: it is given what the others leave in any order.
    """
    now, left, blocks = k.now, int(k.now[MAX_TOKENS] - k.now[NUM_LOCKED]), locked_growth(k)
    for position in range(now[NUM_LISTED]):
        request = int(k.slots[position, LISTED])
        if is_finishing(k, request) or (defers and not decodes(k, request)):
            continue
        tokens = lacking_tokens(k, request)
        if tokens > 1:
            tokens = min(tokens, longest)
        if k.rows[request, PLACE] == now[LAST_NUMBER] and left > 0:
            tokens = min(tokens, left)
        left -= tokens
        blocks += _blocks_for(k, request, tokens)
    return bool(left >= 0 and blocks <= now[FREE] and can_go_on(k))


@inner
def _victim(k: Kernel) -> int:
    """Place of the request to preempt: the last admitted, or the first of the least important."""
    now = k.now
    found = int(now[NUM_LISTED]) - 1
    if now[EVICT] == LEAST_IMPORTANT:
        for place in range(now[NUM_LISTED] - 2, -1, -1):
            importance = k.rows[k.slots[place, LISTED], IMPORTANCE]
            if importance >= k.rows[k.slots[found, LISTED], IMPORTANCE]:
                found = place
    return found


@inner
def _evict_listed(k: Kernel, position: int) -> int:
    """Preempt a running request and queue it again, unless it ends soon; the tokens that it gives back."""
    now, request = k.now, int(k.slots[position, LISTED])
    finishing = is_finishing(k, request)
    returned = preempt(k, request)
    now[NUM_LISTED] -= 1
    for place in range(position, now[NUM_LISTED]):
        k.slots[place, LISTED] = k.slots[place + 1, LISTED]
    if finishing:
        return returned
    if not now[ORDER]:
        now[FRONT] -= 1
        k.wide[request, KEY] = now[FRONT]
    push(k, request)
    return returned


@inner
def _admit_waiting(k: Kernel, longest: int, defers: bool, budget: int) -> bool:  # noqa: FBT001
    """Admit in the order of the queue until something does not fit; whether there is prefill work."""
    now, has_prefill = k.now, False
    while budget and now[HEAP_SIZE] and now[RUNNING] < now[MAX_RUNNING]:
        request = head(k)
        known = known_tokens(k, request)
        if defers and known > 1:
            break
        tokens = min(known, longest)
        if tokens > budget and now[CUT] == NEVER:
            break
        tokens = min(tokens, budget)
        spare = now[FREE] - (now[WATERMARK] if now[RUNNING] else 0)
        if now[TEST_KNOWN] and blocks_of(k, min(known, int(now[MAX_MODEL_LEN]))) > spare:
            break
        blocks = blocks_of(k, min(tokens + int(now[LOOKAHEAD]), int(now[MAX_MODEL_LEN])))
        if blocks > spare:
            break
        pop(k)
        schedule(k, request, tokens, blocks)
        append_listed(k, request)
        budget -= tokens
        has_prefill = has_prefill or known > 1
    if not defers:
        now[CAPACITY_BOUND] = now[HEAP_SIZE] > 0
    return has_prefill
