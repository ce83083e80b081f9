"""Compiled: steps made of two parts, prefills and decodes, as in the Sarathi family and its relatives.

At most one request has prefill left, the last admitted: what cuts a prompt is the end of the budget.
"""

from __future__ import annotations

from cspsched.simulate.kernel.batch import (
    add_chunk,
    admit,
    blocks_of,
    decode_growth,
    evict,
    known_tokens,
)
from cspsched.simulate.kernel.future import future_fits
from cspsched.simulate.kernel.jit import inner, merged
from cspsched.simulate.kernel.layout import (
    ADMIT,
    BATCH,
    BLOCK_TOKENS,
    CHUNK,
    CONTEXT,
    DECODE_COUNT,
    DECODE_NOW,
    DECODE_STEPS,
    DECODES,
    ENOUGH_WAIT,
    EVICTIONS,
    FIXED_BLOCKS,
    FREE,
    GATE,
    KV_BLOCKS,
    LISTED,
    LONGEST_PROMPT,
    MAX_RUNNING,
    MAX_TOKENS,
    NEED,
    NOBODY,
    NUM_DECODES,
    NUM_PREFILLS,
    NUM_STARTED,
    OUTPUT,
    PHASE,
    PROMPT,
    REFUSED,
    RESERVE,
    RUNNING,
    RUNNING_END,
    SINCE,
    STARTED,
    STEPS,
    TURN,
    WAITING,
    WATERMARK,
    Kernel,
)
from cspsched.simulate.kernel.queues import newest, queue_head
from cspsched.simulate.kernel.rules import Admit, Batch, Chunk, Gate, Need, Reserve

MIXED, PREFILL_ONLY, DECODE_ONLY = int(Batch.MIXED), int(Batch.PREFILL_ONLY), int(Batch.DECODE_ONLY)
TURNS, WAITING_RATIO = int(Batch.TURNS), int(Batch.WAITING_RATIO)
TOO_LONG, BEYOND = int(Chunk.TOO_LONG), int(Chunk.BEYOND_BUDGET)
NEVER, WHOLE_BLOCKS = int(Chunk.NEVER), int(Chunk.WHOLE_BLOCKS)
NOT_AFTER_EVICTION, NOBODY_RUNS = int(Gate.NOT_AFTER_EVICTION), int(Gate.NOBODY_RUNS)
NOTHING_STARTED = int(Gate.NOTHING_STARTED)
ONE_SPARE = int(Need.ONE_SPARE)
KNOWN, PEAK, FIXED = int(Reserve.KNOWN), int(Reserve.PEAK), int(Reserve.FIXED)
WHOLE_OUTPUT = int(Reserve.OUTPUT)
FUTURE = int(Admit.FUTURE)


@merged
def parts_step(k: Kernel) -> None:
    """Decide a batch."""
    mode = k.now[BATCH]
    if mode == MIXED:
        decode(k)
        prefill(k)
    elif mode == PREFILL_ONLY:
        prefill(k)
        if not k.now[NUM_PREFILLS]:
            decode(k)
    elif mode == DECODE_ONLY:
        decode(k)
        if not _has_batch(k):
            prefill(k)
    elif mode == TURNS:
        _take_turn(k)
    else:
        _prefill_at_times(k, mode == WAITING_RATIO)


@inner
def _has_batch(k: Kernel) -> bool:
    """Whether anything is in the batch."""
    return bool(k.now[NUM_PREFILLS] or (k.now[DECODE_NOW] and k.now[NUM_DECODES]))


@inner
def _take_turn(k: Kernel) -> None:
    """The part that is due, or the other one if there is nothing to do in it."""
    due = k.now[TURN]
    for attempt in range(2):
        if due ^ attempt:
            decode(k)
        else:
            prefill(k)
        if not attempt and _has_batch(k):
            k.now[TURN] = 1 - due
            return


@inner
def _prefill_at_times(k: Kernel, by_ratio: bool) -> None:  # noqa: FBT001
    """Prefills when they are due by the number of waiting requests or of decode steps; else decodes."""
    now = k.now
    is_due = not now[RUNNING] or now[NUM_STARTED] or now[DECODE_COUNT] >= now[DECODE_STEPS]
    if is_due or (by_ratio and now[WAITING] >= k.slots[now[RUNNING], ENOUGH_WAIT]):
        if not by_ratio:
            now[DECODE_COUNT] = 0
        prefill(k)
    if not now[NUM_PREFILLS]:
        now[DECODE_COUNT] += 1
        decode(k)
    elif by_ratio:
        now[DECODE_COUNT] = 0


