"""Compiled: batches decided ahead. While one runs the next is decided, and what it generated is seen later.

A finished request keeps its blocks and its place until its batch has ended. Preempted before that, it counts
as waiting until then, and need not be queued: a step that preempts does not admit, and before the next step
the batch in flight has ended. For the same reason nobody is admitted whose own batch is in flight.
"""

from __future__ import annotations

from cspsched.simulate.kernel.each.batch import leave
from cspsched.simulate.kernel.each.layout import (
    ENDING,
)
from cspsched.simulate.kernel.each.lists import drop_listed
from cspsched.simulate.kernel.each.together import execute_together
from cspsched.simulate.kernel.jit import inner
from cspsched.simulate.kernel.layout import (
    DECIDED_NS,
    FINISHED,
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
    if now.num_in_batch:
        return _launch(k)
    if now.is_in_flight:
        now.is_in_flight = 0
        _deliver(k, int(now.num_ending), int(now.busy_until_ns))
        return FINISHED
    return FINISHED if now.num_evictions else await_arrival(k)


@inner
def _launch(k: Kernel) -> int:
    """Run the batch after the one in flight; the clock goes on to the end of that one, if there is one."""
    now = k.now
    decided_ns, busy_until_ns = int(now.clock_ns), int(now.busy_until_ns)
    num_due = int(now.num_ending)
    k.batch_ns[now.batch_row, DECIDED_NS] = decided_ns
    now.clock_ns = max(decided_ns, busy_until_ns)
    answer = execute_together(k)
    now.busy_until_ns, now.clock_ns = now.clock_ns, decided_ns
    if now.is_in_flight:
        _deliver(k, num_due, busy_until_ns)
    now.is_in_flight = 1
    return answer


@inner
def _deliver(k: Kernel, num_due: int, end_ns: int) -> None:
    """Let the oldest batch end: so many of those that are to finish leave."""
    now = k.now
    now.clock_ns = end_ns
    now.somebody_finished = 0
    for position in range(num_due):
        request = int(k.slots[position, ENDING])
        if k.requests[request].blocks:
            leave(k, request)
        else:
            now.num_waiting -= 1
            now.num_unfinished -= 1
    now.num_ending -= num_due
    for position in range(now.num_ending):
        k.slots[position, ENDING] = k.slots[position + num_due, ENDING]
    if now.somebody_finished:
        drop_listed(k)
