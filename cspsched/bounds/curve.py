"""Bounds over time: what the requests that have arrived by a moment must take, whatever comes after them.

Theorem (docs/bounds.md, section 11). Take all later requests out of a schedule: what is left serves the
earlier ones, none of them later than before. So a bound on the earlier requests alone holds for their share
of the whole trace, and the points of a curve can be set beside a policy's own sums at the same moments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from cspsched.bounds.api import best_bound
from cspsched.errors import UsageError
from cspsched.problem.cost import IntArray
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import Objective

NUM_POINTS = 20


def latency_curve(instance: Instance, num_points: int = NUM_POINTS) -> tuple[IntArray, list[int]]:
    """Lower bound on the sum of latencies of the requests that arrive up to each of some moments.

    Parameters and returns as `bound_curve`.
    """
    return bound_curve(instance, Objective.LATENCY, num_points)


def makespan_curve(instance: Instance, num_points: int = NUM_POINTS) -> tuple[IntArray, list[int]]:
    """Lower bound on the time when the requests that arrive up to each of some moments have all finished.

    As `bound_curve`; for each moment the bound is on the last completion, in nanoseconds from 0.
    """
    return bound_curve(instance, Objective.MAKESPAN, num_points)


def bound_curve(
    instance: Instance,
    objective: Objective,
    num_points: int = NUM_POINTS,
    *,
    whole_ns: int | None = None,
    time_left: Callable[[], float] | None = None,
    on_moment: Callable[[int, int], None] | None = None,
) -> tuple[IntArray, list[int]]:
    """Lower bound on what the requests that arrive up to each of some moments make of an objective.

    Parameters
    ----------
    instance
        Every request must fit the limits (`Instance.split_rejected`).
    objective
        Latency or makespan.
    num_points
        Moments at most; they are arrivals, about equally many requests apart, and the last is the last
        arrival. Each costs a bound on the requests up to it.
    whole_ns
        A bound on all requests, if there is one already; the last moment takes it.
    time_left
        Clock in seconds: at 0 no further moment is bounded but the last.
    on_moment
        Told before each moment how many there were, and how many there are.

    Returns
    -------
    times_ns
        Moments in nanoseconds, rising, int64, shape (num_moments,).
    bounds_ns
        For each moment t, at most the sum of (completion - arrival), or the last completion, of the requests
        with arrival <= t in any feasible schedule of the whole instance; never falling.

    Raises
    ------
    UsageError
        If `num_points` is below 1, or prefixes are cached: what later requests compute may be found.
    """
    if instance.switches.prefix_caching:
        raise UsageError("a curve takes later requests out, whose blocks the prefix cache may hold")
    if num_points < 1:
        raise UsageError(f"a curve of {num_points} points, expected at least 1")
    arrivals_ns = np.array([request.arrival_ns for request in instance.requests], dtype=np.int64)
    count = len(arrivals_ns)
    ranks = -(-count * np.arange(1, min(num_points, count) + 1) // min(num_points, count)) - 1
    times_ns = np.unique(np.sort(arrivals_ns)[ranks])
    kept, bounds_ns = list[int](), list[int]()
    for position, time_ns in enumerate(times_ns.tolist()):
        is_last = position == len(times_ns) - 1
        if time_left is not None and time_left() <= 0 and not is_last:
            continue
        if on_moment is not None:
            on_moment(position, len(times_ns))
        if is_last and whole_ns is not None:
            value_ns = whole_ns
        else:
            arrived = tuple(request for request in instance.requests if request.arrival_ns <= time_ns)
            part = replace(instance, requests=arrived)
            value_ns = best_bound(part, objective, time_left=time_left).value_ns
        kept.append(time_ns)
        bounds_ns.append(max([value_ns, *bounds_ns[-1:]]))
    return np.array(kept, dtype=np.int64), bounds_ns
