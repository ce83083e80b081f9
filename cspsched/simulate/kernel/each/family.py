"""Compiled: the Sarathi family and vLLM V0 (`FamilyRun`), where the aggregated loop does not know them."""

from __future__ import annotations

from cspsched.simulate.kernel.batch import blocks_of
from cspsched.simulate.kernel.each.batch import decodes, known_tokens, missing_blocks, schedule
from cspsched.simulate.kernel.each.family_parts import (
    admit_waiting,
    continue_prefills,
    front,
    preempt_to_front,
)
from cspsched.simulate.kernel.each.layout import (
    BATCH_START_NS,
    BY_ARRIVAL,
    BY_IMPORTANCE,
    FIRST_LIST,
    GROUP_LEFT,
    HEAP_SIZE,
    IS_LOCKED,
    LAST_PROMPT_NS,
    LAST_RANK,
    LAST_WAS_PROMPT,
    LISTED,
    MODE,
    NUM_IDLE,
    NUM_IN_BATCH,
    NUM_LISTED,
    NUM_LOCKED,
    QUEUE_START,
    SECOND_LIST,
    SORTED_LIST,
    WATERMARK,
)
from cspsched.simulate.kernel.each.lists import append_listed, sort_by_key
from cspsched.simulate.kernel.each.lockstep import can_decode_all, decode_all, locked_growth
from cspsched.simulate.kernel.each.rules import Mode
from cspsched.simulate.kernel.each.together import unlock_listed
from cspsched.simulate.kernel.jit import inner, merged
from cspsched.simulate.kernel.layout import CLOCK_NS, FREE, HEAP, IMPORTANCE, MAX_RUNNING, RUNNING, Kernel

PREFILL_ONLY = int(Mode.PREFILL_ONLY)


@merged
def family_step(k: Kernel) -> None:
    """Decide a batch."""
    if k.now[MODE] == PREFILL_ONLY:
        _prompts_first(k)
    else:
        _mixed(k)


@inner
def _mixed(k: Kernel) -> None:
    """Started prefills, the queue, and the decodes, which were kept before."""
    promised = _keep_decodes(k)
    num_decodes, num_started = int(k.now[NUM_IDLE]), int(k.now[GROUP_LEFT])
    used = continue_prefills(k, num_started, num_decodes)
    admit_waiting(k, used, int(k.now[FREE]) - promised)
    _schedule_decodes(k, num_decodes)


@inner
def _prompts_first(k: Kernel) -> None:
    """Prompts alone (vLLM V0); else room for a more important request, then decodes."""
    now = k.now
    if now[LAST_WAS_PROMPT]:
        now[LAST_PROMPT_NS] = now[CLOCK_NS] - now[BATCH_START_NS]
    now[BATCH_START_NS] = now[CLOCK_NS]
    num_started = 0
    for position in range(now[NUM_LISTED]):
        request = int(k.slots[position, LISTED])
        if not decodes(k, request):
            k.slots[num_started, SECOND_LIST] = request
            num_started += 1
    used = continue_prefills(k, num_started, 0)
    admit_waiting(k, used, int(now[FREE]))
    now[LAST_WAS_PROMPT] = now[NUM_IN_BATCH] > 0
    if not now[NUM_IN_BATCH]:
        if now[BY_IMPORTANCE]:
            _prefer_important(k)
        _keep_decodes(k)
        _schedule_decodes(k, int(now[NUM_IDLE]))


