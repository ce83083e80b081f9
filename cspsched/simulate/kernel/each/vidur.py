"""Compiled: Vidur's replica schedulers with one pipeline stage (`VidurRun`).

IDLE holds the running requests in the order in which they came back from a batch, the first NUM_IDLE of them.
"""

from __future__ import annotations

from cspsched.simulate.kernel.each.batch import decodes, missing_blocks, schedule
from cspsched.simulate.kernel.each.family_parts import admit_waiting, continue_prefills, preempt_to_front
from cspsched.simulate.kernel.each.layout import (
    BATCHED,
    CALENDAR_MASK,
    GROUPS,
    IDLE,
    IN_LOCKSTEP,
    IS_FULL,
    IS_LOCKED,
    LOCKED_CONTEXT,
    MAY_LOCK,
    MODE,
    MOST_IN_BATCH,
    MUST_UNLOCK,
    NUM_BATCHED,
    NUM_IDLE,
    NUM_IN_BATCH,
    NUM_LOCKED,
    RESERVES,
    SECOND_LIST,
    TOKENS,
)
from cspsched.simulate.kernel.each.lists import sort_by_key
from cspsched.simulate.kernel.each.lockstep import can_decode_all, decode_all, lock, unlock
from cspsched.simulate.kernel.each.rules import Mode
from cspsched.simulate.kernel.jit import inner, merged
from cspsched.simulate.kernel.layout import FREE, NOBODY, PHASE, QUEUED, RUNNING, WAITING, Kernel
from cspsched.simulate.kernel.repeat import repeat_decodes
from cspsched.simulate.kernel.rules import Reserve

PADDED, STALL_FREE = int(Mode.PADDED), int(Mode.STALL_FREE)
FIXED = int(Reserve.FIXED)


@inner
def take_back(k: Kernel) -> None:
    """Put those of the last batch that have not finished behind those that were left out of it.

    Decodes in lockstep are neither; they go on only if nobody is left out.
    """
    now, num_left = k.now, int(k.now[NUM_IDLE])
    for position in range(now[NUM_BATCHED]):
        request = k.slots[position, BATCHED]
        if request != NOBODY and QUEUED < k.rows[request, PHASE] < IN_LOCKSTEP:
            k.slots[now[NUM_IDLE], IDLE] = request
            now[NUM_IDLE] += 1
    if now[IS_LOCKED]:
        if now[MUST_UNLOCK] or num_left or (now[NUM_IDLE] and now[MODE] == PADDED):
            now[NUM_IDLE] = unlock(k, IDLE, int(now[NUM_IDLE]), num_left)
    elif now[MAY_LOCK]:
        now[NUM_IDLE] = lock(k, IDLE, int(now[NUM_IDLE]))


@inner
def may_repeat(k: Kernel) -> bool:
    """Whether all that run decode in lockstep, and nobody can be admitted."""
    now = k.now
    if not now[IS_LOCKED] or not now[NUM_LOCKED] or now[NUM_LOCKED] != now[RUNNING]:
        return False
    return bool(now[NUM_LOCKED] <= now[MOST_IN_BATCH] and (not now[WAITING] or now[GROUPS]))


@inner
def repeat(k: Kernel) -> bool:
    """Run batches of the same decodes; whether there was one."""
    now, count = k.now, int(k.now[NUM_LOCKED])
    grows, mask = now[RESERVES] != FIXED, int(now[CALENDAR_MASK])
    steps = repeat_decodes(k, count, int(now[LOCKED_CONTEXT]), mask, grows)
    now[LOCKED_CONTEXT] += count * steps
    # Nobody of the last batch is to be taken back once more.
    now[NUM_BATCHED] = 0
    return steps > 0


@merged
def vidur_step(k: Kernel) -> None:
    """Decide a batch, and keep who is left out of it."""
    now, mode = k.now, k.now[MODE]
    now[IS_FULL] = now[GROUPS] and now[RUNNING]
    if mode == PADDED:
        _prompts_alone(k)
    else:
        _decodes_first(k)
    if mode == STALL_FREE:
        sort_by_key(k, IDLE, int(now[NUM_IDLE]))
    kept = 0
    for position in range(now[NUM_IDLE]):
        request = k.slots[position, IDLE]
        if not k.rows[request, TOKENS]:
            k.slots[kept, IDLE] = request
            kept += 1
    now[NUM_IDLE] = kept


@merged
def _decodes_first(k: Kernel) -> None:
    """Decodes, then started prefills, then the queue."""
    now = k.now
    num_started = _decode_idle(k)
    used = continue_prefills(k, num_started, int(now[NUM_IN_BATCH]))
    # Prefills that were passed by stand in front of those whose turn has not come.
    count = 0
    for position in range(num_started):
        count += not k.rows[k.slots[position, SECOND_LIST], TOKENS]
    for position in range(now[NUM_IDLE] - 1, -1, -1):
        k.slots[position + count, IDLE] = k.slots[position, IDLE]
    place = 0
    for position in range(num_started):
        request = k.slots[position, SECOND_LIST]
        if not k.rows[request, TOKENS]:
            k.slots[place, IDLE] = request
            place += 1
    now[NUM_IDLE] += count
    admit_waiting(k, used, int(now[FREE]))


@merged
def _prompts_alone(k: Kernel) -> None:
    """Prompts; if there is none, decodes in the order of arrival."""
    now, num_started = k.now, 0
    for position in range(now[NUM_IDLE]):
        request = int(k.slots[position, IDLE])
        if not decodes(k, request):
            k.slots[num_started, SECOND_LIST] = request
            num_started += 1
    used = continue_prefills(k, num_started, 0)
    admit_waiting(k, used, int(now[FREE]))
    if not now[NUM_IN_BATCH]:
        sort_by_key(k, IDLE, int(now[NUM_IDLE]))
        _decode_idle(k)


@inner
def _decode_idle(k: Kernel) -> int:
    """One token for each idle decode in turn, while the batch takes more.

    Returns how many prefills were passed by; they stand in SECOND_LIST and are idle no more.
    """
    now, start, num_started = k.now, 0, 0
    reserved = now[RESERVES] == FIXED
    if now[IS_LOCKED]:
        if now[NUM_LOCKED] <= now[MOST_IN_BATCH] and (reserved or can_decode_all(k)):
            decode_all(k)
        else:
            now[NUM_IDLE] = unlock(k, IDLE, int(now[NUM_IDLE]), 0)
    end = int(now[NUM_IDLE])
    while start < end and now[NUM_IN_BATCH] < now[MOST_IN_BATCH]:
        request = int(k.slots[start, IDLE])
        start += 1
        if not decodes(k, request):
            k.slots[num_started, SECOND_LIST] = request
            num_started += 1
            continue
        while not now[FREE] and not reserved and start < end:
            end -= 1
            preempt_to_front(k, int(k.slots[end, IDLE]))
        if now[FREE] or reserved:
            schedule(k, request, 1, missing_blocks(k, request, 1))
        else:
            preempt_to_front(k, request)
    now[NUM_IDLE] = end - start
    for position in range(end - start):
        k.slots[position, IDLE] = k.slots[start + position, IDLE]
    return num_started
