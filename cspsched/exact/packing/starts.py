"""Batches of the packing search, compiled: every set of requests that may start now, and where it leads.

A state is, for each request, the tokens generated; one between its first and its last token is processed in
every batch. Labels and heap are those of `cspsched.exact.parts.label_store`; no request sits out or is
evicted, so the numbers of tokens are all there is to a state.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cspsched.compiled.batch_time import CostTables, batch_time
from cspsched.compiled.jit import inner, merged, outer
from cspsched.exact.packing.heuristic import Rests, least_rest
from cspsched.exact.parts.label_store import Nodes, find_slot, is_full, new_label, pop, push, reach
from cspsched.exact.states.best_first import (
    EXHAUSTED,
    FINISHED,
    FULL,
    OPEN,
    WEIGHT_ONE,
    read_number,
    waiting_for,
)
from cspsched.exact.states.heuristic import heuristic_on_rest
from cspsched.exact.states.heuristic_tables import HeuristicTables
from cspsched.exact.states.space import Shape
from cspsched.problem.cost import IntArray


class Bench(NamedTuple):
    """Room for one expansion; arrays have one entry a request unless said otherwise."""

    generated: IntArray
    following: IntArray
    """Tokens generated after the batch."""
    who: IntArray
    """Requests that have not started."""
    starts: IntArray
    """Whether each of them starts: 0 or 1; -1 before either has been tried."""
    used: IntArray
    """KV blocks in this batch and those that follow, if no other request starts; shape (longest output,)."""
    features: IntArray
    """Of the batch, shape (8,)."""
    scratch: IntArray
    """For the heuristic, shape (4, requests + 1)."""


class Starting(NamedTuple):
    """What expanding a label reads and writes, as in `Expansion`."""

    shape: Shape
    prices: CostTables
    rests: Rests
    tables: HeuristicTables
    nodes: Nodes
    bench: Bench
    upper: int
    weight: int


def new_bench(outputs: IntArray) -> Bench:
    """Room for requests of some outputs."""
    count = len(outputs)
    return Bench(
        generated=np.zeros(count, dtype=np.int64),
        following=np.zeros(count, dtype=np.int64),
        who=np.zeros(count, dtype=np.int64),
        starts=np.zeros(count + 1, dtype=np.int64),
        used=np.zeros(int(outputs.max()), dtype=np.int64),
        features=np.zeros(8, dtype=np.int64),
        scratch=np.zeros((4, count + 1), dtype=np.int64),
    )


@inner
def set_out(shape: Shape, bench: Bench) -> int:
    """The batch without starts: its features, what memory it leaves; returns how many have not started."""
    bench.features[:] = 0
    bench.used[:] = 0
    waiting = 0
    for i in range(len(shape.outputs)):
        g = bench.generated[i]
        bench.following[i] = g
        if g == 0:
            bench.who[waiting] = i
            waiting += 1
        elif g < shape.outputs[i]:
            bench.following[i] = g + 1
            bench.features[0] += 1
            bench.features[4] += shape.prompts[i] + g - 1
            bench.features[5] += 1
            bench.features[7] += 1
            for later in range(shape.outputs[i] - g):
                bench.used[later] += shape.blocks[i, g + later]
    return waiting


@inner
def start(shape: Shape, bench: Bench, i: int, sign: int) -> None:
    """Add a request to the batch, or take it out again with sign -1."""
    prompt = shape.prompts[i]
    bench.following[i] += sign
    bench.features[0] += sign * prompt
    bench.features[1] += sign * (prompt * (prompt + 1) // 2)
    bench.features[2] += sign * prompt
    bench.features[5] += sign
    bench.features[6] += sign
    for later in range(shape.outputs[i]):
        bench.used[later] += sign * shape.blocks[i, later]


@inner
def may_start(shape: Shape, bench: Bench, i: int) -> bool:
    """Whether a request fits into the batch, and into memory until it finishes; its twin goes first.

    Later batches have one token of each that runs, so budget and seats ask for no more than now.
    """
    twin = shape.twins[i]
    if twin >= 0 and bench.following[twin] == 0:
        return False
    if bench.features[0] + shape.prompts[i] > shape.max_batch_tokens:
        return False
    if bench.features[5] == shape.max_batch_requests:
        return False
    for later in range(shape.outputs[i]):
        if bench.used[later] + shape.blocks[i, later] > shape.kv_blocks:
            return False
    return True


@outer
def rest_of(shape: Shape, rests: Rests, tables: HeuristicTables, generated: IntArray, bench: Bench) -> int:
    """Lower bound on what the objective still grows by: that of pairs or of the state search."""
    running = 0
    for i in range(len(generated)):
        if 0 < generated[i] < shape.outputs[i]:
            running |= 1 << i
    rest = heuristic_on_rest(shape, tables, generated, running, bench.scratch)
    return int(max(rest, least_rest(rests, generated, bench.scratch[0])))


@merged
def run_batch(e: Starting, label: int) -> None:
    """Reach the state behind the batch, if it is the cheapest way so far and can beat the upper bound."""
    shape, nodes, bench, upper = e.shape, e.nodes, e.bench, e.upper
    number, processed = nodes.number[label], 0
    for i in range(len(shape.outputs)):
        if bench.following[i] > bench.generated[i]:
            number += shape.strides[i]
            processed |= 1 << i
    if processed == 0:
        return
    cost = nodes.cost[label] + batch_time(e.prices, bench.features) * waiting_for(shape, bench.generated)
    if cost >= upper:
        return
    if is_full(nodes):
        nodes.sizes[3] = 1
        return
    slot = find_slot(nodes, number, 0)
    target = int(nodes.slots[slot]) - 1
    if target >= 0:
        if nodes.cost[target] <= cost or cost + nodes.rest[target] >= upper:
            return
    else:
        rest = rest_of(shape, e.rests, e.tables, bench.following, bench)
        if cost + rest >= upper:
            return
        target = new_label(nodes, slot, number, 0, rest)
    f = cost + nodes.rest[target] * e.weight // WEIGHT_ONE
    reach(nodes, target, cost, f, label, processed, 0)


@merged
def expand(e: Starting, label: int) -> None:
    """Reach every state that one batch leads to: each request that has not started does so, or waits."""
    shape, nodes, bench = e.shape, e.nodes, e.bench
    read_number(shape, nodes.number[label], bench.generated)
    count = set_out(shape, bench)
    depth, bench.starts[0] = 0, -1
    while depth >= 0:
        if depth == count:
            run_batch(e, label)
            depth -= 1
            continue
        i = bench.who[depth]
        if bench.starts[depth] < 0 and may_start(shape, bench, i):
            start(shape, bench, i, 1)
            bench.starts[depth] = 1
        elif bench.starts[depth] == 0:
            depth -= 1
            continue
        else:
            if bench.starts[depth] == 1:
                start(shape, bench, i, -1)
            bench.starts[depth] = 0
        depth += 1
        bench.starts[depth] = -1


@outer
def advance_packing(e: Starting, goal: int, num_labels: int) -> int:
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
