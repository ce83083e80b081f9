"""Heuristic of the packing search, compiled: what is left if all running requests but two are forgotten.

Requests run to completion and all are at 0. A state is who has not started, as a bit mask, and for each
running request its tokens generated. Take all but at most two of the running ones away: whatever the whole
can do next, the rest can do too, with no less memory free and no longer batches. So the optimum of what is
left over is a lower bound, and it obeys a recursion that is small enough to be tabled:

    v(U, K) = min( excess of a batch of K + v(U, K one token on),
                   min over k in U that fit beside K of max over K' of v(U - k, K') )

where K' runs through the pairs in K + k. v counts what the objective grows by beyond what each request takes
anyway, alone (`own`); what is taken anyway is added for all requests, forgotten or not. A third request
beside two is checked against both when it starts. Then one of the three is forgotten: whichever leaves most.
"""

from __future__ import annotations

from typing import NamedTuple

from cspsched.compiled.jit import inner, outer
from cspsched.exact.parts.label_store import Column
from cspsched.problem.cost import IntArray


class Rests(NamedTuple):
    """Tables of v in units of `unit`, capped; U is a mask over requests, g the tokens generated so far.

    A request with g = 0 has been started and will be prefilled in the next batch.
    """

    outputs: IntArray
    blocks: IntArray
    """KV blocks occupied while the token after the g-th is generated, shape (requests, tokens + 1)."""
    kv_blocks: int
    own: IntArray
    """What each request takes anyway from each g on, shape (requests, tokens + 1)."""
    unit: int
    cap: int
    """Nothing is told apart beyond it, for no schedule that is still of interest takes so long."""
    offsets: IntArray
    """Where the states of a pair i < j begin in a row of all pairs, shape (requests, requests)."""
    one_waiting: IntArray
    """Excess of a batch of one request for each that has not started, shape (requests, tokens)."""
    one_excess: IntArray
    """The excess that is there besides."""
    two_waiting: IntArray
    """The same for pairs, shape (pair states,); -1 in `two_excess` where they do not fit."""
    two_excess: IntArray
    thirds: IntArray
    """Bits of the requests that may start beside a pair."""
    none: Column
    """v with no request running, shape (masks,)."""
    one: Column
    """Shape (masks, requests, tokens)."""
    two: Column
    """Pair by pair, masks without the two bits of the pair, then both g."""


@inner
def without_bits(mask: int, i: int, j: int) -> int:
    """A mask with the bits i < j taken out and those above moved down."""
    mask = (mask & ((1 << j) - 1)) | ((mask >> (j + 1)) << j)
    return (mask & ((1 << i) - 1)) | ((mask >> (i + 1)) << i)


@inner
def row_of(rests: Rests, mask: int, i: int, j: int) -> int:
    """Where the values of the pair i < j beside a mask begin in `two`."""
    n = len(rests.outputs)
    size = rests.outputs[i] * rests.outputs[j]
    return int((rests.offsets[i, j] << (n - 2)) + without_bits(mask, i, j) * size)


@inner
def pair_rest(rests: Rests, mask: int, i: int, gi: int, j: int, gj: int) -> int:
    """Value v of a mask and two running requests."""
    if i > j:
        i, gi, j, gj = j, gj, i, gi
    return int(rests.two[row_of(rests, mask, i, j) + gi * rests.outputs[j] + gj])


@inner
def fit_together(rests: Rests, who: IntArray, generated: IntArray, count: int) -> bool:
    """Whether some running requests fit until they finish; memory is fullest when one of them does."""
    for last in range(count):
        later = rests.outputs[who[last]] - generated[last] - 1
        used = 0
        for k in range(count):
            if generated[k] + later < rests.outputs[who[k]]:
                used += rests.blocks[who[k], generated[k] + later]
        if used > rests.kv_blocks:
            return False
    return True


@outer
def list_thirds(rests: Rests, who: IntArray, generated: IntArray) -> None:
    """Write down for every state of every pair who may start beside it, and mark the pairs that do not fit.

    Parameters
    ----------
    who, generated
        Scratch, shape (3,) each.
    """
    n = len(rests.outputs)
    for i in range(n):
        for j in range(i + 1, n):
            for state in range(rests.outputs[i] * rests.outputs[j]):
                who[0], who[1] = i, j
                generated[0], generated[1] = state // rests.outputs[j], state % rests.outputs[j]
                generated[2] = 0
                place = rests.offsets[i, j] + state
                if not fit_together(rests, who, generated, 2):
                    rests.two_excess[place] = -1
                    continue
                for k in range(n):
                    who[2] = k
                    if k != i and k != j and fit_together(rests, who, generated, 3):
                        rests.thirds[place] |= 1 << k


