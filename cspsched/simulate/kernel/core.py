"""Compiled: the loop over decisions. This module and those it imports load numba."""

from __future__ import annotations

from cspsched.simulate.kernel.batch import execute
from cspsched.simulate.kernel.jit import inner, outer
from cspsched.simulate.kernel.layout import (
    ARRIVAL_NS,
    ATTENTION,
    BATCH,
    BATCH_ROW,
    BATCHES,
    CLOCK_NS,
    DECODE_NOW,
    EVICTIONS,
    FINISHED,
    FRUITLESS,
    LAST_CLOCK_NS,
    LAST_COUNT,
    LIVELOCK,
    LOG_FULL,
    MAX_FRUITLESS,
    NOBODY,
    NUM_ADMISSIONS,
    NUM_DECODES,
    NUM_GENERATING,
    NUM_PREFILLS,
    PREFILL_CONTEXT,
    PREFILL_TOKENS,
    PROMPT_REFUSED,
    REFUSED,
    RUNNING,
    SPAN_ROW,
    STUCK,
    SUBMISSION,
    SUBMITTED,
    TOO_LONG,
    UNFINISHED,
    WAITING,
    Kernel,
)
from cspsched.simulate.kernel.parts import parts_step
from cspsched.simulate.kernel.queues import submit_arrivals
from cspsched.simulate.kernel.running_first import running_first


@outer
def run_kernel(k: Kernel) -> int:
    """Run until all is done, a log is full, or something is wrong; the next call goes on from there."""
    now = k.now
    while now[UNFINISHED]:
        if not has_room(k):
            return LOG_FULL
        submit_arrivals(k)
        answer = decide(k)
        if answer != FINISHED:
            return answer
    return FINISHED


@inner
def decide(k: Kernel) -> int:
    """Decide a batch and run it, or wait; an answer other than FINISHED ends the loop."""
    now = k.now
    _clear_batch(k)
    if k.now[BATCH]:
        parts_step(k)
    else:
        running_first(k)
    if now[REFUSED] != NOBODY:
        return PROMPT_REFUSED
    now[FRUITLESS] += now[EVICTIONS]
    if now[FRUITLESS] > MAX_FRUITLESS * (now[RUNNING] + now[WAITING]):
        return LIVELOCK
    if now[NUM_PREFILLS] or (now[DECODE_NOW] and now[NUM_DECODES]):
        execute(k)
        if now[CLOCK_NS] > LAST_CLOCK_NS or now[BATCHES] + now[NUM_ADMISSIONS] > LAST_COUNT:
            return TOO_LONG
    elif not now[EVICTIONS]:
        if now[SUBMITTED] == len(k.orders):
            return STUCK
        now[CLOCK_NS] = k.wide[k.orders[now[SUBMITTED], SUBMISSION], ARRIVAL_NS]
    return FINISHED


@inner
def has_room(k: Kernel) -> bool:
    """Whether the logs hold whatever one more decision can bring."""
    now, most = k.now, len(k.slots) // 2
    return bool(now[BATCH_ROW] < len(k.batch_ns) and now[SPAN_ROW] + 4 * most <= len(k.spans))


@inner
def _clear_batch(k: Kernel) -> None:
    """Begin a decision."""
    now = k.now
    now[DECODE_NOW] = now[ATTENTION] = now[PREFILL_TOKENS] = now[PREFILL_CONTEXT] = 0
    now[NUM_PREFILLS] = now[NUM_GENERATING] = now[EVICTIONS] = 0
