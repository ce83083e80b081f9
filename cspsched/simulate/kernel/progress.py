"""Compiled: whether a run can go on, until when, and what it waits for.

A replica is open while more requests may be submitted. It then goes on as far as it is asked to: every
decision before `now.until_ns` is made, and the batch of the last one may end later.
"""

from __future__ import annotations

from cspsched.compiled.jit import inner
from cspsched.simulate.kernel.layout import FINISHED, LIVELOCK, MAX_FRUITLESS, STUCK, SUBMISSION, Kernel
from cspsched.simulate.kernel.records import NO_REQUEST


@inner
def goes_on(k: Kernel) -> bool:
    """Whether there is a decision to make: a request is unfinished, and it is time."""
    now = k.now
    if now.is_idle:
        # Its decision at this time has been made, without a batch.
        if now.num_submitted == now.num_arrivals:
            return False
        now.is_idle = 0
        now.clock_ns = next_arrival_ns(k)
    return bool(now.num_unfinished and now.clock_ns < now.until_ns)


@inner
def next_arrival_ns(k: Kernel) -> int:
    """When the next of those that are known arrives; there is one."""
    return int(k.requests[k.orders[k.now.num_submitted, SUBMISSION]].arrival_ns)


@inner
def has_room(k: Kernel) -> bool:
    """Whether the logs hold whatever one more decision can bring."""
    now, most = k.now, len(k.slots) // 2
    return bool(now.batch_row < len(k.batch_ns) and now.span_row + 6 * most <= len(k.spans))


@inner
def refusal(k: Kernel) -> int:
    """Why what was decided cannot be gone on with; FINISHED if it can."""
    now = k.now
    if now.refused != NO_REQUEST:
        return int(now.refusal)
    now.num_fruitless += now.num_evictions
    if now.num_fruitless > MAX_FRUITLESS * (now.num_running + now.num_waiting):
        return LIVELOCK
    return FINISHED


@inner
def await_arrival(k: Kernel) -> int:
    """Move the clock to the next arrival; where none is known an open replica waits for it."""
    now = k.now
    if now.num_submitted < now.num_arrivals:
        now.clock_ns = next_arrival_ns(k)
    elif now.is_open or not now.num_unfinished:
        now.is_idle = 1
    else:
        return STUCK
    return FINISHED
