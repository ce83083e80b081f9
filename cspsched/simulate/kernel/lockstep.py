"""Compiled: decodes in lockstep, for policies that could choose per request but seldom do.

In nearly every step each decode gets one token, in an order that stays. Requests that do so are in lockstep:
their rows are as they were when they joined; what a step needs of all of them together are their number, the
sums of their contexts and lengths, and how many have full blocks; who finishes stands in a calendar. The
running ones in LISTED are then only the others. A step that has to look at single decodes first lets all of
them part: then every row says what its request has, and LISTED holds all that run, in the policy's order.
"""

from __future__ import annotations

from cspsched.compiled.jit import inner
from cspsched.simulate.kernel.actions import blocks_of
from cspsched.simulate.kernel.columns import (
    IN_LOCKSTEP,
    LOCKED,
)
from cspsched.simulate.kernel.layout import DECODES, Kernel
from cspsched.simulate.kernel.records import NO_REQUEST
from cspsched.simulate.kernel.runs import LARGEST_NUMBER, close_run

FEWEST_HOLES = 32
"""Fewer are not worth closing."""


@inner
def locked_growth(k: Kernel) -> int:
    """KV blocks that the decodes in lockstep take in their next step."""
    return int(k.residues[k.now.shift])


@inner
def can_go_on(k: Kernel) -> bool:
    """Whether numbers are left for those that join; else the runs have to be numbered anew."""
    return bool(k.now.last_number < LARGEST_NUMBER)


@inner
def can_decode_all(k: Kernel) -> bool:
    """Whether free blocks are left when every decode in lockstep has taken one, if it needs one."""
    return bool(can_go_on(k) and (not k.now.num_locked or locked_growth(k) < k.now.free_blocks))


@inner
def decode_all(k: Kernel) -> None:
    """Put a token of every decode in lockstep into the batch."""
    now = k.now
    if now.num_locked:
        now.decode_now, now.decodes_at = 1, now.num_batched
        now.used_tokens += now.num_locked
        now.num_in_batch += now.num_locked
        now.free_blocks -= locked_growth(k)


@inner
def is_regular(k: Kernel, request: int) -> bool:
    """Whether a decode holds all blocks that it will need, or takes one whenever its last is full."""
    now, row = k.now, k.requests[request]
    held, end = row.blocks * now.block_tokens, _end_tokens(k, request)
    if now.lookahead and end > now.max_model_len:
        return False
    if now.most_new_tokens and row.expected_tokens - row.generated > now.most_new_tokens:
        return False
    return bool(held >= end or 0 <= held - row.kv_tokens - now.lookahead < now.block_tokens)


@inner
def _end_tokens(k: Kernel, request: int) -> int:
    """Tokens for which a request needs blocks at last."""
    row = k.requests[request]
    return int(row.prompt_tokens + row.output_tokens - 1 + k.now.lookahead)


@inner
def _rank(k: Kernel, request: int) -> int:
    """What the running requests are sorted by; 0 if they stay in the order in which they joined."""
    return int(k.requests[request].key) if k.now.sorts_by_key else 0


@inner
def join_new(k: Kernel, request: int) -> None:
    """A request that decodes from the next step on joins, if it is regular and its place is the last."""
    now, row = k.now, k.requests[request]
    if now.keeps_order:
        now.last_number += 1
        row.place = now.last_number
    rank = _rank(k, request)
    if now.must_unlock or rank < now.last_rank or not is_regular(k, request):
        now.must_unlock = 1
        return
    now.last_rank = rank
    row.number, row.since = row.place, now.num_decode_steps
    _join(k, request)


@inner
def _join(k: Kernel, request: int) -> None:
    """Enter the list, the sums and the calendar; the run of decodes may be open already."""
    now, row = k.now, k.requests[request]
    if now.locked_end == len(k.slots) or now.locked_end > 2 * now.num_locked + FEWEST_HOLES:
        _close_holes(k)
    k.slots[now.locked_end, LOCKED] = request
    row.locked_place = now.locked_end
    now.locked_end += 1
    row.phase = IN_LOCKSTEP
    row.joined = now.num_decode_steps
    now.num_locked += 1
    now.locked_context += row.kv_tokens
    now.locked_total += row.prompt_tokens + row.expected_tokens
    if now.clients:
        k.notes[k.notes[request].client].locked_of_client += 1
    _count_residue(k, request, 1)
    slot = _last_step(k, request) & now.calendar_mask
    following = k.calendar[slot]
    row.next, row.previous = following, NO_REQUEST
    if following != NO_REQUEST:
        k.requests[following].previous = request
    k.calendar[slot] = request


