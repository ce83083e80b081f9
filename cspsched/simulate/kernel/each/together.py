"""Compiled: running batches in which decodes may be in lockstep (`each.lockstep`)."""

from __future__ import annotations

from cspsched.simulate.kernel.each.batch import (
    add_up,
    end_batch,
    execute,
    finish,
    generate,
    price_batch,
)
from cspsched.simulate.kernel.each.layout import (
    BATCHED,
    CALENDAR_MASK,
    DECIDES_AHEAD,
    DECODES_AT,
    IS_LOCKED,
    LISTED,
    LOCKED_CONTEXT,
    LOOP,
    MAY_LOCK,
    MOST_IN_BATCH,
    MUST_UNLOCK,
    NUM_BATCHED,
    NUM_ENDING,
    NUM_IN_BATCH,
    NUM_LISTED,
    NUM_LOCKED,
    RENUMBERS,
)
from cspsched.simulate.kernel.each.lists import drop_listed
from cspsched.simulate.kernel.each.lockstep import join_new, lock, part, unlock
from cspsched.simulate.kernel.each.rules import Loop
from cspsched.simulate.kernel.each.runs import process_chunk
from cspsched.simulate.kernel.jit import inner, merged
from cspsched.simulate.kernel.layout import (
    BLOCK_TOKENS,
    CLOCK_NS,
    DECODE_CONTEXT,
    DECODE_NOW,
    DECODES,
    EVICTIONS,
    FINISHED,
    GENERATED,
    NEXT,
    NOBODY,
    NUM_DECODES,
    NUM_GENERATING,
    NUM_PREFILLS,
    NUMBER,
    OUTPUT,
    PHASE,
    PLACE,
    PREFILLS,
    RUNNING,
    SHIFT,
    STEPS,
    Kernel,
)
from cspsched.simulate.kernel.progress import await_arrival, refusal

FAMILY, VLLM = int(Loop.FAMILY), int(Loop.VLLM)
BEFORE_DECODES, AFTER_DECODES = -(2**30), 2**30 + 2**29
"""Numbers of chunks in a batch with decodes in lockstep, whose numbers are between them."""


@inner
def regroup(k: Kernel) -> None:
    """Before a step: lockstep for the decodes again, or no longer, as the last step has left it."""
    now = k.now
    if now[MUST_UNLOCK]:
        unlock_listed(k)
    elif now[MAY_LOCK]:
        now[NUM_LISTED] = lock(k, LISTED, int(now[NUM_LISTED]))


@inner
def unlock_listed(k: Kernel) -> None:
    """Let all decodes part, so that the running requests are listed again."""
    if k.now[IS_LOCKED]:
        k.now[NUM_LISTED] = unlock(k, LISTED, int(k.now[NUM_LISTED]), 0)


@merged
def conclude_together(k: Kernel) -> int:
    """Run what was decided, or wait; an answer of the loop other than FINISHED ends it."""
    now = k.now
    answer = refusal(k)
    if answer != FINISHED:
        return answer
    if now[NUM_IN_BATCH]:
        return execute_together(k)
    return FINISHED if now[EVICTIONS] else await_arrival(k)


@inner
def execute_together(k: Kernel) -> int:
    """Run the batch (see `execute`)."""
    now = k.now
    if now[IS_LOCKED]:
        return _execute_locked(k)
    # Where everybody had a part in the batch, lockstep will do for the next.
    all_served = now[NUM_IN_BATCH] + now[NUM_ENDING] >= now[RUNNING] and not now[EVICTIONS]
    answer = execute(k)
    now[MAY_LOCK] = all_served and not now[RENUMBERS]
    return answer


@merged
def _execute_locked(k: Kernel) -> int:
    """Run the batch: decodes all together, chunks one by one."""
    now, start_ns = k.now, int(k.now[CLOCK_NS])
    add_up(k)
    if now[DECODE_NOW]:
        now[NUM_DECODES], now[DECODE_CONTEXT] = now[NUM_LOCKED], now[LOCKED_CONTEXT]
        now[NUM_PREFILLS] -= now[NUM_LOCKED]
    end_ns = price_batch(k)
    if now[DECODE_NOW]:
        _step(k, end_ns)
    for position in range(now[NUM_BATCHED]):
        _process(k, position, start_ns, end_ns)
    if now[NUM_GENERATING]:
        _join_new(k)
    return end_batch(k, end_ns)


@inner
def _process(k: Kernel, position: int, start_ns: int, end_ns: int) -> None:
    """A chunk of a prefill."""
    now, request = k.now, int(k.slots[position, BATCHED])
    row = k.rows[request]
    if now[LOOP] == VLLM:
        row[NUMBER] = row[PLACE]
    else:
        row[NUMBER] = (BEFORE_DECODES if position < now[DECODES_AT] else AFTER_DECODES) + position
    process_chunk(k, request, start_ns)
    generate(k, request, end_ns)


@inner
def _join_new(k: Kernel) -> None:
    """Those who decode from now on join the lockstep, in the order of the list; Vidur's is the batch."""
    now, in_front = k.now, False
    in_batch = now[MOST_IN_BATCH] > 0
    for position in range(now[NUM_BATCHED] if in_batch else now[NUM_LISTED]):
        request = int(k.slots[position, BATCHED if in_batch else LISTED])
        row = k.rows[request]
        if row[PHASE] == DECODES and row[GENERATED] < row[OUTPUT]:
            now[MUST_UNLOCK] = now[MUST_UNLOCK] or in_front
            join_new(k, request)
        elif row[PHASE] == PREFILLS and now[LOOP] == FAMILY:
            # A started prefill in front of a decode: from there on the list is needed.
            in_front = True
    drop_listed(k)


@inner
def _step(k: Kernel, end_ns: int) -> None:
    """One token for every decode in lockstep; those whose last it was are in the calendar."""
    now = k.now
    slot = now[STEPS] & now[CALENDAR_MASK]
    now[STEPS] += 1
    now[SHIFT] = (now[SHIFT] if now[SHIFT] else now[BLOCK_TOKENS]) - 1
    now[LOCKED_CONTEXT] += now[NUM_LOCKED]
    request = int(k.calendar[slot])
    while request != NOBODY:
        following = int(k.rows[request, NEXT])
        part(k, request)
        if now[DECIDES_AHEAD]:
            k.slots[now[NUM_LISTED], LISTED] = request
            now[NUM_LISTED] += 1
        finish(k, request, end_ns)
        request = following
