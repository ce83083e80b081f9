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
    KEY_BITS,
    LISTED,
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
        k.requests[request].key = numbered_key(k.requests[request].key, next_number(k))
        if k.now.clients:
            enter_client(k, request)
        else:
            push(k, request)
        request = next_arrival(k)


@inner
def has_started(k: Kernel) -> bool:
    """Whether the last of the running requests has prefill left."""
    now = k.now
    return bool(now.num_listed and not decodes(k, int(k.slots[now.num_listed - 1, LISTED])))


@inner
def decode(k: Kernel) -> None:
    """One token for every decode, after evictions if blocks are short."""
    now = k.now
    if now.is_locked:
        fits = now.used_tokens + now.num_locked <= now.batch_tokens and can_go_on(k)
        if fits and growing_blocks(k) <= now.free_blocks:
            decode_all(k)
            return
        unlock_listed(k)
    needed = growing_blocks(k)
    while needed > now.free_blocks and now.num_listed > 1:
        position = _victim(k)
        request = int(k.slots[position, LISTED])
        needed -= growth(k, request)
        evict_listed(k, position)
    for position in range(now.num_listed):
        request = int(k.slots[position, LISTED])
        if decodes(k, request) and now.used_tokens < now.batch_tokens:
            schedule(k, request, 1, growth(k, request))


@inner
def _victim(k: Kernel) -> int:
    """Place of the request to evict next among the running ones."""
    now = k.now
    mode, found = now.evict, now.num_listed - 1
    if mode != NEWEST:
        for place in range(now.num_listed - 2, -1, -1):
            if _goes_before(k, int(k.slots[place, LISTED]), int(k.slots[found, LISTED]), mode):
                found = place
    return int(found)


@inner
def _goes_before(k: Kernel, request: int, other: int, mode: int) -> bool:
    """Whether a request is evicted before another one that was admitted later."""
    row, others = k.requests[request], k.requests[other]
    if mode == FEWEST_GENERATED:
        if row.generated != others.generated:
            return bool(row.generated < others.generated)
        return bool(row.prompt_tokens > others.prompt_tokens)
    if mode == FEWEST_KNOWN and known_tokens(k, request) != known_tokens(k, other):
        return known_tokens(k, request) < known_tokens(k, other)
    return bool(k.requests[request].key > k.requests[other].key)


@inner
def evict_listed(k: Kernel, position: int) -> None:
    """Preempt a running request and queue it again."""
    now, request = k.now, int(k.slots[position, LISTED])
    preempt(k, request)
    now.num_listed -= 1
    for place in range(position, now.num_listed):
        k.slots[place, LISTED] = k.slots[place + 1, LISTED]
    if now.mode == SGLANG:
        # At the end of those of the same place.
        k.requests[request].key = numbered_key(k.requests[request].key >> KEY_BITS, next_number(k))
    if now.clients:
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
        request = client_head(k) if now.clients else head(k)
        known = known_tokens(k, request)
        tokens = chunk_tokens(k, known)
        if not tokens or (now.num_running and not fits(k, request)):
            return False
        if now.groups:
            now.group_left -= 1
        if now.clients:
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
            request = int(k.slots[now.num_listed - 1, LISTED])
            lacking = lacking_tokens(k, request)
            tokens = chunk_tokens(k, lacking)
            if tokens:
                schedule(k, request, tokens, missing_blocks(k, request, tokens))
            if tokens < lacking:
                return
        while now.num_waiting and (now.num_running < now.max_running or now.retracts_for) and admit(k):
            pass

    return prefill


_prefill = prefill_with(chunk_tokens, fits)


@merged
def queue_step(k: Kernel) -> None:
    """Decide a batch."""
    now = k.now
    mode = now.mode
    if mode in (MIXED, DECODE_ONLY):
        decode(k)
        if (now.queue_after_eviction or not now.num_evictions) and (mode == MIXED or not now.num_in_batch):
            if now.groups:
                form_group(k)
            _prefill(k)
    else:
        _prefill(k)
        if mode == PREFILL_FIRST or not now.num_in_batch:
            decode(k)
