"""Requests that miss a limit whatever is done, and what follows for percentiles.

Theorem (docs/bounds.md, section 8): every schedule contains a preemptive single-machine schedule with
processing times q_i (flow.py). In it, without the releases (which only hinder), the fewest late requests for
due dates a_i + limit_i are those of Moore and Hodgson (1968, An n job, one machine sequencing algorithm for
minimizing the number of late jobs; preemption does not help without releases). A request whose limit is
shorter than its time alone on the machine is late anyway and takes no time in that schedule.

A percentile of the latencies is at least x if so many requests take at least x.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from cspsched.bounds.critical_path import solo_times_ns
from cspsched.bounds.flow import SPLITS, Heads, Relaxation
from cspsched.bounds.parts.batches import ExactArray
from cspsched.bounds.parts.tables import Tables
from cspsched.errors import InputError
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import Objective

FIRST_STEPS = 1_000
"""A percentile is looked for from what requests take alone, first in steps of such a part of it."""
BOUNDED = (Objective.LATENCY, Objective.TTFT)


def fewest_misses(
    instance: Instance, limits_ns: Sequence[int], objective: Objective = Objective.LATENCY
) -> int:
    """Lower bound on the number of requests whose latency (or TTFT) is above a limit.

    Parameters
    ----------
    instance
        Every request must fit the limits of the device.
    limits_ns
        Largest time that meets the SLO, nanoseconds from the arrival on, one of each request.
    objective
        Which time is limited.

    Returns
    -------
    int
        No schedule has fewer misses; the best over minorants and splits.

    Raises
    ------
    InputError
        If the limits are not one of each request, or the objective is the makespan.
    """
    if len(limits_ns) != len(instance.requests):
        raise InputError(
            f"{len(limits_ns)} limits, expected one of each of {len(instance.requests)} requests"
        )
    return _machines(instance, objective).fewest_misses(np.array(limits_ns, dtype=object))


def percentile_ns(instance: Instance, percent: int, objective: Objective = Objective.LATENCY) -> int:
    """Lower bound on a percentile of the latencies (or TTFT), in nanoseconds: one of `percentiles_ns`."""
    return percentiles_ns(instance, [percent], objective)[percent]


def percentiles_ns(
    instance: Instance, percents: Iterable[int], objective: Objective = Objective.LATENCY
) -> dict[int, int]:
    """Lower bounds on percentiles of the latencies (or TTFT), in nanoseconds.

    Percentiles interpolate between neighbours as numpy does, so the value is at least the order statistic
    below it. If k requests or more take longer than x, the k-th largest is at least x + 1.

    Parameters
    ----------
    percents
        From 0 to 100, such as 99.
    """
    percents = list(percents)
    for percent in percents:
        if not 0 <= percent <= 100:
            raise InputError(f"percentile {percent}, expected 0 to 100")
    machines = _machines(instance, objective)
    return {percent: _percentile_ns(machines, percent) for percent in percents}


def _percentile_ns(machines: Machines, percent: int) -> int:
    count = len(machines.solo_ns)
    longer = count - (count - 1) * percent // 100

    def must_exceed(limit_ns: int) -> bool:
        return machines.fewest_misses(np.full(count, limit_ns, dtype=object)) >= longer

    # So many take this long even alone, which is often all that is proven; so the search starts there.
    low = high = int(sorted(machines.solo_ns, reverse=True)[longer - 1])
    step = max(1, low // FIRST_STEPS)
    while must_exceed(high):
        low, high, step = high + 1, high + step, 2 * step
    return _first_not(must_exceed, low, high)


def _first_not(exceeds: Callable[[int], bool], low: int, high: int) -> int:
    """Smallest number in [low, high] that a monotone test denies; it denies `high`."""
    while low < high:
        middle = (low + high) // 2
        if exceeds(middle):
            low = middle + 1
        else:
            high = middle
    return low


def late_requests(processing: Sequence[int], due: Sequence[int]) -> int:
    """Fewest late requests on one machine without releases (Moore and Hodgson), in O(n log n)."""
    clock = late = 0
    kept: list[int] = []
    for deadline, time in sorted(zip(due, processing, strict=True)):
        heapq.heappush(kept, -time)
        clock += time
        if clock > deadline:
            clock += heapq.heappop(kept)
            late += 1
    return late


@dataclass(frozen=True)
class Machines:
    """Single machines that all schedules contain."""

    arrivals_ns: ExactArray
    """From the first one on, shape (num_requests,)."""
    solo_ns: ExactArray
    """What each request takes alone, shape (num_requests,)."""
    processing_ns: list[list[int]]
    """Processing times on each machine."""

    def fewest_misses(self, limits_ns: ExactArray) -> int:
        """Most of the fewest late requests of any machine, and of those that are late anyway."""
        lost = self.solo_ns > limits_ns
        kept = np.flatnonzero(~lost)
        due = (self.arrivals_ns + limits_ns)[kept].tolist()
        late = [late_requests([times[i] for i in kept], due) for times in self.processing_ns]
        return int(lost.sum()) + max(late)


def _machines(instance: Instance, objective: Objective) -> Machines:
    if objective not in BOUNDED:
        raise InputError(f"{objective} is no time of a request, expected one of {', '.join(BOUNDED)}")
    tables = Tables(instance)
    heads = Heads(tables, Fraction(1 if objective is Objective.LATENCY else 0))
    first = Heads(tables, Fraction(0)).consumption
    relaxations = [
        Relaxation(heads, heads.work(table), first, table.minorant, split, with_tails=False)
        for table in tables.work
        for split in SPLITS
    ]
    arrivals_ns = tables.arrivals_ns.astype(object)
    return Machines(
        arrivals_ns=arrivals_ns - int(arrivals_ns.min()),
        solo_ns=solo_times_ns(tables, objective),
        processing_ns=[relaxation.processing_ns().tolist() for relaxation in relaxations],
    )
