"""Bound and policies over time: from when on a policy is provably late, and by how much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cspsched.bounds import latency_curve, makespan_curve
from cspsched.improve.outcome import Improvement
from cspsched.problem.cost import IntArray
from cspsched.problem.metrics import Metrics, Objective


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """For each moment, about the requests that have arrived by then: a bound, and what policies make of them.

    Attributes
    ----------
    objective
        Latency: sums over those requests. Makespan: when the last of them is finished.
    times_ns, num_requests, bounds_ns
        Moments, requests that have arrived by then, and bounds that hold in every schedule of the trace.
    policies_ns
        Values of each policy by its name.
    """

    objective: Objective
    times_ns: tuple[int, ...]
    num_requests: tuple[int, ...]
    bounds_ns: tuple[int, ...]
    policies_ns: dict[str, tuple[int, ...]]

    def lateness(self, policy: str) -> list[float]:
        """(policy - bound) / bound at each moment; 0 where the bound is."""
        pairs = zip(self.policies_ns[policy], self.bounds_ns, strict=True)
        return [value / bound - 1 if bound else 0.0 for value, bound in pairs]

    def to_json(self) -> dict[str, Any]:
        """Columns with units in the names."""
        return {
            "times_ns": list(self.times_ns),
            "num_arrived": list(self.num_requests),
            "bounds_ns": list(self.bounds_ns),
            "policies_ns": [
                {"policy": policy, "values_ns": list(values)} for policy, values in self.policies_ns.items()
            ],
        }


def curve_of(found: Improvement, num_points: int) -> Curve | None:
    """The curve of an improvement; None without points, for other objectives, and on very long traces."""
    objective = found.objective
    runs = {rival.policy: rival.run.metrics for rival in found.rivals if rival.run is not None}
    if not num_points or objective not in (Objective.LATENCY, Objective.MAKESPAN) or not runs:
        return None
    bound = latency_curve if objective is Objective.LATENCY else makespan_curve
    times_ns, bounds_ns = bound(found.instance, num_points)
    arrivals_ns = np.array([request.arrival_ns for request in found.instance.requests], dtype=np.int64)
    counts = [int((arrivals_ns <= time_ns).sum()) for time_ns in times_ns]
    return Curve(
        objective=Objective(objective),
        times_ns=tuple(times_ns.tolist()),
        num_requests=tuple(counts),
        bounds_ns=tuple(bounds_ns),
        policies_ns={
            policy: _values(metrics, arrivals_ns, times_ns, Objective(objective))
            for policy, metrics in runs.items()
        },
    )


def _values(
    metrics: Metrics, arrivals_ns: IntArray, times_ns: IntArray, objective: Objective
) -> tuple[int, ...]:
    """What a policy makes of the requests that have arrived by each moment."""
    found = []
    for time_ns in times_ns:
        latencies = metrics.latency_ns[arrivals_ns <= time_ns]
        if objective is Objective.LATENCY:
            found.append(sum(latencies.tolist()))
        else:
            found.append(int((latencies + arrivals_ns[arrivals_ns <= time_ns]).max()))
    return tuple(found)
