"""Compiled: what a step may do with a request, and what running a batch of chosen requests does.

The log is the kernel's own: a decode that stands in every batch at the same place of the order is one run,
however long. Every entry of a batch has a number, rising in the order of the batch; a run is cut where a
request sits out, or where the order has changed so that its number no longer fits.
"""

from __future__ import annotations

from cspsched.simulate.kernel.batch import blocks_of, log_batch
from cspsched.simulate.kernel.each.layout import (
    BATCHED,
    DECISION,
    EVICTED_AT,
    LAST_STEP,
    LEARNS_LENGTHS,
    LENGTH_COUNT,
    LENGTH_SUM,
    MOST_HOLDERS,
    NO_RUN,
    NUM_BATCHED,
    NUM_IN_BATCH,
    RENUMBERS,
    SOMEBODY_FINISHED,
    TOKENS,
    USED_TOKENS,
)
from cspsched.simulate.kernel.each.lists import drop_listed
from cspsched.simulate.kernel.jit import inner
from cspsched.simulate.kernel.layout import (
    AMOUNT,
    ARRIVAL_NS,
    ATTENTION,
    BATCH_ROW,
    BATCHES,
    BEFORE,
    BLOCKS,
    CHUNK_SPAN,
    CLOCK_NS,
    CONTEXT,
    DECODE_CONTEXT,
    DECODES,
    EVICTION_SPAN,
    EVICTIONS,
    FINISH_NS,
    FINISHED,
    FIRST,
    FIRST_TOKEN_NS,
    FREE,
    FRUITLESS,
    GENERATED,
    KIND,
    LAST_CHUNK_SPAN,
    LAST_CLOCK_NS,
    LAST_COUNT,
    LIVELOCK,
    MAX_FRUITLESS,
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
    PROMPT_REFUSED,
    QUEUED,
    RECOMPUTED,
    REFUSED,
    RUN_SPAN,
    RUNNING,
    SCHEDULED_NS,
    SINCE,
    SPAN_NUMBER,
    SPAN_REQUEST,
    SPAN_ROW,
    STEPS,
    STUCK,
    SUBMISSION,
    SUBMITTED,
    TOO_LONG,
    UNFINISHED,
    WAITING,
    Kernel,
)
from cspsched.simulate.kernel.pricing import batch_time_ns

