"""Compiled: the order of vLLM V1, with questions to a policy in Python where it wants to be asked.

Whenever a question comes up the loop stops with its number as the answer, and goes on from there at the next
call. Between two questions any number of batches may run.
"""

from __future__ import annotations

from cspsched.simulate.kernel.batch import blocks_of
from cspsched.simulate.kernel.each.batch import (
    decodes,
    known_tokens,
    lacking_tokens,
    missing_blocks,
    preempt,
    schedule,
)
from cspsched.simulate.kernel.each.layout import (
    ANSWER,
    ASKED,
    ASKS,
    BATCH_MODE,
    BUDGET,
    CHUNK_GIVEN,
    CUT,
    FRONT,
    HAS_ANSWER,
    HEAP_SIZE,
    KEY,
    KEY_BITS,
    LISTED,
    MOST,
    NUM_IN_BATCH,
    NUM_LISTED,
    POSITION,
    STAGE,
)
from cspsched.simulate.kernel.each.lists import (
    append_listed,
    head,
    next_arrival,
    next_number,
    numbered_key,
    pop,
    push,
)
from cspsched.simulate.kernel.jit import inner
from cspsched.simulate.kernel.layout import BLOCKS, EVICTIONS, FREE, MAX_RUNNING, MAX_TOKENS, NOBODY, Kernel
from cspsched.simulate.kernel.rules import Chunk

ASK_MODE, ASK_CHUNK, ASK_VICTIM, ASK_ADMIT = 16, 17, 18, 19
"""Answers of the loop that are questions; a policy is asked those whose bit (from ASK_MODE on) is set."""
MIXED, PREFILL_ONLY, DECODE_ONLY = range(3)
BEGIN, SERVE, QUEUE = range(3)
NEVER = int(Chunk.NEVER)


@inner
def submit_to_decided(k: Kernel) -> None:
    """Queue all arrivals, in the order of their places and then of submission."""
    request = next_arrival(k)
    while request >= 0:
        k.wide[request, KEY] = numbered_key(k.wide[request, KEY], next_number(k))
        push(k, request)
        request = next_arrival(k)


@inner
def decided_step(k: Kernel) -> int:
    """Go on with the decision; 0 once it is made, else a question."""
    now = k.now
    if now[STAGE] == BEGIN:
        question = _begin(k)
        if question:
            return question
    if now[STAGE] == SERVE:
        question = _serve_running(k)
        if question:
            return question
        now[STAGE] = QUEUE
    question = _admit_waiting(k)
    if question:
        return question
    if not now[NUM_IN_BATCH] and not now[EVICTIONS] and now[BATCH_MODE] != MIXED:
        # Nothing of the kind that was asked for: then whatever there is.
        now[STAGE], now[POSITION], now[BATCH_MODE] = SERVE, 0, MIXED
        return decided_again(k)
    now[STAGE] = BEGIN
    return 0


@inner
def decided_again(k: Kernel) -> int:
    """Decide a mixed batch."""
    question = _serve_running(k)
    if not question:
        k.now[STAGE] = QUEUE
        question = _admit_waiting(k)
    if not question:
        k.now[STAGE] = BEGIN
    return question


@inner
def _question(k: Kernel, number: int, request: int, most: int) -> int:
    """A question if the policy wants it and has not answered it yet, else 0."""
    now = k.now
    if not now[ASKS] >> (number - ASK_MODE) & 1:
        return 0
    if now[HAS_ANSWER]:
        now[HAS_ANSWER] = 0
        return 0
    now[ASKED], now[MOST] = request, most
    return number


@inner
def _asks(k: Kernel, number: int) -> bool:
    """Whether the policy wants a question."""
    return bool(k.now[ASKS] >> (number - ASK_MODE) & 1)


