"""Compiled: decodes in lockstep, for policies that could choose per request but seldom do.

In nearly every step each decode gets one token, in an order that stays. Requests that do so are in lockstep:
their rows are as they were when they joined; what a step needs of all of them together are their number, the
sums of their contexts and lengths, and how many have full blocks; who finishes stands in a calendar. The
running ones in LISTED are then only the others. A step that has to look at single decodes first lets all of
them part: then every row says what its request has, and LISTED holds all that run, in the policy's order.
"""

from __future__ import annotations

from cspsched.simulate.kernel.batch import blocks_of
from cspsched.simulate.kernel.each.layout import (
    BY_ARRIVAL,
    BY_IMPORTANCE,
    CALENDAR_MASK,
    CLIENT,
    CLIENTS,
    DECODES_AT,
    IN_LOCKSTEP,
    IS_LOCKED,
    JOINED,
    KEY,
    LAST_NUMBER,
    LAST_RANK,
    LAST_STEP,
    LOCKED,
    LOCKED_CONTEXT,
    LOCKED_END,
    LOCKED_OF_CLIENT,
    LOCKED_PLACE,
    LOCKED_TOTAL,
    LOOKAHEAD,
    LOOP,
    MAX_MODEL_LEN,
    MAY_LOCK,
    MODE,
    MUST_UNLOCK,
    NUM_BATCHED,
    NUM_IN_BATCH,
    NUM_LOCKED,
    USED_TOKENS,
)
from cspsched.simulate.kernel.each.rules import Loop, Mode
from cspsched.simulate.kernel.each.runs import LARGEST_NUMBER, close_run
from cspsched.simulate.kernel.jit import inner
from cspsched.simulate.kernel.layout import (
    BLOCK_TOKENS,
    BLOCKS,
    CONTEXT,
    DECODE_NOW,
    DECODES,
    FREE,
    GENERATED,
    IMPORTANCE,
    NEXT,
    NOBODY,
    NUMBER,
    OUTPUT,
    PHASE,
    PLACE,
    PREVIOUS,
    PROMPT,
    SHIFT,
    SINCE,
    STEPS,
    Kernel,
)

FAMILY = int(Loop.FAMILY)
SGLANG, PADDED = int(Mode.SGLANG), int(Mode.PADDED)
MOST_NEW_TOKENS = 4096
"""Of SGLang; see `cspsched.policies.sglang`."""
FEWEST_HOLES = 32
"""Fewer are not worth closing."""


@inner
def locked_growth(k: Kernel) -> int:
    """KV blocks that the decodes in lockstep take in their next step."""
    return int(k.residues[k.now[SHIFT]])


@inner
def can_go_on(k: Kernel) -> bool:
    """Whether numbers are left for those that join; else the runs have to be numbered anew."""
    return bool(k.now[LAST_NUMBER] < LARGEST_NUMBER)


@inner
def can_decode_all(k: Kernel) -> bool:
    """Whether free blocks are left when every decode in lockstep has taken one, if it needs one."""
    return bool(can_go_on(k) and (not k.now[NUM_LOCKED] or locked_growth(k) < k.now[FREE]))


@inner
def decode_all(k: Kernel) -> None:
    """Put a token of every decode in lockstep into the batch."""
    now = k.now
    if now[NUM_LOCKED]:
        now[DECODE_NOW], now[DECODES_AT] = 1, now[NUM_BATCHED]
        now[USED_TOKENS] += now[NUM_LOCKED]
        now[NUM_IN_BATCH] += now[NUM_LOCKED]
        now[FREE] -= locked_growth(k)


@inner
def is_regular(k: Kernel, request: int) -> bool:
    """Whether a decode holds all blocks that it will need, or takes one whenever its last is full."""
    now, row = k.now, k.rows[request]
    held, end = row[BLOCKS] * now[BLOCK_TOKENS], _end_tokens(k, request)
    if now[LOOKAHEAD] and end > now[MAX_MODEL_LEN]:
        return False
    if now[MODE] == SGLANG and row[OUTPUT] - row[GENERATED] > MOST_NEW_TOKENS:
        return False
    return bool(held >= end or 0 <= held - row[CONTEXT] - now[LOOKAHEAD] < now[BLOCK_TOKENS])


