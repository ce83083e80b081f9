"""Labels of the state search, compiled: a hash table from states to labels, and a heap of those to expand.

Tables are reserved at full size and touched as they fill, so that room costs memory only where it is used.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cspsched.compiled.jit import inner, outer
from cspsched.problem.cost import IntArray

Column = npt.NDArray[Any]
HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class Nodes(NamedTuple):
    """One label a state: what it is, cost, heuristic, how it was reached; a hash table; a heap."""

    number: IntArray
    """Tokens generated of all requests, as one number."""
    resident: Column
    """Bits of the requests on the device."""
    cost: IntArray
    rest: IntArray
    """Lower bound on what the objective still grows."""
    parent: Column
    processed: Column
    """Bits of the requests processed in the batch that led here."""
    evicted: Column
    """Bits of the requests evicted before it."""
    closed: Column
    slots: Column
    """Label + 1 of the state that hashes here, 0 if the slot is free."""
    heap_f: IntArray
    heap_label: Column
    sizes: IntArray
    """Labels in use, heap entries in use, labels expanded, and 1 if something did not fit."""


def new_nodes(capacity: int) -> Nodes:
    """Room for a number of labels."""
    slots = 1 << (2 * capacity - 1).bit_length()
    return Nodes(
        number=np.empty(capacity, dtype=np.int64),
        resident=np.empty(capacity, dtype=np.int32),
        cost=np.empty(capacity, dtype=np.int64),
        rest=np.empty(capacity, dtype=np.int64),
        parent=np.empty(capacity, dtype=np.int32),
        processed=np.empty(capacity, dtype=np.int32),
        evicted=np.empty(capacity, dtype=np.int32),
        closed=np.zeros(capacity, dtype=np.int8),
        slots=np.zeros(slots, dtype=np.int32),
        heap_f=np.empty(2 * capacity, dtype=np.int64),
        heap_label=np.empty(2 * capacity, dtype=np.int32),
        sizes=np.zeros(4, dtype=np.int64),
    )


@inner
def push(nodes: Nodes, f: int, label: int) -> None:
    """Add to the heap; among equal f the label found later comes first, for it is deeper."""
    position = nodes.sizes[1]
    nodes.sizes[1] += 1
    while position:
        above = (position - 1) >> 1
        if nodes.heap_f[above] < f or (nodes.heap_f[above] == f and nodes.heap_label[above] >= label):
            break
        nodes.heap_f[position] = nodes.heap_f[above]
        nodes.heap_label[position] = nodes.heap_label[above]
        position = above
    nodes.heap_f[position] = f
    nodes.heap_label[position] = label


@inner
def pop(nodes: Nodes) -> int:
    """Label with the smallest f, taken off the heap."""
    top = int(nodes.heap_label[0])
    nodes.sizes[1] -= 1
    size = nodes.sizes[1]
    f, label = nodes.heap_f[size], nodes.heap_label[size]
    position = 0
    while 2 * position + 1 < size:
        below = 2 * position + 1
        if below + 1 < size and (
            nodes.heap_f[below + 1] < nodes.heap_f[below]
            or (
                nodes.heap_f[below + 1] == nodes.heap_f[below]
                and nodes.heap_label[below + 1] > nodes.heap_label[below]
            )
        ):
            below += 1
        if f < nodes.heap_f[below] or (f == nodes.heap_f[below] and label >= nodes.heap_label[below]):
            break
        nodes.heap_f[position] = nodes.heap_f[below]
        nodes.heap_label[position] = nodes.heap_label[below]
        position = below
    nodes.heap_f[position] = f
    nodes.heap_label[position] = label
    return top


@inner
def find_slot(nodes: Nodes, number: int, resident: int) -> int:
    """Slot of a state in the hash table: its own, or the free one where it belongs."""
    mask = len(nodes.slots) - 1
    mixed = (np.uint64(number) * HASH_FACTOR + np.uint64(resident)) * HASH_FACTOR
    slot = int(mixed >> np.uint64(20)) & mask
    while True:
        label = nodes.slots[slot] - 1
        if label < 0 or (nodes.number[label] == number and nodes.resident[label] == resident):
            return slot
        slot = (slot + 1) & mask


@inner
def is_full(nodes: Nodes) -> bool:
    """Whether no further label can be taken in; one heap entry is kept back."""
    return bool(nodes.sizes[0] == len(nodes.cost) or nodes.sizes[1] + 1 >= len(nodes.heap_f))


@outer
def label_of(nodes: Nodes, number: int, resident: int) -> int:
    """Label of a state, or -1."""
    return int(nodes.slots[find_slot(nodes, number, resident)]) - 1


@inner
def new_label(nodes: Nodes, slot: int, number: int, resident: int, rest: int) -> int:
    """Give a state its label in a free slot."""
    label = int(nodes.sizes[0])
    nodes.sizes[0] += 1
    nodes.slots[slot] = label + 1
    nodes.number[label] = number
    nodes.resident[label] = resident
    nodes.rest[label] = rest
    return label


@inner
def reach(nodes: Nodes, label: int, cost: int, f: int, parent: int, processed: int, evicted: int) -> None:
    """Give a label a cheaper way to its state, and queue it again."""
    nodes.cost[label] = cost
    nodes.parent[label] = parent
    nodes.processed[label] = processed
    nodes.evicted[label] = evicted
    nodes.closed[label] = 0
    push(nodes, f, label)


@outer
def start_from(nodes: Nodes, rest: int) -> None:
    """Make the label of the state in which no request has started."""
    reach(nodes, new_label(nodes, find_slot(nodes, 0, 0), 0, 0, rest), 0, rest, -1, 0, 0)