@inner
def _keep_decodes(k: Kernel) -> int:
    """Split the running requests into decodes that can be kept and started prefills.

    Returns the blocks that the decodes will take; their numbers are NUM_IDLE and GROUP_LEFT.
    """
    now, num_decodes, num_started = k.now, 0, 0
    if now[IS_LOCKED] and not can_decode_all(k):
        unlock_listed(k)
    promised = locked_growth(k)
    start, end = 0, int(now[NUM_LISTED])
    for position in range(end):
        k.slots[position, SORTED_LIST] = k.slots[position, LISTED]
    if now[BY_ARRIVAL]:
        sort_by_key(k, SORTED_LIST, end)
    while start < end:
        request = int(k.slots[start, SORTED_LIST])
        start += 1
        if not decodes(k, request):
            k.slots[num_started, SECOND_LIST] = request
            num_started += 1
            continue
        while now[FREE] == promised and start < end:
            end -= 1
            preempt_to_front(k, int(k.slots[end, SORTED_LIST]))
        if now[FREE] == promised:
            preempt_to_front(k, request)
            continue
        k.slots[num_decodes, FIRST_LIST] = request
        num_decodes += 1
        promised += missing_blocks(k, request, 1)
    now[NUM_LISTED] = 0
    for position in range(num_decodes):
        append_listed(k, int(k.slots[position, FIRST_LIST]))
    for position in range(num_started):
        append_listed(k, int(k.slots[position, SECOND_LIST]))
    now[NUM_IDLE], now[GROUP_LEFT] = num_decodes + now[NUM_LOCKED], num_started
    return promised


@inner
def _schedule_decodes(k: Kernel, count: int) -> None:
    """One token each."""
    if k.now[IS_LOCKED]:
        decode_all(k)
        return
    for position in range(count):
        request = int(k.slots[position, FIRST_LIST])
        schedule(k, request, 1, missing_blocks(k, request, 1))


@inner
def _prefer_important(k: Kernel) -> None:
    """Preempt whom the head of the queue surpasses until it can be admitted; then sort the queue."""
    now = k.now
    if now[IS_LOCKED] and not _is_surpassed(k):
        _sort_queue(k)
        return
    unlock_listed(k)
    _sort_running(k)
    if now[HEAP_SIZE]:
        request = front(k)
        blocks = blocks_of(k, known_tokens(k, request)) + now[WATERMARK]
        while now[NUM_LISTED]:
            last = int(k.slots[now[NUM_LISTED] - 1, LISTED])
            if k.rows[last, IMPORTANCE] <= k.rows[request, IMPORTANCE]:
                break
            if now[NUM_LISTED] < now[MAX_RUNNING] and blocks <= now[FREE]:
                break
            now[NUM_LISTED] -= 1
            preempt_to_front(k, last)
    _sort_queue(k)


@inner
def _is_surpassed(k: Kernel) -> bool:
    """Whether the head of the queue may surpass somebody who runs; those in lockstep are in order."""
    now = k.now
    if now[NUM_LISTED]:
        return True
    if not now[HEAP_SIZE]:
        return False
    request = front(k)
    blocks = blocks_of(k, known_tokens(k, request)) + now[WATERMARK]
    has_room = now[RUNNING] < now[MAX_RUNNING] and blocks <= now[FREE]
    return bool(now[LAST_RANK] > k.rows[request, IMPORTANCE] and not has_room)


@inner
def _sort_running(k: Kernel) -> None:
    """The most important first; equals keep their order."""
    for position in range(1, k.now[NUM_LISTED]):
        request, place = k.slots[position, LISTED], position
        while place and k.rows[k.slots[place - 1, LISTED], IMPORTANCE] > k.rows[request, IMPORTANCE]:
            k.slots[place, LISTED] = k.slots[place - 1, LISTED]
            place -= 1
        k.slots[place, LISTED] = request


@inner
def _sort_queue(k: Kernel) -> None:
    """The most important first; equals keep their order."""
    queue, size, start = k.orders[:, HEAP], len(k.orders), int(k.now[QUEUE_START])
    for position in range(1, k.now[HEAP_SIZE]):
        request, place = queue[(start + position) % size], position
        while place:
            before = queue[(start + place - 1) % size]
            if k.rows[before, IMPORTANCE] <= k.rows[request, IMPORTANCE]:
                break
            queue[(start + place) % size] = before
            place -= 1
        queue[(start + place) % size] = request
