"""Best-first search over states, compiled: exact where chunks are off or dominated and all requests are at 0.

A batch is a subset of the unfinished requests: those on the device decode, the others are prefilled whole.
Who sits out keeps its KV cache as long as it fits; evictions happen only where memory asks for them, and no
more of them than needed (keeping a cache never hurts, for it can be dropped before any later batch), or to
refill a request in the same batch, which can be cheaper than to pay for decodes beside prefills. States
are numbered; the best label of each is kept, and the smallest f = cost + floor on what is left is a lower
bound on every schedule at any time.
"""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np

from cspsched.exact.state_space import Floors, Prices, Shape
from cspsched.problem.cost import IntArray

NEVER = np.int64(2**62)
OPEN, FINISHED, FULL, EXHAUSTED = 0, 1, 2, 3
HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class Nodes(NamedTuple):
    """Labels: number of the state, cost, how it was reached; a hash table; a heap of (f, label)."""

    state: IntArray
    cost: IntArray
    parent: IntArray
    processed: IntArray
    """Bits of the requests processed in the batch that led here."""
    evicted: IntArray
    """Bits of the requests evicted before it."""
    closed: IntArray
    slots: IntArray
    heap_f: IntArray
    heap_label: IntArray
    sizes: IntArray
    """Labels in use, heap entries in use, labels expanded."""


def new_nodes(capacity: int) -> Nodes:
    """Room for a number of labels."""
    slots = 1 << (2 * capacity - 1).bit_length()
    state, cost, parent, processed, evicted = np.empty((5, capacity), dtype=np.int64)
    return Nodes(
        state=state,
        cost=cost,
        parent=parent,
        processed=processed,
        evicted=evicted,
        closed=np.zeros(capacity, dtype=np.int64),
        slots=np.full(slots, -1, dtype=np.int64),
        heap_f=np.empty(2 * capacity, dtype=np.int64),
        heap_label=np.empty(2 * capacity, dtype=np.int64),
        sizes=np.zeros(3, dtype=np.int64),
    )


@nb.njit(cache=True, nogil=True)
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


@nb.njit(cache=True, nogil=True)
def pop(nodes: Nodes) -> int:
    """Label with the smallest f, taken off the heap."""
    top: int = nodes.heap_label[0]
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


@nb.njit(cache=True, nogil=True)
def find_slot(nodes: Nodes, state: int) -> int:
    """Slot of a state in the hash table: its own, or the free one where it belongs."""
    mask = len(nodes.slots) - 1
    slot = int((np.uint64(state) * HASH_FACTOR) >> np.uint64(20)) & mask
    while nodes.slots[slot] >= 0 and nodes.state[nodes.slots[slot]] != state:
        slot = (slot + 1) & mask
    return slot


@nb.njit(cache=True, nogil=True)
def number_of(shape: Shape, generated: IntArray, resident: int) -> int:
    """Number of a state."""
    total = 0
    for i in range(len(generated)):
        total += generated[i] * shape.strides[i]
    return (total << len(generated)) | resident


@nb.njit(cache=True, nogil=True)
def read_state(shape: Shape, state: int, generated: IntArray) -> int:
    """Tokens generated of a state, written into `generated`; returns the bits of the residents."""
    n = len(generated)
    rest = state >> n
    for i in range(n):
        generated[i] = rest % (shape.outputs[i] + 1)
        rest //= shape.outputs[i] + 1
    return state & ((1 << n) - 1)


