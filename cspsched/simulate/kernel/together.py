"""Compiled: running batches in which decodes may be in lockstep (`each.lockstep`)."""

from __future__ import annotations

from cspsched.compiled.jit import inner, merged
from cspsched.simulate.kernel.actions import (
    add_up,
    end_batch,
    execute,
    finish,
    generate,
    note_batch,
)
from cspsched.simulate.kernel.columns import (
    BATCHED,
    LISTED,
)
from cspsched.simulate.kernel.layout import DECODES, FINISHED, PREFILLS, Kernel
from cspsched.simulate.kernel.lists import drop_listed
from cspsched.simulate.kernel.lockstep import join_new, lock, part, unlock
from cspsched.simulate.kernel.pricing import batch_time_ns
from cspsched.simulate.kernel.progress import await_arrival, refusal
from cspsched.simulate.kernel.records import NO_REQUEST
from cspsched.simulate.kernel.runs import process_chunk
from cspsched.simulate.kernel.swap import await_moves

BEFORE_DECODES, AFTER_DECODES = -(2**30), 2**30 + 2**29
"""Numbers of chunks in a batch with decodes in lockstep, whose numbers are between them."""


@inner
def regroup(k: Kernel) -> bool:
    """Before a step: lockstep for the decodes again, or no longer, as the last step has left it; false."""
    now = k.now
    if now.must_unlock:
        unlock_listed(k)
    elif now.may_lock:
        now.num_listed = lock(k, LISTED, int(now.num_listed))
    return False


@inner
def unlock_listed(k: Kernel) -> None:
    """Let all decodes part, so that the running requests are listed again."""
    if k.now.is_locked:
        k.now.num_listed = unlock(k, LISTED, int(k.now.num_listed), 0)


@merged
def conclude_together(k: Kernel) -> int:
    """Run what was decided, or wait; an answer of the loop other than FINISHED ends it."""
    now = k.now
    answer = refusal(k)
    if answer != FINISHED:
        return answer
    if now.num_in_batch:
        return execute_together(k)
    return FINISHED if now.num_evictions or now.num_restored else await_arrival(k)


@inner
def execute_together(k: Kernel) -> int:
    """Run the batch (see `execute`)."""
    now = k.now
    if now.is_locked:
        return _execute_locked(k)
    # Where all had a part in the batch, lockstep will do for the next.
    all_served = now.num_in_batch + now.num_ending >= now.num_running and not now.num_evictions
    answer = execute(k)
    now.may_lock = now.lockstep and all_served and not now.renumbers
    return answer


@merged
def _execute_locked(k: Kernel) -> int:
    """Run the batch: decodes all together, chunks one by one."""
    now = k.now
    await_moves(k)
    start_ns = int(now.clock_ns)
    add_up(k)
    if now.decode_now:
        now.num_decodes, now.decode_context = now.num_locked, now.locked_context
        now.num_prefills -= now.num_locked
    end_ns = start_ns + batch_time_ns(k, int(now.num_decodes))
    note_batch(k, end_ns)
    if now.decode_now:
        _step(k, end_ns)
    for position in range(now.num_batched):
        _process(k, position, start_ns, end_ns)
    if now.num_generating:
        _join_new(k)
    return end_batch(k, end_ns)


@inner
def _process(k: Kernel, position: int, start_ns: int, end_ns: int) -> None:
    """A chunk of a prefill."""
    now, request = k.now, int(k.slots[position, BATCHED])
    row = k.requests[request]
    if now.stands_by_admission:
        row.number = row.place
    else:
        row.number = (BEFORE_DECODES if position < now.decodes_at else AFTER_DECODES) + position
    process_chunk(k, request, start_ns)
    generate(k, request, end_ns)


@inner
def _join_new(k: Kernel) -> None:
    """Those who decode from now on join the lockstep, in the order of the list or of the batch."""
    now, in_front = k.now, False
    column, count = (BATCHED, now.num_batched) if now.joins_from_batch else (LISTED, now.num_listed)
    for position in range(count):
        request = int(k.slots[position, column])
        row = k.requests[request]
        if row.phase == DECODES and row.generated < row.output_tokens:
            now.must_unlock = now.must_unlock or in_front
            join_new(k, request)
        elif row.phase == PREFILLS and now.keeps_order:
            # A started prefill in front of a decode: from there on the list is needed.
            in_front = True
    drop_listed(k)


@inner
def _step(k: Kernel, end_ns: int) -> None:
    """One token for every decode in lockstep; those whose last it was are in the calendar."""
    now = k.now
    slot = now.num_decode_steps & now.calendar_mask
    now.num_decode_steps += 1
    now.shift = (now.shift if now.shift else now.block_tokens) - 1
    now.locked_context += now.num_locked
    request = int(k.calendar[slot])
    while request != NO_REQUEST:
        following = int(k.requests[request].next)
        part(k, request)
        if now.decides_ahead:
            k.slots[now.num_listed, LISTED] = request
            now.num_listed += 1
        finish(k, request, end_ns)
        request = following
