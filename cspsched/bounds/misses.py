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
from cspsched.bounds.flow import RANKED_REQUESTS, SPLITS, Heads, Relaxation
from cspsched.bounds.parts.batches import ExactArray
from cspsched.bounds.parts.late_kernel import count_late
from cspsched.bounds.parts.srpt import FEW_REQUESTS
from cspsched.bounds.parts.tables import Tables
from cspsched.compiled.jit import compiled
from cspsched.errors import InputError
from cspsched.problem.cost import INT64_SAFE
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import Objective
from cspsched.units import ceil_div

FIRST_STEPS = 1_000
"""A percentile is looked for from what requests take alone, first in steps of such a part of it."""
MACHINES_REQUESTS, FEWEST_MACHINES = 300_000, 4
"""Machines times requests: all machines up to about 5,000 requests, then those of most work."""
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
    return _machines(instance, objective).fewest_misses(exact_column(limits_ns))


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
    """The largest that any machine proves; few of them prove more than those before them."""
    count = len(machines.solo_ns)
    longer = count - (count - 1) * percent // 100
    # So many take this long even alone, which is often all that is proven; so the search starts there.
    found = int(sorted(machines.solo_ns, reverse=True)[longer - 1])
    for machine in machines.longest_first:

        def must_exceed(limit_ns: int, machine: int = machine) -> bool:
            kind = np.int64 if limit_ns < INT64_SAFE // 2 else object
            return machines.misses(machine, np.full(count, limit_ns, dtype=kind)) >= longer

        low = high = found
        step = max(1, low // FIRST_STEPS)
        while must_exceed(high):
            low, high, step = high + 1, high + step, 2 * step
        found = _first_not(must_exceed, low, high)
    return found


def _first_not(exceeds: Callable[[int], bool], low: int, high: int) -> int:
    """Smallest number in [low, high] that a monotone test denies; it denies `high`."""
    while low < high:
        middle = (low + high) // 2
        if exceeds(middle):
            low = middle + 1
        else:
            high = middle
    return low


def exact_column(values: Sequence[int]) -> ExactArray:
    """Whole numbers as int64 where sums of two of them fit it, else as they are."""
    column = np.array(values, dtype=object)
    return column.astype(np.int64) if max(map(abs, values), default=0) < INT64_SAFE // 2 else column


def late_requests(processing_ns: ExactArray, due_ns: ExactArray) -> int:
    """Fewest late requests of columns on one machine without releases; compiled where they are long."""
    is_wide = due_ns.dtype == object or processing_ns.sum(dtype=np.float64) >= INT64_SAFE
    if is_wide or len(due_ns) <= FEW_REQUESTS:
        return moore_hodgson(processing_ns.tolist(), due_ns.tolist())
    order = np.argsort(due_ns, kind="stable")
    processing = processing_ns.astype(np.int64)[order]
    return int(compiled(count_late)(due_ns[order], processing, np.empty_like(due_ns)))


def moore_hodgson(processing: Sequence[int], due: Sequence[int]) -> int:
    """Fewest late requests on one machine without releases, in O(n log n)."""
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
    processing_ns: list[ExactArray]
    """Processing times on each machine."""

    @property
    def longest_first(self) -> list[int]:
        """Positions of the machines by their whole work, the longest first."""
        work = [float(times.sum()) for times in self.processing_ns]
        return sorted(range(len(work)), key=lambda machine: -work[machine])

    def misses(self, machine: int, limits_ns: ExactArray) -> int:
        """Fewest late requests of a machine, and those that are late anyway."""
        lost = self.solo_ns > limits_ns
        kept = np.flatnonzero(~lost)
        due_ns = (self.arrivals_ns + limits_ns)[kept]
        return int(lost.sum()) + late_requests(self.processing_ns[machine][kept], due_ns)

    def fewest_misses(self, limits_ns: ExactArray) -> int:
        """The most of any machine."""
        return max(self.misses(machine, limits_ns) for machine in range(len(self.processing_ns)))


def _machines(instance: Instance, objective: Objective) -> Machines:
    if objective not in BOUNDED:
        raise InputError(f"{objective} is no time of a request, expected one of {', '.join(BOUNDED)}")
    tables = Tables(instance)
    heads = Heads(tables, Fraction(1 if objective is Objective.LATENCY else 0))
    first = Heads(tables, Fraction(0)).consumption
    relaxations = [
        Relaxation(heads, work, first, minorant, split, with_tails=False)
        for minorant, work in [(table.minorant, heads.work(table)) for table in tables.work]
        for split in SPLITS
    ]
    most = max(FEWEST_MACHINES, MACHINES_REQUESTS // len(tables.arrivals_ns))
    if len(relaxations) > most:
        every = ceil_div(len(tables.arrivals_ns), RANKED_REQUESTS)
        relaxations.sort(key=lambda one: -float(one.processing_ns(every).sum()))
    return Machines(
        arrivals_ns=tables.arrivals_ns - tables.arrivals_ns.min(),
        solo_ns=exact_column(solo_times_ns(tables, objective).tolist()),
        processing_ns=[relaxation.processing_ns() for relaxation in relaxations[:most]],
    )
