"""Compiled: policies of two queues, with prefill and decode as the parts of a batch (`QueueRun`)."""

from __future__ import annotations

from cspsched.simulate.kernel.each.admission import (
    chunk_tokens,
    fits,
    form_group,
    growing_blocks,
    growth,
    most_blocks,
    reserved_tokens,
    update_share,
)
from cspsched.simulate.kernel.each.batch import (
    decodes,
    known_tokens,
    lacking_tokens,
    missing_blocks,
    preempt,
    schedule,
)
from cspsched.simulate.kernel.each.capacity import equal_progress, max_utilization_step
from cspsched.simulate.kernel.each.clients import admit_client, charge_decodes, client_head, enter_client
from cspsched.simulate.kernel.each.layout import (
    BATCH_TOKENS,
    CLIENTS,
    DECODE_STEPS,
    EVICT,
    GROUP_LEFT,
    GROUPS,
    IS_FULL,
    KEY,
    KEY_BITS,
    LEARNS_LENGTHS,
    LISTED,
    MIXES_DECODES,
    MODE,
    NUM_IN_BATCH,
    NUM_LISTED,
    NUM_STEPS,
    QUEUE_AFTER_EVICTION,
    RATIO,
    SHARE,
    SOMEBODY_FINISHED,
    USED_TOKENS,
)
from cspsched.simulate.kernel.each.lists import (
    append_listed,
    get_float,
    head,
    next_arrival,
    next_number,
    numbered_key,
    pop,
    push,
    set_float,
)
from cspsched.simulate.kernel.each.rules import Evict, Mode
from cspsched.simulate.kernel.jit import inner
from cspsched.simulate.kernel.layout import EVICTIONS, FREE, GENERATED, MAX_RUNNING, PROMPT, WAITING, Kernel

MIXED, PREFILL_ONLY, DECODE_ONLY = int(Mode.MIXED), int(Mode.PREFILL_ONLY), int(Mode.DECODE_ONLY)
PREFILL_FIRST, WAITING_RATIO = int(Mode.PREFILL_FIRST), int(Mode.WAITING_RATIO)
SGLANG = int(Mode.SGLANG)
MAX_UTILIZATION, EQUAL_PROGRESS = int(Mode.MAX_UTILIZATION), int(Mode.EQUAL_PROGRESS)
NEWEST, LAST_IN_ORDER = int(Evict.NEWEST), int(Evict.LAST_IN_ORDER)
FEWEST_KNOWN, FEWEST_GENERATED = int(Evict.FEWEST_KNOWN), int(Evict.FEWEST_GENERATED)


@inner
def submit_to_queue(k: Kernel) -> None:
    """Queue all arrivals, in the order of their places and then of submission."""
    request = next_arrival(k)
    while request >= 0:
        k.wide[request, KEY] = numbered_key(k.wide[request, KEY], next_number(k))
        if k.now[CLIENTS]:
            enter_client(k, request)
        else:
            push(k, request)
        request = next_arrival(k)


@inner
def queue_step(k: Kernel) -> None:
    """Decide a batch."""
    now = k.now
    mode = now[MODE]
    if now[LEARNS_LENGTHS] or mode == SGLANG:
        _note_finished(k)
    if mode in (MIXED, DECODE_ONLY):
        decode(k)
        if (now[QUEUE_AFTER_EVICTION] or not now[EVICTIONS]) and (mode == MIXED or not now[NUM_IN_BATCH]):
            if now[GROUPS]:
                form_group(k)
            prefill(k)
    elif mode == PREFILL_ONLY:
        prefill(k)
        if not now[NUM_IN_BATCH]:
            decode(k)
    elif mode == PREFILL_FIRST:
        prefill(k)
        decode(k)
    elif mode == SGLANG:
        _sglang_step(k)
    elif mode == MAX_UTILIZATION:
        max_utilization_step(k)
    elif mode == EQUAL_PROGRESS:
        decode(k)
        equal_progress(k)
    else:
        _prefill_at_times(k, by_ratio=mode == WAITING_RATIO)


@inner
def _note_finished(k: Kernel) -> None:
    """Take note of those that finished in the last batch."""
    if k.now[SOMEBODY_FINISHED]:
        k.now[IS_FULL] = k.now[SOMEBODY_FINISHED] = 0


@inner
def _has_started(k: Kernel) -> bool:
    """Whether the last of the running requests has prefill left."""
    now = k.now
    return bool(now[NUM_LISTED] and not decodes(k, int(k.slots[now[NUM_LISTED] - 1, LISTED])))


@inner
def _prefill_at_times(k: Kernel, by_ratio: bool) -> None:  # noqa: FBT001
    """Prefills when they are due by the number of waiting requests or of decode steps; else decodes."""
    now = k.now
    is_due = not now[NUM_LISTED] or _has_started(k) or now[NUM_STEPS] >= now[DECODE_STEPS]
    if not is_due and by_ratio:
        is_due = now[WAITING] >= get_float(k, RATIO) * now[NUM_LISTED]
    if is_due:
        if not by_ratio:
            now[NUM_STEPS] = 0
        prefill(k)
    if not now[NUM_IN_BATCH]:
        now[NUM_STEPS] += 1
        decode(k)
        if now[CLIENTS]:
            charge_decodes(k)
    elif by_ratio:
        now[NUM_STEPS] = 0


