"""A request that is cancelled: it leaves between two batches, compiled code and plain Python alike.

Cancelling ends the output early, so that what was served is a trace of its own with the batch times that
it had: a request leaves with the tokens that it has generated. One that has processed tokens since the last
of them (in the midst of a prefill or a refill, or preempted there) is served until its next token: half a
prefill is no request of any trace, and a prefill that ends takes the time of a token more.

These functions run between two calls of the loop, as plain Python on whatever the records are. What a policy
keeps of a request in lists of its own it forgets by its own function (`Rules.cancel`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cspsched.errors import UsageError
from cspsched.simulate.kernel.actions import leave
from cspsched.simulate.kernel.columns import ENDING, IN_LOCKSTEP, LISTED
from cspsched.simulate.kernel.layout import HEAP, PREFILLS, QUEUED, SUBMISSION, Kernel
from cspsched.simulate.kernel.lists import drop_listed
from cspsched.simulate.kernel.lockstep import part
from cspsched.simulate.kernel.runs import close_run
from cspsched.simulate.kernel.workload import Int32Array

Forget = Callable[[Kernel, int], None]
Cancel = Callable[[Kernel, int, int], None]
"""What cancels a request that has arrived and is not finished, at a time."""


def take_unarrived(k: Kernel, request: int, at_ns: int) -> bool:
    """Let a request not come, if it has not; whether that was so."""
    now, coming = k.now, k.orders[:, SUBMISSION]
    place = position_in(coming[now.num_submitted : now.num_arrivals], request)
    if place is None:
        return False
    remove_at(coming, int(now.num_submitted) + place, int(now.num_arrivals))
    now.num_arrivals -= 1
    now.num_unfinished -= 1
    k.requests[request].output_tokens, k.requests[request].finish_ns = 0, at_ns
    return True


def wake(k: Kernel, at_ns: int) -> None:
    """Let a replica that waits for an arrival decide at a time, as there may be room for others now."""
    now = k.now
    if not (now.num_flying or now.is_in_flight) and now.num_waiting + now.num_running > 0:
        now.clock_ns, now.is_idle = at_ns, 0


def ends_later(k: Kernel, request: int) -> bool:
    """Let the output end with the token that a request is on the way to, if it is; whether that is so."""
    row = k.requests[request]
    if row.phase != QUEUED:
        is_under_way = bool(row.phase == PREFILLS)
    elif k.now.host_blocks and k.notes[request].host_tokens:
        is_under_way = not bool(k.notes[request].decodes_on_host)
    else:
        is_under_way = bool(row.mid_prefill)
    if is_under_way:
        row.output_tokens = row.generated + 1
    return is_under_way


def leave_queue(k: Kernel, request: int, at_ns: int) -> None:
    """Let a request that waits be finished; what it has in host memory is freed."""
    now, row = k.now, k.requests[request]
    if now.host_blocks and k.notes[request].host_tokens:
        now.free_host_blocks += k.notes[request].host_blocks
        k.notes[request].host_tokens = 0
    row.output_tokens, row.finish_ns = row.generated, at_ns
    now.num_waiting -= 1
    now.num_unfinished -= 1


def leave_device(k: Kernel, request: int, at_ns: int) -> None:
    """Let a request that decodes be finished."""
    row = k.requests[request]
    close_run(k, request)
    row.output_tokens, row.finish_ns = row.generated, at_ns
    leave(k, request)


def cancel_with(forget: Forget) -> Cancel:
    """Return what cancels requests of a policy that decides for each request.

    Parameters
    ----------
    forget
        Takes a request out of the policy's queue, if it waits, and of its lists other than LISTED.
    """

    def cancel(k: Kernel, request: int, at_ns: int) -> None:
        now, row = k.now, k.requests[request]
        if ends_later(k, request):
            return
        if row.phase == IN_LOCKSTEP:
            part(k, request)
            k.slots[now.num_listed, LISTED] = request
            now.num_listed += 1
        if row.phase == QUEUED:
            forget(k, request)
            leave_queue(k, request, at_ns)
        elif not _ends_in_flight(k, request):
            forget(k, request)
            leave_device(k, request, at_ns)
            if not _flies(k):
                drop_listed(k)

    return cancel


def _flies(k: Kernel) -> bool:
    """Whether LISTED has the requests in flight, not those that run."""
    return bool(k.now.flights and not k.now.lockstep)


def _ends_in_flight(k: Kernel, request: int) -> bool:
    """Let a request be finished when its batch in flight ends; whether there is one."""
    now, row = k.now, k.requests[request]
    if now.decides_ahead and now.is_in_flight:
        ends_ns = now.busy_until_ns
        k.slots[now.num_ending, ENDING] = request
        now.num_ending += 1
    elif _flies(k) and request in k.slots[now.num_landed : now.num_listed, LISTED]:
        ends_ns = k.notes[request].lands_ns
    else:
        return False
    close_run(k, request)
    row.output_tokens, row.finish_ns = row.generated, ends_ns
    return True


# Lists.


def forget_in_heap(k: Kernel, request: int) -> None:
    """Take a request that waits out of the heap by key.

    Raises
    ------
    UsageError
        If the policy keeps it elsewhere.
    """
    if k.requests[request].phase != QUEUED:
        return
    heap = k.orders[:, HEAP]
    place = position_in(heap[: k.now.heap_size], request)
    if place is None:
        raise UsageError(
            "the policy keeps waiting requests in a queue of its own, of which none can be cancelled; give "
            "its rules a function that forgets one (Rules.cancel)"
        )
    k.now.heap_size -= 1
    rest = np.delete(heap[: k.now.heap_size + 1], place).tolist()
    # In order they are a heap.
    heap[: k.now.heap_size] = sorted(rest, key=lambda other: int(k.requests[other].key))


def position_in(column: Int32Array, request: int) -> int | None:
    """Place of a request in a list; None if it is not there."""
    places = np.flatnonzero(column == request)
    return int(places[0]) if len(places) else None


def remove_at(column: Int32Array, place: int, end: int) -> None:
    """Let those behind a place of a list, up to an end, move up."""
    column[place : end - 1] = column[place + 1 : end].copy()


cancel_by_request = cancel_with(forget_in_heap)
