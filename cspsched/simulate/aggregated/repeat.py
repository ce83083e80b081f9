"""Compiled: batch after batch of the same decodes, as long as nothing else can happen.

That is until the next arrival, the next finish, or a shortage of blocks. Of the price only the term of their
contexts changes from one to the next.
"""

from __future__ import annotations

from cspsched.compiled.batch_time import term_ns
from cspsched.compiled.jit import inner
from cspsched.simulate.kernel.layout import LAST_CLOCK_NS, Kernel
from cspsched.simulate.kernel.pricing import batch_time_ns
from cspsched.simulate.kernel.progress import next_arrival_ns
from cspsched.simulate.kernel.records import NO_REQUEST

CONTEXT_FEATURE = 4
"""Position of `decode_context` in BatchFeatures."""


@inner
def repeat_decodes(k: Kernel, count: int, context: int, mask: int, grows: bool) -> int:  # noqa: FBT001
    """Run such batches; how many.

    Parameters
    ----------
    count, context
        Decodes, all that run, and the sum of their contexts.
    mask
        Positions of the calendar, less one.
    grows
        Whether decodes take blocks, of which one has to be left free.
    """
    now, first = k.now, int(k.now.num_decode_steps)
    step, shift, free, row = first, int(now.shift), int(now.free_blocks), int(now.batch_row)
    clock_ns, limit_ns = int(now.clock_ns), _limit_ns(k)
    fixed_ns, term = _price_without_context(k, count)
    last, waiting, running = len(k.batch_ns), int(now.num_waiting), int(now.num_running)
    held, block = int(now.kv_blocks) - free, int(now.block_tokens)
    while clock_ns < limit_ns and row < last and k.calendar[step & mask] == NO_REQUEST:
        if grows:
            growth = int(k.residues[shift])
            if growth >= free:
                break
            free -= growth
            held += growth
        end_ns = clock_ns + fixed_ns
        if term:
            end_ns += term_ns(k.prices, term, context)
        times, counts = k.batch_ns[row], k.batch_counts[row]
        times[0], times[1] = clock_ns, end_ns
        counts[0], counts[1], counts[2] = 0, count, 0
        counts[3], counts[4], counts[5] = held, waiting, running
        clock_ns, context = end_ns, context + count
        row, step = row + 1, step + 1
        shift = (shift if shift else block) - 1
    now.clock_ns, now.free_blocks, now.shift, now.num_decode_steps, now.batch_row = (
        clock_ns,
        free,
        shift,
        step,
        row,
    )
    now.num_batches += step - first
    if step > first:
        now.num_fruitless = 0
    return step - first


@inner
def _limit_ns(k: Kernel) -> int:
    """When the next request arrives, when to stop, or when the clock ends."""
    now = k.now
    limit_ns = min(LAST_CLOCK_NS, int(now.until_ns))
    return limit_ns if now.num_submitted == now.num_arrivals else min(limit_ns, next_arrival_ns(k))


@inner
def _price_without_context(k: Kernel, count: int) -> tuple[int, int]:
    """Duration of a batch of decodes but for the term of the context, and the row of that, 0 without it."""
    now, context = k.now, k.now.decode_context
    now.attention = now.prefill_tokens = now.prefill_context = 0
    now.num_prefills = now.num_generating = now.decode_context = 0
    fixed_ns, term = batch_time_ns(k, count), 0
    now.decode_context = context
    for position in range(1, k.prices[0, 3]):
        if k.prices[position, 0] == CONTEXT_FEATURE:
            term = position
    return fixed_ns, term
