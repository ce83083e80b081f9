"""Compiled: list scheduling by keys, each request planned to its end when it is admitted.

Batches to come are columns of a ring: what the admitted requests hold and process in each. A request is
admitted in the batch at hand if its whole run, chunks first and then a token in every batch, fits beside
theirs; so no request is evicted to make room. An admission costs a step for each batch of the run, a batch
O(1).
A planned preemption makes two requests of one: the second waits for the end of the first.
"""

from __future__ import annotations

from typing import NamedTuple

from cspsched.compiled.batch_time import batch_time_by, term_ns
from cspsched.compiled.jit import inner, merged, outer
from cspsched.improve.plan import SHORTEST_FILL, FloatArray, Int8Array, Int32Array
from cspsched.problem.cost import IntArray

# Rows of `rings`: KV blocks held; prefill tokens; their attention; context they read again; chunks; last
# chunks; change of the number of decodes, of the context they read, and of the running requests.
HELD, PREFILL, ATTENTION, REREAD, CHUNKS, LAST_CHUNKS, DECODE_STEP, CONTEXT_STEP, LEAVING = range(9)
NUM_RINGS = 9
# Positions in `now`: what changes, then what is fixed for a run.
(
    CLOCK_NS, BATCH, SUBMITTED, WAITING, RUNNING, NUM_DECODES, DECODE_CONTEXT, NEXT_ADMISSION, CHUNK_ROW,
    LAST_PLANNED, CHANGED,
    NUM_EVENTS, KV_BLOCKS, BLOCK_TOKENS, BUDGET, SEATS, FILL_TOKENS, LONGEST_CHUNK, DEPTH, PACE, RESERVES,
    WHOLE, CONTEXT_TERM,
) = range(23)  # fmt: skip
NUM_CHANGING = NUM_EVENTS
# Columns of `table` and of `places`.
PROMPT, OUTPUT, AFTER, HOLD = range(4)
ADMITTED, FIRST_TOKEN, LAST_TOKEN = range(3)
# Answers.
DONE, STOPPED, LOG_FULL, STUCK = range(4)
PACE_UNIT = 1000


class Machine(NamedTuple):
    """Everything that a run reads and writes; requests in order of arrival."""

    now: IntArray
    """The state, and the parameters."""
    rings: IntArray
    """Shape (9, length), the length a power of two: batch j is column j modulo the length."""
    waiting: Int32Array
    """Requests that wait, by key."""
    keys: FloatArray
    """Shape (num_requests,): the smallest is served first."""
    eligible_ns: IntArray
    """Shape (num_requests,): no request is admitted before its time, which is at least its arrival."""
    events: Int32Array
    """Requests by `eligible_ns`; the first NUM_EVENTS take part."""
    table: Int32Array
    """Shape (num_requests, 4): prompt and output tokens, request that must have ended (-1: none), and fewest
    batches from then on."""
    chunk_doublings: Int8Array
    """Shape (num_requests,): how often FILL_TOKENS is doubled for a request, or halved if negative."""
    prices: IntArray
    """The flat cost model (see `flatten_cost`)."""
    alone_ns: IntArray
    """Duration of a batch of so many decodes alone but for its term of their context, -1 until it is asked
    for; row CONTEXT_TERM of the cost model is that term, 0 if there is none."""
    places: Int32Array
    """Shape (num_requests, 3): batches of admission, first token and last token."""
    batch_ns: IntArray
    """Log, shape (num_batches, 2): start and end."""
    chunks: Int32Array
    """Log, shape (num_chunks, 3): batch, request, tokens."""


@outer
def run_list(m: Machine, stop_ns: int) -> int:
    """Run until all are done, the clock reaches a time, a log is full, or no request can be served."""
    now = m.now
    while now[RUNNING] or now[WAITING] or now[SUBMITTED] < now[NUM_EVENTS]:
        if now[CLOCK_NS] >= stop_ns:
            return STOPPED
        if now[BATCH] >= len(m.batch_ns) or now[CHUNK_ROW] + m.rings.shape[1] > len(m.chunks):
            return LOG_FULL
        _submit(m)
        _open_batch(m)
        _admit(m)
        if now[RUNNING]:
            _execute(m)
        elif now[WAITING]:
            return STUCK
        elif now[SUBMITTED] < now[NUM_EVENTS]:
            now[CLOCK_NS] = max(now[CLOCK_NS], m.eligible_ns[m.events[now[SUBMITTED]]])
    return DONE


@merged
def _submit(m: Machine) -> None:
    """Let eligible requests wait, in order of the keys, equal ones in order of coming."""
    now = m.now
    while now[SUBMITTED] < now[NUM_EVENTS]:
        request = m.events[now[SUBMITTED]]
        if m.eligible_ns[request] > now[CLOCK_NS]:
            break
        place = now[WAITING]
        while place and m.keys[m.waiting[place - 1]] > m.keys[request]:
            m.waiting[place] = m.waiting[place - 1]
            place -= 1
        m.waiting[place] = request
        now[WAITING] += 1
        now[SUBMITTED] += 1
        now[CHANGED] = 1