@inner
def _end_tokens(k: Kernel, request: int) -> int:
    """Tokens for which a request needs blocks at last."""
    row = k.rows[request]
    return int(row[PROMPT] + row[OUTPUT] - 1 + k.now[LOOKAHEAD])


@inner
def _rank(k: Kernel, request: int) -> int:
    """What the running requests are sorted by; 0 if they stay in the order in which they joined."""
    if k.now[BY_IMPORTANCE]:
        return int(k.rows[request, IMPORTANCE])
    if k.now[BY_ARRIVAL] or k.now[MODE] == PADDED:
        return int(k.wide[request, KEY])
    return 0


@inner
def join_new(k: Kernel, request: int) -> None:
    """A request that decodes from the next step on joins, if it is regular and its place is the last."""
    now, row = k.now, k.rows[request]
    if now[LOOP] == FAMILY:
        now[LAST_NUMBER] += 1
        row[PLACE] = now[LAST_NUMBER]
    rank = _rank(k, request)
    if now[MUST_UNLOCK] or rank < now[LAST_RANK] or not is_regular(k, request):
        now[MUST_UNLOCK] = 1
        return
    now[LAST_RANK] = rank
    row[NUMBER], row[SINCE] = row[PLACE], now[STEPS]
    _join(k, request)


@inner
def _join(k: Kernel, request: int) -> None:
    """Enter the list, the sums and the calendar; the run of decodes may be open already."""
    now, row = k.now, k.rows[request]
    if now[LOCKED_END] == len(k.slots) or now[LOCKED_END] > 2 * now[NUM_LOCKED] + FEWEST_HOLES:
        _close_holes(k)
    k.slots[now[LOCKED_END], LOCKED] = request
    row[LOCKED_PLACE] = now[LOCKED_END]
    now[LOCKED_END] += 1
    row[PHASE] = IN_LOCKSTEP
    row[JOINED] = now[STEPS]
    now[NUM_LOCKED] += 1
    now[LOCKED_CONTEXT] += row[CONTEXT]
    now[LOCKED_TOTAL] += row[PROMPT] + row[OUTPUT]
    if now[CLIENTS]:
        k.rows[row[CLIENT], LOCKED_OF_CLIENT] += 1
    _count_residue(k, request, 1)
    slot = _last_step(k, request) & now[CALENDAR_MASK]
    following = k.calendar[slot]
    row[NEXT], row[PREVIOUS] = following, NOBODY
    if following != NOBODY:
        k.rows[following, PREVIOUS] = request
    k.calendar[slot] = request


@inner
def part(k: Kernel, request: int) -> None:
    """Leave the lockstep: the row says again what the request has."""
    now, row = k.now, k.rows[request]
    following, previous = row[NEXT], row[PREVIOUS]
    if following != NOBODY:
        k.rows[following, PREVIOUS] = previous
    if previous != NOBODY:
        k.rows[previous, NEXT] = following
    else:
        k.calendar[_last_step(k, request) & now[CALENDAR_MASK]] = following
    k.slots[row[LOCKED_PLACE], LOCKED] = NOBODY
    steps = now[STEPS] - row[JOINED]
    row[CONTEXT] += steps
    if now[CLIENTS]:
        k.rows[row[CLIENT], LOCKED_OF_CLIENT] -= 1
    _count_residue(k, request, -1)
    if _grows(k, request):
        row[BLOCKS] = blocks_of(k, row[CONTEXT] + now[LOOKAHEAD])
    row[GENERATED] += steps
    row[PHASE] = DECODES
    if steps:
        row[LAST_STEP] = now[STEPS] - 1
    now[NUM_LOCKED] -= 1
    now[LOCKED_CONTEXT] -= row[CONTEXT]
    now[LOCKED_TOTAL] -= row[PROMPT] + row[OUTPUT]


