"""Compiled: ranks by deadline, relegation, and chunks as large as the decodes can wait for (`NiyamaRun`).

BY_RANK holds those with prefill left, waiting or running, in order: the first NUM_QUEUED. Numbers in floating
point are made by the operations of the clear policy in their order.
"""

from __future__ import annotations

import math

from cspsched.simulate.kernel.each.batch import decodes, lacking_tokens
from cspsched.simulate.kernel.each.layout import (
    LISTED,
)
from cspsched.simulate.kernel.each.lists import next_number, numbered_key
from cspsched.simulate.kernel.each.rules import Mode
from cspsched.simulate.kernel.jit import inner
from cspsched.simulate.kernel.layout import (
    BY_RANK,
    HEAP,
    Kernel,
)
from cspsched.simulate.kernel.pricing import batch_time_ns
from cspsched.simulate.kernel.rules import Chunk

RELEGATING = int(Mode.RELEGATING)
NEVER = int(Chunk.NEVER)
RELEGATED_NS = 1e20
"""As `cspsched.policies.niyama`."""


@inner
def number_arrival(k: Kernel, request: int) -> None:
    """Key of an arrival, behind all ranked ones until it is ranked itself."""
    number = next_number(k)
    k.notes[request].submitted_as = number
    k.requests[request].key = numbered_key(2, number)


@inner
def rank_by_deadline(k: Kernel) -> None:
    """Keys of all: decodes first, then prefills by urgency; and the time that the decodes allow."""
    _gather(k)
    _sort(k)
    if k.now.mode == RELEGATING:
        _relegate(k)
    queue, heap, num_waiting = k.orders[:, BY_RANK], k.orders[:, HEAP], 0
    for place in range(k.now.num_queued):
        request = queue[place]
        k.requests[request].key = numbered_key(1, place)
        if not k.requests[request].blocks:
            # In order, the waiting ones are a heap.
            heap[num_waiting] = request
            num_waiting += 1
    _allow(k)


@inner
def _deadline_ns(k: Kernel, request: int) -> float:
    """When the next token of a request is due."""
    notes = k.notes[request]
    return float(notes.due_ns + float(k.requests[request].generated) * notes.token_ns)


@inner
def _gather(k: Kernel) -> None:
    """Drop whoever decodes now or has finished, enter whoever waits anew, and rank all that changed."""
    now, queue, kept = k.now, k.orders[:, BY_RANK], 0
    for place in range(now.num_queued):
        request = int(queue[place])
        row = k.requests[request]
        if decodes(k, request) or row.generated == row.output_tokens:
            k.notes[request].is_queued = 0
            continue
        queue[kept] = request
        kept += 1
        if row.blocks or row.evicted_at == now.decision - 1:
            _rank(k, request)
    for place in range(now.heap_size):
        request = int(k.orders[place, HEAP])
        if not k.notes[request].is_queued:
            k.notes[request].is_queued = 1
            queue[kept] = request
            kept += 1
            _rank(k, request)
    now.num_queued = kept


@inner
def _rank(k: Kernel, request: int) -> None:
    """Urgency of a prefill, and the time that the rest of it takes alone in one piece."""
    tokens = lacking_tokens(k, request)
    _empty_features(k)
    _add_chunk(k, 0, tokens, tokens)
    left_ns = k.notes[request].left_ns = batch_time_ns(k, 0)
    urgency = _deadline_ns(k, request) + k.now.ratio * left_ns
    if k.notes[request].is_relegated:
        urgency += RELEGATED_NS
    k.notes[request].urgency = urgency


@inner
def _sort(k: Kernel) -> None:
    """Sort the prefills by urgency, then submission; they are nearly sorted already."""
    queue = k.orders[:, BY_RANK]
    for position in range(1, k.now.num_queued):
        request, place = queue[position], position
        urgency, number = k.notes[request].urgency, k.notes[request].submitted_as
        while place:
            other = k.notes[queue[place - 1]]
            if other.urgency < urgency or (other.urgency == urgency and other.submitted_as < number):
                break
            queue[place] = queue[place - 1]
            place -= 1
        queue[place] = request


