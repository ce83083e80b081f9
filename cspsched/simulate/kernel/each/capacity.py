"""Compiled: TensorRT-LLM's contexts that have capacity before they have tokens.

FIRST_LIST holds who has capacity, HELD_TOKENS what each context gets, TO_COME what it lacks.
"""

from __future__ import annotations

from cspsched.simulate.kernel.each.admission import chunk_tokens, most_blocks, reserved_tokens
from cspsched.simulate.kernel.each.batch import (
    decodes,
    evicted_now,
    lacking_tokens,
    missing_blocks,
    preempt,
    schedule,
)
from cspsched.simulate.kernel.each.layout import (
    FIRST_LIST,
    HELD_TOKENS,
    LISTED,
    TO_COME,
)
from cspsched.simulate.kernel.each.lists import append_listed, head, pop, push
from cspsched.simulate.kernel.each.lockstep import can_go_on, decode_all, locked_growth
from cspsched.simulate.kernel.each.queue_run import decode
from cspsched.simulate.kernel.each.rules import Mode
from cspsched.simulate.kernel.each.together import unlock_listed
from cspsched.simulate.kernel.jit import inner, merged
from cspsched.simulate.kernel.layout import (
    Kernel,
)
from cspsched.simulate.kernel.rules import Chunk

NEVER, MAX_UTILIZATION = int(Chunk.NEVER), int(Mode.MAX_UTILIZATION)


@merged
def capacity_step(k: Kernel) -> None:
    """Decide a batch."""
    if k.now.mode == MAX_UTILIZATION:
        _max_utilization(k)
    else:
        decode(k)
        _equal_progress(k)


@inner
def _max_utilization(k: Kernel) -> None:
    """Capacity in order of arrival, then decodes, then contexts as far as the tokens go."""
    count, is_open = _select(k), True
    if k.now.is_locked:
        decode_all(k)
    for position in range(count):
        request = int(k.slots[position, FIRST_LIST])
        if decodes(k, request):
            schedule(k, request, 1, missing_blocks(k, request, 1))
    for position in range(count):
        request = int(k.slots[position, FIRST_LIST])
        if decodes(k, request):
            continue
        is_new, tokens = not k.requests[request].blocks, 0
        if is_open:
            lacking = lacking_tokens(k, request)
            tokens = chunk_tokens(k, lacking)
            is_open = tokens == lacking
            if tokens:
                schedule(k, request, tokens, missing_blocks(k, request, lacking))
        if is_new:
            _settle(k, request, tokens)


@inner
def _settle(k: Kernel, request: int, tokens: int) -> None:
    """A request from the queue runs now if it has tokens, else it goes back."""
    if tokens:
        append_listed(k, request)
    else:
        push(k, request)


@inner
def _select(k: Kernel) -> int:
    """Find those whose next step fits, after pauses of the last started; how many there are.

    Whoever runs has arrived before all that wait: the first of these are admitted, the last started paused.
    """
    now, count, position = k.now, 0, 0
    promised, num_together = _promise(k)
    while count + num_together < now.max_running and (position < now.num_listed or now.heap_size):
        is_new = position == now.num_listed
        request = head(k) if is_new else int(k.slots[position, LISTED])
        if evicted_now(k, request):
            break
        blocks = missing_blocks(k, request, lacking_tokens(k, request))
        while blocks > now.free_blocks - promised and position < now.num_listed:
            now.num_listed -= 1
            victim = int(k.slots[now.num_listed, LISTED])
            preempt(k, victim)
            push(k, victim)
            if victim == request:
                return count
        if blocks > now.free_blocks - promised:
            break
        promised += blocks
        k.slots[count, FIRST_LIST] = request
        count += 1
        if is_new:
            pop(k)
        else:
            position += 1
    return count


@inner
def _promise(k: Kernel) -> tuple[int, int]:
    """Blocks for the decodes in lockstep, and their number, if all that run can go on; else all part."""
    now = k.now
    if not now.is_locked:
        return 0, 0
    promised, needed = locked_growth(k), 0
    for position in range(now.num_listed):
        request = int(k.slots[position, LISTED])
        needed += missing_blocks(k, request, lacking_tokens(k, request))
    if promised + needed > now.free_blocks or not can_go_on(k):
        unlock_listed(k)
        return 0, 0
    return promised, int(now.num_locked)


@inner
def _equal_progress(k: Kernel) -> None:
    """A share of the tokens for every context that has capacity, in order of admission."""
    count = _contexts(k)
    budget = max(int(k.now.max_tokens - k.now.used_tokens), 0)
    if k.now.chunk == NEVER:
        _share_whole(k, count, budget)
    else:
        _share_blocks(k, count, budget)
    for position in range(count):
        request, tokens = int(k.slots[position, FIRST_LIST]), int(k.slots[position, HELD_TOKENS])
        is_new = not k.requests[request].blocks
        if tokens:
            schedule(k, request, tokens, most_blocks(k, reserved_tokens(k, request)) if is_new else 0)
        if is_new:
            _settle(k, request, tokens)


@inner
def _contexts(k: Kernel) -> int:
    """Started contexts, then the first of the queue whose reservations fit together; how many."""
    now, count, num_new, free = k.now, 0, 0, int(k.now.free_blocks)
    for position in range(now.num_listed):
        request = int(k.slots[position, LISTED])
        if not decodes(k, request):
            _enter(k, request, count)
            count += 1
    while now.heap_size and num_new < now.max_running - now.num_running:
        free -= most_blocks(k, reserved_tokens(k, head(k)))
        if free < 0:
            break
        _enter(k, pop(k), count)
        count += 1
        num_new += 1
    return count


@inner
def _enter(k: Kernel, request: int, position: int) -> None:
    """Note a context that has capacity."""
    k.slots[position, FIRST_LIST], k.slots[position, HELD_TOKENS] = request, 0
    k.slots[position, TO_COME] = lacking_tokens(k, request)


@inner
def _share_blocks(k: Kernel, count: int, budget: int) -> None:
    """A block each in turn, or the rest of a prompt, until nobody can be given any more."""
    was_given = True
    while was_given:
        was_given = False
        for position in range(count):
            slot = k.slots[position]
            unit = min(int(k.now.block_tokens), int(slot[TO_COME] - slot[HELD_TOKENS]))
            if 0 < unit <= budget:
                slot[HELD_TOKENS] += unit
                budget -= unit
                was_given = True


@inner
def _share_whole(k: Kernel, count: int, budget: int) -> None:
    """Whole prompts, up to the first that is too long."""
    for position in range(count):
        slot = k.slots[position]
        budget -= slot[TO_COME]
        if budget < 0:
            break
        slot[HELD_TOKENS] = slot[TO_COME]
