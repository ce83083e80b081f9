"""Compiled: prefills alone at times, and the admission tests of TGI and LightLLM (`QueueRun`)."""

from __future__ import annotations

from cspsched.simulate.kernel.batch import blocks_of
from cspsched.simulate.kernel.each.admission import chunk_tokens, fits
from cspsched.simulate.kernel.each.clients import charge_decodes
from cspsched.simulate.kernel.each.layout import (
    ASSUMED_TOKENS,
    CLIENTS,
    DECODE_STEPS,
    IN_LOCKSTEP,
    JOINED,
    LISTED,
    LOCKED,
    LOCKED_END,
    LOCKED_TOTAL,
    MODE,
    NUM_IN_BATCH,
    NUM_LISTED,
    NUM_LOCKED,
    NUM_STEPS,
    RATIO,
    SPARE_BLOCKS,
    TEST,
    TO_COME,
    TOTAL_TOKENS,
)
from cspsched.simulate.kernel.each.lists import get_float
from cspsched.simulate.kernel.each.queue_run import decode, has_started, prefill_with
from cspsched.simulate.kernel.each.rules import Mode
from cspsched.simulate.kernel.jit import inner, merged
from cspsched.simulate.kernel.layout import (
    BLOCK_TOKENS,
    DECODES,
    FREE,
    GENERATED,
    HELD_TOKENS,
    KV_BLOCKS,
    NOBODY,
    OUTPUT,
    PHASE,
    PROMPT,
    RUNNING,
    STEPS,
    WAITING,
    Kernel,
)
from cspsched.simulate.kernel.rules import Admit

FUTURE = int(Admit.FUTURE)
WAITING_RATIO = int(Mode.WAITING_RATIO)


@inner
def fits_timed(k: Kernel, request: int) -> bool:
    """Whether the head of the queue may be admitted beside the running requests."""
    if k.now[TEST] == FUTURE:
        return fits_for_ever(k, request)
    if k.now[TOTAL_TOKENS] and not _fits_total(k, request):
        return False
    return fits(k, request)


@inner
def _fits_total(k: Kernel, request: int) -> bool:
    """Whether input and output of all that run stay within the limit."""
    total = k.now[LOCKED_TOTAL] + k.rows[request, PROMPT] + k.rows[request, OUTPUT]
    for position in range(k.now[NUM_LISTED]):
        row = k.rows[k.slots[position, LISTED]]
        total += row[PROMPT] + row[OUTPUT]
    return bool(total <= k.now[TOTAL_TOKENS])


@inner
def fits_for_ever(k: Kernel, request: int) -> bool:
    """Whether the peak of all that run and one more leaves enough free, if each decodes in every batch."""
    now = k.now
    most = int(now[KV_BLOCKS] - now[SPARE_BLOCKS])
    if _most_at_end(k, request) <= most:
        return True
    is_busy = now[KV_BLOCKS] - now[FREE] >= get_float(k, RATIO) * now[KV_BLOCKS]
    count = needed = 0
    for column in (LOCKED, LISTED):
        for position in range(now[LOCKED_END] if column == LOCKED else now[NUM_LISTED]):
            other = int(k.slots[position, column])
            if other != NOBODY:
                needed += _look_ahead(k, other, count, is_busy)
                count += 1
    needed += _look_ahead(k, request, count, is_busy)
    return needed <= most or _peak_fits(k, count + 1, most)


@inner
def _most_at_end(k: Kernel, request: int) -> int:
    """At least the KV blocks of all that run and one more if each held its whole output."""
    now = k.now
    cut = (now[BLOCK_TOKENS] - 1) * now[NUM_LOCKED]
    blocks = blocks_of(k, k.rows[request, PROMPT] + k.rows[request, OUTPUT])
    for position in range(now[NUM_LISTED]):
        row = k.rows[k.slots[position, LISTED]]
        blocks += blocks_of(k, row[PROMPT] + row[OUTPUT])
    return int(blocks + (now[LOCKED_TOTAL] + cut) // now[BLOCK_TOKENS])


@inner
def _look_ahead(k: Kernel, request: int, position: int, is_busy: bool) -> int:  # noqa: FBT001
    """Note what a request holds and will add; the blocks that it needs at last."""
    row = k.rows[request]
    generated, output, decoding = int(row[GENERATED]), int(row[OUTPUT]), row[PHASE] >= DECODES
    if row[PHASE] == IN_LOCKSTEP:
        generated += int(k.now[STEPS] - row[JOINED])
    longest = output if is_busy else min(output, max(generated * 11 // 10, int(k.now[ASSUMED_TOKENS])))
    to_come = max(0, longest - generated - 1)
    held = int(row[PROMPT]) + generated + (not decoding)
    k.slots[position, TO_COME], k.slots[position, HELD_TOKENS] = to_come, held
    return blocks_of(k, held + to_come)


@inner
def _peak_fits(k: Kernel, count: int, most: int) -> bool:
    """Whether the blocks fit before each of the ends, the last end first."""
    _sort_by_end(k, count)
    block, held = int(k.now[BLOCK_TOKENS]), 0
    for alive in range(1, count + 1):
        steps = int(k.slots[alive - 1, TO_COME])
        held += int(k.slots[alive - 1, HELD_TOKENS])
        # Between full blocks throughout and a block cut into by each: the exact sum is seldom needed.
        if (held + alive * (steps + block - 1)) // block <= most:
            continue
        if held + alive * steps > most * block:
            return False
        blocks = 0
        for position in range(alive):
            blocks += blocks_of(k, int(k.slots[position, HELD_TOKENS]) + steps)
        if blocks > most:
            return False
    return True


@inner
def _sort_by_end(k: Kernel, count: int) -> None:
    """Sort what requests hold and will add, who adds most first."""
    for position in range(1, count):
        to_come, held = k.slots[position, TO_COME], k.slots[position, HELD_TOKENS]
        place = position
        while place and k.slots[place - 1, TO_COME] < to_come:
            k.slots[place, TO_COME] = k.slots[place - 1, TO_COME]
            k.slots[place, HELD_TOKENS] = k.slots[place - 1, HELD_TOKENS]
            place -= 1
        k.slots[place, TO_COME], k.slots[place, HELD_TOKENS] = to_come, held


_prefill = prefill_with(chunk_tokens, fits_timed)


@merged
def timed_step(k: Kernel) -> None:
    """Decide a batch."""
    _prefill_at_times(k, by_ratio=k.now[MODE] == WAITING_RATIO)


@inner
def _prefill_at_times(k: Kernel, by_ratio: bool) -> None:  # noqa: FBT001
    """Prefills when they are due by the number of waiting requests or of decode steps; else decodes."""
    now = k.now
    is_due = not now[RUNNING] or has_started(k) or now[NUM_STEPS] >= now[DECODE_STEPS]
    if not is_due and by_ratio:
        is_due = now[WAITING] >= get_float(k, RATIO) * now[RUNNING]
    if is_due:
        if not by_ratio:
            now[NUM_STEPS] = 0
        _prefill(k)
    if not now[NUM_IN_BATCH]:
        now[NUM_STEPS] += 1
        decode(k)
        if now[CLIENTS]:
            charge_decodes(k)
    elif by_ratio:
        now[NUM_STEPS] = 0
