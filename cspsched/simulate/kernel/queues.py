"""Compiled: the waiting queue and the list of running requests."""

from __future__ import annotations

from cspsched.simulate.kernel.jit import inner
from cspsched.simulate.kernel.layout import (
    ALL_SERVED,
    ARRIVAL_NS,
    BY_RANK,
    CLOCK_NS,
    FRUITLESS,
    HEAP,
    IMPORTANCE,
    LISTED,
    NOBODY,
    NUM_ADMISSIONS,
    NUM_UNPLACED,
    NUMBER,
    ORDER,
    PLACE,
    QUEUE_BACK,
    QUEUE_HEAD,
    RANK,
    RUNNING,
    RUNNING_END,
    SERVED_END,
    STACK,
    SUBMISSION,
    SUBMITTED,
    VICTIM,
    WAITING,
    Kernel,
)
from cspsched.simulate.kernel.rules import Order

QUALITY = int(Order.QUALITY)


@inner
def submit_arrivals(k: Kernel) -> None:
    """Queue all arrivals at or before the clock, in (arrival, file) order."""
    now = k.now
    while now[SUBMITTED] < len(k.orders):
        request = k.orders[now[SUBMITTED], SUBMISSION]
        if k.wide[request, ARRIVAL_NS] > now[CLOCK_NS]:
            break
        now[SUBMITTED] += 1
        now[WAITING] += 1
        now[FRUITLESS] = 0
        if k.now[ORDER]:
            _enter(k, request)


@inner
def _enter(k: Kernel, request: int) -> None:
    """Put a request to its rank; in a queue by quality all that wait lose their places."""
    if k.now[ORDER] == QUALITY:
        k.orders[k.now[QUEUE_BACK], HEAP] = request
        k.now[QUEUE_BACK] += 1
        k.now[NUM_UNPLACED] = k.now[QUEUE_BACK]
    else:
        push_rank(k, k.rows[request, RANK])


@inner
def queue_head(k: Kernel) -> int:
    """The request that is served next (somebody waits)."""
    if k.now[ORDER] == QUALITY:
        return int(k.orders[k.now[QUEUE_BACK] - 1, HEAP])
    if k.now[ORDER]:
        return int(k.orders[k.orders[0, HEAP], BY_RANK])
    if k.now[QUEUE_BACK]:
        return int(k.slots[k.now[QUEUE_BACK] - 1, STACK])
    return int(k.orders[k.now[QUEUE_HEAD], SUBMISSION])


@inner
def pop_head(k: Kernel) -> None:
    """Remove the head."""
    now = k.now
    now[WAITING] -= 1
    if k.now[ORDER] == QUALITY:
        now[QUEUE_BACK] -= 1
    elif k.now[ORDER]:
        pop_rank(k)
    elif now[QUEUE_BACK]:
        now[QUEUE_BACK] -= 1
    else:
        now[QUEUE_HEAD] += 1


@inner
def queue_again(k: Kernel, request: int) -> None:
    """Put a preempted request to the front, or to its rank."""
    now = k.now
    now[WAITING] += 1
    if k.now[ORDER]:
        _enter(k, request)
    else:
        k.slots[now[QUEUE_BACK], STACK] = request
        now[QUEUE_BACK] += 1


@inner
def push_rank(k: Kernel, rank: int) -> None:
    """Enter a rank into the heap."""
    heap, child = k.orders[:, HEAP], k.now[QUEUE_BACK]
    k.now[QUEUE_BACK] += 1
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
    k.now[QUEUE_BACK] -= 1
    size = k.now[QUEUE_BACK]
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
    now, row = k.now, k.rows[request]
    if now[RUNNING_END] == len(k.slots):
        close_holes(k)
    place = now[RUNNING_END]
    k.slots[place, LISTED] = request
    row[PLACE] = place
    row[NUMBER] = now[NUM_ADMISSIONS]
    now[NUM_ADMISSIONS] += 1
    now[RUNNING_END] += 1
    now[RUNNING] += 1


@inner
def remove_running(k: Kernel, request: int) -> None:
    """Leave a hole where a request stood."""
    k.slots[k.rows[request, PLACE], LISTED] = NOBODY
    k.now[RUNNING] -= 1


@inner
def close_holes(k: Kernel) -> None:
    """Move the list together; at most half of it is in use, so this is O(1) per admission."""
    now, end = k.now, 0
    served = now[SERVED_END]
    for place in range(now[RUNNING_END]):
        if place == served:
            now[SERVED_END] = end
        request = k.slots[place, LISTED]
        if request != NOBODY:
            k.slots[end, LISTED] = request
            k.rows[request, PLACE] = end
            end += 1
    if ALL_SERVED > served >= now[RUNNING_END]:
        now[SERVED_END] = ALL_SERVED
    now[RUNNING_END] = end


@inner
def newest(k: Kernel) -> int:
    """The last admitted of the running requests (there is one)."""
    now = k.now
    while k.slots[now[RUNNING_END] - 1, LISTED] == NOBODY:
        now[RUNNING_END] -= 1
    return int(k.slots[now[RUNNING_END] - 1, LISTED])


@inner
def victim(k: Kernel) -> int:
    """The request to preempt next: the last admitted, or the first of the least important."""
    if not k.now[VICTIM]:
        return newest(k)
    worst, found = -1, NOBODY
    for place in range(k.now[RUNNING_END]):
        request = k.slots[place, LISTED]
        if request != NOBODY and k.rows[request, IMPORTANCE] > worst:
            worst, found = k.rows[request, IMPORTANCE], request
    return int(found)
