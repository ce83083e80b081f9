"""A parametric scheduler, compiled: what the local search moves in is its parameters, the plan.

Batch by batch it takes the requests in the plan's order. A request that has been released is processed as
far as budget, seats and memory go: a decode, or the next chunk of a prompt or refill. For a decode, requests
later in the order are evicted. Everything it makes obeys the rules of the problem, for every plan.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cspsched.compiled.batch_time import CostTables, batch_time
from cspsched.compiled.jit import allocating
from cspsched.problem.cost import IntArray

NO_SCHEDULE = 2**62
"""Value of a plan that gets stuck or goes round in circles."""


class Workload(NamedTuple):
    """Requests, limits and switches."""

    arrivals: IntArray
    prompts: IntArray
    outputs: IntArray
    kv_blocks: int
    block_tokens: int
    max_batch_tokens: int
    max_batch_requests: int
    chunks: bool
    preemptive: bool
    reserves: bool
    makespan: int
    """Weights of the objective, as in `cspsched.problem.linear_form`; here and in the next fields."""
    first: IntArray
    span: IntArray
    max_gap: int
    max_span: IntArray
    late: IntArray
    first_limits: IntArray
    """Longest time to the first token of a request that is not late."""
    span_limits: IntArray
    """The same from there to its last token."""
    moment: int
    """Weight of all times together: a value divided by it is like the wait of a request."""
    longest: int
    """Tokens of the longest request, which a chunk never exceeds."""
    halvings: int
    """How often that can be halved."""
    most_batches: int


class Plan(NamedTuple):
    """What can be chosen; all shapes (requests,) but the last."""

    order: IntArray
    release: IntArray
    """Not processed before, in nanoseconds; at least the arrival."""
    chunk: IntArray
    """Most tokens of the request in a batch."""
    modes: IntArray
    """Shape (3,): admit only whom memory can take to its end; evict for admissions too; tokens of a batch."""


class Trace(NamedTuple):
    """What was done, for one run: entries as (batch, request, tokens), evictions as (batch, request)."""

    entries: IntArray
    evictions: IntArray
    sizes: IntArray
    """Entries and evictions written."""


@allocating
def _blocks(load: Workload, tokens: int) -> int:
    return -(-tokens // load.block_tokens)


@allocating
def _occupied(load: Workload, i: int, tokens: int) -> int:
    """Blocks of a request that holds so many tokens."""
    if tokens and load.reserves:
        return _blocks(load, load.prompts[i] + load.outputs[i] - 1)
    return _blocks(load, tokens)


@allocating
def _note(column: IntArray, sizes: IntArray, which: int, first: int, second: int, third: int) -> None:
    row = sizes[which]
    if row < len(column):
        column[row, 0] = first
        column[row, 1] = second
        if column.shape[1] > 2:
            column[row, 2] = third
        sizes[which] += 1


class Caches(NamedTuple):
    """KV entries of each request, and whether it decodes."""

    kv: IntArray
    decoding: IntArray


@allocating
def _make_room(
    load: Workload, plan: Plan, trace: Trace, caches: Caches, batch: int, rank: int, excess: int
) -> int:
    """Evict from the end of the order until so many blocks are free; how many were freed."""
    freed, last, (kv, decoding) = 0, len(plan.order) - 1, caches
    while freed < excess and last > rank:
        victim = plan.order[last]
        if kv[victim]:
            freed += _occupied(load, victim, kv[victim])
            kv[victim] = 0
            decoding[victim] = 0
            _note(trace.evictions, trace.sizes, 1, batch, victim, 0)
        last -= 1
    return freed


@allocating
def _admits(load: Workload, plan: Plan, kv: IntArray, i: int) -> bool:
    """Whether memory can take a request and all residents to their ends."""
    total = _blocks(load, load.prompts[i] + load.outputs[i] - 1)
    for k in range(len(kv)):
        if kv[k]:
            total += _blocks(load, load.prompts[k] + load.outputs[k] - 1)
    return bool(total <= load.kv_blocks)


@allocating
def run_plan(load: Workload, prices: CostTables, plan: Plan, trace: Trace, best: int) -> int:
    """Value of a plan, by the weights; `NO_SCHEDULE` as soon as it must be more than `best`."""
    n = len(plan.order)
    kv, generated = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    decoding, features = np.zeros(n, dtype=np.int64), np.zeros(8, dtype=np.int64)
    taken = np.zeros(n, dtype=np.int64)
    first, last = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    gap, span = 0, 0
    trace.sizes[:] = 0
    clock, total, unfinished = 0, 0, n
    for batch in range(load.most_batches):
        features[:] = 0
        used = 0
        for i in range(n):
            taken[i] = 0
            used += _occupied(load, i, kv[i])
        for rank in range(n):
            i = plan.order[rank]
            if generated[i] == load.outputs[i] or plan.release[i] > clock:
                continue
            known, room = load.prompts[i] + generated[i], plan.modes[2] - features[0]
            seats = features[6] + features[7]
            if room == 0 or seats == load.max_batch_requests:
                break
            tokens = 1 if decoding[i] else min(known - kv[i], room)
            if load.chunks and not decoding[i]:
                tokens = min(tokens, plan.chunk[i])
            elif not load.chunks and tokens < known - kv[i]:
                continue
            if kv[i] == 0 and plan.modes[0] and not _admits(load, plan, kv, i):
                continue
            excess = used + _occupied(load, i, kv[i] + tokens) - _occupied(load, i, kv[i]) - load.kv_blocks
            if excess > 0:
                if load.preemptive and (kv[i] or plan.modes[1]):
                    freed = _make_room(load, plan, trace, Caches(kv, decoding), batch, rank, excess)
                    used -= freed
                    excess -= freed
                if excess > 0:
                    continue
            used += _occupied(load, i, kv[i] + tokens) - _occupied(load, i, kv[i])
            taken[i] = tokens
            features[0] += tokens
            if decoding[i]:
                features[4] += kv[i]
                features[7] += 1
            else:
                features[1] += (kv[i] + tokens) * (kv[i] + tokens + 1) // 2 - kv[i] * (kv[i] + 1) // 2
                features[2] += tokens
                features[3] += kv[i]
                features[6] += 1
            if kv[i] + tokens == known:
                features[5] += 1
            _note(trace.entries, trace.sizes, 0, batch, i, tokens)
        if features[0] == 0:
            following = NO_SCHEDULE
            for i in range(n):
                if generated[i] < load.outputs[i] and plan.release[i] > clock:
                    following = min(following, plan.release[i])
            if following == NO_SCHEDULE:
                return NO_SCHEDULE
            clock = following
            continue
        clock += batch_time(prices, features)
        for i in range(n):
            if taken[i] == 0:
                continue
            kv[i] += taken[i]
            if kv[i] < load.prompts[i] + generated[i]:
                continue
            generated[i] += 1
            decoding[i] = 1
            if generated[i] == 1:
                first[i] = clock - load.arrivals[i]
                total += load.first[i] * first[i]
            else:
                gap = max(gap, clock - last[i])
            last[i] = clock
            if generated[i] == load.outputs[i]:
                own = clock - load.arrivals[i] - first[i]
                total += load.span[i] * own
                span = max(span, load.max_span[i] * own)
                if first[i] > load.first_limits[i] or own > load.span_limits[i]:
                    total += load.late[i]
                kv[i], decoding[i] = 0, 0
                unfinished -= 1
        value = total + load.makespan * clock + load.max_gap * gap + span
        if value > best:
            return NO_SCHEDULE
        if unfinished == 0:
            return value
    return NO_SCHEDULE