@merged
def _open_batch(m: Machine) -> None:
    """Who finished in the batch before leaves; whose prefill ended there decodes from here on."""
    now, column = m.now, m.now[BATCH] & (m.rings.shape[1] - 1)
    if m.rings[LEAVING, column]:
        now[RUNNING] -= m.rings[LEAVING, column]
        now[CHANGED] = 1
    now[DECODE_CONTEXT] += now[NUM_DECODES] + m.rings[CONTEXT_STEP, column]
    now[NUM_DECODES] += m.rings[DECODE_STEP, column]
    m.rings[LEAVING, column] = m.rings[CONTEXT_STEP, column] = m.rings[DECODE_STEP, column] = 0


@merged
def _admit(m: Machine) -> None:
    """Try the first waiting requests in order, so many that do not fit; the pace binds unless none runs.

    A request that did not fit seldom fits a batch later if no request came, was admitted or left: then the
    first alone is tried.
    """
    now = m.now
    place = tried = 0
    depth = now[DEPTH] if now[CHANGED] or now[PACE] else 1
    now[CHANGED] = 0
    while place < now[WAITING] and tried < depth and now[RUNNING] < now[SEATS]:
        if now[RUNNING] and PACE_UNIT * now[BATCH] < now[NEXT_ADMISSION]:
            break
        if now[CHUNK_ROW] + m.rings.shape[1] > len(m.chunks):
            # The run is to be repeated with a longer log; what this batch becomes does not matter.
            break
        request = int(m.waiting[place])
        if m.table[request, AFTER] >= 0 and _is_on_hold(m, request):
            place += 1
            continue
        fill = _fill_of(m, request)
        if _fits(m, request, fill):
            _commit(m, request, fill)
            now[CHANGED] = 1
            now[NEXT_ADMISSION] = max(now[NEXT_ADMISSION], PACE_UNIT * now[BATCH]) + now[PACE]
            now[WAITING] -= 1
            for later in range(place, now[WAITING]):
                m.waiting[later] = m.waiting[later + 1]
        else:
            place += 1
            tried += 1


@inner
def _is_on_hold(m: Machine, request: int) -> bool:
    """Whether the first part of a preempted request has not ended, or others run and it is to wait longer."""
    now, ended = m.now, int(m.places[m.table[request, AFTER], LAST_TOKEN])
    batches = int(m.table[request, HOLD]) if now[RUNNING] else 0
    return bool(now[BATCH] <= ended + batches)


@inner
def _fill_of(m: Machine, request: int) -> int:
    """Tokens up to which a request's chunks fill a batch."""
    tokens, doublings = m.now[FILL_TOKENS], m.chunk_doublings[request]
    if doublings >= 0:
        return int(tokens << doublings)
    return int(max(tokens >> -doublings, min(tokens, SHORTEST_FILL)))


@inner
def _chunk_at(m: Machine, batch: int, left: int, fill: int, decodes: int) -> int:
    """Prefill tokens that a request gets in a batch beside what is planned there; 0 if none."""
    now, planned = m.now, m.rings[PREFILL, batch & (m.rings.shape[1] - 1)]
    if now[WHOLE]:
        room = max(fill - decodes, left) - planned
        return left if min(room, now[BUDGET] - decodes - planned) >= left else 0
    room = min(fill, now[BUDGET]) - decodes - planned
    return int(max(min(room, left, now[LONGEST_CHUNK]), 0))


