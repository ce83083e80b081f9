"""Compiled: what can happen to a request, and what running a batch does."""

from __future__ import annotations

from cspsched.compiled.jit import inner
from cspsched.simulate.aggregated.columns import GENERATING, SORTED
from cspsched.simulate.aggregated.queues import append_running, pop_head, queue_again, remove_running
from cspsched.simulate.aggregated.state import Admit
from cspsched.simulate.kernel.actions import (
    blocks_of,
    known_tokens,
    log_batch,
    note_end,
    restart_output,
)
from cspsched.simulate.kernel.layout import (
    AMOUNT,
    BEFORE,
    CHUNK_SPAN,
    DECODES,
    EVICTION_SPAN,
    FIRST,
    HELD,
    KIND,
    LAST_CHUNK_SPAN,
    PREFILLS,
    QUEUED,
    RUN_SPAN,
    SPAN_NUMBER,
    SPAN_REQUEST,
    Kernel,
)
from cspsched.simulate.kernel.pricing import batch_time_ns
from cspsched.simulate.kernel.records import NO_REQUEST
from cspsched.simulate.kernel.rules import Reserve

CHUNK_ONLY, KNOWN_ONLY = int(Reserve.CHUNK), int(Reserve.KNOWN)
FUTURE = int(Admit.FUTURE)


@inner
def decode_growth(k: Kernel) -> int:
    """KV blocks that the decodes take in this step: one each where all are full."""
    if k.now.reserve > KNOWN_ONLY:
        return 0
    return int(k.residues[k.now.shift])


@inner
def enter_decode(k: Kernel, request: int) -> None:
    """Join the lockstep: from the next decode step on, until the output is complete."""
    now, row, steps = k.now, k.requests[request], k.now.num_decode_steps
    row.phase = DECODES
    row.since = steps
    now.num_decodes += 1
    now.decode_context += row.kv_tokens
    k.residues[(row.kv_tokens + now.shift) % k.now.block_tokens] += 1
    slot = _last_step(k, request) & (len(k.calendar) - 1)
    following = k.calendar[slot]
    row.next = following
    row.previous = NO_REQUEST
    if following != NO_REQUEST:
        k.requests[following].previous = request
    k.calendar[slot] = request
    if k.own.admit == FUTURE:
        sort_in(k, request)


@inner
def _last_step(k: Kernel, request: int) -> int:
    """Decode step that generates the last token of a request in lockstep."""
    row = k.requests[request]
    return int(row.since) + int(k.requests[request].output_tokens) - int(row.generated) - 1


@inner
def _expected_step(k: Kernel, request: int) -> int:
    """The same by the output that is expected."""
    row = k.requests[request]
    return int(row.since) + int(row.expected_tokens) - int(row.generated) - 1


@inner
def leave_decode(k: Kernel, request: int) -> None:
    """Leave the lockstep: the row says again what the request has; its run is logged."""
    now, row = k.now, k.requests[request]
    if k.own.admit == FUTURE:
        sort_out(k, request)
    following, previous = row.next, row.previous
    if following != NO_REQUEST:
        k.requests[following].previous = previous
    if previous != NO_REQUEST:
        k.requests[previous].next = following
    else:
        k.calendar[_last_step(k, request) & (len(k.calendar) - 1)] = following
    steps = now.num_decode_steps - row.since
    if steps:
        log_span(k, RUN_SPAN, request, row.since, steps)
    row.kv_tokens += steps
    row.generated += steps
    row.phase = HELD
    now.num_decodes -= 1
    now.decode_context -= row.kv_tokens
    k.residues[(row.kv_tokens + now.shift) % k.now.block_tokens] -= 1
    if k.now.reserve <= KNOWN_ONLY:
        row.blocks = blocks_of(k, row.kv_tokens)


@inner
def sort_in(k: Kernel, request: int) -> None:
    """Enter a decode into the expected order of finishing, after equals."""
    place, last = k.now.num_decodes - 1, _expected_step(k, request)
    while place and _expected_step(k, k.slots[place - 1, SORTED]) < last:
        k.slots[place, SORTED] = k.slots[place - 1, SORTED]
        place -= 1
    k.slots[place, SORTED] = request


@inner
def sort_out(k: Kernel, request: int) -> None:
    """Remove a decode from that order; who finishes as expected stands at its end."""
    place = end = k.now.num_decodes - 1
    while k.slots[place, SORTED] != request:
        place -= 1
    for moved in range(place, end):
        k.slots[moved, SORTED] = k.slots[moved + 1, SORTED]