@inner
def _relegate(k: Kernel) -> None:
    """Take prefills out, lowest tier and longest first, until each that is left ends in time."""
    queue, ends_ns, some = k.orders[:, BY_RANK], float(k.now.clock_ns), False
    for place in range(k.now.num_queued):
        request = int(queue[place])
        if k.notes[request].is_relegated:
            continue
        ends_ns += k.notes[request].left_ns
        if ends_ns > _deadline_ns(k, request):
            victim = _lowest(k, place + 1)
            ends_ns -= k.notes[victim].left_ns
            k.notes[victim].is_relegated = 1
            k.notes[victim].urgency += RELEGATED_NS
            some = True
    if some:
        _sort(k)


@inner
def _lowest(k: Kernel, count: int) -> int:
    """Of the first so many prefills that are not relegated the lowest tier, then longest, then first."""
    found = -1
    for place in range(count):
        request = int(k.orders[place, BY_RANK])
        if not k.notes[request].is_relegated and (found < 0 or _is_lower(k, request, found)):
            found = request
    return found


@inner
def _is_lower(k: Kernel, request: int, other: int) -> bool:
    """Whether a request is relegated before another one."""
    one, two = k.notes[request], k.notes[other]
    if one.tier != two.tier:
        return bool(one.tier > two.tier)
    if one.left_ns != two.left_ns:
        return bool(one.left_ns > two.left_ns)
    return request < other


@inner
def _allow(k: Kernel) -> None:
    """Start the batch with all decodes, and find the longest time in which those in time stay so."""
    now, count, context = k.now, 0, 0
    for position in range(now.num_listed):
        request = int(k.slots[position, LISTED])
        if decodes(k, request):
            k.requests[request].key = k.notes[request].submitted_as
            count += 1
            context += k.requests[request].kv_tokens
    _empty_features(k)
    now.decode_context, now.num_decodes = context, count
    alone_ns = float(batch_time_ns(k, count)) if count else 0.0
    longest_ns = math.inf
    for position in range(now.num_listed):
        request = int(k.slots[position, LISTED])
        if decodes(k, request):
            slack_ns = _deadline_ns(k, request) - float(now.clock_ns)
            if slack_ns >= alone_ns:
                longest_ns = min(longest_ns, slack_ns)
    k.now.longest_ns = longest_ns


@inner
def fitting_chunk(k: Kernel, request: int, most: int, lacking: int) -> int:
    """Largest chunk up to `most` that the decodes can wait for; it counts as part of the batch."""
    now, computed, least = k.now, int(k.requests[request].kv_tokens), 0
    longest_ns = k.now.longest_ns
    if longest_ns == math.inf:
        least = most
    while least < most:
        tokens = (least + most + 1) // 2
        _add_chunk(k, computed, tokens, lacking)
        fits = batch_time_ns(k, int(now.num_decodes)) <= longest_ns
        _remove_chunk(k, computed, tokens, lacking)
        if fits:
            least = tokens
        else:
            most = tokens - 1
    if least < lacking and now.chunk == NEVER:
        return 0
    if least:
        _add_chunk(k, computed, least, lacking)
    return least


@inner
def _empty_features(k: Kernel) -> None:
    """A batch of nothing."""
    now = k.now
    now.attention = now.prefill_tokens = now.prefill_context = 0
    now.num_prefills = now.num_generating = 0


@inner
def _add_chunk(k: Kernel, computed: int, tokens: int, lacking: int) -> None:
    """One more chunk of a prefill, which generates if it is the last."""
    now = k.now
    now.attention += tokens * (2 * computed + tokens + 1) // 2
    now.prefill_tokens += tokens
    now.prefill_context += computed
    now.num_prefills += 1
    now.num_generating += tokens == lacking


@inner
def _remove_chunk(k: Kernel, computed: int, tokens: int, lacking: int) -> None:
    """Take back what `_add_chunk` added."""
    now = k.now
    now.attention -= tokens * (2 * computed + tokens + 1) // 2
    now.prefill_tokens -= tokens
    now.prefill_context -= computed
    now.num_prefills -= 1
    now.num_generating -= tokens == lacking
