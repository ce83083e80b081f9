"""Cheapest paths of resident states, compiled: what is left at least, if every token has a price.

A batch costs its kind's constant and what its tokens cost, less the prices of its tokens. A path ends with
no request on the device. Values are improved in place until nothing changes (Bellman and Ford). What was last
improved from where is a forest, as long as no cycle is negative; every cycle in it is a negative one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cspsched.compiled.jit import allocating
from cspsched.exact.prices.resident_states import Residents, state_of
from cspsched.problem.cost import IntArray

Column = npt.NDArray[Any]
UNREACHED = 2**61
DECODE, PREFILL, HYBRID, EVICT, NOTHING = 0, 1, 2, 3, 4


class Moves(NamedTuple):
    """What batches can do and cost, in parts of a nanosecond; arrays over (request, tokens generated)."""

    blocks: IntArray
    """KV blocks occupied while the next token is generated."""
    counts: IntArray
    """Tokens of each request that count."""
    strides: IntArray
    """Weight of each request's tokens in the code of a state."""
    capacity: int
    batch: IntArray
    """Constant cost of a batch of decodes, of prefills, and of both."""
    decode: IntArray
    prefill: IntArray
    preemptive: bool
    holding: bool


class ResidentPaths(NamedTuple):
    """Best paths to the end, shapes (states,)."""

    value: IntArray
    admitting: IntArray
    """The same from within a batch that is still to admit a request."""
    kind: Column
    choice: Column
    """Bits of the requests that decode, or the one that is evicted."""
    entry: Column
    """What is admitted, as request x width + tokens generated; times 2, plus 1 if another request follows."""


def new_paths(states: int) -> ResidentPaths:
    """Room for the paths from all states."""
    return ResidentPaths(
        value=np.empty(states, dtype=np.int64),
        admitting=np.empty(states, dtype=np.int64),
        kind=np.empty(states, dtype=np.int8),
        choice=np.zeros(states, dtype=np.int32),
        entry=np.zeros(states, dtype=np.int32),
    )


@allocating
def _admit(moves: Moves, residents: Residents, paths: ResidentPaths, prices: IntArray) -> None:
    """From within a batch in each state: whom to admit next, most residents first."""
    width = prices.shape[1]
    for state in range(len(residents.codes) - 1, -1, -1):
        # What is as good as before changes nothing: it may lead round in a circle that earns nothing.
        best, entry = paths.admitting[state], paths.entry[state]
        room = moves.capacity - residents.used[state]
        for i in range(len(moves.counts)):
            if residents.tokens[state, i]:
                continue
            for g in range(moves.counts[i] if moves.preemptive else 1):
                if moves.blocks[i, g] > room:
                    break
                code = residents.codes[state] + (g + 1) * moves.strides[i]
                target = state_of(residents.slots, residents.codes, code)
                rest, more = paths.value[residents.closed[target]], 0
                if paths.admitting[target] < rest:
                    rest, more = paths.admitting[target], 1
                if rest < UNREACHED and rest + moves.prefill[i, g] - prices[i, g] < best:
                    best = rest + moves.prefill[i, g] - prices[i, g]
                    entry = 2 * (i * width + g) + more
        paths.admitting[state] = best
        paths.entry[state] = entry


