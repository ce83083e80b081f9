"""Compiled: steps made of two parts, prefills and decodes, as in the Sarathi family and its relatives.

At most one request has prefill left, the last admitted: what cuts a prompt is the end of the budget.
"""

from __future__ import annotations

from cspsched.compiled.jit import inner, merged
from cspsched.simulate.aggregated.batch import add_chunk, admit, decode_growth, evict
from cspsched.simulate.aggregated.columns import LISTED, STARTED
from cspsched.simulate.aggregated.future import future_fits
from cspsched.simulate.aggregated.queues import newest, queue_head
from cspsched.simulate.aggregated.state import Admit, Batch, Gate, Need
from cspsched.simulate.kernel.actions import blocks_of, known_tokens
from cspsched.simulate.kernel.layout import DECODES, Kernel
from cspsched.simulate.kernel.records import NO_REQUEST
from cspsched.simulate.kernel.rules import Chunk, Reserve

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
    mode = k.own.batch
    if mode == MIXED:
        decode(k)
        prefill(k)
    elif mode == PREFILL_ONLY:
        prefill(k)
        if not k.now.num_prefills:
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
    return bool(k.now.num_prefills or (k.now.decode_now and k.now.num_decodes))


@inner
def _take_turn(k: Kernel) -> None:
    """The part that is due, or the other one if there is nothing to do in it."""
    due = k.own.turn
    for attempt in range(2):
        if due ^ attempt:
            decode(k)
        else:
            prefill(k)
        if not attempt and _has_batch(k):
            k.own.turn = 1 - due
            return


@inner
def _prefill_at_times(k: Kernel, by_ratio: bool) -> None:  # noqa: FBT001
    """Prefills when they are due by the number of waiting requests or of decode steps; else decodes."""
    now = k.now
    is_due = not now.num_running or k.own.num_started or k.own.decode_count >= k.own.decode_steps
    if is_due or (by_ratio and now.num_waiting >= k.own.waiting_ratio * now.num_running):
        if not by_ratio:
            k.own.decode_count = 0
        prefill(k)
    if not now.num_prefills:
        k.own.decode_count += 1
        decode(k)
    elif by_ratio:
        k.own.decode_count = 0


@inner
def decode(k: Kernel) -> None:
    """One token for every decode, after evictions if blocks are short."""
    now = k.now
    now.decode_now = 1
    if k.own.need == ONE_SPARE:
        while now.num_decodes and _lacks_spare(k):
            _evict_newest(k)
    else:
        while decode_growth(k) > now.free_blocks and now.num_running > 1:
            _evict_newest(k)


@inner
def _lacks_spare(k: Kernel) -> bool:
    """Whether some decode sees no free block beyond those that earlier ones take: if any, then the last."""
    now = k.now
    if k.now.reserve > KNOWN:
        return False
    spare = now.free_blocks - decode_growth(k)
    if spare:
        return bool(spare < 0)
    place = k.own.running_end - 1
    while k.slots[place, LISTED] == NO_REQUEST or k.requests[k.slots[place, LISTED]].phase != DECODES:
        place -= 1
    # What the last one takes itself does not count.
    row = k.requests[k.slots[place, LISTED]]
    return bool((row.kv_tokens + now.num_decode_steps - row.since) % k.now.block_tokens)


@inner
def _evict_newest(k: Kernel) -> None:
    request = newest(k)
    if k.requests[request].phase != DECODES:
        k.own.num_started = 0
    evict(k, request)


@inner
def prefill(k: Kernel) -> None:
    """Continue the started prefill, then admit from the head of the queue while it fits."""
    now = k.now
    used = now.num_decodes if now.decode_now else 0
    gate = k.own.gate
    if (gate == NOT_AFTER_EVICTION and now.num_evictions) or (gate == NOBODY_RUNS and now.num_running):
        is_open = False
    else:
        is_open = gate != NOTHING_STARTED or not k.own.num_started
    if k.own.num_started:
        request = int(k.slots[0, STARTED])
        tokens = chunk_tokens(k, known_tokens(k, request) - int(k.requests[request].kv_tokens), used, False)
        if not tokens or not add_chunk(k, request, tokens):
            return
        k.own.num_started = 0
        used += tokens
    if is_open:
        _admit_waiting(k, used)


@inner
def chunk_tokens(k: Kernel, lacking: int, used: int, is_new: bool) -> int:  # noqa: FBT001
    """Tokens of a prefill beside so many in the batch: all that it lacks, or what may be cut off."""
    budget, mode = k.now.max_tokens - used, k.now.chunk
    if lacking <= budget:
        return lacking
    if budget <= 0 or mode == NEVER:
        return 0
    whole = k.now.max_tokens
    if mode == TOO_LONG and is_new and (used or lacking <= whole):
        return 0
    if mode == BEYOND and lacking <= whole:
        return 0
    if mode == WHOLE_BLOCKS:
        return int(budget // k.now.block_tokens * k.now.block_tokens)
    return int(budget)


@inner
def _admit_waiting(k: Kernel, used: int) -> None:
    """Admit strictly in the order of the queue until something does not fit."""
    now = k.now
    promised = decode_growth(k) if now.decode_now else 0
    while now.num_waiting and now.num_running < now.max_running:
        request = queue_head(k)
        known = known_tokens(k, request)
        if now.longest_prompt and known > now.longest_prompt:
            now.refused = request
            return
        tokens = chunk_tokens(k, known, used, True)
        if not tokens:
            return
        blocks = reserved_blocks(k, request, known)
        if now.num_running:
            fits = blocks + promised + now.watermark_blocks <= now.free_blocks
            if not (future_fits(k, request) if k.own.admit == FUTURE else fits):
                return
        elif blocks > now.free_blocks:
            return
        used += tokens
        if not admit(k, request, tokens, blocks):
            k.slots[0, STARTED] = request
            k.own.num_started = 1
            return


@inner
def reserved_blocks(k: Kernel, request: int, known: int) -> int:
    """KV blocks that an admission takes."""
    mode = k.now.reserve
    if mode == KNOWN:
        return blocks_of(k, known)
    if mode == FIXED:
        return int(k.now.fixed_blocks)
    output = int(k.requests[request].expected_tokens)
    if mode == PEAK:
        tokens = output - 1
    elif mode == WHOLE_OUTPUT:
        tokens = output
    else:
        tokens = 1
        while tokens < output:
            tokens *= 2
    return min(blocks_of(k, int(k.requests[request].prompt_tokens) + tokens), int(k.now.kv_blocks))
