"""Compiled: batches decided ahead. While one runs the next is decided, and what it generated is seen later.

A finished request keeps its blocks and its place until its batch has ended. Preempted before that, it counts
as waiting until then, and need not be queued: a step that preempts does not admit, and before the next step
the batch in flight has ended. For the same reason nobody is admitted whose own batch is in flight.
"""

from __future__ import annotations

from cspsched.simulate.kernel.each.batch import leave
from cspsched.simulate.kernel.each.layout import (
    BUSY_UNTIL_NS,
    ENDING,
    IS_IN_FLIGHT,
    NUM_ENDING,
    NUM_IN_BATCH,
    SOMEBODY_FINISHED,
)
from cspsched.simulate.kernel.each.lists import drop_listed
from cspsched.simulate.kernel.each.together import execute_together
from cspsched.simulate.kernel.jit import inner
from cspsched.simulate.kernel.layout import (
    BATCH_ROW,
    BLOCKS,
    CLOCK_NS,
    DECIDED_NS,
    EVICTIONS,
    FINISHED,
    UNFINISHED,
    WAITING,
    Kernel,
)
from cspsched.simulate.kernel.progress import await_arrival, refusal


@inner
def conclude_ahead(k: Kernel) -> int:
    """Queue what was decided behind the batch in flight and let that one end, or wait (see `conclude`)."""
    now = k.now
    answer = refusal(k)
    if answer != FINISHED:
        return answer
    if now[NUM_IN_BATCH]:
        return _launch(k)
    if now[IS_IN_FLIGHT]:
        now[IS_IN_FLIGHT] = 0
        _deliver(k, int(now[NUM_ENDING]), int(now[BUSY_UNTIL_NS]))
        return FINISHED
    return FINISHED if now[EVICTIONS] else await_arrival(k)


@inner
def _launch(k: Kernel) -> int:
    """Run the batch after the one in flight; the clock goes on to the end of that one, if there is one."""
    now = k.now
    decided_ns, busy_until_ns = int(now[CLOCK_NS]), int(now[BUSY_UNTIL_NS])
    num_due = int(now[NUM_ENDING])
    k.batch_ns[now[BATCH_ROW], DECIDED_NS] = decided_ns
    now[CLOCK_NS] = max(decided_ns, busy_until_ns)
    answer = execute_together(k)
    now[BUSY_UNTIL_NS], now[CLOCK_NS] = now[CLOCK_NS], decided_ns
    if now[IS_IN_FLIGHT]:
        _deliver(k, num_due, busy_until_ns)
    now[IS_IN_FLIGHT] = 1
    return answer


@inner
def _deliver(k: Kernel, num_due: int, end_ns: int) -> None:
    """Let the oldest batch end: so many of those that are to finish leave."""
    now = k.now
    now[CLOCK_NS] = end_ns
    now[SOMEBODY_FINISHED] = 0
    for position in range(num_due):
        request = int(k.slots[position, ENDING])
        if k.rows[request, BLOCKS]:
            leave(k, request)
        else:
            now[WAITING] -= 1
            now[UNFINISHED] -= 1
    now[NUM_ENDING] -= num_due
    for position in range(now[NUM_ENDING]):
        k.slots[position, ENDING] = k.slots[position + num_due, ENDING]
    if now[SOMEBODY_FINISHED]:
        drop_listed(k)
