"""A request that is cancelled in the aggregated loop (see `kernel.cancel`)."""

from __future__ import annotations

import numpy as np

from cspsched.simulate.aggregated.batch import FUTURE, finish, leave_decode, peak_blocks
from cspsched.simulate.aggregated.columns import STACK
from cspsched.simulate.aggregated.queues import QUALITY
from cspsched.simulate.kernel.cancel import ends_later, leave_queue, position_in, remove_at
from cspsched.simulate.kernel.layout import DECODES, HEAP, QUEUED, SUBMISSION, Kernel


def cancel_aggregated(k: Kernel, request: int, at_ns: int) -> None:
    """Cancel a request that waits or runs."""
    row, looks_ahead = k.requests[request], k.own.admit == FUTURE
    peak = peak_blocks(k, request)
    if ends_later(k, request):
        if looks_ahead and row.phase != QUEUED:
            k.own.peak_blocks += peak_blocks(k, request) - peak
    elif row.phase != QUEUED:
        if row.phase == DECODES:
            leave_decode(k, request)
        finish(k, request, at_ns)
        row.output_tokens = row.generated
    else:
        _forget(k, request)
        leave_queue(k, request, at_ns)


def _forget(k: Kernel, request: int) -> None:
    """Take a request out of the queue."""
    now, own, heap = k.now, k.own, k.orders[:, HEAP] if k.now.order else None
    if heap is None:
        _forget_in_turn(k, request)
    elif now.order == QUALITY:
        place = position_in(heap[: own.queue_back], request)
        assert place is not None
        remove_at(heap, place, int(own.queue_back))
        own.queue_back -= 1
        own.num_unplaced -= place < own.num_unplaced
    else:
        own.queue_back -= 1
        ranks = heap[: own.queue_back + 1]
        # In order they are a heap.
        heap[: own.queue_back] = np.sort(ranks[ranks != k.requests[request].rank])


def _forget_in_turn(k: Kernel, request: int) -> None:
    """Take a request out of a queue in order of arrival, behind those that were preempted."""
    now, own, stack, coming = k.now, k.own, k.slots[:, STACK], k.orders[:, SUBMISSION]
    place = position_in(stack[: own.queue_back], request)
    if place is not None:
        remove_at(stack, place, int(own.queue_back))
        own.queue_back -= 1
        return
    place = position_in(coming[own.queue_head : now.num_submitted], request)
    assert place is not None
    coming[own.queue_head + 1 : own.queue_head + place + 1] = coming[
        own.queue_head : own.queue_head + place
    ].copy()
    own.queue_head += 1
