"""Compiled: what a step may do with a request, and what running a batch of chosen requests does."""

from __future__ import annotations

from cspsched.simulate.kernel.batch import blocks_of, log_batch
from cspsched.simulate.kernel.each.layout import (
    BATCHED,
    DECIDES_AHEAD,
    DECISION,
    ENDING,
    EVICTED_AT,
    LEARNS_LENGTHS,
    LENGTH_COUNT,
    LENGTH_SUM,
    NUM_BATCHED,
    NUM_ENDING,
    NUM_IN_BATCH,
    RENUMBERS,
    SOMEBODY_FINISHED,
    TOKENS,
    USED_TOKENS,
)
from cspsched.simulate.kernel.each.lists import bit_length, drop_listed
from cspsched.simulate.kernel.each.runs import (
    LARGEST_NUMBER,
    close_run,
    log_span,
    number_after,
    process_chunk,
    process_decode,
)
from cspsched.simulate.kernel.jit import inner
from cspsched.simulate.kernel.layout import (
    ATTENTION,
    BATCHES,
    BLOCKS,
    CLOCK_NS,
    CONTEXT,
    DECODE_CONTEXT,
    DECODE_NOW,
    DECODES,
    EVICTION_SPAN,
    EVICTIONS,
    FINISH_NS,
    FINISHED,
    FIRST_TOKEN_NS,
    FREE,
    FRUITLESS,
    GENERATED,
    LAST_CLOCK_NS,
    LAST_COUNT,
    NOBODY,
    NUM_ADMISSIONS,
    NUM_DECODES,
    NUM_GENERATING,
    NUM_PREFILLS,
    NUMBER,
    OUTPUT,
    PHASE,
    PREEMPTIONS,
    PREFILL_CONTEXT,
    PREFILL_TOKENS,
    PREFILLS,
    PROMPT,
    QUEUED,
    RECOMPUTED,
    RUNNING,
    STEPS,
    TOO_LONG,
    UNFINISHED,
    WAITING,
    Kernel,
)
from cspsched.simulate.kernel.pricing import batch_time_ns
from cspsched.simulate.kernel.progress import await_arrival, refusal


@inner
def known_tokens(k: Kernel, request: int) -> int:
    """Prompt and generated tokens of a request."""
    return int(k.rows[request, PROMPT]) + int(k.rows[request, GENERATED])


@inner
def lacking_tokens(k: Kernel, request: int) -> int:
    """Known tokens without KV entries."""
    return known_tokens(k, request) - int(k.rows[request, CONTEXT])


@inner
def missing_blocks(k: Kernel, request: int, tokens: int) -> int:
    """KV blocks to add so that so many more tokens fit."""
    row = k.rows[request]
    return max(blocks_of(k, row[CONTEXT] + tokens) - int(row[BLOCKS]), 0)


@inner
def decodes(k: Kernel, request: int) -> bool:
    """Whether a request is in its decode phase."""
    return bool(k.rows[request, PHASE] == DECODES)


@inner
def evicted_now(k: Kernel, request: int) -> bool:
    """Whether a request was evicted in this step."""
    return bool(k.rows[request, EVICTED_AT] == k.now[DECISION])


@inner
def is_finishing(k: Kernel, request: int) -> bool:
    """Whether the last token of a request is in flight."""
    row = k.rows[request]
    return bool(row[CONTEXT] + 1 == row[PROMPT] + row[OUTPUT])


@inner
def begin(k: Kernel) -> None:
    """Begin a decision."""
    now = k.now
    now[DECISION] += 1
    now[USED_TOKENS] = now[NUM_IN_BATCH] = now[NUM_BATCHED] = now[EVICTIONS] = now[DECODE_NOW] = 0


@inner
def schedule(k: Kernel, request: int, tokens: int, blocks: int) -> None:
    """Put tokens of a request into the batch and give it so many more KV blocks."""
    now, row = k.now, k.rows[request]
    if not row[BLOCKS]:
        row[PHASE] = PREFILLS
        now[RUNNING] += 1
        now[WAITING] -= 1
    row[TOKENS] = tokens
    row[BLOCKS] += blocks
    now[FREE] -= blocks
    now[USED_TOKENS] += tokens
    now[NUM_IN_BATCH] += 1
    k.slots[now[NUM_BATCHED], BATCHED] = request
    now[NUM_BATCHED] += 1


@inner
def preempt(k: Kernel, request: int) -> int:
    """Evict a request and return the tokens that this takes out of the batch.

    Who was admitted in this very step is only withdrawn; whose last token is in flight loses nothing.
    """
    now, row = k.now, k.rows[request]
    close_run(k, request)
    if row[CONTEXT]:
        now[EVICTIONS] += 1
        row[EVICTED_AT] = now[DECISION]
        loses = not is_finishing(k, request)
        log_span(k, EVICTION_SPAN, request, now[BATCHES], row[BLOCKS] if loses else 0, row[CONTEXT])
        if loses:
            k.wide[request, RECOMPUTED] += row[CONTEXT]
            row[PREEMPTIONS] += 1
    now[FREE] += row[BLOCKS]
    now[RUNNING] -= 1
    now[WAITING] += 1
    row[BLOCKS] = row[CONTEXT] = 0
    row[PHASE] = QUEUED
    return _take_out(k, request)


