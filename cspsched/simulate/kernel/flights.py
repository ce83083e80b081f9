"""Compiled: several batches in flight, as in a pipeline.

A batch is decided whenever fewer than `now.flights` are in flight, at arrivals, too. A request in flight is
out of reach: LISTED holds them, oldest first. If it has finished it keeps its blocks until its batch ends.
"""

from __future__ import annotations

from cspsched.compiled.jit import inner
from cspsched.simulate.kernel.actions import add_up, leave, process
from cspsched.simulate.kernel.columns import BATCHED, LISTED
from cspsched.simulate.kernel.layout import ASK_MACHINE, DECIDED_NS, FINISHED, Kernel
from cspsched.simulate.kernel.pricing import batch_time_ns
from cspsched.simulate.kernel.progress import next_arrival_ns, refusal
from cspsched.simulate.kernel.records import NO_REQUEST


@inner
def flies_on(k: Kernel) -> bool:
    """Whether there is a decision to make; before it a batch ends or a request arrives, if one is awaited."""
    now = k.now
    if now.is_idle and not _wait(k):
        return False
    now.is_idle = 0
    return bool(now.num_unfinished and now.clock_ns < now.until_ns)


@inner
def _wait(k: Kernel) -> bool:
    """Let a batch end or a request arrive, whichever comes first; false where that is not known yet."""
    now = k.now
    is_known = now.num_submitted < now.num_arrivals
    if now.num_flying:
        if is_known and next_arrival_ns(k) < now.landing_ns:
            now.clock_ns = next_arrival_ns(k)
        elif not is_known and now.is_open and now.landing_ns > now.until_ns:
            return False
        else:
            _land(k)
    elif is_known:
        now.clock_ns = next_arrival_ns(k)
    return bool(is_known or now.num_landed)


@inner
def conclude_flight(k: Kernel) -> int:
    """Launch what was decided, or wait (see `conclude`)."""
    now = k.now
    answer = refusal(k)
    if answer != FINISHED:
        return answer
    if not now.num_in_batch:
        now.is_idle = now.num_flying > 0 or not now.num_evictions
        return FINISHED
    add_up(k)
    if now.on_machine:
        return ASK_MACHINE
    start_ns = max(int(now.clock_ns), int(now.busy_until_ns))
    return launch(k, start_ns, start_ns + batch_time_ns(k, int(now.num_decodes)))


@inner
def launch(k: Kernel, start_ns: int, end_ns: int) -> int:
    """Process the batch from a start to an end, and let the oldest end if no more may be in flight."""
    now, decided_ns = k.now, int(k.now.clock_ns)
    k.batch_ns[now.batch_row, DECIDED_NS] = decided_ns
    now.clock_ns = start_ns
    answer = process(k, end_ns)
    now.clock_ns, now.busy_until_ns = decided_ns, end_ns
    now.num_seen = now.num_submitted
    for position in range(now.num_batched):
        request = int(k.slots[position, BATCHED])
        if request != NO_REQUEST:
            k.notes[request].flight, k.notes[request].lands_ns = now.num_batches, end_ns
            k.slots[now.num_listed, LISTED] = request
            now.num_listed += 1
    now.num_flying += 1
    if now.num_flying == 1:
        now.landing_ns = end_ns
    if now.num_flying >= now.flights:
        _land(k)
    return answer


@inner
def _land(k: Kernel) -> None:
    """Let the oldest batch end: its finished requests leave."""
    now = k.now
    now.clock_ns = now.landing_ns
    flight, place = k.notes[k.slots[0, LISTED]].flight, 0
    while place < now.num_listed and k.notes[k.slots[place, LISTED]].flight == flight:
        request = int(k.slots[place, LISTED])
        if k.requests[request].generated == k.requests[request].output_tokens:
            leave(k, request)
        place += 1
    now.num_landed = place
    now.num_flying -= 1
    if now.num_flying:
        now.landing_ns = k.notes[k.slots[place, LISTED]].lands_ns


@inner
def forget_landed(k: Kernel) -> None:
    """Take those whose batch has ended out of the list."""
    now = k.now
    now.num_listed -= now.num_landed
    for position in range(now.num_listed):
        k.slots[position, LISTED] = k.slots[position + now.num_landed, LISTED]
    now.num_landed = 0
