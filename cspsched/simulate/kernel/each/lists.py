"""Compiled: the running requests in a list, and the waiting ones in a heap by key."""

from __future__ import annotations

import numpy as np

from cspsched.simulate.kernel.each.layout import (
    HEAP_SIZE,
    IN_LOCKSTEP,
    KEY,
    KEY_BITS,
    LAST_NUMBER,
    LISTED,
    NUM_LISTED,
)
from cspsched.simulate.kernel.jit import inner
from cspsched.simulate.kernel.layout import (
    ARRIVAL_NS,
    CLOCK_NS,
    FRUITLESS,
    HEAP,
    NUM_ADMISSIONS,
    PHASE,
    PLACE,
    QUEUED,
    SUBMISSION,
    SUBMITTED,
    WAITING,
    Kernel,
)


@inner
def next_arrival(k: Kernel) -> int:
    """The next request to submit at or before the clock, in (arrival, file) order; -1 if there is none."""
    now = k.now
    if now[SUBMITTED] == len(k.orders):
        return -1
    request = int(k.orders[now[SUBMITTED], SUBMISSION])
    if k.wide[request, ARRIVAL_NS] > now[CLOCK_NS]:
        return -1
    now[SUBMITTED] += 1
    now[WAITING] += 1
    now[FRUITLESS] = 0
    return request


@inner
def next_number(k: Kernel) -> int:
    """A number larger than all before."""
    k.now[NUM_ADMISSIONS] += 1
    return int(k.now[NUM_ADMISSIONS])


@inner
def numbered_key(place: int, number: int) -> int:
    """Key of a place in the order, among equals by number."""
    return (place << KEY_BITS) + number


@inner
def push(k: Kernel, request: int) -> None:
    """Enter a request into the heap at its key."""
    heap, child = k.orders[:, HEAP], int(k.now[HEAP_SIZE])
    key = k.wide[request, KEY]
    k.now[HEAP_SIZE] += 1
    while child:
        parent = (child - 1) >> 1
        if k.wide[heap[parent], KEY] <= key:
            break
        heap[child] = heap[parent]
        child = parent
    heap[child] = request


@inner
def head(k: Kernel) -> int:
    """The request of the smallest key (there is one)."""
    return int(k.orders[0, HEAP])


@inner
def pop(k: Kernel) -> int:
    """Remove and return the request of the smallest key."""
    heap = k.orders[:, HEAP]
    first = int(heap[0])
    k.now[HEAP_SIZE] -= 1
    size = int(k.now[HEAP_SIZE])
    request, parent = heap[size], 0
    key = k.wide[request, KEY]
    while True:
        child = 2 * parent + 1
        if child >= size:
            break
        if child + 1 < size and k.wide[heap[child + 1], KEY] < k.wide[heap[child], KEY]:
            child += 1
        if k.wide[heap[child], KEY] >= key:
            break
        heap[parent] = heap[child]
        parent = child
    heap[parent] = request
    return first


@inner
def append_listed(k: Kernel, request: int) -> None:
    """Enter a request at the end of the running ones."""
    k.slots[k.now[NUM_LISTED], LISTED] = request
    k.now[NUM_LISTED] += 1
    k.now[LAST_NUMBER] += 1
    k.rows[request, PLACE] = k.now[LAST_NUMBER]


@inner
def drop_listed(k: Kernel) -> None:
    """Take those that hold nothing any more, or are in lockstep, out of the running ones."""
    kept = 0
    for position in range(k.now[NUM_LISTED]):
        request = k.slots[position, LISTED]
        if QUEUED < k.rows[request, PHASE] < IN_LOCKSTEP:
            k.slots[kept, LISTED] = request
            kept += 1
    k.now[NUM_LISTED] = kept


@inner
def sort_by_key(k: Kernel, column: int, count: int) -> None:
    """Sort a list of requests by key, in few steps if it is nearly sorted already."""
    for position in range(1, count):
        request, place = k.slots[position, column], position
        key = k.wide[request, KEY]
        while place and k.wide[k.slots[place - 1, column], KEY] > key:
            k.slots[place, column] = k.slots[place - 1, column]
            place -= 1
        k.slots[place, column] = request


@inner
def get_float(k: Kernel, position: int) -> float:
    """A number of `now` that is in floating point."""
    return float(k.now[position : position + 1].view(np.float64)[0])


@inner
def set_float(k: Kernel, position: int, value: float) -> None:
    """Note a number in floating point in `now`."""
    k.now[position : position + 1].view(np.float64)[0] = value


@inner
def bit_length(tokens: int) -> int:
    """Bits of a number."""
    bits = 0
    while tokens >> bits:
        bits += 1
    return bits
