"""Compiled: Vidur's replica schedulers with one pipeline stage (`VidurRun`).

IDLE holds the running requests in the order in which they came back from a batch, the first NUM_IDLE of them.
"""

from __future__ import annotations

from cspsched.simulate.kernel.each.batch import decodes, known_tokens, missing_blocks, schedule
from cspsched.simulate.kernel.each.family_parts import admit_waiting, continue_prefills, preempt_to_front
from cspsched.simulate.kernel.each.flights import conclude_flight, forget_landed
from cspsched.simulate.kernel.each.layout import (
    BATCHED,
    IDLE,
    IN_LOCKSTEP,
    LISTED,
    SECOND_LIST,
)
from cspsched.simulate.kernel.each.lists import sort_by_key
from cspsched.simulate.kernel.each.lockstep import can_decode_all, decode_all, lock, unlock
from cspsched.simulate.kernel.each.rules import Mode
from cspsched.simulate.kernel.each.together import conclude_together
from cspsched.simulate.kernel.jit import inner, merged
from cspsched.simulate.kernel.layout import QUEUED, Kernel
from cspsched.simulate.kernel.records import NOBODY
from cspsched.simulate.kernel.repeat import repeat_decodes
from cspsched.simulate.kernel.rules import Reserve

PADDED, STALL_FREE = int(Mode.PADDED), int(Mode.STALL_FREE)
FIXED = int(Reserve.FIXED)


@inner
def take_back(k: Kernel) -> None:
    """Put those of the last batch that have not finished behind those that were left out of it.

    Decodes in lockstep are neither; they go on only if nobody is left out.
    """
    now, num_left = k.now, int(k.now.num_idle)
    if not now.lockstep:
        _take_landed(k)
        return
    for position in range(now.num_batched):
        request = k.slots[position, BATCHED]
        if request != NOBODY and QUEUED < k.requests[request].phase < IN_LOCKSTEP:
            k.slots[now.num_idle, IDLE] = request
            now.num_idle += 1
    if now.is_locked:
        if now.must_unlock or num_left or (now.num_idle and now.mode == PADDED):
            now.num_idle = unlock(k, IDLE, int(now.num_idle), num_left)
    elif now.may_lock:
        now.num_idle = lock(k, IDLE, int(now.num_idle))


@inner
def _take_landed(k: Kernel) -> None:
    """The same where batches end later than they are processed.

    With FasterTransformer's bug the blocks of all that finish before the last of their batch are lost.
    """
    now, num_left = k.now, 0
    for position in range(now.num_landed):
        request = k.slots[position, LISTED]
        if k.requests[request].phase != QUEUED:
            k.slots[now.num_idle, IDLE] = request
            now.num_idle += 1
            num_left += 1
    if now.emulates_bugs and now.groups and num_left:
        now.leaked_blocks += (now.num_landed - num_left) * now.fixed_blocks
    forget_landed(k)


@inner
def conclude_vidur(k: Kernel) -> int:
    """Run what was decided, in lockstep or as one of several batches in flight (see `conclude`)."""
    return conclude_together(k) if k.now.lockstep else conclude_flight(k)


@inner
def take_back_or_repeat(k: Kernel) -> bool:
    """Before a step: take back the last batch; whether batches of the same decodes were run."""
    take_back(k)
    return may_repeat(k) and repeat(k)


@inner
def may_repeat(k: Kernel) -> bool:
    """Whether all that run decode in lockstep, and nobody can be admitted."""
    now = k.now
    if not now.is_locked or not now.num_locked or now.num_locked != now.num_running:
        return False
    return bool(now.num_locked <= now.most_in_batch and (not now.num_waiting or now.groups))


@inner
def repeat(k: Kernel) -> bool:
    """Run batches of the same decodes; whether there was one."""
    now, count = k.now, int(k.now.num_locked)
    grows, mask = now.reserve != FIXED, int(now.calendar_mask)
    steps = repeat_decodes(k, count, int(now.locked_context), mask, grows)
    now.locked_context += count * steps
    # Nobody of the last batch is to be taken back once more.
    now.num_batched = 0
    return steps > 0


