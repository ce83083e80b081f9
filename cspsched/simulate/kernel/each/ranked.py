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
    BATCH_START_NS,
    BATCHED,
    CUT,
    FIRST_LIST,
    FRONT,
    HEAP_SIZE,
    IDLE_SINCE_NS,
    KEY,
    KEY_BITS,
    LEVEL,
    LEVEL_BITS,
    LISTED,
    MODE,
    NUM_BATCHED,
    NUM_IDLE,
    NUM_IN_BATCH,
    NUM_LISTED,
    NUM_STEPS,
    PRICE,
    RATIO,
    SPENT,
    STARVATION_PERIOD,
    USED_TOKENS,
)
from cspsched.simulate.kernel.each.lists import (
    append_listed,
    drop_listed,
    get_float,
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
    ARRIVAL_NS,
    ATTENTION,
    BY_RANK,
    CLOCK_NS,
    EVICTIONS,
    FREE,
    GENERATED,
    MAX_RUNNING,
    MAX_TOKENS,
    NOBODY,
    NUM_GENERATING,
    NUM_PREFILLS,
    OUTPUT,
    PREFILL_CONTEXT,
    PREFILL_TOKENS,
    PROMPT,
    Kernel,
)
from cspsched.simulate.kernel.pricing import batch_time_ns
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
        if k.now[MODE] == LEVELS:
            level = _first_level(k, request)
            k.rows[request, LEVEL] = level
            k.wide[request, KEY] = _level_key(level, next_number(k))
            k.wide[request, IDLE_SINCE_NS] = k.wide[request, ARRIVAL_NS]
        elif k.now[MODE] == REMAINING:
            k.wide[request, KEY] = numbered_key(int(k.rows[request, OUTPUT]) + 1, next_number(k))
        else:
            number_arrival(k, request)
        push(k, request)
        request = next_arrival(k)


@merged
def ranked_step(k: Kernel) -> None:
    """Update the ranks, then fill the batch in their order."""
    now = k.now
    if now[MODE] == LEVELS:
        if now[NUM_STEPS] and now[NUM_STEPS] % now[STARVATION_PERIOD] == 0:
            _rescue(k)
    elif now[MODE] == REMAINING:
        _rank_by_remaining(k)
    else:
        rank_by_deadline(k)
    sort_by_key(k, LISTED, int(now[NUM_LISTED]))
    _serve(k)
    if now[MODE] == LEVELS:
        now[BATCH_START_NS] = now[CLOCK_NS]
        now[NUM_STEPS] += now[NUM_IN_BATCH] > 0


@inner
def _rank_by_remaining(k: Kernel) -> None:
    """Rank the running requests by the output that they lack; who has come far enough goes first."""
    share = get_float(k, RATIO)
    for position in range(k.now[NUM_LISTED]):
        request = int(k.slots[position, LISTED])
        generated, output = int(k.rows[request, GENERATED]), int(k.rows[request, OUTPUT])
        place = 0 if generated >= share * output else output - generated + 1
        number = k.wide[request, KEY] & ((1 << KEY_BITS) - 1)
        k.wide[request, KEY] = numbered_key(place, number)