@inner
def decode(k: Kernel) -> None:
    """One token for every decode, after evictions if blocks are short."""
    now = k.now
    now[DECODE_NOW] = 1
    if k.now[NEED] == ONE_SPARE:
        while now[NUM_DECODES] and _lacks_spare(k):
            _evict_newest(k)
    else:
        while decode_growth(k) > now[FREE] and now[RUNNING] > 1:
            _evict_newest(k)


@inner
def _lacks_spare(k: Kernel) -> bool:
    """Whether some decode sees no free block beyond those that earlier ones take: if any, then the last."""
    now = k.now
    if k.now[RESERVE] > KNOWN:
        return False
    spare = now[FREE] - decode_growth(k)
    if spare:
        return bool(spare < 0)
    place = now[RUNNING_END] - 1
    while k.slots[place, LISTED] == NOBODY or k.rows[k.slots[place, LISTED], PHASE] != DECODES:
        place -= 1
    # What the last one takes itself does not count.
    row = k.rows[k.slots[place, LISTED]]
    return bool((row[CONTEXT] + now[STEPS] - row[SINCE]) % k.now[BLOCK_TOKENS])


@inner
def _evict_newest(k: Kernel) -> None:
    request = newest(k)
    if k.rows[request, PHASE] != DECODES:
        k.now[NUM_STARTED] = 0
    evict(k, request)


@inner
def prefill(k: Kernel) -> None:
    """Continue the started prefill, then admit from the head of the queue while it fits."""
    now = k.now
    used = now[NUM_DECODES] if now[DECODE_NOW] else 0
    gate = now[GATE]
    if (gate == NOT_AFTER_EVICTION and now[EVICTIONS]) or (gate == NOBODY_RUNS and now[RUNNING]):
        is_open = False
    else:
        is_open = gate != NOTHING_STARTED or not now[NUM_STARTED]
    if now[NUM_STARTED]:
        request = int(k.slots[0, STARTED])
        tokens = chunk_tokens(k, known_tokens(k, request) - int(k.rows[request, CONTEXT]), used, False)
        if not tokens or not add_chunk(k, request, tokens):
            return
        now[NUM_STARTED] = 0
        used += tokens
    if is_open:
        _admit_waiting(k, used)


@inner
def chunk_tokens(k: Kernel, lacking: int, used: int, is_new: bool) -> int:  # noqa: FBT001
    """Tokens of a prefill beside so many in the batch: all that it lacks, or what may be cut off."""
    budget, mode = k.now[MAX_TOKENS] - used, k.now[CHUNK]
    if lacking <= budget:
        return lacking
    if budget <= 0 or mode == NEVER:
        return 0
    whole = k.now[MAX_TOKENS]
    if mode == TOO_LONG and is_new and (used or lacking <= whole):
        return 0
    if mode == BEYOND and lacking <= whole:
        return 0
    if mode == WHOLE_BLOCKS:
        return int(budget // k.now[BLOCK_TOKENS] * k.now[BLOCK_TOKENS])
    return int(budget)


@inner
def _admit_waiting(k: Kernel, used: int) -> None:
    """Admit strictly in the order of the queue until something does not fit."""
    now = k.now
    promised = decode_growth(k) if now[DECODE_NOW] else 0
    while now[WAITING] and now[RUNNING] < now[MAX_RUNNING]:
        request = queue_head(k)
        known = known_tokens(k, request)
        if now[LONGEST_PROMPT] and known > now[LONGEST_PROMPT]:
            now[REFUSED] = request
            return
        tokens = chunk_tokens(k, known, used, True)
        if not tokens:
            return
        blocks = reserved_blocks(k, request, known)
        if now[RUNNING]:
            fits = blocks + promised + now[WATERMARK] <= now[FREE]
            if not (future_fits(k, request) if now[ADMIT] == FUTURE else fits):
                return
        used += tokens
        if not admit(k, request, tokens, blocks):
            k.slots[0, STARTED] = request
            now[NUM_STARTED] = 1
            return


@inner
def reserved_blocks(k: Kernel, request: int, known: int) -> int:
    """KV blocks that an admission takes."""
    mode = k.now[RESERVE]
    if mode == KNOWN:
        return blocks_of(k, known)
    if mode == FIXED:
        return int(k.now[FIXED_BLOCKS])
    output = int(k.rows[request, OUTPUT])
    if mode == PEAK:
        tokens = output - 1
    elif mode == WHOLE_OUTPUT:
        tokens = output
    else:
        tokens = 1
        while tokens < output:
            tokens *= 2
    return min(blocks_of(k, int(k.rows[request, PROMPT]) + tokens), int(k.now[KV_BLOCKS]))