@nb.njit(cache=True, nogil=True)
def duration_of(shape: Shape, prices: Prices, generated: IntArray, resident: int, processed: int) -> int:
    """Time of a batch, or -1 if it breaks the token budget or mixes phases where that is not allowed."""
    features = np.zeros(8, dtype=np.int64)
    for i in range(len(generated)):
        if not (processed >> i) & 1:
            continue
        known = shape.prompts[i] + generated[i]
        features[5] += 1
        if (resident >> i) & 1:
            features[0] += 1
            features[4] += known - 1
            features[7] += 1
        else:
            features[0] += known
            features[1] += known * (known + 1) // 2
            features[2] += known
            features[6] += 1
    if features[0] > shape.max_batch_tokens or (features[6] and features[7] and not shape.hybrid):
        return -1
    total = prices.step
    if features[6]:
        total += prices.prefill_batch
    if features[7]:
        total += prices.decode_batch
    for term in range(len(prices.feature)):
        x = features[prices.feature[term]]
        piece = 0
        while piece + 1 < prices.knots.shape[1] and prices.knots[term, piece + 1] <= x:
            piece += 1
        numerator = prices.bases[term, piece] + prices.slopes[term, piece] * (x - prices.knots[term, piece])
        denominator = prices.denominators[term]
        if prices.rounded[term]:
            total += -(-numerator // denominator) * prices.scale
        else:
            total += numerator * (prices.scale // denominator)
    return total


@nb.njit(cache=True, nogil=True)
def floor_on_rest(shape: Shape, floors: Floors, generated: IntArray, resident: int) -> int:
    """Lower bound on what the objective still grows.

    The k-th request to get its last token needs at least as many batches as the k-th shortest has tokens, as
    the k smallest sums of sizes fill, and the k smallest amounts of work on top.
    """
    n = len(generated)
    target = np.ones(n, dtype=np.int64) if shape.counted == 1 else shape.outputs
    left, waiting, refills = np.empty(n, dtype=np.int64), 0, 0
    who = np.empty(n, dtype=np.int64)
    for i in range(n):
        if generated[i] < target[i]:
            who[waiting] = i
            left[waiting] = target[i] - generated[i]
            waiting += 1
            refills += 1 - ((resident >> i) & 1)
    if waiting == 0:
        return 0
    batches = np.sort(left[:waiting])
    sizes = np.empty(waiting, dtype=np.int64)
    for function in range(floors.areas.shape[0]):
        for k in range(waiting):
            sizes[k] = floors.areas[function, who[k], generated[who[k]]]
        ordered = np.sort(sizes)
        total = 0
        for k in range(waiting):
            total += ordered[k]
            batches[k] = max(batches[k], -(-total // floors.capacity))
    best = 0
    for m in range(len(floors.alphas)):
        for k in range(waiting):
            i = who[k]
            sizes[k] = floors.work[m, i, generated[i]]
            if not (resident >> i) & 1:
                sizes[k] += floors.refill[m, i, generated[i]]
        ordered = np.sort(sizes)
        rest, work = 0, 0
        for k in range(waiting):
            work += ordered[k]
            if shape.counted >= 0:
                rest += floors.alphas[m] * batches[k] + work
        if shape.counted < 0:
            rest = floors.alphas[m] * batches[waiting - 1] + work
        if refills:
            rest += floors.surcharges[m]
        best = max(best, rest)
    return best


@nb.njit(cache=True, nogil=True)
def waiting_for(shape: Shape, generated: IntArray) -> int:
    """How many requests wait for a token that the objective counts; 1 for makespan."""
    if shape.counted < 0:
        return 1
    total = 0
    for i in range(len(generated)):
        if generated[i] < (1 if shape.counted == 1 else shape.outputs[i]):
            total += 1
    return total


@nb.njit(cache=True, nogil=True)
def reach(nodes: Nodes, state: int, cost: int, f: int, parent: int, processed: int, evicted: int) -> None:
    """Take note of a way to a state if it is the cheapest so far."""
    slot = find_slot(nodes, state)
    label = nodes.slots[slot]
    if label < 0:
        label = nodes.sizes[0]
        nodes.sizes[0] += 1
        nodes.slots[slot] = label
        nodes.state[label] = state
    elif nodes.cost[label] <= cost:
        return
    nodes.cost[label] = cost
    nodes.parent[label] = parent
    nodes.processed[label] = processed
    nodes.evicted[label] = evicted
    nodes.closed[label] = 0
    push(nodes, f, label)


@nb.njit(cache=True, nogil=True)
def is_dominated(shape: Shape, nodes: Nodes, state: int, resident: int, cost: int, unfinished: int) -> bool:
    """Whether a state with the same tokens and more residents costs no more: it can always evict later."""
    if not (shape.preemptive and shape.holding):
        return False
    n = len(shape.outputs)
    absent = unfinished & ~resident
    extra = absent
    while extra:
        label = nodes.slots[find_slot(nodes, ((state >> n) << n) | resident | extra)]
        if label >= 0 and nodes.cost[label] <= cost:
            return True
        extra = (extra - 1) & absent
    return False


@nb.njit(cache=True, nogil=True)
def room_needed(shape: Shape, generated: IntArray, processed: int, held: int) -> int:
    """Blocks that a batch and those who sit it out need beyond the capacity; 0 or less if they fit."""
    total = -shape.kv_blocks
    for i in range(len(generated)):
        if (processed >> i) & 1:
            total += shape.blocks[i, generated[i]]
        elif (held >> i) & 1:
            total += shape.held[i, generated[i]]
    return total


@nb.njit(cache=True, nogil=True)
def is_minimal(shape: Shape, generated: IntArray, evicted: int, needed: int) -> bool:
    """Whether evicting a set frees enough, and would not without any one of it."""
    freed, smallest = 0, NEVER
    for i in range(len(generated)):
        if (evicted >> i) & 1:
            freed += shape.held[i, generated[i]]
            smallest = min(smallest, shape.held[i, generated[i]])
    return bool(freed >= needed and freed - smallest < needed)


@nb.njit(cache=True, nogil=True)
def is_canonical(shape: Shape, generated: IntArray, resident: int, processed: int) -> bool:
    """Symmetry: of identical requests in the same state, the first are processed first."""
    for i in range(len(generated)):
        twin = shape.twins[i]
        if twin < 0 or not (processed >> i) & 1 or (processed >> twin) & 1:
            continue
        if generated[i] == generated[twin] and (resident >> i) & 1 == (resident >> twin) & 1:
            return False
    return True


@nb.njit(cache=True, nogil=True)
def expand(
    shape: Shape, prices: Prices, floors: Floors, nodes: Nodes, label: int, upper: int, generated: IntArray
) -> None:
    """Reach every state that one batch leads to."""
    n = len(shape.outputs)
    resident = read_state(shape, nodes.state[label], generated)
    unfinished = 0
    for i in range(n):
        if generated[i] < shape.outputs[i]:
            unfinished |= 1 << i
    if is_dominated(shape, nodes, nodes.state[label], resident, nodes.cost[label], unfinished):
        return
    waiting = waiting_for(shape, generated)
    processed = unfinished
    while processed:
        seats = 0
        for i in range(n):
            seats += (processed >> i) & 1
        if (
            seats <= shape.max_batch_requests
            and is_canonical(shape, generated, resident, processed)
            and room_needed(shape, generated, processed, 0) <= 0
        ):
            mine = processed & resident if shape.preemptive else 0
            refilled = mine
            while True:
                if refilled == 0 or refilled == mine or not shape.decode_is_cheaper:
                    duration = duration_of(shape, prices, generated, resident & ~refilled, processed)
                    cost = nodes.cost[label] + duration * waiting
                    if duration >= 0 and cost < upper:
                        run_batch(
                            shape, floors, nodes, label, upper, generated, resident, processed, refilled, cost
                        )
                if refilled == 0:
                    break
                refilled = (refilled - 1) & mine
        processed = (processed - 1) & unfinished


@nb.njit(cache=True, nogil=True)
def run_batch(
    shape: Shape,
    floors: Floors,
    nodes: Nodes,
    label: int,
    upper: int,
    generated: IntArray,
    resident: int,
    processed: int,
    refilled: int,
    cost: int,
) -> None:
    """Reach the states behind a batch, one for each minimal way to make room for it."""
    n = len(generated)
    after = generated.copy()
    done = 0
    for i in range(n):
        after[i] += (processed >> i) & 1
        if after[i] == shape.outputs[i]:
            done |= 1 << i
    held = resident & ~processed
    needed = room_needed(shape, generated, processed, held)
    evicted = held
    while True:
        if not shape.holding:
            fits = evicted == held and (held == 0 or shape.preemptive)
        elif needed <= 0:
            fits = evicted == 0
        else:
            fits = shape.preemptive and is_minimal(shape, generated, evicted, needed)
        if fits:
            present = ((resident & ~evicted) | processed) & ~done
            f = cost + floor_on_rest(shape, floors, after, present)
            if f < upper:
                reach(nodes, number_of(shape, after, present), cost, f, label, processed, evicted | refilled)
        if evicted == 0:
            break
        evicted = (evicted - 1) & held


@nb.njit(cache=True, nogil=True)
def advance(
    shape: Shape, prices: Prices, floors: Floors, nodes: Nodes, upper: int, goal: int, num_labels: int
) -> int:
    """Expand labels until the goal is reached, nothing is left, room runs out, or enough for now."""
    generated = np.empty(len(shape.outputs), dtype=np.int64)
    spare = 3 ** len(shape.outputs)
    for _ in range(num_labels):
        if nodes.sizes[1] == 0:
            return EXHAUSTED
        if nodes.sizes[0] + spare > len(nodes.state) or nodes.sizes[1] + spare > len(nodes.heap_f):
            return FULL
        label = pop(nodes)
        if nodes.closed[label]:
            continue
        if nodes.state[label] == goal:
            push(nodes, nodes.cost[label], label)
            return FINISHED
        nodes.closed[label] = 1
        nodes.sizes[2] += 1
        expand(shape, prices, floors, nodes, label, upper, generated)
    return OPEN
