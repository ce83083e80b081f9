"""Compiled: SGLang's steps and its admission test, with a share of the outputs that decays (`QueueRun`)."""

from __future__ import annotations

from cspsched.simulate.kernel.batch import blocks_of
from cspsched.simulate.kernel.each.admission import growing_blocks, num_decoding
from cspsched.simulate.kernel.each.batch import known_tokens
from cspsched.simulate.kernel.each.layout import (
    BATCH_TOKENS,
    BATCHED,
    CUT,
    DECODE_STEPS,
    FIRST_LIST,
    IS_FULL,
    IS_VICTIM,
    KEY,
    KEY_BITS,
    LISTED,
    LOCKED,
    LOCKED_CONTEXT,
    LOCKED_END,
    LOCKED_TOTAL,
    MIXES_DECODES,
    MOST_PREFILL,
    NUM_BATCHED,
    NUM_IN_BATCH,
    NUM_LISTED,
    NUM_LOCKED,
    NUM_STEPS,
    PRIORITY,
    RATIO,
    RETRACTS_FOR,
    SHARE,
    SOMEBODY_FINISHED,
    THRESHOLD,
    TOKENS,
    USED_TOKENS,
)
from cspsched.simulate.kernel.each.lists import get_float, set_float
from cspsched.simulate.kernel.each.lockstep import MOST_NEW_TOKENS
from cspsched.simulate.kernel.each.queue_run import decode, evict_listed, prefill_with
from cspsched.simulate.kernel.each.together import unlock_listed
from cspsched.simulate.kernel.jit import inner, merged
from cspsched.simulate.kernel.layout import (
    BLOCK_TOKENS,
    BLOCKS,
    EVICTIONS,
    FREE,
    GENERATED,
    MAX_RUNNING,
    MAX_TOKENS,
    NOBODY,
    OUTPUT,
    RUNNING,
    WAITING,
    Kernel,
)
from cspsched.simulate.kernel.rules import Chunk

NEVER = int(Chunk.NEVER)
DECAY_STEPS, RETRACT_STEPS, LEAST_SHARE = 600, 20, 0.14
"""SGLang's constants; see `cspsched.policies.sglang`."""