@inner
def _grows(k: Kernel, request: int) -> bool:
    """Whether a request will need more blocks than its row says."""
    return bool(k.rows[request, BLOCKS] * k.now[BLOCK_TOKENS] < _end_tokens(k, request))


@inner
def _count_residue(k: Kernel, request: int, number: int) -> None:
    """Count a request where its context puts it, if it takes blocks in lockstep at all."""
    now = k.now
    if _grows(k, request):
        tokens = k.rows[request, CONTEXT] + now[LOOKAHEAD] + now[SHIFT]
        k.residues[tokens % now[BLOCK_TOKENS]] += number


@inner
def _last_step(k: Kernel, request: int) -> int:
    """Decode step that generates the last token of a request in lockstep."""
    row = k.rows[request]
    return int(row[JOINED] + row[OUTPUT] - row[GENERATED] - 1)


@inner
def _close_holes(k: Kernel) -> None:
    """Move the list together; about half of it is holes, so this is O(1) for each that joins."""
    end = 0
    for place in range(k.now[LOCKED_END]):
        request = k.slots[place, LOCKED]
        if request != NOBODY:
            k.slots[end, LOCKED] = request
            k.rows[request, LOCKED_PLACE] = end
            end += 1
    k.now[LOCKED_END] = end


@inner
def unlock(k: Kernel, column: int, count: int, first: int) -> int:
    """Let all part, and enter them into a list of so many requests; how many it has then.

    Parameters
    ----------
    first
        Where they stand in the list, in the order in which they joined. In some loops all keep the order of
        their admissions instead.
    """
    now, num_parted = k.now, int(k.now[NUM_LOCKED])
    for position in range(count - 1, first - 1, -1):
        k.slots[position + num_parted, column] = k.slots[position, column]
    place = first
    for position in range(now[LOCKED_END]):
        request = int(k.slots[position, LOCKED])
        if request != NOBODY:
            part(k, request)
            k.slots[place, column] = request
            place += 1
    now[IS_LOCKED] = now[MUST_UNLOCK] = now[MAY_LOCK] = now[LOCKED_END] = 0
    if now[LOOP] != FAMILY:
        _sort_by_place(k, column, count + num_parted)
    return count + num_parted


@inner
def _sort_by_place(k: Kernel, column: int, count: int) -> None:
    """Sort a list of requests by the order of their admissions; it is nearly sorted already."""
    for position in range(1, count):
        request, place = k.slots[position, column], position
        number = k.rows[request, PLACE]
        while place and k.rows[k.slots[place - 1, column], PLACE] > number:
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
        row = k.rows[request]
        if row[PHASE] != DECODES or row[GENERATED] == row[OUTPUT]:
            last += 1
            row[PLACE] = last
            k.slots[kept, column] = request
            kept += 1
            continue
        if row[LAST_STEP] != now[STEPS] - 1 or row[NUMBER] <= last:
            close_run(k, request)
            row[NUMBER], row[SINCE] = last + 1, now[STEPS]
        last = row[PLACE] = row[NUMBER]
        _join(k, request)
    now[LAST_NUMBER], now[IS_LOCKED], now[MAY_LOCK] = last, 1, 0
    return kept


@inner
def _can_lock(k: Kernel, column: int, count: int) -> bool:
    """Whether the list is as lockstep needs it: regular decodes in order, in some loops before all others."""
    now, num_others = k.now, 0
    now[LAST_RANK] = 0
    for position in range(count):
        request = int(k.slots[position, column])
        row = k.rows[request]
        if row[PHASE] != DECODES or row[GENERATED] == row[OUTPUT]:
            num_others += 1
            continue
        rank = _rank(k, request)
        if rank < now[LAST_RANK] or not is_regular(k, request) or (num_others and now[LOOP] == FAMILY):
            return False
        now[LAST_RANK] = rank
    return bool(not num_others or now[MODE] != PADDED)
