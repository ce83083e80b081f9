"""Compiled: SGLang's steps and its admission test, with a share of the outputs that decays (`QueueRun`)."""

from __future__ import annotations

from cspsched.simulate.kernel.batch import blocks_of
from cspsched.simulate.kernel.each.admission import growing_blocks, num_decoding
from cspsched.simulate.kernel.each.batch import known_tokens
from cspsched.simulate.kernel.each.layout import (
    BATCHED,
    FIRST_LIST,
    KEY_BITS,
    LISTED,
    LOCKED,
)
from cspsched.simulate.kernel.each.lockstep import MOST_NEW_TOKENS
from cspsched.simulate.kernel.each.queue_run import decode, evict_listed, prefill_with
from cspsched.simulate.kernel.each.together import unlock_listed
from cspsched.simulate.kernel.jit import inner, merged
from cspsched.simulate.kernel.layout import (
    Kernel,
)
from cspsched.simulate.kernel.records import NOBODY
from cspsched.simulate.kernel.rules import Chunk

NEVER = int(Chunk.NEVER)
DECAY_STEPS, RETRACT_STEPS, LEAST_SHARE = 600, 20, 0.14
"""SGLang's constants; see `cspsched.policies.sglang`."""


@inner
def _chunk_tokens(k: Kernel, lacking: int) -> int:
    """The whole prompt, or whole blocks of it; others in the batch count in whole blocks."""
    now = k.now
    block, taken, num_decodes = int(now.block_tokens), 0, 0
    for position in range(now.num_batched):
        taken += blocks_of(k, int(k.requests[k.slots[position, BATCHED]].tokens)) * block
    if now.mixes_decodes:
        num_decodes = num_decoding(k)
        taken += num_decodes
    if taken and taken + lacking > now.most_prefill:
        return 0
    budget = max(min(now.max_tokens - taken, now.batch_tokens - now.used_tokens - num_decodes), 0)
    if lacking <= budget:
        return lacking
    return 0 if now.chunk == NEVER else int(budget // block * block)


@inner
def _has_room(k: Kernel, request: int) -> bool:
    """Whether there is room for a request and the outputs that are set aside, all victims gone."""
    now = k.now
    # Of those in lockstep nobody has more to generate than is looked at, and none is a victim.
    whole, shared = 0, int(now.locked_total - now.locked_context - now.num_locked)
    free = now.free_blocks - (growing_blocks(k) if now.mixes_decodes else 0)
    for position in range(now.num_listed):
        listed = int(k.slots[position, LISTED])
        row = k.requests[listed]
        left = min(int(row.output_tokens - row.generated), MOST_NEW_TOKENS)
        if k.notes[listed].is_victim:
            free += row.blocks
        elif row.tokens:
            whole += left
        else:
            shared += left
    left = min(int(k.requests[request].output_tokens - k.requests[request].generated), MOST_NEW_TOKENS)
    needed = known_tokens(k, request) + left + now.block_tokens
    return bool(needed < free * now.block_tokens - (whole + k.now.share * shared))


@inner
def _update_share(k: Kernel) -> None:
    """Decay, or after a retraction expect a few more tokens of everybody than have been generated."""
    now, first = k.now, k.now.ratio
    if not now.num_evictions:
        least = LEAST_SHARE * first
        k.now.share = max(k.now.share - (first - least) / DECAY_STEPS, least)
        return
    now.is_full = 0
    generated = outputs = 0
    for position in range(now.num_listed):
        row = k.requests[k.slots[position, LISTED]]
        generated += row.generated
        outputs += row.output_tokens
    k.now.share = min(1.0, (generated + RETRACT_STEPS * now.num_listed) / (outputs + 1))


@inner
def _fits(k: Kernel, request: int) -> bool:
    """Whether the head of the queue may be admitted; who may not makes the batch full."""
    now = k.now
    is_full = now.num_running >= now.max_running or not _has_room(k, request)
    if is_full and now.retracts_for:
        is_full = not _make_room(k, request)
    now.is_full = is_full
    return not is_full


@inner
def _make_room(k: Kernel, request: int) -> bool:
    """Retract the least important, as few as make a place and room; nobody if all of them do not."""
    now, count = k.now, 0
    most = int(k.notes[request].priority + now.threshold)
    if not _is_any_less_important(k, most):
        return False
    unlock_listed(k)
    while now.num_running - count >= now.max_running or not _has_room(k, request):
        victim = _least_important(k, most)
        if victim < 0:
            break
        k.notes[victim].is_victim = 1
        k.slots[count, FIRST_LIST] = victim
        count += 1
    makes_room = now.num_running - count < now.max_running and _has_room(k, request)
    for place in range(count):
        victim = int(k.slots[place, FIRST_LIST])
        k.notes[victim].is_victim = 0
        if makes_room:
            position = 0
            while k.slots[position, LISTED] != victim:
                position += 1
            evict_listed(k, position)
    return makes_room


@inner
def _is_any_less_important(k: Kernel, most: int) -> bool:
    """Whether a priority among the running requests is beyond a limit; those in lockstep stay there."""
    for position in range(k.now.num_listed):
        if k.notes[k.slots[position, LISTED]].priority > most:
            return True
    for position in range(k.now.locked_end):
        request = k.slots[position, LOCKED]
        if request != NOBODY and k.notes[request].priority > most:
            return True
    return False


@inner
def _least_important(k: Kernel, most: int) -> int:
    """The running request of the largest priority beyond a limit, of equals the last queued; -1 if none."""
    found, largest, last = -1, most, 0
    for position in range(k.now.num_listed):
        request = int(k.slots[position, LISTED])
        row, priority = k.requests[request], int(k.notes[request].priority)
        number = int(k.requests[request].key & ((1 << KEY_BITS) - 1))
        may_go = priority > most and not row.tokens and not k.notes[request].is_victim
        if may_go and (priority, number) > (largest, last):
            found, largest, last = request, priority, number
    return found


_prefill = prefill_with(_chunk_tokens, _fits)


@merged
def sglang_step(k: Kernel) -> None:
    """Prefill whatever can be; else decode, after retractions if memory is short."""
    now = k.now
    _note_finished(k)
    if not now.num_running:
        now.is_full = 0
        if not now.num_waiting:
            k.now.share = k.now.ratio
    if _may_prefill(k):
        _prefill(k)
    is_prefill = now.num_in_batch > 0
    now.num_steps = 0 if is_prefill else now.num_steps + 1
    if now.num_running and (not is_prefill or now.mixes_decodes):
        decode(k)
    if now.num_running and not is_prefill:
        _update_share(k)


@inner
def _may_prefill(k: Kernel) -> bool:
    """Whether there have been decodes enough, and the batch is not full."""
    if k.now.num_steps < k.now.decode_steps and num_decoding(k):
        return False
    # Somebody more important may make room.
    return bool(not k.now.is_full or k.now.retracts_for)


@inner
def _note_finished(k: Kernel) -> None:
    """Take note of those that finished in the last batch."""
    if k.now.somebody_finished:
        k.now.is_full = k.now.somebody_finished = 0
