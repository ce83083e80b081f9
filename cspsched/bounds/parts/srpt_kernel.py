"""Compiled: shortest remaining processing time."""

from __future__ import annotations

from cspsched.compiled.jit import inner, outer
from cspsched.problem.cost import IntArray

HALF_BITS = 31


@outer
def add_completions(releases: IntArray, processing: IntArray, heap: IntArray, found: IntArray) -> None:
    """Add all completions to two halves: what they are in 2^31, and the rest.

    Parameters
    ----------
    releases, processing
        Ascending releases, and a time of each; int64, as every completion is.
    heap
        Room for one number of each request.
    """
    clock = size = 0
    for k in range(len(releases)):
        release = releases[k]
        while size > 0 and clock + heap[0] <= release:
            clock += heap[0]
            found[0] += clock >> HALF_BITS
            found[1] += clock & (2**HALF_BITS - 1)
            size -= 1
            _sink(heap, size, heap[size])
        if size > 0:
            # It only becomes smaller, so it stays the first.
            heap[0] -= release - clock
        clock = max(clock, release)
        place = size
        while place > 0 and heap[(place - 1) // 2] > processing[k]:
            heap[place] = heap[(place - 1) // 2]
            place = (place - 1) // 2
        heap[place] = processing[k]
        size += 1
    while size > 0:
        clock += heap[0]
        found[0] += clock >> HALF_BITS
        found[1] += clock & (2**HALF_BITS - 1)
        size -= 1
        _sink(heap, size, heap[size])


@inner
def _sink(heap: IntArray, size: int, value: int) -> None:
    """Put a value in place of the first of a heap that is now so large."""
    place, child = 0, 1
    while child < size:
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[place] = heap[child]
        place, child = child, 2 * child + 1
    heap[place] = value
