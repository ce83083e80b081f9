"""Shortest time to prefill a request that is alone on the machine, over all ways to cut its prompt.

Theorem: batch times are non-decreasing in every feature, so taking the other requests out of all batches of
a schedule makes none longer: a request alone is at least as fast. Its last complete pass over s tokens is a
chain of chunks 0 = n_0 < n_1 < ... < n_m = s with n_l - n_(l-1) <= C, and its time is the length of a path in
that graph. `exact_prefills_ns` finds the shortest one; `minorant_prefills_ns` bounds it from below where the
graph is large. Source: problem.md, section 5.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from cspsched.bounds.parts.batches import ExactArray
from cspsched.bounds.parts.work import WorkTable
from cspsched.problem.cost import INT64_SAFE, BatchFeatures, CostModel, IntArray, triangle

MAX_EDGES = 2**22
"""Largest chunk graph that is searched exactly."""


def can_search(cost: CostModel, max_batch_tokens: int, longest: int) -> bool:
    """Whether the chunk graph is small, and all its path lengths fit into int64."""
    chunk = min(max_batch_tokens, longest)
    worst = cost.batch_time_ns(
        BatchFeatures(chunk, chunk * longest, chunk, longest, 0, 1, 1, 0)  # no chunk costs more
    )
    return chunk * longest <= MAX_EDGES and worst * longest < INT64_SAFE


# Every bound of an instance, the percentiles and the members of the exact solver ask for the same times.
@lru_cache(maxsize=4)
def exact_prefills_ns(cost: CostModel, max_batch_tokens: int, longest: int) -> IntArray:
    """Shortest times to process s tokens and emit one, for s = 0..longest (entry 0 is 0), in nanoseconds."""
    reached = np.zeros(longest + 1, dtype=np.int64)
    for end in range(1, longest + 1):
        starts = np.arange(max(0, end - max_batch_tokens), end)
        reached[end] = (reached[starts] + _chunk_times_ns(cost, starts, end)).min()
    reached[1:] += cost.head.ceil(1)
    reached.setflags(write=False)
    return reached


def minorant_prefills_ns(tables: Iterable[WorkTable]) -> IntArray:
    """Lower bounds on the same times: the best minorant for each s, rounded up."""
    best: IntArray = np.maximum.reduce([_bounded_prefills_ns(table) for table in tables])
    return best


def decodes_ns(cost: CostModel, longest: int) -> IntArray:
    """Times of batches with one decode that leaves s tokens resident, for s = 1..longest (entry 0 is 0)."""
    context = np.arange(longest)
    one, zero = np.ones_like(context), np.zeros_like(context)
    times = cost.batch_times_ns(
        BatchFeatures(
            tokens=one,
            prefill_attention=zero,
            prefill_tokens=zero,
            prefill_context=zero,
            decode_context=context,
            num_generating=one,
            num_prefills=zero,
            num_decodes=one,
        )
    )
    return np.concatenate(([0], times))


def _chunk_times_ns(cost: CostModel, starts: IntArray, end: int) -> IntArray:
    """Times of lone chunks from each start to one end, without the token that the last one emits."""
    chunks = end - starts
    one, zero = np.ones_like(starts), np.zeros_like(starts)
    return cost.batch_times_ns(
        BatchFeatures(
            tokens=chunks,
            prefill_attention=triangle(end) - triangle(starts),
            prefill_tokens=chunks,
            prefill_context=starts,
            decode_context=zero,
            num_generating=zero,
            num_prefills=one,
            num_decodes=zero,
        )
    )


def _bounded_prefills_ns(table: WorkTable) -> IntArray:
    minorant = table.minorant
    per_batch = minorant.scaled("batch") + minorant.scaled("prefill_batch")
    batches = -(-np.arange(table.longest + 1).astype(object) // table.max_batch_tokens)
    times: ExactArray = -(-(table.prefills.astype(object) + per_batch * batches) // minorant.scale)
    times[0] = 0
    return times.astype(np.int64)
