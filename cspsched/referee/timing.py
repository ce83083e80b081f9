"""Times of a schedule from its decisions: every batch starts as early as rule 7 allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cspsched.problem.instance import Instance
from cspsched.problem.schedule import Schedule
from cspsched.referee.history import follow


def schedule_asap(
    instance: Instance,
    batches: Sequence[Sequence[tuple[int, int]]],
    evictions: Sequence[Sequence[int]],
    *,
    swapped: Sequence[Sequence[int]] = (),
    restored: Sequence[Sequence[int]] = (),
) -> Schedule:
    """Schedule that runs the given batches in order, each as early as possible.

    Parameters
    ----------
    batches
        For each batch the (request, tokens) processed, requests by position in the instance.
    evictions
        For each batch the requests evicted at the boundary before it.
    swapped, restored
        For each batch those of the evicted whose KV cache moves to host memory, and whose comes back.
    """
    untimed = [0] * len(batches)
    schedule = Schedule.from_batches(batches, evictions, untimed, untimed, swapped=swapped, restored=restored)
    history = follow(instance, schedule)
    durations = instance.cost.batch_times_ns(history.features).tolist()
    moves = map(instance.cost.swap_time_ns, history.moved_blocks.tolist())
    arrivals = [request.arrival_ns for request in instance.requests]
    clock, starts, ends = 0, [], []
    for entries, move, duration in zip(batches, moves, durations, strict=True):
        start = max([clock + move, *(arrivals[i] for i, _ in entries)])
        clock = start + duration
        starts.append(start)
        ends.append(clock)
    return replace(schedule, start_ns=np.array(starts), end_ns=np.array(ends))
