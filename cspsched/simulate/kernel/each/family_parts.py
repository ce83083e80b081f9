"""Compiled: the queue of the Sarathi family, how it cuts prompts and how it admits."""

from __future__ import annotations

from cspsched.simulate.kernel.batch import blocks_of, restart_output
from cspsched.simulate.kernel.each.batch import known_tokens, lacking_tokens, preempt, schedule
from cspsched.simulate.kernel.each.layout import (
    BATCHED,
    SECOND_LIST,
    THIRD_LIST,
)
from cspsched.simulate.kernel.each.lists import append_listed, next_arrival
from cspsched.simulate.kernel.each.rules import Mode
from cspsched.simulate.kernel.each.v0_swap import swap_to_end
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
def queued(k: Kernel, position: int) -> int:
    """The request at a position of the queue."""
    return int(k.orders[(k.now.queue_start + position) % len(k.orders), HEAP])


@inner
def push_front(k: Kernel, request: int) -> None:
    """Enter a request at the front of the queue."""
    now = k.now
    now.queue_start = (now.queue_start + len(k.orders) - 1) % len(k.orders)
    k.orders[now.queue_start, HEAP] = request
    now.heap_size += 1


@inner
def _remove(k: Kernel, position: int) -> None:
    """Remove a request from the queue; those in front of it move up."""
    queue, size, start = k.orders[:, HEAP], len(k.orders), int(k.now.queue_start)
    for place in range(position, 0, -1):
        queue[(start + place) % size] = queue[(start + place - 1) % size]
    k.now.queue_start = (start + 1) % size
    k.now.heap_size -= 1


@inner
def give_way(k: Kernel, request: int) -> None:
    """Evict a request to the front of the queue, or to host memory if the policy swaps."""
    if k.now.swaps:
        swap_to_end(k, request)
    else:
        preempt_to_front(k, request)


@inner
def preempt_to_front(k: Kernel, request: int) -> None:
    """Evict a request to the front of the queue."""
    preempt(k, request)
    if k.now.restarts_output:
        restart_output(k, request)
    push_front(k, request)


@inner
def prompt_tokens(k: Kernel, request: int) -> int:
    """Known tokens to be prefilled; with a bug of Vidur's those that it remembers."""
    if k.now.emulates_bugs and k.notes[request].remembered:
        return int(k.notes[request].remembered)
    return known_tokens(k, request)


@inner
def continue_prefills(k: Kernel, count: int, used: int) -> int:
    """Give started prefills their next tokens; return the tokens used."""
    for position in range(count):
        request = int(k.slots[position, SECOND_LIST])
        lacking = prompt_tokens(k, request) - int(k.requests[request].kv_tokens)
        tokens = prefill_tokens(k, request, lacking, used)
        if tokens:
            schedule(k, request, tokens, 0)
            used += tokens
    return used


@inner
def prefill_tokens(k: Kernel, request: int, lacking: int, used: int) -> int:
    """Tokens of a prefill beside so many used in the batch."""
    now, computed = k.now, int(k.requests[request].kv_tokens)
    mode = now.mode
    if mode == CHUNKED:
        return max(min(lacking, int(now.max_tokens) - used, int(now.slot_tokens)), 0)
    if mode == STALL_FREE:
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
    if mode == PADDED and (used or now.emulates_bugs):
        return tokens if _fits_padded(k, tokens) else 0
    return tokens


@inner
def is_long(k: Kernel, request: int) -> bool:
    """Whether what a request lacks is long for vLLM V0."""
    return bool(lacking_tokens(k, request) > k.now.long_prefill)


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
    if (now.num_evictions and not now.queue_after_eviction) or (now.num_swapped and now.mode != CHUNKED):
        return False
    delay = k.now.ratio
    if not delay or not now.heap_size or not now.num_listed + now.num_locked:
        return True
    earliest = k.requests[queued(k, 0)].arrival_ns
    for position in range(1, now.heap_size):
        earliest = min(earliest, k.requests[queued(k, position)].arrival_ns)
    return bool(now.clock_ns - earliest > delay * now.last_prompt_ns)


@inner
def admit_waiting(k: Kernel, used: int, spare: int) -> None:
    """Admit in the order of the queue until something does not fit; only long prompts may be passed over."""
    now, num_admitted, passed = k.now, 0, 0
    while _may_admit(k) and passed < now.heap_size and now.num_running < now.max_running:
        request = queued(k, passed)
        if now.most_partial > 1 and is_long(k, request):
            now.long_left -= 1
            if now.long_left < 0:
                passed += 1
                continue
        known = prompt_tokens(k, request)
        blocks = int(now.fixed_blocks) if now.reserve == FIXED else blocks_of(k, known)
        if now.drops_above and (known > now.drops_above or blocks + now.watermark_blocks > now.kv_blocks):
            _remove(k, passed)
            now.num_waiting -= 1
            now.num_unfinished -= 1
            continue
        tokens = prefill_tokens(k, request, known, used)
        kept_free = int(now.watermark_blocks) if now.num_running else 0
        if not tokens or blocks + kept_free > spare:
            break
        _remove(k, passed)
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
