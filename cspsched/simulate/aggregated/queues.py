"""Compiled: the waiting queue and the list of running requests."""

from __future__ import annotations

from cspsched.compiled.jit import inner
from cspsched.simulate.aggregated.columns import LISTED, STACK
from cspsched.simulate.aggregated.state import ALL_SERVED
from cspsched.simulate.kernel.layout import BY_RANK, HEAP, SUBMISSION, Kernel
from cspsched.simulate.kernel.records import NO_REQUEST
from cspsched.simulate.kernel.rules import Order

QUALITY = int(Order.QUALITY)


@inner
def submit_arrivals(k: Kernel) -> None:
    """Queue all arrivals at or before the clock, in (arrival, file) order."""
    now = k.now
    while now.num_submitted < now.num_arrivals:
        request = k.orders[now.num_submitted, SUBMISSION]
        if k.requests[request].arrival_ns > now.clock_ns:
            break
        now.num_submitted += 1
        now.num_waiting += 1
        now.num_fruitless = 0
        if k.now.order:
            _enter(k, request)


@inner
def _enter(k: Kernel, request: int) -> None:
    """Put a request to its rank; in a queue by quality all that wait lose their places."""
    if k.now.order == QUALITY:
        k.orders[k.own.queue_back, HEAP] = request
        k.own.queue_back += 1
        k.own.num_unplaced = k.own.queue_back
    else:
        push_rank(k, k.requests[request].rank)


@inner
def queue_head(k: Kernel) -> int:
    """The request that is served next (there is one)."""
    if k.now.order == QUALITY:
        return int(k.orders[k.own.queue_back - 1, HEAP])
    if k.now.order:
        return int(k.orders[k.orders[0, HEAP], BY_RANK])
    if k.own.queue_back:
        return int(k.slots[k.own.queue_back - 1, STACK])
    return int(k.orders[k.own.queue_head, SUBMISSION])


@inner
def pop_head(k: Kernel) -> None:
    """Remove the head."""
    now = k.now
    now.num_waiting -= 1
    if k.now.order == QUALITY:
        k.own.queue_back -= 1
    elif k.now.order:
        pop_rank(k)
    elif k.own.queue_back:
        k.own.queue_back -= 1
    else:
        k.own.queue_head += 1


@inner
def queue_again(k: Kernel, request: int) -> None:
    """Put a preempted request to the front, or to its rank."""
    now = k.now
    now.num_waiting += 1
    if k.now.order:
        _enter(k, request)
    else:
        k.slots[k.own.queue_back, STACK] = request
        k.own.queue_back += 1


@inner
def push_rank(k: Kernel, rank: int) -> None:
    """Enter a rank into the heap."""
    heap, child = k.orders[:, HEAP], k.own.queue_back
    k.own.queue_back += 1
    while child:
        parent = (child - 1) >> 1
        if heap[parent] <= rank:
            break
        heap[child] = heap[parent]
        child = parent
    heap[child] = rank


@inner
def pop_rank(k: Kernel) -> None:
    """Remove the smallest rank from the heap."""
    heap = k.orders[:, HEAP]
    k.own.queue_back -= 1
    size = k.own.queue_back
    rank, parent = heap[size], 0
    while True:
        child = 2 * parent + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= rank:
            break
        heap[parent] = heap[child]
        parent = child
    heap[parent] = rank


@inner
def append_running(k: Kernel, request: int) -> None:
    """Enter an admitted request at the end of the list and number its admission."""
    now, row = k.now, k.requests[request]
    if k.own.running_end == len(k.slots):
        close_holes(k)
    place = k.own.running_end
    k.slots[place, LISTED] = request
    row.place = place
    row.number = now.num_admissions
    now.num_admissions += 1
    k.own.running_end += 1
    now.num_running += 1


@inner
def remove_running(k: Kernel, request: int) -> None:
    """Leave a hole where a request stood."""
    k.slots[k.requests[request].place, LISTED] = NO_REQUEST
    k.now.num_running -= 1


@inner
def close_holes(k: Kernel) -> None:
    """Move the list together; at most half of it is in use, so this is O(1) per admission."""
    end = 0
    served = k.own.served_end
    for place in range(k.own.running_end):
        if place == served:
            k.own.served_end = end
        request = k.slots[place, LISTED]
        if request != NO_REQUEST:
            k.slots[end, LISTED] = request
            k.requests[request].place = end
            end += 1
    if ALL_SERVED > served >= k.own.running_end:
        k.own.served_end = ALL_SERVED
    k.own.running_end = end


@inner
def newest(k: Kernel) -> int:
    """The last admitted of the running requests (there is one)."""
    while k.slots[k.own.running_end - 1, LISTED] == NO_REQUEST:
        k.own.running_end -= 1
    return int(k.slots[k.own.running_end - 1, LISTED])


@inner
def victim(k: Kernel) -> int:
    """The request to preempt next: the last admitted, or the first of the least important."""
    if not k.own.victim:
        return newest(k)
    worst, found = -1, NO_REQUEST
    for place in range(k.own.running_end):
        request = k.slots[place, LISTED]
        if request != NO_REQUEST and k.requests[request].importance > worst:
            worst, found = k.requests[request].importance, request
    return int(found)
