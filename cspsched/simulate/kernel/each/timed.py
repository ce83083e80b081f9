"""Compiled: prefills alone at times, and the admission tests of TGI and LightLLM (`QueueRun`)."""

from __future__ import annotations

from cspsched.simulate.kernel.batch import blocks_of
from cspsched.simulate.kernel.each.admission import chunk_tokens, fits
from cspsched.simulate.kernel.each.clients import charge_decodes
from cspsched.simulate.kernel.each.layout import (
    IN_LOCKSTEP,
    LISTED,
    LOCKED,
    TO_COME,
)
from cspsched.simulate.kernel.each.queue_run import decode, has_started, prefill_with
from cspsched.simulate.kernel.each.rules import Mode
from cspsched.simulate.kernel.jit import inner, merged
from cspsched.simulate.kernel.layout import (
    DECODES,
    HELD_TOKENS,
    Kernel,
)
from cspsched.simulate.kernel.records import NOBODY
from cspsched.simulate.kernel.rules import Admit

FUTURE = int(Admit.FUTURE)
WAITING_RATIO = int(Mode.WAITING_RATIO)


@inner
def fits_timed(k: Kernel, request: int) -> bool:
    """Whether the head of the queue may be admitted beside the running requests."""
    if k.now.admit == FUTURE:
        return fits_for_ever(k, request)
    if k.now.total_tokens and not _fits_total(k, request):
        return False
    return fits(k, request)


@inner
def _fits_total(k: Kernel, request: int) -> bool:
    """Whether input and output of all that run stay within the limit."""
    total = k.now.locked_total + k.requests[request].prompt_tokens + k.requests[request].output_tokens
    for position in range(k.now.num_listed):
        row = k.requests[k.slots[position, LISTED]]
        total += row.prompt_tokens + row.output_tokens
    return bool(total <= k.now.total_tokens)


@inner
def fits_for_ever(k: Kernel, request: int) -> bool:
    """Whether the peak of all that run and one more leaves enough free, if each decodes in every batch."""
    now = k.now
    most = int(now.kv_blocks - now.spare_blocks)
    if _most_at_end(k, request) <= most:
        return True
    is_busy = now.kv_blocks - now.free_blocks >= k.now.ratio * now.kv_blocks
    count = needed = 0
    for column in (LOCKED, LISTED):
        for position in range(now.locked_end if column == LOCKED else now.num_listed):
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
    cut = (now.block_tokens - 1) * now.num_locked
    blocks = blocks_of(k, k.requests[request].prompt_tokens + k.requests[request].output_tokens)
    for position in range(now.num_listed):
        row = k.requests[k.slots[position, LISTED]]
        blocks += blocks_of(k, row.prompt_tokens + row.output_tokens)
    return int(blocks + (now.locked_total + cut) // now.block_tokens)


@inner
def _look_ahead(k: Kernel, request: int, position: int, is_busy: bool) -> int:  # noqa: FBT001
    """Note what a request holds and will add; the blocks that it needs at last."""
    row = k.requests[request]
    generated, output, decoding = int(row.generated), int(row.output_tokens), row.phase >= DECODES
    if row.phase == IN_LOCKSTEP:
        generated += int(k.now.num_decode_steps - row.joined)
    longest = output if is_busy else min(output, max(generated * 11 // 10, int(k.now.assumed_tokens)))
    to_come = max(0, longest - generated - 1)
    held = int(row.prompt_tokens) + generated + (not decoding)
    k.slots[position, TO_COME], k.slots[position, HELD_TOKENS] = to_come, held
    return blocks_of(k, held + to_come)


@inner
def _peak_fits(k: Kernel, count: int, most: int) -> bool:
    """Whether the blocks fit before each of the ends, the last end first."""
    _sort_by_end(k, count)
    block, held = int(k.now.block_tokens), 0
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
    _prefill_at_times(k, by_ratio=k.now.mode == WAITING_RATIO)


@inner
def _prefill_at_times(k: Kernel, by_ratio: bool) -> None:  # noqa: FBT001
    """Prefills when they are due by the number of waiting requests or of decode steps; else decodes."""
    now = k.now
    is_due = not now.num_running or has_started(k) or now.num_steps >= now.decode_steps
    if not is_due and by_ratio:
        is_due = now.num_waiting >= k.now.ratio * now.num_running
    if is_due:
        if not by_ratio:
            now.num_steps = 0
        _prefill(k)
    if not now.num_in_batch:
        now.num_steps += 1
        decode(k)
        if now.clients:
            charge_decodes(k)
    elif by_ratio:
        now.num_steps = 0
