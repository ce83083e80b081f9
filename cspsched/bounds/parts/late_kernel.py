"""Compiled: fewest late requests on one machine without releases."""

from __future__ import annotations

from cspsched.compiled.jit import inner, outer
from cspsched.problem.cost import IntArray


@outer
def count_late(due: IntArray, processing: IntArray, heap: IntArray) -> int:
    """Late requests by Moore and Hodgson: who makes one late gives way to the longest so far.

    Parameters
    ----------
    due, processing
        Ascending due dates, and a time of each; int64, as the sum of all times is.
    heap
        Room for one number of each request.
    """
    clock = size = late = 0
    for k in range(len(due)):
        clock += processing[k]
        place = size
        while place > 0 and heap[(place - 1) // 2] < processing[k]:
            heap[place] = heap[(place - 1) // 2]
            place = (place - 1) // 2
        heap[place] = processing[k]
        size += 1
        if clock > due[k]:
            clock -= heap[0]
            size -= 1
            _sink(heap, size, heap[size])
            late += 1
    return late


@inner
def _sink(heap: IntArray, size: int, value: int) -> None:
    """Put a value in place of the first of a heap, largest first, that is now so large."""
    place, child = 0, 1
    while child < size:
        if child + 1 < size and heap[child + 1] > heap[child]:
            child += 1
        if heap[child] <= value:
            break
        heap[place] = heap[child]
        place, child = child, 2 * child + 1
    heap[place] = value
