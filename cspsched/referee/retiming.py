"""Other times for the batches of a schedule: where a later token is worth something, idle time may pay.

Maxima and averages of gaps, and TPOT limits, get better when a first token comes later. So a schedule that
runs every batch as early as possible is not always the best one with its decisions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from cspsched.problem.cost import IntArray
from cspsched.problem.instance import Instance
from cspsched.problem.schedule import Schedule
from cspsched.referee.history import follow


def ending_at(schedule: Schedule, end_ns: Sequence[int]) -> Schedule:
    """The same batches, each with its duration, ending at other times."""
    ends = np.array(end_ns, dtype=np.int64)
    return replace(schedule, start_ns=ends - (schedule.end_ns - schedule.start_ns), end_ns=ends)


def timings(instance: Instance, schedule: Schedule) -> Iterator[Schedule]:
    """A schedule as it is, and with every batch as late as the last one allows: no idle time between them.

    The second is the best for whatever depends on the gaps between tokens only, for gaps are then nothing but
    batches and moves of KV caches.
    """
    yield schedule
    if any(request.arrival_ns for request in instance.requests):
        yield ending_at(schedule, _latest_ends(instance, schedule).tolist())


def _latest_ends(instance: Instance, schedule: Schedule) -> IntArray:
    moved = follow(instance, schedule).moved_blocks.tolist()
    moves = np.array([instance.cost.swap_time_ns(blocks) for blocks in moved], dtype=np.int64)
    steps = schedule.end_ns - schedule.start_ns
    steps[1:] += moves[1:]
    after = np.cumsum(steps[::-1])[::-1]
    latest: IntArray = schedule.end_ns[-1] - after + steps
    return latest