@inner
def _take_out(k: Kernel, request: int) -> int:
    """Take a request out of the batch; a hole stays."""
    now, tokens = k.now, int(k.rows[request, TOKENS])
    if tokens:
        place = now[NUM_BATCHED] - 1
        while k.slots[place, BATCHED] != request:
            place -= 1
        k.slots[place, BATCHED] = NOBODY
        k.rows[request, TOKENS] = 0
        now[USED_TOKENS] -= tokens
        now[NUM_IN_BATCH] -= 1
    return tokens


@inner
def conclude(k: Kernel) -> int:
    """Run what was decided, or wait; an answer of the loop other than FINISHED ends it."""
    now = k.now
    answer = refusal(k)
    if answer != FINISHED:
        return answer
    if now[NUM_IN_BATCH]:
        return execute(k)
    return FINISHED if now[EVICTIONS] else await_arrival(k)


@inner
def execute(k: Kernel) -> int:
    """Run the batch: price it, log it, move the clock, generate and finish; TOO_LONG if that takes long."""
    now, start_ns, last = k.now, int(k.now[CLOCK_NS]), 0
    add_up(k)
    end_ns = price_batch(k)
    for position in range(now[NUM_BATCHED]):
        request = int(k.slots[position, BATCHED])
        if request == NOBODY:
            continue
        if k.rows[request, PHASE] == DECODES:
            last = process_decode(k, request, position, last)
        else:
            k.rows[request, NUMBER] = last = number_after(k, position, last)
            process_chunk(k, request, start_ns)
        generate(k, request, end_ns)
    now[RENUMBERS] = last > LARGEST_NUMBER
    now[STEPS] += now[NUM_DECODES] > 0
    return end_batch(k, end_ns)


@inner
def price_batch(k: Kernel) -> int:
    """Log the batch whose features are known; its end."""
    now = k.now
    num_decodes = int(now[NUM_DECODES])
    end_ns = int(now[CLOCK_NS] + batch_time_ns(k, num_decodes))
    log_batch(k, num_decodes, end_ns)
    if num_decodes + now[NUM_GENERATING]:
        now[FRUITLESS] = 0
    return end_ns


@inner
def end_batch(k: Kernel, end_ns: int) -> int:
    """Move the clock to the end of the batch; TOO_LONG if that is late."""
    now = k.now
    now[BATCHES] += 1
    now[CLOCK_NS] = end_ns
    if now[SOMEBODY_FINISHED]:
        drop_listed(k)
    if now[CLOCK_NS] > LAST_CLOCK_NS or now[BATCHES] + now[NUM_ADMISSIONS] > LAST_COUNT:
        return TOO_LONG
    return FINISHED


@inner
def add_up(k: Kernel) -> None:
    """Features of the batch."""
    now = k.now
    attention = prefill_tokens = prefill_context = context = num_decodes = num_generating = 0
    for position in range(now[NUM_BATCHED]):
        request = k.slots[position, BATCHED]
        if request == NOBODY:
            continue
        row = k.rows[request]
        before = int(row[CONTEXT])
        if row[PHASE] == DECODES:
            num_decodes += 1
            context += before
        else:
            tokens = int(row[TOKENS])
            attention += tokens * (2 * before + tokens + 1) // 2
            prefill_tokens += tokens
            prefill_context += before
            num_generating += before + tokens == row[PROMPT] + row[GENERATED]
    now[ATTENTION], now[PREFILL_TOKENS], now[PREFILL_CONTEXT] = attention, prefill_tokens, prefill_context
    now[DECODE_CONTEXT], now[NUM_DECODES], now[NUM_GENERATING] = context, num_decodes, num_generating
    now[NUM_PREFILLS] = now[NUM_IN_BATCH] - num_decodes
    now[SOMEBODY_FINISHED] = 0


@inner
def generate(k: Kernel, request: int, end_ns: int) -> None:
    """What the end of its part of the batch means for a request: a token, its last one, or none."""
    row = k.rows[request]
    row[TOKENS] = 0
    if row[CONTEXT] < row[PROMPT] + row[GENERATED]:
        return
    row[GENERATED] += 1
    row[PHASE] = DECODES
    if row[GENERATED] == 1:
        k.wide[request, FIRST_TOKEN_NS] = end_ns
    if row[GENERATED] == row[OUTPUT]:
        finish(k, request, end_ns)


@inner
def finish(k: Kernel, request: int, end_ns: int) -> None:
    """The last token of a request: it leaves, or will once that is known."""
    now, row = k.now, k.rows[request]
    close_run(k, request)
    k.wide[request, FINISH_NS] = end_ns
    if now[LEARNS_LENGTHS]:
        bits = bit_length(row[PROMPT])
        now[LENGTH_COUNT + bits] += 1
        now[LENGTH_SUM + bits] += row[PROMPT] + row[OUTPUT]
    if now[DECIDES_AHEAD]:
        k.slots[now[NUM_ENDING], ENDING] = request
        now[NUM_ENDING] += 1
    else:
        leave(k, request)


@inner
def leave(k: Kernel, request: int) -> None:
    """Free what a finished request holds."""
    now, row = k.now, k.rows[request]
    now[FREE] += row[BLOCKS]
    now[UNFINISHED] -= 1
    now[RUNNING] -= 1
    now[SOMEBODY_FINISHED] = 1
    row[BLOCKS] = 0
    row[PHASE] = QUEUED
