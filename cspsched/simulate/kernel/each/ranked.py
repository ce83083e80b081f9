"""Compiled: running and waiting requests in one order, decided anew for every batch (`RankedRun`)."""

from __future__ import annotations

import math

from cspsched.simulate.kernel.each.batch import (
    decodes,
    evicted_now,
    lacking_tokens,
    missing_blocks,
    preempt,
    schedule,
)
from cspsched.simulate.kernel.each.deadlines import fitting_chunk, number_arrival, rank_by_deadline
from cspsched.simulate.kernel.each.layout import (
    BATCHED,
    FIRST_LIST,
    KEY_BITS,
    LEVEL_BITS,
    LISTED,
)
from cspsched.simulate.kernel.each.lists import (
    append_listed,
    drop_listed,
    head,
    next_arrival,
    next_number,
    numbered_key,
    pop,
    push,
    sort_by_key,
)
from cspsched.simulate.kernel.each.rules import Mode
from cspsched.simulate.kernel.jit import inner, merged
from cspsched.simulate.kernel.layout import (
    BY_RANK,
    Kernel,
)
from cspsched.simulate.kernel.pricing import batch_time_ns
from cspsched.simulate.kernel.records import NOBODY
from cspsched.simulate.kernel.rules import Chunk

REMAINING, LEVELS = int(Mode.REMAINING), int(Mode.LEVELS)
DEADLINES = int(Mode.DEADLINES)
NEVER = int(Chunk.NEVER)
HALF_KEYS = 2 ** (LEVEL_BITS - 1)


@inner
def submit_ranked(k: Kernel) -> None:
    """Queue all arrivals: by output, in the first queue whose quantum covers the prefill, or by deadline."""
    request = next_arrival(k)
    while request >= 0:
        if k.now.mode == LEVELS:
            level = _first_level(k, request)
            k.notes[request].level = level
            k.requests[request].key = _level_key(level, next_number(k))
            k.notes[request].idle_since_ns = k.requests[request].arrival_ns
        elif k.now.mode == REMAINING:
            k.requests[request].key = numbered_key(int(k.requests[request].output_tokens) + 1, next_number(k))
        else:
            number_arrival(k, request)
        push(k, request)
        request = next_arrival(k)


@merged
def ranked_step(k: Kernel) -> None:
    """Update the ranks, then fill the batch in their order."""
    now = k.now
    if now.mode == LEVELS:
        if now.num_steps and now.num_steps % now.starvation_period == 0:
            _rescue(k)
    elif now.mode == REMAINING:
        _rank_by_remaining(k)
    else:
        rank_by_deadline(k)
    sort_by_key(k, LISTED, int(now.num_listed))
    _serve(k)
    if now.mode == LEVELS:
        now.batch_start_ns = now.clock_ns
        now.num_steps += now.num_in_batch > 0


@inner
def _rank_by_remaining(k: Kernel) -> None:
    """Rank the running requests by the output that they lack; who has come far enough goes first."""
    share = k.now.ratio
    for position in range(k.now.num_listed):
        request = int(k.slots[position, LISTED])
        generated, output = int(k.requests[request].generated), int(k.requests[request].output_tokens)
        place = 0 if generated >= share * output else output - generated + 1
        number = k.requests[request].key & ((1 << KEY_BITS) - 1)
        k.requests[request].key = numbered_key(place, number)


@inner
def _serve(k: Kernel) -> None:
    """Serve by key; the first that cannot be served ends the batch."""
    now = k.now
    num_running, num_admitted, position = int(now.num_listed), 0, 0
    now.num_idle = num_running
    while position < num_running or now.heap_size:
        is_new = position == num_running
        if not is_new and now.heap_size:
            is_new = k.requests[head(k)].key < k.requests[k.slots[position, LISTED]].key
        request = head(k) if is_new else int(k.slots[position, LISTED])
        if not _serve_one(k, request):
            break
        if is_new:
            pop(k)
            k.slots[num_admitted, FIRST_LIST] = request
            num_admitted += 1
        else:
            position += 1
    if now.num_evictions:
        for place in range(num_running):
            if evicted_now(k, int(k.slots[place, LISTED])):
                push(k, int(k.slots[place, LISTED]))
        drop_listed(k)
    for place in range(num_admitted):
        append_listed(k, int(k.slots[place, FIRST_LIST]))


