"""Compiled: whether a run can go on, and what it waits for."""

from __future__ import annotations

from cspsched.simulate.kernel.jit import inner
from cspsched.simulate.kernel.layout import (
    FINISHED,
    LIVELOCK,
    MAX_FRUITLESS,
    PROMPT_REFUSED,
    STUCK,
    SUBMISSION,
    Kernel,
)
from cspsched.simulate.kernel.records import NOBODY


@inner
def has_room(k: Kernel) -> bool:
    """Whether the logs hold whatever one more decision can bring."""
    now, most = k.now, len(k.slots) // 2
    return bool(now.batch_row < len(k.batch_ns) and now.span_row + 4 * most <= len(k.spans))


@inner
def refusal(k: Kernel) -> int:
    """Why what was decided cannot be gone on with; FINISHED if it can."""
    now = k.now
    if now.refused != NOBODY:
        return PROMPT_REFUSED
    now.num_fruitless += now.num_evictions
    if now.num_fruitless > MAX_FRUITLESS * (now.num_running + now.num_waiting):
        return LIVELOCK
    return FINISHED


@inner
def await_arrival(k: Kernel) -> int:
    """Move the clock to the next arrival."""
    now = k.now
    if now.num_submitted == len(k.orders):
        return STUCK
    now.clock_ns = k.requests[k.orders[now.num_submitted, SUBMISSION]].arrival_ns
    return FINISHED
