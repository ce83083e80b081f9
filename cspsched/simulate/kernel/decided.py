"""Compiled: the order of vLLM V1, with questions to a policy in Python where it wants to be asked.

Whenever a question comes up the loop stops with its number as the answer, and goes on from there at the next
call. Between two questions any number of batches may run.
"""

from __future__ import annotations

from cspsched.compiled.jit import inner, outer
from cspsched.simulate.kernel.actions import (
    begin,
    blocks_of,
    conclude,
    decodes,
    known_tokens,
    lacking_tokens,
    missing_blocks,
    preempt,
    schedule,
)
from cspsched.simulate.kernel.columns import (
    KEY_BITS,
    LISTED,
)
from cspsched.simulate.kernel.layout import FINISHED, LOG_FULL, Kernel
from cspsched.simulate.kernel.lists import (
    append_listed,
    head,
    numbered_key,
    pop,
    push,
    submit_to_queue,
)
from cspsched.simulate.kernel.progress import goes_on, has_room
from cspsched.simulate.kernel.records import NO_REQUEST
from cspsched.simulate.kernel.rules import Chunk

ASK_MODE, ASK_CHUNK, ASK_VICTIM, ASK_ADMIT = 16, 17, 18, 19
"""Answers of the loop that are questions; a policy is asked those whose bit (from ASK_MODE on) is set."""
MIXED, PREFILL_ONLY, DECODE_ONLY = range(3)
BEGIN, SERVE, QUEUE = range(3)
NEVER = int(Chunk.NEVER)


@inner
def decided_step(k: Kernel) -> int:
    """Go on with the decision; 0 once it is made, else a question."""
    now = k.now
    if k.own.stage == BEGIN:
        question = _begin(k)
        if question:
            return question
    if k.own.stage == SERVE:
        question = _serve_running(k)
        if question:
            return question
        k.own.stage = QUEUE
    question = _admit_waiting(k)
    if question:
        return question
    if not now.num_in_batch and not now.num_evictions and k.own.batch_mode != MIXED:
        # Nothing of the kind that was asked for: then whatever there is.
        k.own.stage, k.own.position, k.own.batch_mode = SERVE, 0, MIXED
        return decided_again(k)
    k.own.stage = BEGIN
    return 0


@inner
def decided_again(k: Kernel) -> int:
    """Decide a mixed batch."""
    question = _serve_running(k)
    if not question:
        k.own.stage = QUEUE
        question = _admit_waiting(k)
    if not question:
        k.own.stage = BEGIN
    return question


@inner
def _question(k: Kernel, number: int, request: int, most: int) -> int:
    """A question if the policy wants it and has not answered it yet, else 0."""
    if not k.own.asks >> (number - ASK_MODE) & 1:
        return 0
    if k.own.has_answer:
        k.own.has_answer = 0
        return 0
    k.own.asked, k.own.most = request, most
    return number


@inner
def _asks(k: Kernel, number: int) -> bool:
    """Whether the policy wants a question."""
    return bool(k.own.asks >> (number - ASK_MODE) & 1)


@inner
def _begin(k: Kernel) -> int:
    """What the batch may hold."""
    now = k.now
    question = _question(k, ASK_MODE, NO_REQUEST, 0)
    if not question:
        k.own.batch_mode = k.own.answer if _asks(k, ASK_MODE) else MIXED
        k.own.stage, k.own.position, k.own.budget = SERVE, 0, now.max_tokens
    return question


@inner
def _serve_running(k: Kernel) -> int:
    """Give every running request what it lacks, in order of admission, as far as the batch may hold it."""
    now = k.now
    while k.own.budget and k.own.position < now.num_listed:
        request = int(k.slots[k.own.position, LISTED])
        is_decode = decodes(k, request)
        skips = k.own.batch_mode == PREFILL_ONLY if is_decode else k.own.batch_mode == DECODE_ONLY
        tokens = min(lacking_tokens(k, request), int(k.own.budget))
        if not is_decode and not skips and not k.own.chunk_given:
            question = _question(k, ASK_CHUNK, request, tokens)
            if question:
                return question
            k.own.chunk_given = k.own.answer if _asks(k, ASK_CHUNK) else tokens
            skips = not k.own.chunk_given
        if skips:
            k.own.position += 1
            continue
        if not is_decode:
            tokens = int(k.own.chunk_given)
        question = _serve_one(k, request, tokens)
        if question:
            return question
        k.own.chunk_given = 0
        if not k.requests[request].blocks:
            break
    return 0


@inner
def _serve_one(k: Kernel, request: int, tokens: int) -> int:
    """Put a running request into the batch, after evictions if blocks are short."""
    now = k.now
    blocks = missing_blocks(k, request, tokens)
    while blocks > now.free_blocks and k.requests[request].blocks:
        question = _question(k, ASK_VICTIM, request, blocks)
        if question:
            return question
        victim = int(k.slots[now.num_listed - 1, LISTED])
        if _asks(k, ASK_VICTIM):
            victim = int(k.own.answer)
        _evict(k, victim)
    if k.requests[request].blocks:
        schedule(k, request, tokens, blocks)
        k.own.budget -= tokens
        k.own.position += 1
    return 0


@inner
def _evict(k: Kernel, request: int) -> None:
    """Preempt a running request and queue it in front of those with the same key."""
    now, position = k.now, 0
    while k.slots[position, LISTED] != request:
        position += 1
    k.own.budget += preempt(k, request)
    now.num_listed -= 1
    k.own.position -= position < k.own.position
    for place in range(position, now.num_listed):
        k.slots[place, LISTED] = k.slots[place + 1, LISTED]
    now.front -= 1
    place_of_request = (k.requests[request].key + (1 << (KEY_BITS - 1))) >> KEY_BITS
    k.requests[request].key = numbered_key(place_of_request, now.front)
    push(k, request)


@inner
def _admit_waiting(k: Kernel) -> int:
    """Admit in the order of the queue until something does not fit, or the policy says so."""
    now = k.now
    if now.num_evictions or k.own.batch_mode == DECODE_ONLY:
        return 0
    while k.own.budget and now.heap_size and now.num_listed < now.max_running:
        request = head(k)
        known = known_tokens(k, request)
        if known > k.own.budget and now.chunk == NEVER:
            break
        tokens = min(known, int(k.own.budget))
        if blocks_of(k, known) > now.free_blocks:
            break
        question = _question(k, ASK_ADMIT, request, tokens)
        if question:
            return question
        if _asks(k, ASK_ADMIT):
            tokens = int(k.own.answer)
        if not tokens:
            break
        pop(k)
        schedule(k, request, tokens, blocks_of(k, tokens))
        append_listed(k, request)
        k.own.budget -= tokens
    return 0


@outer
def run_decided(k: Kernel) -> int:
    """Run the questions of a policy in Python until all is done, a log is full, or there is one."""
    while goes_on(k):
        if not k.own.stage and not k.own.has_answer:
            if not has_room(k):
                return LOG_FULL
            submit_to_queue(k)
            begin(k)
        question = decided_step(k)
        if question:
            return question
        answer = conclude(k)
        if answer != FINISHED:
            return answer
    return FINISHED