@allocating
def _improve(moves: Moves, residents: Residents, paths: ResidentPaths, prices: IntArray) -> bool:
    """Try every batch and eviction from every state once; whether anything got better."""
    changed = False
    for state in range(len(residents.codes)):
        if residents.closed[state] != state:
            continue
        best, kind, choice, present = paths.value[state], NOTHING, 0, 0
        for i in range(len(moves.counts)):
            tokens = residents.tokens[state, i]
            if tokens == 0:
                continue
            present |= 1 << i
            if moves.preemptive:
                code = residents.codes[state] - tokens * moves.strides[i]
                value = paths.value[state_of(residents.slots, residents.codes, code)]
                if value < best:
                    best, kind, choice = value, EVICT, i
        decoding = present
        while True:
            used, code, cost = residents.used[state], residents.codes[state], 0
            for i in range(len(moves.counts)):
                if (decoding >> i) & 1:
                    g = residents.tokens[state, i]
                    used += moves.blocks[i, g] - moves.blocks[i, g - 1]
                    code += moves.strides[i]
                    cost += moves.decode[i, g] - prices[i, g]
            if used <= moves.capacity and (moves.holding or decoding == present):
                target = state_of(residents.slots, residents.codes, code)
                which = HYBRID if decoding else PREFILL
                rest = paths.admitting[target]
                if rest < UNREACHED and rest + moves.batch[which] + cost < best:
                    best, kind, choice = rest + moves.batch[which] + cost, which, decoding
                rest = paths.value[residents.closed[target]]
                if decoding and rest < UNREACHED and rest + moves.batch[DECODE] + cost < best:
                    best, kind, choice = rest + moves.batch[DECODE] + cost, DECODE, decoding
            if decoding == 0:
                break
            decoding = (decoding - 1) & present
        if kind != NOTHING:
            paths.value[state], paths.kind[state], paths.choice[state] = best, kind, choice
            changed = True
    return changed


@allocating
def _step(
    moves: Moves, residents: Residents, paths: ResidentPaths, state: int, emitted: IntArray
) -> tuple[int, int]:
    """Take one step of the best path, count the tokens emitted; the state behind it, and its cost."""
    code, kind, choice = residents.codes[state], paths.kind[state], paths.choice[state]
    if kind == EVICT:
        code -= residents.tokens[state, choice] * moves.strides[choice]
        return state_of(residents.slots, residents.codes, code), 0
    cost = moves.batch[kind]
    for i in range(len(moves.counts)):
        if (choice >> i) & 1:
            g = residents.tokens[state, i]
            emitted[i, g] += 1
            cost += moves.decode[i, g]
            code += moves.strides[i]
    state = state_of(residents.slots, residents.codes, code)
    admits, width = kind != DECODE, moves.blocks.shape[1]
    while admits:
        admits = paths.entry[state] % 2 == 1
        i, g = paths.entry[state] // 2 // width, paths.entry[state] // 2 % width
        emitted[i, g] += 1
        cost += moves.prefill[i, g]
        code += (g + 1) * moves.strides[i]
        state = state_of(residents.slots, residents.codes, code)
    return int(residents.closed[state]), cost


@allocating
def _find_cycles(
    moves: Moves, residents: Residents, paths: ResidentPaths, emitted: IntArray, costs: IntArray
) -> int:
    """Write down cycles along which values have got better; how many there are."""
    seen = np.zeros(len(residents.codes), dtype=np.int32)
    scratch = np.zeros_like(emitted[0])
    found = 0
    for first in range(len(residents.codes)):
        state = first
        while paths.kind[state] != NOTHING and seen[state] == 0:
            seen[state] = first + 1
            state, _ = _step(moves, residents, paths, state, scratch)
        if paths.kind[state] == NOTHING or seen[state] != first + 1:
            continue
        start, costs[found] = state, 0
        emitted[found] = 0
        while True:
            state, cost = _step(moves, residents, paths, state, emitted[found])
            costs[found] += cost
            if state == start:
                break
        found += 1
        if found == len(emitted):
            break
    return found


@allocating
def settle(
    moves: Moves,
    residents: Residents,
    paths: ResidentPaths,
    prices: IntArray,
    emitted: IntArray,
    costs: IntArray,
) -> tuple[int, int]:
    """Find the best paths from every state under prices, shape (requests, tokens).

    Returns how many cycles that earn more than they cost were found and written down, with how often they
    emit each token and what they cost, and the number of sweeps; without any, everything is settled.
    """
    paths.value[:] = UNREACHED
    paths.value[0] = 0
    paths.admitting[:] = UNREACHED
    paths.kind[:] = NOTHING
    sweeps = 0
    while True:
        sweeps += 1
        _admit(moves, residents, paths, prices)
        if not _improve(moves, residents, paths, prices):
            return 0, sweeps
        found = _find_cycles(moves, residents, paths, emitted, costs)
        if found:
            return found, sweeps
