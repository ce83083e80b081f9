"""Compiled: policies of two queues, with prefill and decode as the parts of a batch (`QueueRun`)."""

from __future__ import annotations

from collections.abc import Callable

from cspsched.simulate.kernel.each.admission import (
    chunk_tokens,
    fits,
    form_group,
    growing_blocks,
    growth,
    most_blocks,
    reserved_tokens,
)
from cspsched.simulate.kernel.each.batch import (
    decodes,
    known_tokens,
    lacking_tokens,
    missing_blocks,
    preempt,
    schedule,
)
from cspsched.simulate.kernel.each.clients import admit_client, client_head, enter_client
from cspsched.simulate.kernel.each.layout import (
    BATCH_TOKENS,
    CLIENTS,
    EVICT,
    GROUP_LEFT,
    GROUPS,
    IS_LOCKED,
    KEY,
    KEY_BITS,
    LISTED,
    MODE,
    NUM_IN_BATCH,
    NUM_LISTED,
    NUM_LOCKED,
    QUEUE_AFTER_EVICTION,
    RETRACTS_FOR,
    USED_TOKENS,
)
from cspsched.simulate.kernel.each.lists import (
    append_listed,
    head,
    next_arrival,
    next_number,
    numbered_key,
    pop,
    push,
)
from cspsched.simulate.kernel.each.lockstep import can_go_on, decode_all
from cspsched.simulate.kernel.each.rules import Evict, Mode
from cspsched.simulate.kernel.each.together import unlock_listed
from cspsched.simulate.kernel.jit import inner, merged
from cspsched.simulate.kernel.layout import (
    EVICTIONS,
    FREE,
    GENERATED,
    MAX_RUNNING,
    PROMPT,
    RUNNING,
    WAITING,
    Kernel,
)

MIXED, DECODE_ONLY, PREFILL_FIRST = int(Mode.MIXED), int(Mode.DECODE_ONLY), int(Mode.PREFILL_FIRST)
SGLANG = int(Mode.SGLANG)
NEWEST, LAST_IN_ORDER = int(Evict.NEWEST), int(Evict.LAST_IN_ORDER)
FEWEST_KNOWN, FEWEST_GENERATED = int(Evict.FEWEST_KNOWN), int(Evict.FEWEST_GENERATED)


ChunkTest = Callable[[Kernel, int], int]
AdmissionTest = Callable[[Kernel, int], bool]
Step = Callable[[Kernel], None]


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
def has_started(k: Kernel) -> bool:
    """Whether the last of the running requests has prefill left."""
    now = k.now
    return bool(now[NUM_LISTED] and not decodes(k, int(k.slots[now[NUM_LISTED] - 1, LISTED])))


@inner
def decode(k: Kernel) -> None:
    """One token for every decode, after evictions if blocks are short."""
    now = k.now
    if now[IS_LOCKED]:
        fits = now[USED_TOKENS] + now[NUM_LOCKED] <= now[BATCH_TOKENS] and can_go_on(k)
        if fits and growing_blocks(k) <= now[FREE]:
            decode_all(k)
            return
        unlock_listed(k)
    needed = growing_blocks(k)
    while needed > now[FREE] and now[NUM_LISTED] > 1:
        position = _victim(k)
        request = int(k.slots[position, LISTED])
        needed -= growth(k, request)
        evict_listed(k, position)
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
def evict_listed(k: Kernel, position: int) -> None:
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


def prefill_with(chunk_tokens: ChunkTest, fits: AdmissionTest) -> Step:
    """Compiled: continue the started prefill, then admit from the head of the queue while it fits.

    Parameters
    ----------
    chunk_tokens, fits
        Compiled functions of a policy: how many of so many lacking tokens go into the batch, and whether a
        request may be admitted beside those that run.
    """

    @inner
    def admit(k: Kernel) -> bool:
        """Admit the head of the queue if it fits; whether another may follow."""
        now = k.now
        request = client_head(k) if now[CLIENTS] else head(k)
        known = known_tokens(k, request)
        tokens = chunk_tokens(k, known)
        if not tokens or (now[RUNNING] and not fits(k, request)):
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

    @inner
    def prefill(k: Kernel) -> None:
        """Continue, then admit."""
        now = k.now
        if has_started(k):
            request = int(k.slots[now[NUM_LISTED] - 1, LISTED])
            lacking = lacking_tokens(k, request)
            tokens = chunk_tokens(k, lacking)
            if tokens:
                schedule(k, request, tokens, missing_blocks(k, request, tokens))
            if tokens < lacking:
                return
        while now[WAITING] and (now[RUNNING] < now[MAX_RUNNING] or now[RETRACTS_FOR]) and admit(k):
            pass

    return prefill


_prefill = prefill_with(chunk_tokens, fits)


@merged
def queue_step(k: Kernel) -> None:
    """Decide a batch."""
    now = k.now
    mode = now[MODE]
    if mode in (MIXED, DECODE_ONLY):
        decode(k)
        if (now[QUEUE_AFTER_EVICTION] or not now[EVICTIONS]) and (mode == MIXED or not now[NUM_IN_BATCH]):
            if now[GROUPS]:
                form_group(k)
            _prefill(k)
    else:
        _prefill(k)
        if mode == PREFILL_FIRST or not now[NUM_IN_BATCH]:
            decode(k)
