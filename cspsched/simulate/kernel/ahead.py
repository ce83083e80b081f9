"""Compiled: batches decided ahead. While one runs the next is decided, and what it generated is seen later.

A finished request keeps its blocks and its place until its batch has ended. Preempted before that, it counts
as waiting until then, and need not be queued: a step that preempts does not admit, and before the next step
the batch in flight has ended. For the same reason none is admitted whose own batch is in flight.
"""

from __future__ import annotations

from cspsched.compiled.jit import inner
from cspsched.simulate.kernel.actions import leave
from cspsched.simulate.kernel.columns import (
    BATCHED,
    ENDING,
    UNSEEN,
)
from cspsched.simulate.kernel.layout import DECIDED_NS, DECODES, FINISHED, Kernel
from cspsched.simulate.kernel.lists import drop_listed
from cspsched.simulate.kernel.prefix import CACHES, enter
from cspsched.simulate.kernel.progress import await_arrival, refusal
from cspsched.simulate.kernel.records import NO_REQUEST
from cspsched.simulate.kernel.together import execute_together


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
        _deliver(k, int(now.num_ending), int(now.num_unseen), int(now.busy_until_ns))
        return FINISHED
    return FINISHED if now.num_evictions else await_arrival(k)


@inner
def _launch(k: Kernel) -> int:
    """Run the batch after the one in flight; the clock goes on to the end of that one, if there is one."""
    now = k.now
    decided_ns, busy_until_ns = int(now.clock_ns), int(now.busy_until_ns)
    num_due, num_seen = int(now.num_ending), int(now.num_unseen)
    k.batch_ns[now.batch_row, DECIDED_NS] = decided_ns
    now.clock_ns = max(decided_ns, busy_until_ns)
    answer = execute_together(k)
    if CACHES and now.caches_prefixes:
        _note_unseen(k)
    now.busy_until_ns, now.clock_ns = now.clock_ns, decided_ns
    if now.is_in_flight:
        _deliver(k, num_due, num_seen, busy_until_ns)
    now.is_in_flight = 1
    return answer


@inner
def _note_unseen(k: Kernel) -> None:
    """Note those that have generated a token in the batch that was launched."""
    now = k.now
    for position in range(now.num_batched):
        request = int(k.slots[position, BATCHED])
        if request != NO_REQUEST and k.requests[request].phase == DECODES:
            k.notes[request].num_unseen += 1
            k.slots[now.num_unseen, UNSEEN] = request
            now.num_unseen += 1


@inner
def _see(k: Kernel, count: int) -> None:
    """Let so many generated tokens be seen, and cached unless their request was evicted."""
    now = k.now
    for position in range(count):
        request = int(k.slots[position, UNSEEN])
        k.notes[request].num_unseen -= 1
        if k.requests[request].blocks:
            enter(k, request, int(k.requests[request].kv_tokens - k.notes[request].num_unseen))
    now.num_unseen -= count
    for position in range(now.num_unseen):
        k.slots[position, UNSEEN] = k.slots[position + count, UNSEEN]


@inner
def _deliver(k: Kernel, num_due: int, num_seen: int, end_ns: int) -> None:
    """Let the oldest batch end: so many of those that are to finish leave, so many tokens are seen."""
    now = k.now
    if CACHES and now.caches_prefixes:
        _see(k, num_seen)
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