@inner
def admit(k: Kernel, request: int, tokens: int, blocks: int) -> bool:
    """Take the head of the queue into the batch; whether that completes its prefill."""
    now, row = k.now, k.requests[request]
    pop_head(k)
    append_running(k, request)
    row.phase = PREFILLS
    row.blocks = blocks
    if k.own.admit == FUTURE:
        k.own.peak_blocks += peak_blocks(k, request)
    now.free_blocks -= blocks
    if k.requests[request].scheduled_ns < 0:
        k.requests[request].scheduled_ns = now.clock_ns
    return add_chunk(k, request, tokens)


@inner
def add_chunk(k: Kernel, request: int, tokens: int) -> bool:
    """Put prefill tokens of a request into the batch; whether that completes its prefill."""
    now, row = k.now, k.requests[request]
    before = int(row.kv_tokens)
    after = before + tokens
    now.attention += tokens * (before + after + 1) // 2
    now.prefill_tokens += tokens
    now.prefill_context += before
    now.num_prefills += 1
    ends = after == known_tokens(k, request)
    log_span(k, LAST_CHUNK_SPAN if ends else CHUNK_SPAN, request, now.num_batches, tokens)
    row.kv_tokens = after
    if k.now.reserve == CHUNK_ONLY:
        blocks = blocks_of(k, after)
        now.free_blocks -= blocks - row.blocks
        row.blocks = blocks
    if ends:
        k.slots[now.num_generating, GENERATING] = request
        now.num_generating += 1
    return ends


@inner
def log_span(k: Kernel, kind: int, request: int, first: int, amount: int) -> None:
    """Note what happened to a request, with the context that it had before."""
    row, log = k.requests[request], k.spans[k.now.span_row]
    k.now.span_row += 1
    log[KIND], log[SPAN_REQUEST], log[SPAN_NUMBER] = kind, request, row.number
    log[FIRST], log[AMOUNT], log[BEFORE] = first, amount, row.kv_tokens


@inner
def evict(k: Kernel, request: int) -> None:
    """Preempt a running request: its KV cache is lost, it waits again."""
    now, row = k.now, k.requests[request]
    if row.phase == DECODES:
        leave_decode(k, request)
    now.free_blocks += row.blocks
    now.num_evictions += 1
    log_span(k, EVICTION_SPAN, request, now.num_batches, row.blocks)
    k.requests[request].recomputed_tokens += row.kv_tokens
    row.num_preemptions += 1
    row.mid_prefill = row.phase == PREFILLS
    row.kv_tokens = 0
    row.phase = QUEUED
    if now.restarts_output:
        restart_output(k, request)
    _leave(k, request)
    queue_again(k, request)


@inner
def _leave(k: Kernel, request: int) -> None:
    """Take a request out of the running ones."""
    remove_running(k, request)
    if k.own.admit == FUTURE:
        k.own.peak_blocks -= peak_blocks(k, request)


@inner
def peak_blocks(k: Kernel, request: int) -> int:
    """Most KV blocks that a request holds, now or as expected, by the count of policies that look ahead."""
    row = k.requests[request]
    tokens = int(row.prompt_tokens) + max(int(row.expected_tokens), int(row.output_tokens)) - 1
    return blocks_of(k, tokens + int(k.own.future_extra))


@inner
def execute(k: Kernel) -> None:
    """Run the batch: price it, log it, move the clock, finish and generate."""
    now = k.now
    num_decodes = now.num_decodes if now.decode_now else 0
    if num_decodes:
        now.free_blocks -= decode_growth(k)
    end_ns = now.clock_ns + batch_time_ns(k, num_decodes)
    log_batch(k, num_decodes, end_ns)
    now.clock_ns = end_ns
    now.num_batches += 1
    if num_decodes + now.num_generating:
        now.num_fruitless = 0
    if num_decodes:
        step_decodes(k, end_ns)
    for position in range(now.num_generating):
        request = int(k.slots[position, GENERATING])
        row = k.requests[request]
        row.generated += 1
        if row.generated == 1:
            k.requests[request].first_token_ns = end_ns
        if row.generated == k.requests[request].output_tokens:
            finish(k, request, end_ns)
        else:
            enter_decode(k, request)


@inner
def step_decodes(k: Kernel, end_ns: int) -> None:
    """One token for every request in lockstep; those whose last it was are in the calendar."""
    now = k.now
    slot = now.num_decode_steps & (len(k.calendar) - 1)
    now.num_decode_steps += 1
    now.shift = (now.shift if now.shift else k.now.block_tokens) - 1
    now.decode_context += now.num_decodes
    request = int(k.calendar[slot])
    while request != NO_REQUEST:
        following = int(k.requests[request].next)
        leave_decode(k, request)
        finish(k, request, end_ns)
        request = following


@inner
def finish(k: Kernel, request: int, end_ns: int) -> None:
    """Free what a request holds."""
    k.now.free_blocks += k.requests[request].blocks
    k.now.num_unfinished -= 1
    note_end(k, request, end_ns)
    k.requests[request].phase = QUEUED
    _leave(k, request)
