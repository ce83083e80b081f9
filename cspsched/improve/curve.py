"""Bound, best known schedules and policies over time: how late a policy is, at least and at most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cspsched.bounds.curve import bound_curve
from cspsched.improve.outcome import Improvement
from cspsched.problem.cost import IntArray
from cspsched.problem.excess import Excess
from cspsched.problem.objectives import Objective
from cspsched.referee.metrics import Metrics, measure


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """For each moment, about the requests that have arrived by then: bounds, and what schedules make of them.

    Attributes
    ----------
    objective
        Latency: sums over those requests. Makespan: when the last of them is finished.
    times_ns, num_requests, bounds_ns
        Moments, requests that have arrived by then, and bounds that hold in every schedule of the trace.
    best_ns
        The least that a known schedule makes of them; another schedule at another moment.
    policies_ns
        Values of each policy by its name.
    """

    objective: Objective
    times_ns: tuple[int, ...]
    num_requests: tuple[int, ...]
    bounds_ns: tuple[int, ...]
    best_ns: tuple[int, ...]
    policies_ns: dict[str, tuple[int, ...]]

    def excess(self, policy: str) -> list[Excess]:
        """How far a policy is above the optimum on the requests that have arrived by each moment."""
        rows = zip(self.policies_ns[policy], self.best_ns, self.bounds_ns, strict=True)
        return [Excess.of(value, best_ns=best, bound_ns=bound) for value, best, bound in rows]

    def to_json(self) -> dict[str, Any]:
        """Columns with units in the names."""
        return {
            "times_ns": list(self.times_ns),
            "num_arrived": list(self.num_requests),
            "bounds_ns": list(self.bounds_ns),
            "best_known_ns": list(self.best_ns),
            "policies_ns": [
                {"policy": policy, "values_ns": list(values)} for policy, values in self.policies_ns.items()
            ],
        }


def curve_of(
    found: Improvement,
    num_points: int,
    *,
    time_left: Callable[[], float] | None = None,
    on_moment: Callable[[int, int], None] | None = None,
) -> Curve | None:
    """The curve of an improvement; None without points, for other objectives, and on very long traces.

    None with prefix caching, too: what later requests compute counts for the first ones.

    A clock leaves out moments, but never the last; `on_moment` as in `bound_curve`.
    """
    objective = found.objective
    runs = {rival.policy: rival.run.metrics for rival in found.rivals if rival.run is not None}
    known = [rival.run.metrics for rival in found.reference if rival.run is not None]
    if found.schedule is not None:
        known.append(measure(found.instance, found.schedule))
    if found.instance.switches.prefix_caching:
        return None
    if not num_points or objective not in (Objective.LATENCY, Objective.MAKESPAN) or not runs:
        return None
    times_ns, bounds_ns = bound_curve(
        found.instance,
        Objective(objective),
        num_points,
        whole_ns=found.bound.value_ns,
        time_left=time_left,
        on_moment=on_moment,
    )
    arrivals_ns = found.instance.columns.arrival_ns
    counts = [int((arrivals_ns <= time_ns).sum()) for time_ns in times_ns]
    policies_ns = {
        policy: _values(metrics, arrivals_ns, times_ns, Objective(objective))
        for policy, metrics in runs.items()
    }
    known_ns = [_values(metrics, arrivals_ns, times_ns, Objective(objective)) for metrics in known]
    return Curve(
        objective=Objective(objective),
        times_ns=tuple(times_ns.tolist()),
        num_requests=tuple(counts),
        bounds_ns=tuple(bounds_ns),
        best_ns=tuple(map(min, zip(*policies_ns.values(), *known_ns, strict=True))),
        policies_ns=policies_ns,
    )


def _values(
    metrics: Metrics, arrivals_ns: IntArray, times_ns: IntArray, objective: Objective
) -> tuple[int, ...]:
    """What a schedule makes of the requests that have arrived by each moment."""
    found = []
    for time_ns in times_ns:
        latencies = metrics.latency_ns[arrivals_ns <= time_ns]
        if objective is Objective.LATENCY:
            found.append(sum(latencies.tolist()))
        else:
            found.append(int((latencies + arrivals_ns[arrivals_ns <= time_ns]).max()))
    return tuple(found)