@merged
def vidur_step(k: Kernel) -> None:
    """Decide a batch, and keep who is left out of it."""
    now, mode = k.now, k.now.mode
    now.is_full = now.groups and now.num_idle + now.num_locked > 0
    if mode == PADDED:
        _prompts_alone(k)
    else:
        _decodes_first(k)
    if mode == STALL_FREE:
        sort_by_key(k, IDLE, int(now.num_idle))
    kept = 0
    for position in range(now.num_idle):
        request = k.slots[position, IDLE]
        if not k.requests[request].tokens:
            k.slots[kept, IDLE] = request
            kept += 1
    now.num_idle = kept


@merged
def _decodes_first(k: Kernel) -> None:
    """Decodes, then started prefills, then the queue."""
    now = k.now
    num_started = _decode_idle(k)
    used = continue_prefills(k, num_started, int(now.num_in_batch))
    # Prefills that were passed by stand in front of those whose turn has not come.
    count = 0
    for position in range(num_started):
        count += not k.requests[k.slots[position, SECOND_LIST]].tokens
    for position in range(now.num_idle - 1, -1, -1):
        k.slots[position + count, IDLE] = k.slots[position, IDLE]
    place = 0
    for position in range(num_started):
        request = k.slots[position, SECOND_LIST]
        if not k.requests[request].tokens:
            k.slots[place, IDLE] = request
            place += 1
    now.num_idle += count
    admit_waiting(k, used, int(now.free_blocks - now.leaked_blocks))


@merged
def _prompts_alone(k: Kernel) -> None:
    """Prompts; if there is none, decodes in the order of arrival."""
    now, num_started = k.now, 0
    for position in range(now.num_idle):
        request = int(k.slots[position, IDLE])
        if not decodes(k, request):
            k.slots[num_started, SECOND_LIST] = request
            num_started += 1
    used = continue_prefills(k, num_started, 0)
    admit_waiting(k, used, int(now.free_blocks - now.leaked_blocks))
    if not now.num_in_batch:
        sort_by_key(k, IDLE, int(now.num_idle))
        _decode_idle(k)


@inner
def _decode_idle(k: Kernel) -> int:
    """One token for each idle decode in turn, while the batch takes more.

    Returns how many prefills were passed by; they stand in SECOND_LIST and are idle no more.
    """
    now, start, num_started = k.now, 0, 0
    reserved = now.reserve == FIXED
    if now.is_locked:
        if now.num_locked <= now.most_in_batch and (reserved or can_decode_all(k)):
            decode_all(k)
        else:
            now.num_idle = unlock(k, IDLE, int(now.num_idle), 0)
    end = int(now.num_idle)
    while start < end and now.num_in_batch < now.most_in_batch:
        request = int(k.slots[start, IDLE])
        start += 1
        if not _is_prefilled(k, request):
            k.slots[num_started, SECOND_LIST] = request
            num_started += 1
            continue
        while not now.free_blocks and not reserved and start < end:
            end -= 1
            _restart(k, int(k.slots[end, IDLE]))
        if now.free_blocks or reserved:
            schedule(k, request, 1, missing_blocks(k, request, 1))
        else:
            _restart(k, request)
    now.num_idle = end - start
    for position in range(end - start):
        k.slots[position, IDLE] = k.slots[start + position, IDLE]
    return num_started


@inner
def _is_prefilled(k: Kernel, request: int) -> bool:
    """Whether a request takes one token a batch: its prompt, or what is remembered of it, is processed."""
    if decodes(k, request) or not k.now.emulates_bugs:
        return decodes(k, request)
    remembered = k.notes[request].remembered
    return bool(remembered and k.requests[request].kv_tokens >= remembered)


@inner
def _restart(k: Kernel, request: int) -> None:
    """Evict a request to the front of the queue; Sarathi's bug remembers only what had been processed."""
    if k.now.emulates_bugs and k.now.mode == STALL_FREE:
        # Processed tokens as Vidur counts them: the end of a prefill has produced one more.
        processed = k.requests[request].kv_tokens + _is_prefilled(k, request)
        k.notes[request].remembered = processed if processed < known_tokens(k, request) else 0
    preempt_to_front(k, request)
