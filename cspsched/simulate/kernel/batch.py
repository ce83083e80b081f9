"""Compiled: what can happen to a request, and what running a batch does."""

from __future__ import annotations

from cspsched.simulate.kernel.jit import inner
from cspsched.simulate.kernel.layout import (
    ADMIT,
    AMOUNT,
    ATTENTION,
    BATCH_ROW,
    BATCHES,
    BEFORE,
    BLOCK_TOKENS,
    BLOCKS,
    CHUNK_SPAN,
    CLOCK_NS,
    CONTEXT,
    DECODE_CONTEXT,
    DECODE_NOW,
    DECODES,
    EVICTION_SPAN,
    EVICTIONS,
    FINISH_NS,
    FIRST,
    FIRST_TOKEN_NS,
    FREE,
    FRUITLESS,
    FUTURE_EXTRA,
    GENERATED,
    GENERATING,
    HELD,
    KIND,
    KV_BLOCKS,
    LAST_CHUNK_SPAN,
    NEXT,
    NOBODY,
    NUM_DECODES,
    NUM_GENERATING,
    NUM_PREFILLS,
    NUMBER,
    OUTPUT,
    PEAK_BLOCKS,
    PHASE,
    PREEMPTIONS,
    PREFILL_CONTEXT,
    PREFILL_TOKENS,
    PREFILLS,
    PREVIOUS,
    PROMPT,
    QUEUED,
    RECOMPUTED,
    RESERVE,
    RUN_SPAN,
    RUNNING,
    SCHEDULED_NS,
    SHIFT,
    SINCE,
    SORTED,
    SPAN_NUMBER,
    SPAN_REQUEST,
    SPAN_ROW,
    STEPS,
    UNFINISHED,
    WAITING,
    Kernel,
)
from cspsched.simulate.kernel.pricing import batch_time_ns
from cspsched.simulate.kernel.queues import append_running, pop_head, queue_again, remove_running
from cspsched.simulate.kernel.rules import Admit, Reserve

CHUNK_ONLY, KNOWN_ONLY = int(Reserve.CHUNK), int(Reserve.KNOWN)
FUTURE = int(Admit.FUTURE)


@inner
def known_tokens(k: Kernel, request: int) -> int:
    """Prompt and generated tokens of a request that does not decode in lockstep."""
    return int(k.rows[request, PROMPT]) + int(k.rows[request, GENERATED])


@inner
def decode_growth(k: Kernel) -> int:
    """KV blocks that the decodes take in this step: one each where all are full."""
    if k.now[RESERVE] > KNOWN_ONLY:
        return 0
    return int(k.residues[k.now[SHIFT]])


