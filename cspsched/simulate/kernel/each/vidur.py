"""Compiled: Vidur's replica schedulers with one pipeline stage (`VidurRun`).

IDLE holds the running requests in the order in which they came back from a batch, the first NUM_IDLE of them.
"""

from __future__ import annotations

from cspsched.simulate.kernel.each.batch import decodes, missing_blocks, schedule
from cspsched.simulate.kernel.each.family_parts import admit_waiting, continue_prefills, preempt_to_front
from cspsched.simulate.kernel.each.layout import (
    BATCHED,
    GROUPS,
    IDLE,
    IS_FULL,
    MOST_IN_BATCH,
    NUM_BATCHED,
    NUM_IDLE,
    NUM_IN_BATCH,
    RESERVES,
    SECOND_LIST,
    TOKENS,
)
from cspsched.simulate.kernel.each.lists import sort_by_key
from cspsched.simulate.kernel.each.rules import Mode
from cspsched.simulate.kernel.jit import inner
from cspsched.simulate.kernel.layout import FREE, NOBODY, PHASE, QUEUED, Kernel
from cspsched.simulate.kernel.rules import Reserve

PADDED, STALL_FREE, WHOLE = int(Mode.PADDED), int(Mode.STALL_FREE), int(Mode.WHOLE)
FIXED = int(Reserve.FIXED)


@inner
def take_back(k: Kernel) -> None:
    """Put those of the last batch that have not finished behind those that were left out of it."""
    now = k.now
    for position in range(now[NUM_BATCHED]):
        request = k.slots[position, BATCHED]
        if request != NOBODY and k.rows[request, PHASE] != QUEUED:
            k.slots[now[NUM_IDLE], IDLE] = request
            now[NUM_IDLE] += 1


@inner
def vidur_step(k: Kernel, mode: int) -> None:
    """Decide a batch, and keep who is left out of it."""
    now = k.now
    now[IS_FULL] = now[GROUPS] and now[NUM_IDLE]
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


@inner
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


@inner
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
    now, start, end, num_started = k.now, 0, int(k.now[NUM_IDLE]), 0
    reserved = now[RESERVES] == FIXED
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
