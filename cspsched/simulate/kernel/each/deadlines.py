"""Compiled: ranks by deadline, relegation, and chunks as large as the decodes can wait for (`NiyamaRun`).

BY_RANK holds those with prefill left, waiting or running, in order: the first NUM_QUEUED. Numbers in floating
point are made by the operations of the clear policy in their order.
"""

from __future__ import annotations

import math

import numpy as np

from cspsched.simulate.kernel.each.batch import decodes, lacking_tokens
from cspsched.simulate.kernel.each.layout import (
    CUT,
    DECISION,
    DUE_NS,
    EVICTED_AT,
    HEAP_SIZE,
    IS_QUEUED,
    IS_RELEGATED,
    KEY,
    LEFT_NS,
    LISTED,
    LONGEST_NS,
    MODE,
    NUM_LISTED,
    NUM_QUEUED,
    RATIO,
    SUBMITTED_AS,
    TIER,
    TOKEN_NS,
    URGENCY,
)
from cspsched.simulate.kernel.each.lists import get_float, next_number, numbered_key, set_float
from cspsched.simulate.kernel.each.rules import Mode
from cspsched.simulate.kernel.jit import inner
from cspsched.simulate.kernel.layout import (
    ATTENTION,
    BLOCKS,
    BY_RANK,
    CLOCK_NS,
    CONTEXT,
    DECODE_CONTEXT,
    GENERATED,
    HEAP,
    NUM_DECODES,
    NUM_GENERATING,
    NUM_PREFILLS,
    OUTPUT,
    PREFILL_CONTEXT,
    PREFILL_TOKENS,
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
    k.wide[request, SUBMITTED_AS] = number
    k.wide[request, KEY] = numbered_key(2, number)


@inner
def rank_by_deadline(k: Kernel) -> None:
    """Keys of all: decodes first, then prefills by urgency; and the time that the decodes allow."""
    _gather(k)
    _sort(k)
    if k.now[MODE] == RELEGATING:
        _relegate(k)
    queue, heap, num_waiting = k.orders[:, BY_RANK], k.orders[:, HEAP], 0
    for place in range(k.now[NUM_QUEUED]):
        request = queue[place]
        k.wide[request, KEY] = numbered_key(1, place)
        if not k.rows[request, BLOCKS]:
            # In order, the waiting ones are a heap.
            heap[num_waiting] = request
            num_waiting += 1
    _allow(k)


@inner
def _float_of(k: Kernel, request: int, column: int) -> float:
    return float(k.wide[request, column : column + 1].view(np.float64)[0])


@inner
def _deadline_ns(k: Kernel, request: int) -> float:
    """When the next token of a request is due."""
    generated = float(k.rows[request, GENERATED])
    return _float_of(k, request, DUE_NS) + generated * _float_of(k, request, TOKEN_NS)


@inner
def _gather(k: Kernel) -> None:
    """Drop whoever decodes now or has finished, enter whoever waits anew, and rank all that changed."""
    now, queue, kept = k.now, k.orders[:, BY_RANK], 0
    for place in range(now[NUM_QUEUED]):
        request = int(queue[place])
        row = k.rows[request]
        if decodes(k, request) or row[GENERATED] == row[OUTPUT]:
            row[IS_QUEUED] = 0
            continue
        queue[kept] = request
        kept += 1
        if row[BLOCKS] or row[EVICTED_AT] == now[DECISION] - 1:
            _rank(k, request)
    for place in range(now[HEAP_SIZE]):
        request = int(k.orders[place, HEAP])
        if not k.rows[request, IS_QUEUED]:
            k.rows[request, IS_QUEUED] = 1
            queue[kept] = request
            kept += 1
            _rank(k, request)
    now[NUM_QUEUED] = kept


@inner
def _rank(k: Kernel, request: int) -> None:
    """Urgency of a prefill, and the time that the rest of it takes alone in one piece."""
    tokens = lacking_tokens(k, request)
    _empty_features(k)
    _add_chunk(k, 0, tokens, tokens)
    left_ns = k.wide[request, LEFT_NS] = batch_time_ns(k, 0)
    urgency = _deadline_ns(k, request) + get_float(k, RATIO) * left_ns
    if k.rows[request, IS_RELEGATED]:
        urgency += RELEGATED_NS
    _set_urgency(k, request, urgency)


@inner
def _set_urgency(k: Kernel, request: int, urgency: float) -> None:
    """Note an urgency; as it is positive, its bits are in the same order."""
    k.wide[request, URGENCY : URGENCY + 1].view(np.float64)[0] = urgency


@inner
def _sort(k: Kernel) -> None:
    """Sort the prefills by urgency, then submission; they are nearly sorted already."""
    queue = k.orders[:, BY_RANK]
    for position in range(1, k.now[NUM_QUEUED]):
        request, place = queue[position], position
        urgency, number = k.wide[request, URGENCY], k.wide[request, SUBMITTED_AS]
        while place:
            other = k.wide[queue[place - 1]]
            if other[URGENCY] < urgency or (other[URGENCY] == urgency and other[SUBMITTED_AS] < number):
                break
            queue[place] = queue[place - 1]
            place -= 1
        queue[place] = request


@inner
def _relegate(k: Kernel) -> None:
    """Take prefills out, lowest tier and longest first, until each that is left ends in time."""
    queue, ends_ns, some = k.orders[:, BY_RANK], float(k.now[CLOCK_NS]), False
    for place in range(k.now[NUM_QUEUED]):
        request = int(queue[place])
        if k.rows[request, IS_RELEGATED]:
            continue
        ends_ns += k.wide[request, LEFT_NS]
        if ends_ns > _deadline_ns(k, request):
            victim = _lowest(k, place + 1)
            ends_ns -= k.wide[victim, LEFT_NS]
            k.rows[victim, IS_RELEGATED] = 1
            _set_urgency(k, victim, _float_of(k, victim, URGENCY) + RELEGATED_NS)
            some = True
    if some:
        _sort(k)


@inner
def _lowest(k: Kernel, count: int) -> int:
    """Of the first so many prefills that are not relegated the lowest tier, then longest, then first."""
    found = -1
    for place in range(count):
        request = int(k.orders[place, BY_RANK])
        if not k.rows[request, IS_RELEGATED] and (found < 0 or _is_lower(k, request, found)):
            found = request
    return found


@inner
def _is_lower(k: Kernel, request: int, other: int) -> bool:
    """Whether a request is relegated before another one."""
    one, two = k.wide[request], k.wide[other]
    if one[TIER] != two[TIER]:
        return bool(one[TIER] > two[TIER])
    if one[LEFT_NS] != two[LEFT_NS]:
        return bool(one[LEFT_NS] > two[LEFT_NS])
    return request < other


@inner
def _allow(k: Kernel) -> None:
    """Start the batch with all decodes, and find the longest time in which those in time stay so."""
    now, count, context = k.now, 0, 0
    for position in range(now[NUM_LISTED]):
        request = int(k.slots[position, LISTED])
        if decodes(k, request):
            k.wide[request, KEY] = k.wide[request, SUBMITTED_AS]
            count += 1
            context += k.rows[request, CONTEXT]
    _empty_features(k)
    now[DECODE_CONTEXT], now[NUM_DECODES] = context, count
    alone_ns = float(batch_time_ns(k, count)) if count else 0.0
    longest_ns = math.inf
    for position in range(now[NUM_LISTED]):
        request = int(k.slots[position, LISTED])
        if decodes(k, request):
            slack_ns = _deadline_ns(k, request) - float(now[CLOCK_NS])
            if slack_ns >= alone_ns:
                longest_ns = min(longest_ns, slack_ns)
    set_float(k, LONGEST_NS, longest_ns)


@inner
def fitting_chunk(k: Kernel, request: int, most: int, lacking: int) -> int:
    """Largest chunk up to `most` that the decodes can wait for; it counts as part of the batch."""
    now, computed, least = k.now, int(k.rows[request, CONTEXT]), 0
    longest_ns = get_float(k, LONGEST_NS)
    if longest_ns == math.inf:
        least = most
    while least < most:
        tokens = (least + most + 1) // 2
        _add_chunk(k, computed, tokens, lacking)
        fits = batch_time_ns(k, int(now[NUM_DECODES])) <= longest_ns
        _remove_chunk(k, computed, tokens, lacking)
        if fits:
            least = tokens
        else:
            most = tokens - 1
    if least < lacking and now[CUT] == NEVER:
        return 0
    if least:
        _add_chunk(k, computed, least, lacking)
    return least


@inner
def _empty_features(k: Kernel) -> None:
    """A batch of nothing."""
    now = k.now
    now[ATTENTION] = now[PREFILL_TOKENS] = now[PREFILL_CONTEXT] = 0
    now[NUM_PREFILLS] = now[NUM_GENERATING] = 0


@inner
def _add_chunk(k: Kernel, computed: int, tokens: int, lacking: int) -> None:
    """One more chunk of a prefill, which generates if it is the last."""
    now = k.now
    now[ATTENTION] += tokens * (2 * computed + tokens + 1) // 2
    now[PREFILL_TOKENS] += tokens
    now[PREFILL_CONTEXT] += computed
    now[NUM_PREFILLS] += 1
    now[NUM_GENERATING] += tokens == lacking


@inner
def _remove_chunk(k: Kernel, computed: int, tokens: int, lacking: int) -> None:
    """Take back what `_add_chunk` added."""
    now = k.now
    now[ATTENTION] -= tokens * (2 * computed + tokens + 1) // 2
    now[PREFILL_TOKENS] -= tokens
    now[PREFILL_CONTEXT] -= computed
    now[NUM_PREFILLS] -= 1
    now[NUM_GENERATING] -= tokens == lacking