@inner
def _blocks(m: Machine, request: int, tokens: int) -> int:
    """KV blocks that a request with so many tokens occupies."""
    if m.now[RESERVES]:
        tokens = int(m.table[request, PROMPT]) + int(m.table[request, OUTPUT]) - 1
    return int((tokens + m.now[BLOCK_TOKENS] - 1) // m.now[BLOCK_TOKENS])


@inner
def _fits(m: Machine, request: int, fill: int) -> bool:
    """Whether the whole run of a request fits from the batch at hand on."""
    now, mask, held = m.now, m.rings.shape[1] - 1, m.rings[HELD]
    prompt, output = int(m.table[request, PROMPT]), int(m.table[request, OUTPUT])
    batch, done, decodes, most = now[BATCH], 0, now[NUM_DECODES], now[KV_BLOCKS]
    while done < prompt:
        tokens = _chunk_at(m, batch, prompt - done, fill, decodes)
        done += tokens
        if not tokens or held[batch & mask] + _blocks(m, request, done) > most:
            return False
        batch += 1
        if batch - now[BATCH] + output > mask:
            return False
        decodes += m.rings[DECODE_STEP, batch & mask]
    for later in range(batch, min(now[LAST_PLANNED] + 1, batch + output - 1)):
        if m.rings[PREFILL, later & mask] + decodes + 1 > now[BUDGET]:
            return False
        decodes += m.rings[DECODE_STEP, (later + 1) & mask]
    if output == 1:
        return True
    # The end, where the request is longest, refuses most often: it is asked first.
    if held[(batch + output - 2) & mask] + _blocks(m, request, prompt + output - 1) > most:
        return False
    later, end = int(batch), int(batch + output - 1)
    while later < end:
        first, count = later & mask, _steady(m, request, prompt + 1 + later - batch, later, end)
        fullest = 0
        for column in range(first, first + count):
            fullest = max(fullest, held[column])
        if fullest + _blocks(m, request, prompt + 1 + later - batch) > most:
            return False
        later += count
    return True


@inner
def _steady(m: Machine, request: int, tokens: int, batch: int, end: int) -> int:
    """Batches from one on, in columns side by side, in which a decode of so many tokens takes no block."""
    count = min(end - batch, m.rings.shape[1] - (batch & (m.rings.shape[1] - 1)))
    if m.now[RESERVES]:
        return int(count)
    return int(min(count, _blocks(m, request, tokens) * m.now[BLOCK_TOKENS] - tokens + 1))


@inner
def _commit(m: Machine, request: int, fill: int) -> None:
    """Enter the run of a request that fits into the batches to come."""
    now, rings, mask = m.now, m.rings, m.rings.shape[1] - 1
    prompt, output = int(m.table[request, PROMPT]), int(m.table[request, OUTPUT])
    batch, done, decodes = now[BATCH], 0, now[NUM_DECODES]
    m.places[request, ADMITTED] = batch
    now[RUNNING] += 1
    while done < prompt:
        column = batch & mask
        tokens = _chunk_at(m, batch, prompt - done, fill, decodes)
        rings[PREFILL, column] += tokens
        rings[ATTENTION, column] += tokens * (2 * done + tokens + 1) // 2
        rings[REREAD, column] += done
        rings[CHUNKS, column] += 1
        done += tokens
        rings[HELD, column] += _blocks(m, request, done)
        log = m.chunks[now[CHUNK_ROW]]
        log[0], log[1], log[2] = batch, request, tokens
        now[CHUNK_ROW] += 1
        batch += 1
        decodes += rings[DECODE_STEP, batch & mask]
    rings[LAST_CHUNKS, (batch - 1) & mask] += 1
    now[LAST_PLANNED] = max(now[LAST_PLANNED], batch - 1)
    m.places[request, FIRST_TOKEN] = batch - 1
    end = batch + output - 1
    m.places[request, LAST_TOKEN] = end - 1
    rings[LEAVING, end & mask] += 1
    if output == 1:
        return
    rings[DECODE_STEP, batch & mask] += 1
    rings[CONTEXT_STEP, batch & mask] += prompt
    rings[DECODE_STEP, end & mask] -= 1
    rings[CONTEXT_STEP, end & mask] -= prompt + output - 1
    held, later = rings[HELD], int(batch)
    while later < end:
        first, count = later & mask, _steady(m, request, prompt + 1 + later - batch, later, int(end))
        blocks = _blocks(m, request, prompt + 1 + later - batch)
        for column in range(first, first + count):
            held[column] += blocks
        later += count


@merged
def _execute(m: Machine) -> None:
    """Price the batch at hand, log it, and clear its column."""
    now, column = m.now, m.now[BATCH] & (m.rings.shape[1] - 1)
    log = m.batch_ns[now[BATCH]]
    log[0] = now[CLOCK_NS]
    if m.rings[CHUNKS, column]:
        now[CLOCK_NS] += _batch_time_ns(m, m.prices, column)
        for row in range(PREFILL, LAST_CHUNKS + 1):
            m.rings[row, column] = 0
    else:
        now[CLOCK_NS] += _decodes_time_ns(m, column)
    m.rings[HELD, column] = 0
    log[1] = now[CLOCK_NS]
    now[BATCH] += 1


@merged
def _decodes_time_ns(m: Machine, column: int) -> int:
    """Duration of the batch at hand, all decodes; only the term of their context changes in most."""
    now, prices = m.now, m.prices
    alone_ns = m.alone_ns[now[NUM_DECODES]]
    context, row = now[DECODE_CONTEXT], now[CONTEXT_TERM]
    if alone_ns < 0:
        now[DECODE_CONTEXT] = 0
        alone_ns = m.alone_ns[now[NUM_DECODES]] = _batch_time_ns(m, prices, column)
        now[DECODE_CONTEXT] = context
    return int(alone_ns + term_ns(prices, row, context)) if row else int(alone_ns)


@inner
def _feature(m: Machine, position: int, column: int) -> int:
    """What a term is over, in the order of `BatchFeatures`."""
    rings, decodes = m.rings, int(m.now[NUM_DECODES])
    if position == 0:
        return int(rings[PREFILL, column]) + decodes
    if position == 1:
        return int(rings[ATTENTION, column])
    if position == 2:
        return int(rings[PREFILL, column])
    if position == 3:
        return int(rings[REREAD, column])
    if position == 4:
        return int(m.now[DECODE_CONTEXT])
    if position == 5:
        return int(rings[LAST_CHUNKS, column]) + decodes
    return int(rings[CHUNKS, column]) if position == 6 else decodes


_batch_time_ns = batch_time_by(_feature)
