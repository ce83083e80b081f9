"""Compiled: the log of runs and chunks, and the numbers that say in which order a batch has them.

The log is the kernel's own: a decode that stands in every batch at the same place of the order is one run,
however long. Every entry of a batch has a number, rising in the order of the batch; a run is cut where a
request sits out, or where the order has changed so that its number no longer fits.
"""

from __future__ import annotations

from cspsched.compiled.jit import inner
from cspsched.simulate.kernel.columns import (
    BATCHED,
)
from cspsched.simulate.kernel.layout import (
    AMOUNT,
    BEFORE,
    CHUNK_SPAN,
    FIRST,
    HIT_SPAN,
    KIND,
    LAST_CHUNK_SPAN,
    RUN_SPAN,
    SPAN_NUMBER,
    SPAN_REQUEST,
    Kernel,
)
from cspsched.simulate.kernel.prefix import CACHES
from cspsched.simulate.kernel.records import NO_REQUEST, NO_RUN

LARGEST_NUMBER = 2**30


@inner
def close_run(k: Kernel, request: int) -> None:
    """Log the run of decodes that is open, if there is one."""
    row = k.requests[request]
    if row.last_step != NO_RUN:
        amount = row.last_step - row.since + 1
        log_span(k, RUN_SPAN, request, row.since, amount, row.kv_tokens - amount)
        row.last_step = NO_RUN


@inner
def process_decode(k: Kernel, request: int, position: int, last: int) -> int:
    """One token of a decode: its run goes on if its number fits, else a new one begins; its number."""
    row, steps = k.requests[request], k.now.num_decode_steps
    if row.last_step != steps - 1 or row.number <= last or k.now.renumbers:
        close_run(k, request)
        row.since = steps
        row.number = number_after(k, position, last)
    row.last_step = steps
    row.kv_tokens += 1
    return int(row.number)


@inner
def process_chunk(k: Kernel, request: int, start_ns: int) -> None:
    """A chunk of a prefill."""
    row = k.requests[request]
    tokens, before = int(row.tokens), int(row.kv_tokens)
    row.kv_tokens = before + tokens
    if CACHES and k.now.caches_prefixes and k.notes[request].hit_tokens:
        log_span(k, HIT_SPAN, request, k.now.num_batches, int(k.notes[request].hit_tokens), 0)
        k.notes[request].hit_tokens = 0
    ends = row.kv_tokens == row.prompt_tokens + row.generated
    log_span(k, LAST_CHUNK_SPAN if ends else CHUNK_SPAN, request, k.now.num_batches, tokens, before)
    if k.requests[request].scheduled_ns < 0:
        k.requests[request].scheduled_ns = start_ns


@inner
def number_after(k: Kernel, position: int, last: int) -> int:
    """A number after the last, and before that of the next entry if its run can go on."""
    step = max(LARGEST_NUMBER // (2 * k.now.most_holders + 2), 1)
    step = min(step, 1024)
    for following in range(position + 1, k.now.num_batched):
        request = k.slots[following, BATCHED]
        if request == NO_REQUEST:
            continue
        row = k.requests[request]
        if row.last_step == k.now.num_decode_steps - 1 and row.number > last + 1 and not k.now.renumbers:
            return int(last + min(int(row.number - last) // 2, step))
        break
    return int(last + step)


@inner
def log_span(k: Kernel, kind: int, request: int, first: int, amount: int, before: int) -> None:
    """Note what happened to a request."""
    log = k.spans[k.now.span_row]
    k.now.span_row += 1
    log[KIND], log[SPAN_REQUEST], log[SPAN_NUMBER] = kind, request, k.requests[request].number
    log[FIRST], log[AMOUNT], log[BEFORE] = first, amount, before
