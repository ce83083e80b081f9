"""Compiled: what a step may do with a request, and what running a batch of chosen requests does."""

from __future__ import annotations

from cspsched.compiled.jit import inner
from cspsched.simulate.kernel.columns import (
    BATCHED,
    ENDING,
)
from cspsched.simulate.kernel.layout import (
    DECODES,
    ENDED,
    EVICTION_SPAN,
    FINISHED,
    LAST_CLOCK_NS,
    LAST_COUNT,
    PREFILLS,
    QUEUED,
    TOO_LONG,
    Kernel,
)
from cspsched.simulate.kernel.lists import bit_length, drop_listed
from cspsched.simulate.kernel.prefix import CACHES, enter, freed_by, take
from cspsched.simulate.kernel.pricing import batch_time_ns
from cspsched.simulate.kernel.progress import await_arrival, refusal
from cspsched.simulate.kernel.records import NO_REQUEST
from cspsched.simulate.kernel.runs import (
    LARGEST_NUMBER,
    close_run,
    log_span,
    number_after,
    process_chunk,
    process_decode,
)
from cspsched.simulate.kernel.swap import await_moves


@inner
def blocks_of(k: Kernel, tokens: int) -> int:
    """KV blocks of a number of tokens."""
    return int((tokens + k.now.block_tokens - 1) // k.now.block_tokens)


@inner
def log_batch(k: Kernel, num_decodes: int, end_ns: int) -> None:
    """Note times and counts of the batch."""
    now = k.now
    times, counts = k.batch_ns[now.batch_row], k.batch_counts[now.batch_row]
    now.batch_row += 1
    times[0], times[1] = now.clock_ns, end_ns
    counts[0], counts[1], counts[2] = now.num_prefills, num_decodes, now.prefill_tokens
    counts[3], counts[4], counts[5] = k.now.kv_blocks - now.free_blocks, now.num_waiting, now.num_running


@inner
def restart_output(k: Kernel, request: int) -> None:
    """Let a preempted request generate its whole output again: what it has counts as prompt."""
    row = k.requests[request]
    row.prompt_tokens += row.generated
    row.generated = 0


@inner
def known_tokens(k: Kernel, request: int) -> int:
    """Prompt and generated tokens of a request."""
    return int(k.requests[request].prompt_tokens) + int(k.requests[request].generated)


@inner
def lacking_tokens(k: Kernel, request: int) -> int:
    """Known tokens without KV entries."""
    return known_tokens(k, request) - int(k.requests[request].kv_tokens)


@inner
def missing_blocks(k: Kernel, request: int, tokens: int) -> int:
    """KV blocks to add so that so many more tokens fit."""
    row = k.requests[request]
    return max(blocks_of(k, row.kv_tokens + tokens) - int(row.blocks), 0)


@inner
def decodes(k: Kernel, request: int) -> bool:
    """Whether a request is in its decode phase."""
    return bool(k.requests[request].phase == DECODES)


@inner
def evicted_now(k: Kernel, request: int) -> bool:
    """Whether a request was evicted in this step."""
    return bool(k.requests[request].evicted_at == k.now.decision)


@inner
def is_finishing(k: Kernel, request: int) -> bool:
    """Whether the last token of a request is in flight."""
    row = k.requests[request]
    return bool(row.kv_tokens + 1 == row.prompt_tokens + row.output_tokens)


@inner
def begin(k: Kernel) -> None:
    """Begin a decision."""
    now = k.now
    now.decision += 1
    now.used_tokens = now.num_in_batch = now.num_batched = now.num_evictions = now.decode_now = 0
    now.num_restored = 0


@inner
def schedule(k: Kernel, request: int, tokens: int, blocks: int) -> None:
    """Put tokens of a request into the batch and give it so many more KV blocks."""
    now, row = k.now, k.requests[request]
    if not row.blocks:
        row.phase = PREFILLS
        now.num_running += 1
        now.num_waiting -= 1
    row.tokens = tokens
    if CACHES and now.caches_prefixes:
        take(k, request, blocks)
    row.blocks += blocks
    now.free_blocks -= blocks
    now.used_tokens += tokens
    now.num_in_batch += 1
    k.slots[now.num_batched, BATCHED] = request
    now.num_batched += 1
    if CACHES and now.caches_prefixes:
        enter(k, request, int(row.kv_tokens) + tokens)


@inner
def preempt(k: Kernel, request: int) -> int:
    """Evict a request and return the tokens that this takes out of the batch.

    Who was admitted in this very step is only withdrawn; whose last token is in flight loses nothing.
    """
    now, row = k.now, k.requests[request]
    close_run(k, request)
    if row.kv_tokens and not (
        CACHES and now.caches_prefixes and row.kv_tokens == k.notes[request].hit_tokens
    ):
        now.num_evictions += 1
        row.evicted_at = now.decision
        loses = not is_finishing(k, request)
        log_span(k, EVICTION_SPAN, request, now.num_batches, row.blocks if loses else 0, row.kv_tokens)
        if loses:
            k.requests[request].recomputed_tokens += row.kv_tokens
            row.num_preemptions += 1
            row.mid_prefill = row.phase == PREFILLS
    now.free_blocks += freed_by(k, request)
    now.num_running -= 1
    now.num_waiting += 1
    row.blocks = row.kv_tokens = 0
    row.phase = QUEUED
    return take_out(k, request)


@inner
def take_out(k: Kernel, request: int) -> int:
    """Take a request out of the batch; a hole stays."""
    now, tokens = k.now, int(k.requests[request].tokens)
    if tokens:
        place = now.num_batched - 1
        while k.slots[place, BATCHED] != request:
            place -= 1
        k.slots[place, BATCHED] = NO_REQUEST
        k.requests[request].tokens = 0
        now.used_tokens -= tokens
        now.num_in_batch -= 1
    return tokens


@inner
def conclude(k: Kernel) -> int:
    """Run what was decided, or wait; an answer of the loop other than FINISHED ends it."""
    now = k.now
    answer = refusal(k)
    if answer != FINISHED:
        return answer
    if now.num_in_batch:
        return execute(k)
    return FINISHED if now.num_evictions or now.num_restored else await_arrival(k)


@inner
def execute(k: Kernel) -> int:
    """Run the batch: price it and process it."""
    await_moves(k)
    add_up(k)
    return process(k, int(k.now.clock_ns) + batch_time_ns(k, int(k.now.num_decodes)))


@inner
def process(k: Kernel, end_ns: int) -> int:
    """Log the batch, generate and finish, move the clock to its end; TOO_LONG if that is late."""
    now, last, start_ns = k.now, 0, int(k.now.clock_ns)
    note_batch(k, end_ns)
    for position in range(now.num_batched):
        request = int(k.slots[position, BATCHED])
        if request == NO_REQUEST:
            continue
        if k.requests[request].phase == DECODES:
            last = process_decode(k, request, position, last)
        else:
            k.requests[request].number = last = number_after(k, position, last)
            process_chunk(k, request, start_ns)
        generate(k, request, end_ns)
    now.renumbers = last > LARGEST_NUMBER
    now.num_decode_steps += now.num_decodes > 0
    return end_batch(k, end_ns)


@inner
def note_batch(k: Kernel, end_ns: int) -> None:
    """Log the batch, whose features are known."""
    now = k.now
    log_batch(k, int(now.num_decodes), end_ns)
    if now.num_decodes + now.num_generating:
        now.num_fruitless = 0


@inner
def end_batch(k: Kernel, end_ns: int) -> int:
    """Move the clock to the end of the batch; TOO_LONG if that is late."""
    now = k.now
    now.num_batches += 1
    now.clock_ns = end_ns
    if now.somebody_finished:
        drop_listed(k)
    if now.clock_ns > LAST_CLOCK_NS or now.num_batches + now.num_admissions > LAST_COUNT:
        return TOO_LONG
    return FINISHED


@inner
def add_up(k: Kernel) -> None:
    """Features of the batch."""
    now = k.now
    attention = prefill_tokens = prefill_context = context = num_decodes = num_generating = 0
    for position in range(now.num_batched):
        request = k.slots[position, BATCHED]
        if request == NO_REQUEST:
            continue
        row = k.requests[request]
        before = int(row.kv_tokens)
        if row.phase == DECODES:
            num_decodes += 1
            context += before
        else:
            tokens = int(row.tokens)
            attention += tokens * (2 * before + tokens + 1) // 2
            prefill_tokens += tokens
            prefill_context += before
            num_generating += before + tokens == row.prompt_tokens + row.generated
    now.attention, now.prefill_tokens, now.prefill_context = attention, prefill_tokens, prefill_context
    now.decode_context, now.num_decodes, now.num_generating = context, num_decodes, num_generating
    now.num_prefills = now.num_in_batch - num_decodes
    now.somebody_finished = 0


@inner
def generate(k: Kernel, request: int, end_ns: int) -> None:
    """What the end of its part of the batch means for a request: a token, its last one, or none."""
    row = k.requests[request]
    row.tokens = 0
    if row.kv_tokens < row.prompt_tokens + row.generated:
        return
    row.generated += 1
    row.phase = DECODES
    if row.generated == 1 and row.first_token_ns < 0:
        k.requests[request].first_token_ns = end_ns
    if row.generated == row.output_tokens:
        finish(k, request, end_ns)


@inner
def note_end(k: Kernel, request: int, end_ns: int) -> None:
    """Note when a request generates its last token; a closed loop is told before it decides on."""
    now = k.now
    k.requests[request].finish_ns = end_ns
    if now.stops_at_ends:
        k.orders[now.num_ended, ENDED] = request
        now.num_ended += 1
        now.until_ns = min(int(now.until_ns), end_ns)


@inner
def finish(k: Kernel, request: int, end_ns: int) -> None:
    """The last token of a request: it leaves, or will once that is known."""
    now, row = k.now, k.requests[request]
    close_run(k, request)
    note_end(k, request, end_ns)
    if now.learns_lengths:
        bits = bit_length(row.prompt_tokens)
        now.length_count[bits] += 1
        now.length_sum[bits] += row.prompt_tokens + row.output_tokens
    if now.decides_ahead:
        k.slots[now.num_ending, ENDING] = request
        now.num_ending += 1
    elif now.lockstep or not now.flights:
        leave(k, request)


@inner
def leave(k: Kernel, request: int) -> None:
    """Free what a finished request holds."""
    now, row = k.now, k.requests[request]
    now.free_blocks += freed_by(k, request)
    now.num_unfinished -= 1
    now.num_running -= 1
    now.somebody_finished = 1
    row.blocks = 0
    row.phase = QUEUED
