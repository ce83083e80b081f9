"""Best-first search over states, compiled: exact where chunks are off or dominated and all requests are at 0.

A batch is a subset of the unfinished requests: those on the device decode, the others are prefilled whole.
Who sits out keeps its KV cache as long as it fits; evictions happen only where memory asks for them, and no
more of them than needed (keeping a cache never hurts, for it can be dropped before any later batch), or to
refill a request in the same batch, which can be cheaper than to pay for decodes beside prefills. States
are numbered; the best label of each is kept, and the smallest f = cost + heuristic is a lower bound on
every schedule at any time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cspsched.compiled.batch_time import CostTables, batch_time
from cspsched.compiled.jit import inner, merged, outer
from cspsched.exact.parts.label_store import Nodes, find_slot, is_full, label_of, new_label, pop, push, reach
from cspsched.exact.states.heuristic import heuristic_on_rest
from cspsched.exact.states.heuristic_tables import HeuristicTables
from cspsched.exact.states.space import Shape
from cspsched.problem.cost import IntArray

OPEN, FINISHED, FULL, EXHAUSTED = 0, 1, 2, 3
PROCESS, SIT_OUT, EVICT, REFILL = 0, 1, 2, 3
"""What a batch does to a request; of identical requests in one state the first has the lower number."""
WEIGHT_ONE = 16
"""A weight of 16 / 16 on the heuristic: the smallest f is a bound."""
NEVER = 2**40
"""Blocks of a choice that is not allowed: it never fits."""


class Scratch(NamedTuple):
    """Room for one expansion; arrays have one entry a request, or one more."""

    generated: IntArray
    who: IntArray
    """Unfinished requests."""
    twin: IntArray
    """Position in `who` of an identical request in the same state before each, or -1."""
    blocks: IntArray
    """What each choice occupies, shape (requests, 4)."""
    choice: IntArray
    used: IntArray
    """Blocks occupied by the first k requests, shape (requests + 1,)."""
    features: IntArray
    heuristic: IntArray


class Batch(NamedTuple):
    """Who is in a batch, as bits."""

    processed: int
    kept: int
    evicted: int
    refilled: int
    done: int


class Expansion(NamedTuple):
    """What expanding a label reads and writes."""

    shape: Shape
    prices: CostTables
    tables: HeuristicTables
    nodes: Nodes
    scratch: Scratch
    upper: int
    """Only what costs less is looked for."""
    weight: int
    """Of the heuristic; above `WEIGHT_ONE` schedules are found sooner, and prove nothing."""


def new_scratch(num_requests: int) -> Scratch:
    """Room for a number of requests."""
    return Scratch(
        generated=np.zeros(num_requests, dtype=np.int64),
        who=np.zeros(num_requests, dtype=np.int64),
        twin=np.zeros(num_requests, dtype=np.int64),
        blocks=np.zeros((num_requests, 4), dtype=np.int64),
        choice=np.zeros(num_requests + 1, dtype=np.int64),
        used=np.zeros(num_requests + 1, dtype=np.int64),
        features=np.zeros(8, dtype=np.int64),
        heuristic=np.zeros((4, num_requests + 1), dtype=np.int64),
    )


def number_of(shape: Shape, generated: IntArray) -> int:
    """Tokens generated of all requests, as one number."""
    return int(generated @ shape.strides)


@inner
def read_number(shape: Shape, number: int, generated: IntArray) -> None:
    """Write the tokens generated of each request into `generated`."""
    for i in range(len(generated)):
        generated[i] = number % (shape.outputs[i] + 1)
        number //= shape.outputs[i] + 1


@inner
def waiting_for(shape: Shape, generated: IntArray) -> int:
    """How many requests wait for a token that the objective counts; 1 for makespan."""
    if shape.counted < 0:
        return 1
    total = 0
    for i in range(len(generated)):
        if generated[i] < (1 if shape.counted == 1 else shape.outputs[i]):
            total += 1
    return total


@inner
def is_dominated(shape: Shape, nodes: Nodes, scratch: Scratch, label: int, resident: int) -> bool:
    """Whether a state with the same tokens and more residents costs no more: it can always evict later."""
    if not (shape.preemptive and shape.holding):
        return False
    absent = 0
    for i in range(len(shape.outputs)):
        if 0 < scratch.generated[i] < shape.outputs[i]:
            absent |= 1 << i
    absent &= ~resident
    extra = absent
    while extra:
        known = label_of(nodes, nodes.number[label], resident | extra)
        if known >= 0 and nodes.cost[known] <= nodes.cost[label]:
            return True
        extra = (extra - 1) & absent
    return False


@inner
def list_choices(shape: Shape, scratch: Scratch, resident: int) -> int:
    """Write down what each choice for each unfinished request occupies; returns how many there are."""
    count = 0
    for i in range(len(shape.outputs)):
        g = scratch.generated[i]
        if g == shape.outputs[i]:
            continue
        present = (resident >> i) & 1
        evictable = present and shape.preemptive
        scratch.who[count] = i
        scratch.blocks[count, PROCESS] = shape.blocks[i, g]
        if present:
            scratch.blocks[count, SIT_OUT] = shape.held[i, g] if shape.holding else NEVER
        else:
            scratch.blocks[count, SIT_OUT] = 0
        scratch.blocks[count, EVICT] = 0 if evictable else NEVER
        scratch.blocks[count, REFILL] = shape.blocks[i, g] if evictable else NEVER
        scratch.twin[count] = -1
        for k in range(count):
            j = scratch.who[k]
            if j == shape.twins[i] and scratch.generated[j] == g and (resident >> j) & 1 == present:
                scratch.twin[count] = k
        count += 1
    return count


@inner
def read_batch(shape: Shape, scratch: Scratch, count: int, resident: int) -> Batch:
    """Bits and features of the batch that the choices make."""
    processed, kept, evicted, refilled, done = 0, 0, 0, 0, 0
    features = scratch.features
    features[:] = 0
    for k in range(count):
        i, choice = scratch.who[k], scratch.choice[k]
        bit = 1 << i
        if choice == SIT_OUT:
            kept |= resident & bit
            continue
        if choice == EVICT:
            evicted |= bit
            continue
        g = scratch.generated[i]
        known = shape.prompts[i] + g
        processed |= bit
        if choice == PROCESS and resident & bit:
            features[0] += 1
            features[4] += known - 1
            features[7] += 1
        else:
            features[0] += known
            features[1] += known * (known + 1) // 2
            features[2] += known
            features[6] += 1
        if choice == REFILL:
            refilled |= bit
        features[5] += 1
        if g + 1 == shape.outputs[i]:
            done |= bit
    return Batch(processed, kept, evicted, refilled, done)


@inner
def is_allowed(shape: Shape, scratch: Scratch, batch: Batch, used: int) -> bool:
    """Whether a batch keeps the limits that are not KV blocks, and evicts no request that could stay."""
    features = scratch.features
    if (
        batch.processed == 0
        or features[5] > shape.max_batch_requests
        or features[0] > shape.max_batch_tokens
        or (features[6] and features[7] and not shape.hybrid)
        # Where decodes are cheaper beside decodes, a refill in place pays only if no decode is left.
        or (shape.decode_is_cheaper and batch.refilled and features[7])
    ):
        return False
    if batch.evicted and shape.holding:
        for i in range(len(shape.outputs)):
            if (batch.evicted >> i) & 1 and used + shape.held[i, scratch.generated[i]] <= shape.kv_blocks:
                return False
    return shape.preemptive or shape.holding or can_finish(shape, scratch.generated, batch.processed)


@inner
def can_finish(shape: Shape, generated: IntArray, processed: int) -> bool:
    """Whether those in a batch fit until they finish, if no request may sit out or be evicted."""
    longest = 0
    for i in range(len(generated)):
        if (processed >> i) & 1:
            longest = max(longest, shape.outputs[i] - generated[i])
    for later in range(1, longest):
        used = 0
        for i in range(len(generated)):
            if (processed >> i) & 1 and generated[i] + later < shape.outputs[i]:
                used += shape.blocks[i, generated[i] + later]
        if used > shape.kv_blocks:
            return False
    return True


@merged
def run_batch(e: Expansion, label: int, batch: Batch, waiting: int) -> None:
    """Reach the state behind a batch, if it is the cheapest way so far and can still beat the upper bound."""
    shape, nodes, scratch, upper = e.shape, e.nodes, e.scratch, e.upper
    n, generated, processed = len(shape.outputs), scratch.generated, batch.processed
    cost = nodes.cost[label] + batch_time(e.prices, scratch.features) * waiting
    if cost >= upper:
        return
    present = (batch.kept | processed) & ~batch.done
    number = nodes.number[label]
    for i in range(n):
        if (processed >> i) & 1:
            number += shape.strides[i]
    if is_full(nodes):
        nodes.sizes[3] = 1
        return
    slot = find_slot(nodes, number, present)
    target = int(nodes.slots[slot]) - 1
    if target >= 0:
        if nodes.cost[target] <= cost or cost + nodes.rest[target] >= upper:
            return
    else:
        for i in range(n):
            generated[i] += (processed >> i) & 1
        rest = heuristic_on_rest(shape, e.tables, generated, present, scratch.heuristic)
        for i in range(n):
            generated[i] -= (processed >> i) & 1
        if cost + rest >= upper:
            return
        target = new_label(nodes, slot, number, present, rest)
    f = cost + nodes.rest[target] * e.weight // WEIGHT_ONE
    reach(nodes, target, cost, f, label, processed, batch.evicted | batch.refilled)


@merged
def expand(e: Expansion, label: int) -> None:
    """Reach every state that one batch leads to: a choice for each unfinished request, one after another."""
    shape, nodes, scratch = e.shape, e.nodes, e.scratch
    resident = int(nodes.resident[label])
    read_number(shape, nodes.number[label], scratch.generated)
    count = list_choices(shape, scratch, resident)
    waiting = waiting_for(shape, scratch.generated)
    if is_dominated(shape, nodes, scratch, label, resident):
        return
    choice, used, blocks, twin = scratch.choice, scratch.used, scratch.blocks, scratch.twin
    depth, choice[0], capacity = 0, PROCESS - 1, shape.kv_blocks
    while depth >= 0:
        if depth == count:
            batch = read_batch(shape, scratch, count, resident)
            if is_allowed(shape, scratch, batch, used[count]):
                run_batch(e, label, batch, waiting)
            depth -= 1
            continue
        choice[depth] += 1
        if choice[depth] > REFILL:
            depth -= 1
            continue
        total = used[depth] + blocks[depth, choice[depth]]
        if total <= capacity and (twin[depth] < 0 or choice[twin[depth]] <= choice[depth]):
            used[depth + 1] = total
            depth += 1
            choice[depth] = PROCESS - 1


@outer
def advance(e: Expansion, goal: int, num_labels: int) -> int:
    """Expand labels until the goal is reached, nothing is left, room runs out, or enough for now."""
    nodes = e.nodes
    for _ in range(num_labels):
        if nodes.sizes[1] == 0:
            return EXHAUSTED
        label = pop(nodes)
        if nodes.closed[label]:
            continue
        if nodes.number[label] == goal:
            push(nodes, nodes.cost[label], label)
            return FINISHED
        nodes.closed[label] = 1
        nodes.sizes[2] += 1
        expand(e, label)
        if nodes.sizes[3]:
            # Some of what it leads to is missing, so it stays open, and the bound holds.
            nodes.closed[label] = 0
            push(nodes, nodes.cost[label] + nodes.rest[label], label)
            return FULL
    return OPEN