@inner
def blocks_of(k: Kernel, tokens: int) -> int:
    """KV blocks of a number of tokens."""
    return int((tokens + k.now[BLOCK_TOKENS] - 1) // k.now[BLOCK_TOKENS])


@inner
def enter_decode(k: Kernel, request: int) -> None:
    """Join the lockstep: from the next decode step on, until the output is complete."""
    now, row, steps = k.now, k.rows[request], k.now[STEPS]
    row[PHASE] = DECODES
    row[SINCE] = steps
    now[NUM_DECODES] += 1
    now[DECODE_CONTEXT] += row[CONTEXT]
    k.residues[(row[CONTEXT] + now[SHIFT]) % k.now[BLOCK_TOKENS]] += 1
    slot = _last_step(k, request) & (len(k.calendar) - 1)
    following = k.calendar[slot]
    row[NEXT] = following
    row[PREVIOUS] = NOBODY
    if following != NOBODY:
        k.rows[following, PREVIOUS] = request
    k.calendar[slot] = request
    if k.now[ADMIT] == FUTURE:
        sort_in(k, request)


@inner
def _last_step(k: Kernel, request: int) -> int:
    """Decode step that generates the last token of a request in lockstep."""
    row = k.rows[request]
    return int(row[SINCE]) + int(k.rows[request, OUTPUT]) - int(row[GENERATED]) - 1


@inner
def leave_decode(k: Kernel, request: int) -> None:
    """Leave the lockstep: the row says again what the request has; its run is logged."""
    now, row = k.now, k.rows[request]
    if k.now[ADMIT] == FUTURE:
        sort_out(k, request)
    following, previous = row[NEXT], row[PREVIOUS]
    if following != NOBODY:
        k.rows[following, PREVIOUS] = previous
    if previous != NOBODY:
        k.rows[previous, NEXT] = following
    else:
        k.calendar[_last_step(k, request) & (len(k.calendar) - 1)] = following
    steps = now[STEPS] - row[SINCE]
    if steps:
        log_span(k, RUN_SPAN, request, row[SINCE], steps)
    row[CONTEXT] += steps
    row[GENERATED] += steps
    row[PHASE] = HELD
    now[NUM_DECODES] -= 1
    now[DECODE_CONTEXT] -= row[CONTEXT]
    k.residues[(row[CONTEXT] + now[SHIFT]) % k.now[BLOCK_TOKENS]] -= 1
    if k.now[RESERVE] <= KNOWN_ONLY:
        row[BLOCKS] = blocks_of(k, row[CONTEXT])


@inner
def sort_in(k: Kernel, request: int) -> None:
    """Enter a decode into the order of finishing, after equals."""
    place, last = k.now[NUM_DECODES] - 1, _last_step(k, request)
    while place and _last_step(k, k.slots[place - 1, SORTED]) < last:
        k.slots[place, SORTED] = k.slots[place - 1, SORTED]
        place -= 1
    k.slots[place, SORTED] = request


@inner
def sort_out(k: Kernel, request: int) -> None:
    """Remove a decode from the order of finishing; who finishes stands at its end."""
    place = end = k.now[NUM_DECODES] - 1
    while k.slots[place, SORTED] != request:
        place -= 1
    for moved in range(place, end):
        k.slots[moved, SORTED] = k.slots[moved + 1, SORTED]


@inner
def admit(k: Kernel, request: int, tokens: int, blocks: int) -> bool:
    """Take the head of the queue into the batch; whether that completes its prefill."""
    now, row = k.now, k.rows[request]
    pop_head(k)
    append_running(k, request)
    row[PHASE] = PREFILLS
    row[BLOCKS] = blocks
    if now[ADMIT] == FUTURE:
        now[PEAK_BLOCKS] += peak_blocks(k, request)
    now[FREE] -= blocks
    if k.wide[request, SCHEDULED_NS] < 0:
        k.wide[request, SCHEDULED_NS] = now[CLOCK_NS]
    return add_chunk(k, request, tokens)


@inner
def add_chunk(k: Kernel, request: int, tokens: int) -> bool:
    """Put prefill tokens of a request into the batch; whether that completes its prefill."""
    now, row = k.now, k.rows[request]
    before = int(row[CONTEXT])
    after = before + tokens
    now[ATTENTION] += tokens * (before + after + 1) // 2
    now[PREFILL_TOKENS] += tokens
    now[PREFILL_CONTEXT] += before
    now[NUM_PREFILLS] += 1
    ends = after == known_tokens(k, request)
    log_span(k, LAST_CHUNK_SPAN if ends else CHUNK_SPAN, request, now[BATCHES], tokens)
    row[CONTEXT] = after
    if k.now[RESERVE] == CHUNK_ONLY:
        blocks = blocks_of(k, after)
        now[FREE] -= blocks - row[BLOCKS]
        row[BLOCKS] = blocks
    if ends:
        k.slots[now[NUM_GENERATING], GENERATING] = request
        now[NUM_GENERATING] += 1
    return ends


@inner
def log_span(k: Kernel, kind: int, request: int, first: int, amount: int) -> None:
    """Note what happened to a request, with the context that it had before."""
    row, log = k.rows[request], k.spans[k.now[SPAN_ROW]]
    k.now[SPAN_ROW] += 1
    log[KIND], log[SPAN_REQUEST], log[SPAN_NUMBER] = kind, request, row[NUMBER]
    log[FIRST], log[AMOUNT], log[BEFORE] = first, amount, row[CONTEXT]


@inner
def evict(k: Kernel, request: int) -> None:
    """Preempt a running request: its KV cache is lost, it waits again."""
    now, row = k.now, k.rows[request]
    if row[PHASE] == DECODES:
        leave_decode(k, request)
    now[FREE] += row[BLOCKS]
    now[EVICTIONS] += 1
    log_span(k, EVICTION_SPAN, request, now[BATCHES], row[BLOCKS])
    k.wide[request, RECOMPUTED] += row[CONTEXT]
    row[PREEMPTIONS] += 1
    row[CONTEXT] = 0
    row[PHASE] = QUEUED
    _leave(k, request)
    queue_again(k, request)


@inner
def _leave(k: Kernel, request: int) -> None:
    """Take a request out of the running ones."""
    remove_running(k, request)
    if k.now[ADMIT] == FUTURE:
        k.now[PEAK_BLOCKS] -= peak_blocks(k, request)


@inner
def peak_blocks(k: Kernel, request: int) -> int:
    """KV blocks that a request holds at its end, by the count of the policies that look ahead."""
    tokens = int(k.rows[request, PROMPT]) + int(k.rows[request, OUTPUT]) - 1
    return blocks_of(k, tokens + int(k.now[FUTURE_EXTRA]))


@inner
def execute(k: Kernel) -> None:
    """Run the batch: price it, log it, move the clock, finish and generate."""
    now = k.now
    num_decodes = now[NUM_DECODES] if now[DECODE_NOW] else 0
    if num_decodes:
        now[FREE] -= decode_growth(k)
    end_ns = now[CLOCK_NS] + batch_time_ns(k, num_decodes)
    log_batch(k, num_decodes, end_ns)
    now[CLOCK_NS] = end_ns
    now[BATCHES] += 1
    if num_decodes + now[NUM_GENERATING]:
        now[FRUITLESS] = 0
    if num_decodes:
        step_decodes(k, end_ns)
    for position in range(now[NUM_GENERATING]):
        request = int(k.slots[position, GENERATING])
        row = k.rows[request]
        row[GENERATED] += 1
        if row[GENERATED] == 1:
            k.wide[request, FIRST_TOKEN_NS] = end_ns
        if row[GENERATED] == k.rows[request, OUTPUT]:
            finish(k, request, end_ns)
        else:
            enter_decode(k, request)


@inner
def step_decodes(k: Kernel, end_ns: int) -> None:
    """One token for every request in lockstep; those whose last it was are in the calendar."""
    now = k.now
    slot = now[STEPS] & (len(k.calendar) - 1)
    now[STEPS] += 1
    now[SHIFT] = (now[SHIFT] if now[SHIFT] else k.now[BLOCK_TOKENS]) - 1
    now[DECODE_CONTEXT] += now[NUM_DECODES]
    request = int(k.calendar[slot])
    while request != NOBODY:
        following = int(k.rows[request, NEXT])
        leave_decode(k, request)
        finish(k, request, end_ns)
        request = following


@inner
def finish(k: Kernel, request: int, end_ns: int) -> None:
    """Free what a request holds."""
    k.now[FREE] += k.rows[request, BLOCKS]
    k.now[UNFINISHED] -= 1
    k.wide[request, FINISH_NS] = end_ns
    k.rows[request, PHASE] = QUEUED
    _leave(k, request)


@inner
def log_batch(k: Kernel, num_decodes: int, end_ns: int) -> None:
    """Note times and counts of the batch."""
    now = k.now
    times, counts = k.batch_ns[now[BATCH_ROW]], k.batch_counts[now[BATCH_ROW]]
    now[BATCH_ROW] += 1
    times[0], times[1] = now[CLOCK_NS], end_ns
    counts[0], counts[1], counts[2] = now[NUM_PREFILLS], num_decodes, now[PREFILL_TOKENS]
    counts[3], counts[4], counts[5] = k.now[KV_BLOCKS] - now[FREE], now[WAITING], now[RUNNING]
