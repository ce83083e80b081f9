"""Compiled: the queue of the Sarathi family, how it cuts prompts and how it admits."""

from __future__ import annotations

from cspsched.simulate.kernel.batch import blocks_of
from cspsched.simulate.kernel.each.batch import known_tokens, lacking_tokens, preempt, schedule
from cspsched.simulate.kernel.each.layout import (
    BATCHED,
    CALENDAR_MASK,
    FIXED_BLOCKS,
    HEAP_SIZE,
    IS_FULL,
    KEY,
    LAST_PROMPT_NS,
    LONGEST_PROMPT,
    MODE,
    MOST_IN_BATCH,
    NUM_BATCHED,
    NUM_IN_BATCH,
    NUM_LISTED,
    NUM_LOCKED,
    NUM_STAGES,
    PADDED_TOKENS,
    QUEUE_AFTER_EVICTION,
    QUEUE_START,
    RATIO,
    RESERVES,
    SECOND_LIST,
    STAGE_TOKENS,
    THIRD_LIST,
    TOKENS,
    WATERMARK,
)
from cspsched.simulate.kernel.each.lists import append_listed, get_float, next_arrival
from cspsched.simulate.kernel.each.rules import Mode
from cspsched.simulate.kernel.jit import inner
from cspsched.simulate.kernel.layout import (
    ARRIVAL_NS,
    CLOCK_NS,
    CONTEXT,
    EVICTIONS,
    HEAP,
    MAX_RUNNING,
    MAX_TOKENS,
    REFUSED,
    RUNNING,
    Kernel,
)
from cspsched.simulate.kernel.rules import Reserve

PADDED, STALL_FREE, WHOLE = int(Mode.PADDED), int(Mode.STALL_FREE), int(Mode.WHOLE)
CHUNKED = int(Mode.CHUNKED)
FIXED = int(Reserve.FIXED)


@inner
def submit_to_family(k: Kernel) -> None:
    """Queue all arrivals at the end."""
    request = next_arrival(k)
    while request >= 0:
        k.wide[request, KEY] = k.wide[request, ARRIVAL_NS]
        place = (k.now[QUEUE_START] + k.now[HEAP_SIZE]) % len(k.orders)
        k.orders[place, HEAP] = request
        k.now[HEAP_SIZE] += 1
        request = next_arrival(k)


@inner
def front(k: Kernel) -> int:
    """The request that is served next (somebody waits)."""
    return int(k.orders[k.now[QUEUE_START], HEAP])


@inner
def push_front(k: Kernel, request: int) -> None:
    """Enter a request at the front of the queue."""
    now = k.now
    now[QUEUE_START] = (now[QUEUE_START] + len(k.orders) - 1) % len(k.orders)
    k.orders[now[QUEUE_START], HEAP] = request
    now[HEAP_SIZE] += 1


@inner
def pop_front(k: Kernel) -> None:
    """Remove the first of the queue."""
    k.now[QUEUE_START] = (k.now[QUEUE_START] + 1) % len(k.orders)
    k.now[HEAP_SIZE] -= 1


@inner
def preempt_to_front(k: Kernel, request: int) -> None:
    """Evict a request to the front of the queue."""
    preempt(k, request)
    push_front(k, request)


@inner
def continue_prefills(k: Kernel, count: int, used: int) -> int:
    """Give started prefills their next tokens; return the tokens used."""
    for position in range(count):
        request = int(k.slots[position, SECOND_LIST])
        tokens = prefill_tokens(k, request, lacking_tokens(k, request), used)
        if tokens:
            schedule(k, request, tokens, 0)
            used += tokens
    return used


@inner
def prefill_tokens(k: Kernel, request: int, lacking: int, used: int) -> int:
    """Tokens of a prefill beside so many used in the batch."""
    now, computed = k.now, int(k.rows[request, CONTEXT])
    mode = now[MODE]
    if mode in (STALL_FREE, CHUNKED):
        return max(min(lacking, int(now[MAX_TOKENS]) - used), 0)
    if now[NUM_STAGES]:
        stage = min(computed // int(now[STAGE_TOKENS]), int(now[NUM_STAGES]) - 1)
        return max(0, min(lacking, int(k.calendar[now[CALENDAR_MASK] + 1 + stage]) - used))
    if not computed and now[LONGEST_PROMPT] and lacking > now[LONGEST_PROMPT]:
        now[REFUSED] = request
        return 0
    tokens, left = min(lacking, int(now[MAX_TOKENS])), int(now[MAX_TOKENS]) - used
    if computed:
        tokens = min(tokens, left)
    elif tokens > left:
        tokens = 0
    if mode == PADDED and used:
        return tokens if _fits_padded(k, tokens) else 0
    return tokens


@inner
def _fits_padded(k: Kernel, tokens: int) -> bool:
    """Whether the batch padded to its longest prompt stays within the budget with one more."""
    longest = tokens
    for position in range(k.now[NUM_BATCHED]):
        longest = max(longest, int(k.rows[k.slots[position, BATCHED], TOKENS]))
    return bool((k.now[NUM_IN_BATCH] + 1) * longest <= k.now[PADDED_TOKENS])


@inner
def _may_admit(k: Kernel) -> bool:
    """Whether the head of the queue may be tried."""
    now = k.now
    if now[MOST_IN_BATCH] and (now[NUM_IN_BATCH] >= now[MOST_IN_BATCH] or now[IS_FULL]):
        return False
    if now[EVICTIONS] and not now[QUEUE_AFTER_EVICTION]:
        return False
    delay = get_float(k, RATIO)
    if not delay or not now[HEAP_SIZE] or not now[NUM_LISTED] + now[NUM_LOCKED]:
        return True
    earliest = k.wide[front(k), ARRIVAL_NS]
    for position in range(1, now[HEAP_SIZE]):
        request = k.orders[(now[QUEUE_START] + position) % len(k.orders), HEAP]
        earliest = min(earliest, k.wide[request, ARRIVAL_NS])
    return bool(now[CLOCK_NS] - earliest > delay * now[LAST_PROMPT_NS])


@inner
def admit_waiting(k: Kernel, used: int, spare: int) -> None:
    """Admit from the head of the queue, strictly in its order, until something does not fit."""
    now, num_admitted = k.now, 0
    while _may_admit(k) and now[HEAP_SIZE] and now[RUNNING] < now[MAX_RUNNING]:
        request = front(k)
        known = known_tokens(k, request)
        tokens = prefill_tokens(k, request, known, used)
        blocks = int(now[FIXED_BLOCKS]) if now[RESERVES] == FIXED else blocks_of(k, known)
        kept_free = int(now[WATERMARK]) if now[RUNNING] else 0
        if not tokens or blocks + kept_free > spare:
            break
        pop_front(k)
        schedule(k, request, tokens, blocks)
        k.slots[num_admitted, THIRD_LIST] = request
        num_admitted += 1
        spare -= blocks
        used += tokens
    if now[MOST_IN_BATCH]:
        # Vidur's schedulers find them in the batch when they come back.
        return
    for position in range(num_admitted):
        append_listed(k, int(k.slots[position, THIRD_LIST]))
