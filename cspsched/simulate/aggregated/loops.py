"""Compiled: the loops over decisions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from cspsched.compiled.jit import inner, merged, outer
from cspsched.simulate.aggregated.batch import KNOWN_ONLY, execute
from cspsched.simulate.aggregated.cancel import cancel_aggregated
from cspsched.simulate.aggregated.parts import DECODE_ONLY, MIXED, NOBODY_RUNS, PREFILL_ONLY, parts_step
from cspsched.simulate.aggregated.queues import submit_arrivals
from cspsched.simulate.aggregated.repeat import repeat_decodes
from cspsched.simulate.aggregated.running_first import running_first
from cspsched.simulate.aggregated.state import Aggregated, Batch
from cspsched.simulate.kernel.layout import FINISHED, LAST_CLOCK_NS, LAST_COUNT, LOG_FULL, TOO_LONG, Kernel
from cspsched.simulate.kernel.progress import await_arrival, goes_on, has_room, refusal
from cspsched.simulate.kernel.rules import Entries, Order, Rules

Loop = Callable[[Kernel], int]


def aggregated_rules(*, run: Loop | None = None, prefills_first: bool = True, **decisions: Any) -> Rules:
    """Return the rules of a policy that the aggregated loop serves.

    Parameters
    ----------
    run
        The loop; None: that of `batch`.
    prefills_first
        Whether prefills stand before decodes in a batch, where they do not stand by admission.
    decisions
        Fields of `Aggregated` and of `Rules`.
    """
    names = {one.name for one in fields(Aggregated)} & decisions.keys()
    own = Aggregated(**{name: decisions.pop(name) for name in names})
    by_admission = own.batch is Batch.RUNNING_FIRST
    entries = Entries.PREFILLS_FIRST if prefills_first else Entries.DECODES_FIRST
    order = decisions.get("order", Order.ARRIVAL)
    return Rules(
        run=run or (run_vllm if by_admission else run_parts),
        cancel=cancel_aggregated,
        own=own,
        lockstep=False,
        ranks=order not in (Order.ARRIVAL, Order.QUALITY),
        entries=Entries.BY_NUMBER if by_admission else entries,
        batch_tokens=decisions["max_tokens"],
        most_holders=decisions["max_running"],
        **decisions,
    )


@outer
def run_parts(k: Kernel) -> int:
    """Run rules of any other `Batch` until all is done, a log is full, or something is wrong.

    The next call goes on from there.
    """
    while goes_on(k):
        if not has_room(k):
            return LOG_FULL
        submit_arrivals(k)
        if _may_repeat(k) and _repeat(k):
            continue
        clear_batch(k)
        parts_step(k)
        answer = conclude(k)
        if answer != FINISHED:
            return answer
    return FINISHED


@outer
def run_vllm(k: Kernel) -> int:
    """Run rules of `Batch.RUNNING_FIRST`, alone so that it is compiled alone."""
    while goes_on(k):
        if not has_room(k):
            return LOG_FULL
        submit_arrivals(k)
        clear_batch(k)
        running_first(k)
        answer = conclude(k)
        if answer != FINISHED:
            return answer
    return FINISHED


@merged
def conclude(k: Kernel) -> int:
    """Run the batch that was decided, or wait; an answer other than FINISHED ends the loop."""
    now = k.now
    answer = refusal(k)
    if answer != FINISHED:
        return answer
    if now.num_prefills or (now.decode_now and now.num_decodes):
        execute(k)
        if now.clock_ns > LAST_CLOCK_NS or now.num_batches + now.num_admissions > LAST_COUNT:
            return TOO_LONG
    elif not now.num_evictions:
        return await_arrival(k)
    return FINISHED


@inner
def _may_repeat(k: Kernel) -> bool:
    """Whether all that run decode, none can be admitted, and the mode keeps no count of steps."""
    now = k.now
    if not now.num_decodes or now.num_decodes != now.num_running:
        return False
    if k.own.batch not in (MIXED, PREFILL_ONLY, DECODE_ONLY):
        return False
    return bool(not now.num_waiting or k.own.gate == NOBODY_RUNS)


@inner
def _repeat(k: Kernel) -> bool:
    """Run batches of the same decodes; whether there was one."""
    now, count = k.now, int(k.now.num_decodes)
    grows = now.reserve <= KNOWN_ONLY
    steps = repeat_decodes(k, count, int(now.decode_context), len(k.calendar) - 1, grows)
    now.decode_context += count * steps
    return steps > 0


@inner
def clear_batch(k: Kernel) -> None:
    """Begin a decision."""
    now = k.now
    now.decode_now = now.attention = now.prefill_tokens = now.prefill_context = 0
    now.num_prefills = now.num_generating = now.num_evictions = 0