@inner
def _serve(k: Kernel) -> None:
    """Serve by key; the first that cannot be served ends the batch."""
    now = k.now
    num_running, num_admitted, position = int(now[NUM_LISTED]), 0, 0
    now[NUM_IDLE] = num_running
    while position < num_running or now[HEAP_SIZE]:
        is_new = position == num_running
        if not is_new and now[HEAP_SIZE]:
            is_new = k.wide[head(k), KEY] < k.wide[k.slots[position, LISTED], KEY]
        request = head(k) if is_new else int(k.slots[position, LISTED])
        if not _serve_one(k, request):
            break
        if is_new:
            pop(k)
            k.slots[num_admitted, FIRST_LIST] = request
            num_admitted += 1
        else:
            position += 1
    if now[EVICTIONS]:
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
    if now[NUM_IN_BATCH] >= now[MAX_RUNNING] or evicted_now(k, request):
        return False
    lacking, budget = lacking_tokens(k, request), int(now[MAX_TOKENS] - now[USED_TOKENS])
    tokens = lacking
    if lacking > budget:
        tokens = 0 if now[CUT] == NEVER else max(budget, 0)
    if tokens and now[MODE] >= DEADLINES and not decodes(k, request):
        tokens = fitting_chunk(k, request, tokens, lacking)
    if not tokens:
        return False
    blocks = missing_blocks(k, request, lacking)
    # Victims stand at the end of the running ones, in their order; NUM_IDLE of them are left.
    while blocks > now[FREE] and now[NUM_IDLE]:
        victim = int(k.slots[now[NUM_IDLE] - 1, LISTED])
        if k.wide[victim, KEY] <= k.wide[request, KEY]:
            break
        preempt(k, victim)
        now[NUM_IDLE] -= 1
    if blocks > now[FREE]:
        return False
    schedule(k, request, tokens, blocks)
    return True


@inner
def _quantum_ns(k: Kernel, level: int) -> float:
    """Time that a request may spend in a queue."""
    return math.ldexp(get_float(k, RATIO), level)


@inner
def _level_key(level: int, number: int) -> int:
    """Key of a place in a queue; numbers below 0 stand at its front."""
    return int((level << LEVEL_BITS) + HALF_KEYS + number)


@inner
def _first_level(k: Kernel, request: int) -> int:
    """The first queue whose quantum covers the prompt alone."""
    now, tokens, level = k.now, int(k.rows[request, PROMPT]), 0
    now[ATTENTION] = tokens * (tokens + 1) // 2
    now[PREFILL_TOKENS], now[PREFILL_CONTEXT], now[NUM_PREFILLS], now[NUM_GENERATING] = tokens, 0, 1, 1
    prefill_ns = batch_time_ns(k, 0)
    while _quantum_ns(k, level) < prefill_ns:
        level += 1
    return level


@inner
def charge_levels(k: Kernel) -> None:
    """Demote whoever has used up the quantum of its queue; the batch is still the last one."""
    now = k.now
    elapsed_ns = now[CLOCK_NS] - now[BATCH_START_NS]
    # The last is pushed to the front first, so that the order stays.
    for position in range(now[NUM_BATCHED] - 1, -1, -1):
        request = int(k.slots[position, BATCHED])
        if request == NOBODY:
            continue
        k.wide[request, SPENT] += elapsed_ns
        k.wide[request, IDLE_SINCE_NS] = now[CLOCK_NS]
        level = int(k.rows[request, LEVEL])
        if k.wide[request, SPENT] > _quantum_ns(k, level):
            _push_front(k, request, level + 1)


@inner
def _push_front(k: Kernel, request: int, level: int) -> None:
    """Move a request to the front of a queue."""
    k.now[FRONT] -= 1
    k.rows[request, LEVEL] = level
    k.wide[request, KEY] = _level_key(level, int(k.now[FRONT]))
    k.wide[request, SPENT] = 0


@inner
def _rescue(k: Kernel) -> None:
    """Move starving requests to the front of the highest queue, the last in order first."""
    now, scratch = k.now, k.orders[:, BY_RANK]
    sort_by_key(k, LISTED, int(now[NUM_LISTED]))
    num_waiting, position = int(now[HEAP_SIZE]), int(now[NUM_LISTED]) - 1
    for place in range(num_waiting):
        scratch[place] = pop(k)
    place = num_waiting - 1
    while place >= 0 or position >= 0:
        is_waiting = position < 0
        if place >= 0 and not is_waiting:
            is_waiting = k.wide[scratch[place], KEY] > k.wide[k.slots[position, LISTED], KEY]
        request = int(scratch[place]) if is_waiting else int(k.slots[position, LISTED])
        place, position = (place - 1, position) if is_waiting else (place, position - 1)
        if now[CLOCK_NS] - k.wide[request, IDLE_SINCE_NS] >= get_float(k, PRICE):
            _push_front(k, request, 0)
    for place in range(num_waiting):
        push(k, int(scratch[place]))
