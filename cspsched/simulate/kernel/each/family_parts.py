"""Compiled: the queue of the Sarathi family, how it cuts prompts and how it admits."""

from __future__ import annotations

from cspsched.simulate.kernel.batch import blocks_of
from cspsched.simulate.kernel.each.batch import known_tokens, lacking_tokens, preempt, schedule
from cspsched.simulate.kernel.each.layout import (
    BATCHED,
    SECOND_LIST,
    THIRD_LIST,
)
from cspsched.simulate.kernel.each.lists import append_listed, next_arrival
from cspsched.simulate.kernel.each.rules import Mode
from cspsched.simulate.kernel.jit import inner
from cspsched.simulate.kernel.layout import (
    HEAP,
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
        k.requests[request].key = k.requests[request].arrival_ns
        place = (k.now.queue_start + k.now.heap_size) % len(k.orders)
        k.orders[place, HEAP] = request
        k.now.heap_size += 1
        request = next_arrival(k)


@inner
def front(k: Kernel) -> int:
    """The request that is served next (somebody waits)."""
    return int(k.orders[k.now.queue_start, HEAP])


@inner
def push_front(k: Kernel, request: int) -> None:
    """Enter a request at the front of the queue."""
    now = k.now
    now.queue_start = (now.queue_start + len(k.orders) - 1) % len(k.orders)
    k.orders[now.queue_start, HEAP] = request
    now.heap_size += 1


@inner
def pop_front(k: Kernel) -> None:
    """Remove the first of the queue."""
    k.now.queue_start = (k.now.queue_start + 1) % len(k.orders)
    k.now.heap_size -= 1


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
    now, computed = k.now, int(k.requests[request].kv_tokens)
    mode = now.mode
    if mode in (STALL_FREE, CHUNKED):
        return max(min(lacking, int(now.max_tokens) - used), 0)
    if now.num_stages:
        stage = min(computed // int(now.stage_tokens), int(now.num_stages) - 1)
        return max(0, min(lacking, int(k.calendar[now.calendar_mask + 1 + stage]) - used))
    if not computed and now.longest_prompt and lacking > now.longest_prompt:
        now.refused = request
        return 0
    tokens, left = min(lacking, int(now.max_tokens)), int(now.max_tokens) - used
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
    for position in range(k.now.num_batched):
        longest = max(longest, int(k.requests[k.slots[position, BATCHED]].tokens))
    return bool((k.now.num_in_batch + 1) * longest <= k.now.padded_tokens)


@inner
def _may_admit(k: Kernel) -> bool:
    """Whether the head of the queue may be tried."""
    now = k.now
    if now.most_in_batch and (now.num_in_batch >= now.most_in_batch or now.is_full):
        return False
    if now.num_evictions and not now.queue_after_eviction:
        return False
    delay = k.now.ratio
    if not delay or not now.heap_size or not now.num_listed + now.num_locked:
        return True
    earliest = k.requests[front(k)].arrival_ns
    for position in range(1, now.heap_size):
        request = k.orders[(now.queue_start + position) % len(k.orders), HEAP]
        earliest = min(earliest, k.requests[request].arrival_ns)
    return bool(now.clock_ns - earliest > delay * now.last_prompt_ns)


@inner
def admit_waiting(k: Kernel, used: int, spare: int) -> None:
    """Admit from the head of the queue, strictly in its order, until something does not fit."""
    now, num_admitted = k.now, 0
    while _may_admit(k) and now.heap_size and now.num_running < now.max_running:
        request = front(k)
        known = known_tokens(k, request)
        tokens = prefill_tokens(k, request, known, used)
        blocks = int(now.fixed_blocks) if now.reserve == FIXED else blocks_of(k, known)
        kept_free = int(now.watermark_blocks) if now.num_running else 0
        if not tokens or blocks + kept_free > spare:
            break
        pop_front(k)
        schedule(k, request, tokens, blocks)
        k.slots[num_admitted, THIRD_LIST] = request
        num_admitted += 1
        spare -= blocks
        used += tokens
    if now.most_in_batch:
        # Vidur's schedulers find them in the batch when they come back.
        return
    for position in range(num_admitted):
        append_listed(k, int(k.slots[position, THIRD_LIST]))
