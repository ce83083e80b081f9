"""Compiled: the running requests in a list, and the waiting ones in a heap by key."""

from __future__ import annotations

from cspsched.compiled.jit import inner
from cspsched.simulate.kernel.columns import (
    IN_LOCKSTEP,
    KEY_BITS,
    LISTED,
)
from cspsched.simulate.kernel.layout import HEAP, QUEUED, SUBMISSION, Kernel


@inner
def next_arrival(k: Kernel) -> int:
    """The next request to submit at or before the clock, in (arrival, file) order; -1 if there is none."""
    now = k.now
    if now.num_submitted == now.num_arrivals:
        return -1
    request = int(k.orders[now.num_submitted, SUBMISSION])
    if k.requests[request].arrival_ns > now.clock_ns:
        return -1
    now.num_submitted += 1
    now.num_waiting += 1
    now.num_fruitless = 0
    return request


@inner
def next_number(k: Kernel) -> int:
    """A number larger than all before."""
    k.now.num_admissions += 1
    return int(k.now.num_admissions)


@inner
def numbered_key(place: int, number: int) -> int:
    """Key of a place in the order, among equals by number."""
    return (place << KEY_BITS) + number


@inner
def push(k: Kernel, request: int) -> None:
    """Enter a request into the heap at its key."""
    heap, child = k.orders[:, HEAP], int(k.now.heap_size)
    key = k.requests[request].key
    k.now.heap_size += 1
    while child:
        parent = (child - 1) >> 1
        if k.requests[heap[parent]].key <= key:
            break
        heap[child] = heap[parent]
        child = parent
    heap[child] = request


@inner
def submit_to_queue(k: Kernel) -> None:
    """Queue all arrivals, in the order of their places and then of submission."""
    request = next_arrival(k)
    while request >= 0:
        k.requests[request].key = numbered_key(k.requests[request].key, next_number(k))
        push(k, request)
        request = next_arrival(k)


@inner
def head(k: Kernel) -> int:
    """The request of the smallest key (there is one)."""
    return int(k.orders[0, HEAP])


@inner
def pop(k: Kernel) -> int:
    """Remove and return the request of the smallest key."""
    heap = k.orders[:, HEAP]
    first = int(heap[0])
    k.now.heap_size -= 1
    size = int(k.now.heap_size)
    request, parent = heap[size], 0
    key = k.requests[request].key
    while True:
        child = 2 * parent + 1
        if child >= size:
            break
        if child + 1 < size and k.requests[heap[child + 1]].key < k.requests[heap[child]].key:
            child += 1
        if k.requests[heap[child]].key >= key:
            break
        heap[parent] = heap[child]
        parent = child
    heap[parent] = request
    return first


@inner
def append_listed(k: Kernel, request: int) -> None:
    """Enter a request at the end of the running ones."""
    k.slots[k.now.num_listed, LISTED] = request
    k.now.num_listed += 1
    k.now.last_number += 1
    k.requests[request].place = k.now.last_number


@inner
def drop_listed(k: Kernel) -> None:
    """Take those that hold nothing any more, or are in lockstep, out of the running ones."""
    kept = 0
    for position in range(k.now.num_listed):
        request = k.slots[position, LISTED]
        if QUEUED < k.requests[request].phase < IN_LOCKSTEP:
            k.slots[kept, LISTED] = request
            kept += 1
    k.now.num_listed = kept


@inner
def sort_by_key(k: Kernel, column: int, count: int) -> None:
    """Sort a list of requests by key, in few steps if it is nearly sorted already."""
    for position in range(1, count):
        request, place = k.slots[position, column], position
        key = k.requests[request].key
        while place and k.requests[k.slots[place - 1, column]].key > key:
            k.slots[place, column] = k.slots[place - 1, column]
            place -= 1
        k.slots[place, column] = request


@inner
def bit_length(tokens: int) -> int:
    """Bits of a number."""
    bits = 0
    while tokens >> bits:
        bits += 1
    return bits