@outer
def fill_tables(rests: Rests, first: int, last: int) -> None:
    """Fill in the values of the masks first..last - 1; those of all smaller masks are there."""
    n = len(rests.outputs)
    for mask in range(first, last):
        waiting = 0
        for i in range(n):
            waiting += (mask >> i) & 1
        _fill_none(rests, mask)
        for i in range(n):
            if (mask >> i) & 1 == 0:
                _fill_one(rests, mask, i, waiting)
        for i in range(n):
            for j in range(i + 1, n):
                if ((mask >> i) | (mask >> j)) & 1 == 0:
                    _fill_two(rests, mask, i, j, waiting)


@inner
def _fill_none(rests: Rests, mask: int) -> None:
    best = rests.cap if mask else 0
    for k in range(len(rests.outputs)):
        if (mask >> k) & 1:
            best = min(best, rests.one[mask & ~(1 << k), k, 0])
    rests.none[mask] = best


@inner
def _fill_one(rests: Rests, mask: int, i: int, waiting: int) -> None:
    """One runs: it goes on, or another starts beside it."""
    n = len(rests.outputs)
    following = int(rests.none[mask])
    for g in range(rests.outputs[i] - 1, -1, -1):
        best = following + rests.one_waiting[i, g] * waiting + rests.one_excess[i, g]
        for k in range(n):
            if (mask >> k) & 1:
                state = g * rests.outputs[k] if i < k else g
                place = rests.offsets[min(i, k), max(i, k)] + state
                if rests.two_excess[place] >= 0:
                    best = min(best, pair_rest(rests, mask & ~(1 << k), i, g, k, 0))
        following = min(best, rests.cap)
        rests.one[mask, i, g] = following


@inner
def _fill_two(rests: Rests, mask: int, i: int, j: int, waiting: int) -> None:
    """Two run: both go on, or a third starts and one of the three is forgotten."""
    oi, oj = rests.outputs[i], rests.outputs[j]
    row = row_of(rests, mask, i, j)
    for gi in range(oi - 1, -1, -1):
        for gj in range(oj - 1, -1, -1):
            state = gi * oj + gj
            place = rests.offsets[i, j] + state
            if rests.two_excess[place] < 0:
                rests.two[row + state] = rests.cap
                continue
            if gi + 1 == oi and gj + 1 == oj:
                best = int(rests.none[mask])
            elif gi + 1 == oi:
                best = int(rests.one[mask, j, gj + 1])
            elif gj + 1 == oj:
                best = int(rests.one[mask, i, gi + 1])
            else:
                best = int(rests.two[row + state + oj + 1])
            best = min(rests.cap, best + rests.two_waiting[place] * waiting + rests.two_excess[place])
            others, k = rests.thirds[place] & mask, 0
            while others:
                if others & 1:
                    left = mask & ~(1 << k)
                    value = int(rests.two[row_of(rests, left, i, j) + state])
                    if value < best:
                        value = max(value, pair_rest(rests, left, i, gi, k, 0))
                    if value < best:
                        value = max(value, pair_rest(rests, left, j, gj, k, 0))
                    best = min(best, value)
                others >>= 1
                k += 1
            rests.two[row + state] = best


@outer
def least_rest(rests: Rests, generated: IntArray, who: IntArray) -> int:
    """Lower bound on what the objective still grows by, before the next batch; all with g = 0 wait.

    Parameters
    ----------
    who
        Scratch, shape (requests,).
    """
    mask, count, own = 0, 0, 0
    for i in range(len(generated)):
        own += rests.own[i, generated[i]]
        if generated[i] == 0:
            mask |= 1 << i
        elif generated[i] < rests.outputs[i]:
            who[count] = i
            count += 1
    best = int(rests.none[mask])
    if count == 1:
        best = int(rests.one[mask, who[0], generated[who[0]]])
    for a in range(count):
        for b in range(a):
            best = max(best, pair_rest(rests, mask, who[b], generated[who[b]], who[a], generated[who[a]]))
    return int(own + best * rests.unit)
