"""Compiled: the log of runs and chunks, and the numbers that say in which order a batch has them.

The log is the kernel's own: a decode that stands in every batch at the same place of the order is one run,
however long. Every entry of a batch has a number, rising in the order of the batch; a run is cut where a
request sits out, or where the order has changed so that its number no longer fits.
"""

from __future__ import annotations

from cspsched.simulate.kernel.each.layout import (
    BATCHED,
    LAST_STEP,
    MOST_HOLDERS,
    NO_RUN,
    NUM_BATCHED,
    RENUMBERS,
    TOKENS,
)
from cspsched.simulate.kernel.jit import inner
from cspsched.simulate.kernel.layout import (
    AMOUNT,
    BATCHES,
    BEFORE,
    CHUNK_SPAN,
    CONTEXT,
    FIRST,
    GENERATED,
    KIND,
    LAST_CHUNK_SPAN,
    NOBODY,
    NUMBER,
    PROMPT,
    RUN_SPAN,
    SCHEDULED_NS,
    SINCE,
    SPAN_NUMBER,
    SPAN_REQUEST,
    SPAN_ROW,
    STEPS,
    Kernel,
)

LARGEST_NUMBER = 2**30


@inner
def close_run(k: Kernel, request: int) -> None:
    """Log the run of decodes that is open, if there is one."""
    row = k.rows[request]
    if row[LAST_STEP] != NO_RUN:
        amount = row[LAST_STEP] - row[SINCE] + 1
        log_span(k, RUN_SPAN, request, row[SINCE], amount, row[CONTEXT] - amount)
        row[LAST_STEP] = NO_RUN


@inner
def process_decode(k: Kernel, request: int, position: int, last: int) -> int:
    """One token of a decode: its run goes on if its number fits, else a new one begins; its number."""
    row, steps = k.rows[request], k.now[STEPS]
    if row[LAST_STEP] != steps - 1 or row[NUMBER] <= last or k.now[RENUMBERS]:
        close_run(k, request)
        row[SINCE] = steps
        row[NUMBER] = number_after(k, position, last)
    row[LAST_STEP] = steps
    row[CONTEXT] += 1
    return int(row[NUMBER])


@inner
def process_chunk(k: Kernel, request: int, start_ns: int) -> None:
    """A chunk of a prefill."""
    row = k.rows[request]
    tokens, before = int(row[TOKENS]), int(row[CONTEXT])
    row[CONTEXT] = before + tokens
    ends = row[CONTEXT] == row[PROMPT] + row[GENERATED]
    log_span(k, LAST_CHUNK_SPAN if ends else CHUNK_SPAN, request, k.now[BATCHES], tokens, before)
    if k.wide[request, SCHEDULED_NS] < 0:
        k.wide[request, SCHEDULED_NS] = start_ns


@inner
def number_after(k: Kernel, position: int, last: int) -> int:
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
def log_span(k: Kernel, kind: int, request: int, first: int, amount: int, before: int) -> None:
    """Note what happened to a request."""
    log = k.spans[k.now[SPAN_ROW]]
    k.now[SPAN_ROW] += 1
    log[KIND], log[SPAN_REQUEST], log[SPAN_NUMBER] = kind, request, k.rows[request, NUMBER]
    log[FIRST], log[AMOUNT], log[BEFORE] = first, amount, before