@inner
def part(k: Kernel, request: int) -> None:
    """Leave the lockstep: the row says again what the request has."""
    now, row = k.now, k.requests[request]
    following, previous = row.next, row.previous
    if following != NO_REQUEST:
        k.requests[following].previous = previous
    if previous != NO_REQUEST:
        k.requests[previous].next = following
    else:
        k.calendar[_last_step(k, request) & now.calendar_mask] = following
    k.slots[row.locked_place, LOCKED] = NO_REQUEST
    steps = now.num_decode_steps - row.joined
    row.kv_tokens += steps
    if now.clients:
        k.notes[k.notes[request].client].locked_of_client -= 1
    _count_residue(k, request, -1)
    if _grows(k, request):
        row.blocks = blocks_of(k, row.kv_tokens + now.lookahead)
    row.generated += steps
    row.phase = DECODES
    if steps:
        row.last_step = now.num_decode_steps - 1
    now.num_locked -= 1
    now.locked_context -= row.kv_tokens
    now.locked_total -= row.prompt_tokens + row.expected_tokens


@inner
def _grows(k: Kernel, request: int) -> bool:
    """Whether a request will need more blocks than its row says."""
    return bool(k.requests[request].blocks * k.now.block_tokens < _end_tokens(k, request))


@inner
def _count_residue(k: Kernel, request: int, number: int) -> None:
    """Count a request where its context puts it, if it takes blocks in lockstep at all."""
    now = k.now
    if _grows(k, request):
        tokens = k.requests[request].kv_tokens + now.lookahead + now.shift
        k.residues[tokens % now.block_tokens] += number


@inner
def _last_step(k: Kernel, request: int) -> int:
    """Decode step that generates the last token of a request in lockstep."""
    row = k.requests[request]
    return int(row.joined + row.output_tokens - row.generated - 1)


@inner
def _close_holes(k: Kernel) -> None:
    """Move the list together; about half of it is holes, so this is O(1) for each that joins."""
    end = 0
    for place in range(k.now.locked_end):
        request = k.slots[place, LOCKED]
        if request != NO_REQUEST:
            k.slots[end, LOCKED] = request
            k.requests[request].locked_place = end
            end += 1
    k.now.locked_end = end


@inner
def unlock(k: Kernel, column: int, count: int, first: int) -> int:
    """Let all part, and enter them into a list of so many requests; how many it has then.

    Parameters
    ----------
    first
        Where they stand in the list, in the order in which they joined. In some loops all keep the order of
        their admissions instead.
    """
    now, num_parted = k.now, int(k.now.num_locked)
    for position in range(count - 1, first - 1, -1):
        k.slots[position + num_parted, column] = k.slots[position, column]
    place = first
    for position in range(now.locked_end):
        request = int(k.slots[position, LOCKED])
        if request != NO_REQUEST:
            part(k, request)
            k.slots[place, column] = request
            place += 1
    now.is_locked = now.must_unlock = now.may_lock = now.locked_end = 0
    if not now.keeps_order:
        _sort_by_place(k, column, count + num_parted)
    return count + num_parted


@inner
def _sort_by_place(k: Kernel, column: int, count: int) -> None:
    """Sort a list of requests by the order of their admissions; it is nearly sorted already."""
    for position in range(1, count):
        request, place = k.slots[position, column], position
        number = k.requests[request].place
        while place and k.requests[k.slots[place - 1, column]].place > number:
            k.slots[place, column] = k.slots[place - 1, column]
            place -= 1
        k.slots[place, column] = request


@inner
def lock(k: Kernel, column: int, count: int) -> int:
    """Let all decodes of a list join, unless one is not regular; how many others are left in it."""
    now, kept, last = k.now, 0, 0
    if not _can_lock(k, column, count):
        return count
    for position in range(count):
        request = int(k.slots[position, column])
        row = k.requests[request]
        if row.phase != DECODES or row.generated == row.output_tokens:
            last += 1
            row.place = last
            k.slots[kept, column] = request
            kept += 1
            continue
        if row.last_step != now.num_decode_steps - 1 or row.number <= last:
            close_run(k, request)
            row.number, row.since = last + 1, now.num_decode_steps
        last = row.place = row.number
        _join(k, request)
    now.last_number, now.is_locked, now.may_lock = last, 1, 0
    return kept


@inner
def _can_lock(k: Kernel, column: int, count: int) -> bool:
    """Whether the list is as lockstep needs it: regular decodes in order, in some loops before all others."""
    now, num_others = k.now, 0
    now.last_rank = 0
    for position in range(count):
        request = int(k.slots[position, column])
        row = k.requests[request]
        if row.phase != DECODES or row.generated == row.output_tokens:
            num_others += 1
            continue
        rank = _rank(k, request)
        if rank < now.last_rank or not is_regular(k, request) or (num_others and now.keeps_order):
            return False
        now.last_rank = rank
    return True