LARGEST_NUMBER = 2**30


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
def begin(k: Kernel) -> None:
    """Begin a decision."""
    now = k.now
    now[DECISION] += 1
    now[USED_TOKENS] = now[NUM_IN_BATCH] = now[NUM_BATCHED] = now[EVICTIONS] = 0


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

    Who was admitted in this very step is only withdrawn.
    """
    now, row = k.now, k.rows[request]
    _close_run(k, request)
    if row[CONTEXT]:
        now[EVICTIONS] += 1
        row[EVICTED_AT] = now[DECISION]
        _log(k, EVICTION_SPAN, request, now[BATCHES], row[BLOCKS], row[CONTEXT])
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
    if now[REFUSED] != NOBODY:
        return PROMPT_REFUSED
    now[FRUITLESS] += now[EVICTIONS]
    if now[FRUITLESS] > MAX_FRUITLESS * (now[RUNNING] + now[WAITING]):
        return LIVELOCK
    if now[NUM_IN_BATCH]:
        _execute(k)
        if now[CLOCK_NS] > LAST_CLOCK_NS or now[BATCHES] + now[NUM_ADMISSIONS] > LAST_COUNT:
            return TOO_LONG
    elif not now[EVICTIONS]:
        if now[SUBMITTED] == len(k.orders):
            return STUCK
        now[CLOCK_NS] = k.wide[k.orders[now[SUBMITTED], SUBMISSION], ARRIVAL_NS]
    return FINISHED


@inner
def _execute(k: Kernel) -> None:
    """Run the batch: price it, log it, move the clock, generate and finish."""
    now = k.now
    _add_up(k)
    num_decodes = int(now[NUM_DECODES])
    start_ns = now[CLOCK_NS]
    end_ns = start_ns + batch_time_ns(k, num_decodes)
    log_batch(k, num_decodes, end_ns)
    if num_decodes + now[NUM_GENERATING]:
        now[FRUITLESS] = 0
    last = 0
    for position in range(now[NUM_BATCHED]):
        request = int(k.slots[position, BATCHED])
        if request == NOBODY:
            continue
        if k.rows[request, PHASE] == DECODES:
            last = _process_decode(k, request, position, last)
        else:
            last = _process_chunk(k, request, position, last)
            if k.wide[request, SCHEDULED_NS] < 0:
                k.wide[request, SCHEDULED_NS] = start_ns
        _generate(k, request, end_ns)
    now[RENUMBERS] = last > LARGEST_NUMBER
    now[STEPS] += num_decodes > 0
    now[BATCHES] += 1
    now[CLOCK_NS] = end_ns
    if now[SOMEBODY_FINISHED]:
        drop_listed(k)


@inner
def _add_up(k: Kernel) -> None:
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
def _process_decode(k: Kernel, request: int, position: int, last: int) -> int:
    """One token of a decode: its run goes on if its number fits, else a new one begins; its number."""
    row, steps = k.rows[request], k.now[STEPS]
    if row[LAST_STEP] != steps - 1 or row[NUMBER] <= last or k.now[RENUMBERS]:
        _close_run(k, request)
        row[SINCE] = steps
        row[NUMBER] = _number_after(k, position, last)
    row[LAST_STEP] = steps
    row[CONTEXT] += 1
    return int(row[NUMBER])


@inner
def _process_chunk(k: Kernel, request: int, position: int, last: int) -> int:
    """A chunk of a prefill; its number."""
    row = k.rows[request]
    number = row[NUMBER] = _number_after(k, position, last)
    tokens, before = int(row[TOKENS]), int(row[CONTEXT])
    row[CONTEXT] = before + tokens
    ends = row[CONTEXT] == known_tokens(k, request)
    _log(k, LAST_CHUNK_SPAN if ends else CHUNK_SPAN, request, k.now[BATCHES], tokens, before)
    return int(number)


@inner
def _number_after(k: Kernel, position: int, last: int) -> int:
    """A number after the last, and before that of the next entry if its run can go on."""
    step = max(LARGEST_NUMBER // (2 * k.now[MOST_HOLDERS] + 2), 1)
    step = min(step, 1024)
    for following in range(position + 1, k.now[NUM_BATCHED]):
        request = k.slots[following, BATCHED]
        if request == NOBODY:
            continue
        row = k.rows[request]
        if row[LAST_STEP] == k.now[STEPS] - 1 and row[NUMBER] > last + 1 and not k.now[RENUMBERS]:
            return int(last + min(int(row[NUMBER] - last) // 2, step))
        break
    return int(last + step)


@inner
def _generate(k: Kernel, request: int, end_ns: int) -> None:
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
        _finish(k, request, end_ns)


@inner
def _finish(k: Kernel, request: int, end_ns: int) -> None:
    """Free what a request holds."""
    now, row = k.now, k.rows[request]
    _close_run(k, request)
    now[FREE] += row[BLOCKS]
    now[UNFINISHED] -= 1
    now[RUNNING] -= 1
    now[SOMEBODY_FINISHED] = 1
    k.wide[request, FINISH_NS] = end_ns
    if now[LEARNS_LENGTHS]:
        bits = bit_length(row[PROMPT])
        now[LENGTH_COUNT + bits] += 1
        now[LENGTH_SUM + bits] += row[PROMPT] + row[OUTPUT]
    row[BLOCKS] = 0
    row[PHASE] = QUEUED


@inner
def _close_run(k: Kernel, request: int) -> None:
    """Log the run of decodes that is open, if there is one."""
    row = k.rows[request]
    if row[LAST_STEP] != NO_RUN:
        amount = row[LAST_STEP] - row[SINCE] + 1
        _log(k, RUN_SPAN, request, row[SINCE], amount, row[CONTEXT] - amount)
        row[LAST_STEP] = NO_RUN


@inner
def _log(k: Kernel, kind: int, request: int, first: int, amount: int, before: int) -> None:
    """Note what happened to a request."""
    log = k.spans[k.now[SPAN_ROW]]
    k.now[SPAN_ROW] += 1
    log[KIND], log[SPAN_REQUEST], log[SPAN_NUMBER] = kind, request, k.rows[request, NUMBER]
    log[FIRST], log[AMOUNT], log[BEFORE] = first, amount, before


@inner
def bit_length(tokens: int) -> int:
    """Bits of a number."""
    bits = 0
    while tokens >> bits:
        bits += 1
    return bits


@inner
def has_room(k: Kernel) -> bool:
    """Whether the logs hold whatever one more decision can bring."""
    now, most = k.now, len(k.slots) // 2
    return bool(now[BATCH_ROW] < len(k.batch_ns) and now[SPAN_ROW] + 4 * most <= len(k.spans))
