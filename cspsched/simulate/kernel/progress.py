"""Compiled: whether a run can go on, and what it waits for."""

from __future__ import annotations

from cspsched.simulate.kernel.jit import inner
from cspsched.simulate.kernel.layout import (
    ARRIVAL_NS,
    BATCH_ROW,
    CLOCK_NS,
    EVICTIONS,
    FINISHED,
    FRUITLESS,
    LIVELOCK,
    MAX_FRUITLESS,
    NOBODY,
    PROMPT_REFUSED,
    REFUSED,
    RUNNING,
    SPAN_ROW,
    STUCK,
    SUBMISSION,
    SUBMITTED,
    WAITING,
    Kernel,
)


@inner
def has_room(k: Kernel) -> bool:
    """Whether the logs hold whatever one more decision can bring."""
    now, most = k.now, len(k.slots) // 2
    return bool(now[BATCH_ROW] < len(k.batch_ns) and now[SPAN_ROW] + 4 * most <= len(k.spans))


@inner
def refusal(k: Kernel) -> int:
    """Why what was decided cannot be gone on with; FINISHED if it can."""
    now = k.now
    if now[REFUSED] != NOBODY:
        return PROMPT_REFUSED
    now[FRUITLESS] += now[EVICTIONS]
    if now[FRUITLESS] > MAX_FRUITLESS * (now[RUNNING] + now[WAITING]):
        return LIVELOCK
    return FINISHED


@inner
def await_arrival(k: Kernel) -> int:
    """Move the clock to the next arrival."""
    now = k.now
    if now[SUBMITTED] == len(k.orders):
        return STUCK
    now[CLOCK_NS] = k.wide[k.orders[now[SUBMITTED], SUBMISSION], ARRIVAL_NS]
    return FINISHED