@inner
def _sglang_step(k: Kernel) -> None:
    """Prefill whatever can be; else decode, after retractions if memory is short."""
    now = k.now
    if not now[NUM_LISTED]:
        now[IS_FULL] = 0
        if not now[WAITING]:
            set_float(k, SHARE, get_float(k, RATIO))
    if _may_prefill(k):
        prefill(k)
    is_prefill = now[NUM_IN_BATCH] > 0
    now[NUM_STEPS] = 0 if is_prefill else now[NUM_STEPS] + 1
    if now[NUM_LISTED] and (not is_prefill or now[MIXES_DECODES]):
        decode(k)
    if now[NUM_LISTED] and not is_prefill:
        update_share(k)


@inner
def _may_prefill(k: Kernel) -> bool:
    """Whether there have been decodes enough, and the batch is not full."""
    if k.now[NUM_STEPS] < k.now[DECODE_STEPS]:
        for position in range(k.now[NUM_LISTED]):
            if decodes(k, int(k.slots[position, LISTED])):
                return False
    return not k.now[IS_FULL]


@inner
def decode(k: Kernel) -> None:
    """One token for every decode, after evictions if blocks are short."""
    now = k.now
    needed = growing_blocks(k)
    while needed > now[FREE] and now[NUM_LISTED] > 1:
        position = _victim(k)
        request = int(k.slots[position, LISTED])
        needed -= growth(k, request)
        _evict_listed(k, position)
    for position in range(now[NUM_LISTED]):
        request = int(k.slots[position, LISTED])
        if decodes(k, request) and now[USED_TOKENS] < now[BATCH_TOKENS]:
            schedule(k, request, 1, growth(k, request))


@inner
def _victim(k: Kernel) -> int:
    """Place of the request to evict next among the running ones."""
    now = k.now
    mode, found = now[EVICT], now[NUM_LISTED] - 1
    if mode != NEWEST:
        for place in range(now[NUM_LISTED] - 2, -1, -1):
            if _goes_before(k, int(k.slots[place, LISTED]), int(k.slots[found, LISTED]), mode):
                found = place
    return int(found)


@inner
def _goes_before(k: Kernel, request: int, other: int, mode: int) -> bool:
    """Whether a request is evicted before another one that was admitted later."""
    row, others = k.rows[request], k.rows[other]
    if mode == FEWEST_GENERATED:
        if row[GENERATED] != others[GENERATED]:
            return bool(row[GENERATED] < others[GENERATED])
        return bool(row[PROMPT] > others[PROMPT])
    if mode == FEWEST_KNOWN and known_tokens(k, request) != known_tokens(k, other):
        return known_tokens(k, request) < known_tokens(k, other)
    return bool(k.wide[request, KEY] > k.wide[other, KEY])


@inner
def _evict_listed(k: Kernel, position: int) -> None:
    """Preempt a running request and queue it again."""
    now, request = k.now, int(k.slots[position, LISTED])
    preempt(k, request)
    now[NUM_LISTED] -= 1
    for place in range(position, now[NUM_LISTED]):
        k.slots[place, LISTED] = k.slots[place + 1, LISTED]
    if now[MODE] == SGLANG:
        # At the end of those of the same place.
        k.wide[request, KEY] = numbered_key(k.wide[request, KEY] >> KEY_BITS, next_number(k))
    if now[CLIENTS]:
        enter_client(k, request)
    else:
        push(k, request)


@inner
def prefill(k: Kernel) -> None:
    """Continue the started prefill, then admit from the head of the queue while it fits."""
    now = k.now
    if _has_started(k):
        request = int(k.slots[now[NUM_LISTED] - 1, LISTED])
        lacking = lacking_tokens(k, request)
        tokens = chunk_tokens(k, lacking)
        if tokens:
            schedule(k, request, tokens, missing_blocks(k, request, tokens))
        if tokens < lacking:
            return
    while now[WAITING] and now[NUM_LISTED] < now[MAX_RUNNING] and _admit(k):
        pass


@inner
def _admit(k: Kernel) -> bool:
    """Admit the head of the queue if it fits; whether another may follow."""
    now = k.now
    request = client_head(k) if now[CLIENTS] else head(k)
    known = known_tokens(k, request)
    tokens = chunk_tokens(k, known)
    if not tokens or (now[NUM_LISTED] and not fits(k, request)):
        return False
    if now[GROUPS]:
        now[GROUP_LEFT] -= 1
    if now[CLIENTS]:
        admit_client(k, request)
    else:
        pop(k)
    schedule(k, request, tokens, most_blocks(k, reserved_tokens(k, request)))
    append_listed(k, request)
    return tokens == known
