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


def can_search(cost: CostModel, max_batch_tokens: int, longest: int, num_graphs: int = 1) -> bool:
    """Whether the chunk graph, or so many, is small, and all its path lengths fit into int64."""
    chunk = min(max_batch_tokens, longest)
    worst = cost.batch_time_ns(
        BatchFeatures(chunk, chunk * longest, chunk, longest, 0, 1, 1, 0)  # no chunk costs more
    )
    return chunk * longest * num_graphs <= MAX_EDGES and worst * longest < INT64_SAFE


# Every bound of an instance, the percentiles and the members of the exact solver ask for the same times.
@lru_cache(maxsize=64)
def exact_prefills_ns(
    cost: CostModel, max_batch_tokens: int, longest: int, found: int = 0, block: int = 1
) -> IntArray:
    """Shortest times to process s tokens and emit one, for s = 0..longest (entry 0 is 0), in nanoseconds.

    Of the first `found` tokens, whole blocks may come out of the prefix cache.
    """
    reached, times = np.zeros((2, longest + 1), dtype=np.int64)
    for end in range(1, longest + 1):
        starts = np.arange(max(0, end - max_batch_tokens), end)
        times[end] = (reached[starts] + _chunk_times_ns(cost, starts, end)).min()
        reached[end] = 0 if end <= found and end % block == 0 else times[end]
    times[1:] += cost.head.ceil(1)
    times.setflags(write=False)
    return times


def minorant_prefills_ns(tables: Iterable[WorkTable]) -> IntArray:
    """Lower bounds on the times of prefills of s tokens: the best minorant for each s, rounded up."""
    return _best_of(
        (table, table.prefills, -(-np.arange(table.longest + 1) // table.max_batch_tokens))
        for table in tables
    )


def minorant_refills_ns(tables: Iterable[WorkTable]) -> IntArray:
    """Lower bounds on the times of refills that find all but the last token in the prefix cache."""
    return _best_of((table, table.refills, np.sign(np.arange(table.longest + 1))) for table in tables)


def minorant_firsts_ns(tables: Iterable[WorkTable], prompts: IntArray, found: IntArray) -> IntArray:
    """Lower bounds on the times of prompts whose first tokens may come out of the prefix cache."""
    return _best_of(
        (table, table.after_hits(prompts, found, found), -(-(prompts - found) // table.max_batch_tokens))
        for table in tables
    )


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


def _best_of(bounded: Iterable[tuple[WorkTable, ExactArray, IntArray]]) -> IntArray:
    """Work and number of batches under each minorant, in nanoseconds rounded up; the best one each."""
    best: IntArray = np.maximum.reduce([_bounded_ns(*one) for one in bounded])
    return best


def _bounded_ns(table: WorkTable, work: ExactArray, batches: IntArray) -> IntArray:
    minorant = table.minorant
    per_batch = minorant.scaled("batch") + minorant.scaled("prefill_batch")
    times: ExactArray = -(-(work.astype(object) + per_batch * batches.astype(object)) // minorant.scale)
    return times.astype(np.int64) * (batches > 0)