@inner
def _chunk_tokens(k: Kernel, lacking: int) -> int:
    """The whole prompt, or whole blocks of it; others in the batch count in whole blocks."""
    now = k.now
    block, taken, num_decodes = int(now[BLOCK_TOKENS]), 0, 0
    for position in range(now[NUM_BATCHED]):
        taken += blocks_of(k, int(k.rows[k.slots[position, BATCHED], TOKENS])) * block
    if now[MIXES_DECODES]:
        num_decodes = num_decoding(k)
        taken += num_decodes
    if taken and taken + lacking > now[MOST_PREFILL]:
        return 0
    budget = max(min(now[MAX_TOKENS] - taken, now[BATCH_TOKENS] - now[USED_TOKENS] - num_decodes), 0)
    if lacking <= budget:
        return lacking
    return 0 if now[CUT] == NEVER else int(budget // block * block)


@inner
def _has_room(k: Kernel, request: int) -> bool:
    """Whether there is room for a request and the outputs that are set aside, all victims gone."""
    now = k.now
    # Of those in lockstep nobody has more to generate than is looked at, and none is a victim.
    whole, shared = 0, int(now[LOCKED_TOTAL] - now[LOCKED_CONTEXT] - now[NUM_LOCKED])
    free = now[FREE] - (growing_blocks(k) if now[MIXES_DECODES] else 0)
    for position in range(now[NUM_LISTED]):
        row = k.rows[k.slots[position, LISTED]]
        left = min(int(row[OUTPUT] - row[GENERATED]), MOST_NEW_TOKENS)
        if row[IS_VICTIM]:
            free += row[BLOCKS]
        elif row[TOKENS]:
            whole += left
        else:
            shared += left
    left = min(int(k.rows[request, OUTPUT] - k.rows[request, GENERATED]), MOST_NEW_TOKENS)
    needed = known_tokens(k, request) + left + now[BLOCK_TOKENS]
    return bool(needed < free * now[BLOCK_TOKENS] - (whole + get_float(k, SHARE) * shared))


@inner
def _update_share(k: Kernel) -> None:
    """Decay, or after a retraction expect a few more tokens of everybody than have been generated."""
    now, first = k.now, get_float(k, RATIO)
    if not now[EVICTIONS]:
        least = LEAST_SHARE * first
        set_float(k, SHARE, max(get_float(k, SHARE) - (first - least) / DECAY_STEPS, least))
        return
    now[IS_FULL] = 0
    generated = outputs = 0
    for position in range(now[NUM_LISTED]):
        row = k.rows[k.slots[position, LISTED]]
        generated += row[GENERATED]
        outputs += row[OUTPUT]
    set_float(k, SHARE, min(1.0, (generated + RETRACT_STEPS * now[NUM_LISTED]) / (outputs + 1)))


@inner
def _fits(k: Kernel, request: int) -> bool:
    """Whether the head of the queue may be admitted; who may not makes the batch full."""
    now = k.now
    is_full = now[RUNNING] >= now[MAX_RUNNING] or not _has_room(k, request)
    if is_full and now[RETRACTS_FOR]:
        is_full = not _make_room(k, request)
    now[IS_FULL] = is_full
    return not is_full


@inner
def _make_room(k: Kernel, request: int) -> bool:
    """Retract the least important, as few as make a place and room; nobody if all of them do not."""
    now, count = k.now, 0
    most = int(k.wide[request, PRIORITY] + now[THRESHOLD])
    if not _is_any_less_important(k, most):
        return False
    unlock_listed(k)
    while now[RUNNING] - count >= now[MAX_RUNNING] or not _has_room(k, request):
        victim = _least_important(k, most)
        if victim < 0:
            break
        k.rows[victim, IS_VICTIM] = 1
        k.slots[count, FIRST_LIST] = victim
        count += 1
    makes_room = now[RUNNING] - count < now[MAX_RUNNING] and _has_room(k, request)
    for place in range(count):
        victim = int(k.slots[place, FIRST_LIST])
        k.rows[victim, IS_VICTIM] = 0
        if makes_room:
            position = 0
            while k.slots[position, LISTED] != victim:
                position += 1
            evict_listed(k, position)
    return makes_room


@inner
def _is_any_less_important(k: Kernel, most: int) -> bool:
    """Whether a priority among the running requests is beyond a limit; those in lockstep stay there."""
    for position in range(k.now[NUM_LISTED]):
        if k.wide[k.slots[position, LISTED], PRIORITY] > most:
            return True
    for position in range(k.now[LOCKED_END]):
        request = k.slots[position, LOCKED]
        if request != NOBODY and k.wide[request, PRIORITY] > most:
            return True
    return False


@inner
def _least_important(k: Kernel, most: int) -> int:
    """The running request of the largest priority beyond a limit, of equals the last queued; -1 if none."""
    found, largest, last = -1, most, 0
    for position in range(k.now[NUM_LISTED]):
        request = int(k.slots[position, LISTED])
        row, priority = k.rows[request], int(k.wide[request, PRIORITY])
        number = int(k.wide[request, KEY] & ((1 << KEY_BITS) - 1))
        may_go = priority > most and not row[TOKENS] and not row[IS_VICTIM]
        if may_go and (priority, number) > (largest, last):
            found, largest, last = request, priority, number
    return found


_prefill = prefill_with(_chunk_tokens, _fits)


@merged
def sglang_step(k: Kernel) -> None:
    """Prefill whatever can be; else decode, after retractions if memory is short."""
    now = k.now
    _note_finished(k)
    if not now[RUNNING]:
        now[IS_FULL] = 0
        if not now[WAITING]:
            set_float(k, SHARE, get_float(k, RATIO))
    if _may_prefill(k):
        _prefill(k)
    is_prefill = now[NUM_IN_BATCH] > 0
    now[NUM_STEPS] = 0 if is_prefill else now[NUM_STEPS] + 1
    if now[RUNNING] and (not is_prefill or now[MIXES_DECODES]):
        decode(k)
    if now[RUNNING] and not is_prefill:
        _update_share(k)


@inner
def _may_prefill(k: Kernel) -> bool:
    """Whether there have been decodes enough, and the batch is not full."""
    if k.now[NUM_STEPS] < k.now[DECODE_STEPS] and num_decoding(k):
        return False
    # Somebody more important may make room.
    return bool(not k.now[IS_FULL] or k.now[RETRACTS_FOR])


@inner
def _note_finished(k: Kernel) -> None:
    """Take note of those that finished in the last batch."""
    if k.now[SOMEBODY_FINISHED]:
        k.now[IS_FULL] = k.now[SOMEBODY_FINISHED] = 0