@inner
def _begin(k: Kernel) -> int:
    """What the batch may hold."""
    now = k.now
    question = _question(k, ASK_MODE, NOBODY, 0)
    if not question:
        now[BATCH_MODE] = now[ANSWER] if _asks(k, ASK_MODE) else MIXED
        now[STAGE], now[POSITION], now[BUDGET] = SERVE, 0, now[MAX_TOKENS]
    return question


@inner
def _serve_running(k: Kernel) -> int:
    """Give every running request what it lacks, in order of admission, as far as the batch may hold it."""
    now = k.now
    while now[BUDGET] and now[POSITION] < now[NUM_LISTED]:
        request = int(k.slots[now[POSITION], LISTED])
        is_decode = decodes(k, request)
        skips = now[BATCH_MODE] == PREFILL_ONLY if is_decode else now[BATCH_MODE] == DECODE_ONLY
        tokens = min(lacking_tokens(k, request), int(now[BUDGET]))
        if not is_decode and not skips and not now[CHUNK_GIVEN]:
            question = _question(k, ASK_CHUNK, request, tokens)
            if question:
                return question
            now[CHUNK_GIVEN] = now[ANSWER] if _asks(k, ASK_CHUNK) else tokens
            skips = not now[CHUNK_GIVEN]
        if skips:
            now[POSITION] += 1
            continue
        if not is_decode:
            tokens = int(now[CHUNK_GIVEN])
        question = _serve_one(k, request, tokens)
        if question:
            return question
        now[CHUNK_GIVEN] = 0
        if not k.rows[request, BLOCKS]:
            break
    return 0


@inner
def _serve_one(k: Kernel, request: int, tokens: int) -> int:
    """Put a running request into the batch, after evictions if blocks are short."""
    now = k.now
    blocks = missing_blocks(k, request, tokens)
    while blocks > now[FREE] and k.rows[request, BLOCKS]:
        question = _question(k, ASK_VICTIM, request, blocks)
        if question:
            return question
        victim = int(k.slots[now[NUM_LISTED] - 1, LISTED])
        if _asks(k, ASK_VICTIM):
            victim = int(now[ANSWER])
        _evict(k, victim)
    if k.rows[request, BLOCKS]:
        schedule(k, request, tokens, blocks)
        now[BUDGET] -= tokens
        now[POSITION] += 1
    return 0


@inner
def _evict(k: Kernel, request: int) -> None:
    """Preempt a running request and queue it in front of those with the same key."""
    now, position = k.now, 0
    while k.slots[position, LISTED] != request:
        position += 1
    now[BUDGET] += preempt(k, request)
    now[NUM_LISTED] -= 1
    now[POSITION] -= position < now[POSITION]
    for place in range(position, now[NUM_LISTED]):
        k.slots[place, LISTED] = k.slots[place + 1, LISTED]
    now[FRONT] -= 1
    place_of_request = (k.wide[request, KEY] + (1 << (KEY_BITS - 1))) >> KEY_BITS
    k.wide[request, KEY] = numbered_key(place_of_request, now[FRONT])
    push(k, request)


@inner
def _admit_waiting(k: Kernel) -> int:
    """Admit in the order of the queue until something does not fit, or the policy says so."""
    now = k.now
    if now[EVICTIONS] or now[BATCH_MODE] == DECODE_ONLY:
        return 0
    while now[BUDGET] and now[HEAP_SIZE] and now[NUM_LISTED] < now[MAX_RUNNING]:
        request = head(k)
        known = known_tokens(k, request)
        if known > now[BUDGET] and now[CUT] == NEVER:
            break
        tokens = min(known, int(now[BUDGET]))
        if blocks_of(k, known) > now[FREE]:
            break
        question = _question(k, ASK_ADMIT, request, tokens)
        if question:
            return question
        if _asks(k, ASK_ADMIT):
            tokens = int(now[ANSWER])
        if not tokens:
            break
        pop(k)
        schedule(k, request, tokens, blocks_of(k, tokens))
        append_listed(k, request)
        now[BUDGET] -= tokens
    return 0