@inner
def _serve_one(k: Kernel, request: int) -> bool:
    """Schedule one request, making room at the expense of those behind it; whether it could be served."""
    now = k.now
    if now.num_in_batch >= now.max_running or evicted_now(k, request):
        return False
    lacking, budget = lacking_tokens(k, request), int(now.max_tokens - now.used_tokens)
    tokens = lacking
    if lacking > budget:
        tokens = 0 if now.chunk == NEVER else max(budget, 0)
    if tokens and now.mode >= DEADLINES and not decodes(k, request):
        tokens = fitting_chunk(k, request, tokens, lacking)
    if not tokens:
        return False
    blocks = missing_blocks(k, request, lacking)
    # Victims stand at the end of the running ones, in their order; NUM_IDLE of them are left.
    while blocks > now.free_blocks and now.num_idle:
        victim = int(k.slots[now.num_idle - 1, LISTED])
        if k.requests[victim].key <= k.requests[request].key:
            break
        preempt(k, victim)
        now.num_idle -= 1
    if blocks > now.free_blocks:
        return False
    schedule(k, request, tokens, blocks)
    return True


@inner
def _quantum_ns(k: Kernel, level: int) -> float:
    """Time that a request may spend in a queue."""
    return math.ldexp(k.now.ratio, level)


@inner
def _level_key(level: int, number: int) -> int:
    """Key of a place in a queue; numbers below 0 stand at its front."""
    return int((level << LEVEL_BITS) + HALF_KEYS + number)


@inner
def _first_level(k: Kernel, request: int) -> int:
    """The first queue whose quantum covers the prompt alone."""
    now, tokens, level = k.now, int(k.requests[request].prompt_tokens), 0
    now.attention = tokens * (tokens + 1) // 2
    now.prefill_tokens, now.prefill_context, now.num_prefills, now.num_generating = tokens, 0, 1, 1
    prefill_ns = batch_time_ns(k, 0)
    while _quantum_ns(k, level) < prefill_ns:
        level += 1
    return level


@inner
def charge_levels(k: Kernel) -> None:
    """Demote whoever has used up the quantum of its queue; the batch is still the last one."""
    now = k.now
    elapsed_ns = now.clock_ns - now.batch_start_ns
    # The last is pushed to the front first, so that the order stays.
    for position in range(now.num_batched - 1, -1, -1):
        request = int(k.slots[position, BATCHED])
        if request == NOBODY:
            continue
        k.notes[request].spent += elapsed_ns
        k.notes[request].idle_since_ns = now.clock_ns
        level = int(k.notes[request].level)
        if k.notes[request].spent > _quantum_ns(k, level):
            _push_front(k, request, level + 1)


@inner
def _push_front(k: Kernel, request: int, level: int) -> None:
    """Move a request to the front of a queue."""
    k.now.front -= 1
    k.notes[request].level = level
    k.requests[request].key = _level_key(level, int(k.now.front))
    k.notes[request].spent = 0


@inner
def _rescue(k: Kernel) -> None:
    """Move starving requests to the front of the highest queue, the last in order first."""
    now, scratch = k.now, k.orders[:, BY_RANK]
    sort_by_key(k, LISTED, int(now.num_listed))
    num_waiting, position = int(now.heap_size), int(now.num_listed) - 1
    for place in range(num_waiting):
        scratch[place] = pop(k)
    place = num_waiting - 1
    while place >= 0 or position >= 0:
        is_waiting = position < 0
        if place >= 0 and not is_waiting:
            is_waiting = k.requests[scratch[place]].key > k.requests[k.slots[position, LISTED]].key
        request = int(scratch[place]) if is_waiting else int(k.slots[position, LISTED])
        place, position = (place - 1, position) if is_waiting else (place, position - 1)
        if now.clock_ns - k.notes[request].idle_since_ns >= k.now.price:
            _push_front(k, request, 0)
    for place in range(num_waiting):
        push(k, int(scratch[place]))
