"""Shortest remaining processing time: the preemptive single machine that every schedule contains.

Theorem (Schrage 1968, A proof of the optimality of the shortest remaining processing time discipline): among
all preemptive single-machine schedules with fixed processing times and releases, SRPT has the smallest sum of
completion times (1 | r_j, pmtn | sum C_j).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

import numpy as np

from cspsched.bounds.parts.srpt_kernel import HALF_BITS, add_completions
from cspsched.compiled.jit import compiled
from cspsched.problem.cost import INT64_SAFE, IntArray

FEW_REQUESTS = 1_000
"""Up to so many the loop takes no longer than loading compiled code."""


def srpt_completions_ns(releases_ns: IntArray, processing_ns: IntArray) -> int:
    """The same of columns, int64; compiled where they are long."""
    largest = int(releases_ns.max()) + int(processing_ns.max()) * len(processing_ns)
    if len(releases_ns) <= FEW_REQUESTS or processing_ns.dtype == object or largest >= INT64_SAFE:
        return srpt_total_completion_ns(releases_ns.tolist(), processing_ns.tolist())
    order, found = np.argsort(releases_ns, kind="stable"), np.zeros(2, dtype=np.int64)
    compiled(add_completions)(releases_ns[order], processing_ns[order], np.empty_like(releases_ns), found)
    return (int(found[0]) << HALF_BITS) + int(found[1])


def srpt_total_completion_ns(releases_ns: Iterable[int], processing_ns: Iterable[int]) -> int:
    """Smallest sum of completion times of preemptive schedules on one machine.

    Parameters
    ----------
    releases_ns, processing_ns
        One of each per request, integers >= 0.

    Returns
    -------
    int
        Sum of completion times in nanoseconds, in O(n log n).
    """
    clock = total = 0
    remaining: list[int] = []
    for release, processing in sorted(zip(releases_ns, processing_ns, strict=True)):
        while remaining and clock + remaining[0] <= release:
            clock += heapq.heappop(remaining)
            total += clock
        if remaining:
            heapq.heapreplace(remaining, remaining[0] - (release - clock))
        clock = release if release > clock else clock
        heapq.heappush(remaining, processing)
    for processing in sorted(remaining):
        clock += processing
        total += clock
    return total
