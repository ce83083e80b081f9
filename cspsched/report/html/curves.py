"""Distributions of latency, TTFT and ITL on one axis for all policies: exact at each point that is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cspsched.problem.cost import IntArray
from cspsched.referee.metrics import Metrics
from cspsched.report.table import seconds
from cspsched.units import NS_PER_S

MOST_POINTS = 400
"""Points of a curve, evenly by share; more would not be seen."""
SHARES = (1, 10, 25, 50, 75, 90, 99, 100)
"""Percentiles of the table beside the picture."""
NAMES = {"latency": "latency", "ttft": "TTFT", "itl": "ITL"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Distribution:
    """Times in rising order without repetition, and how many there are up to each."""

    value_ns: IntArray
    num_so_far: IntArray

    @classmethod
    def of(cls, metrics: Metrics, name: str) -> Distribution:
        """Distribution of `latency`, `ttft` or `itl`."""
        if name == "itl" and metrics.times is not None:
            gaps = metrics.times.gaps
            return cls(value_ns=gaps.gap_ns, num_so_far=gaps.num_so_far)
        values = {"latency": metrics.latency_ns, "ttft": metrics.ttft_ns, "itl": metrics.itl_ns}[name]
        value_ns, counts = np.unique(values, return_counts=True)
        return cls(value_ns=value_ns, num_so_far=np.cumsum(counts))

    @property
    def count(self) -> int:
        """How many times there are."""
        return int(self.num_so_far[-1]) if len(self.num_so_far) else 0

    def at_share(self, percent: float) -> int:
        """Least value that so many percent do not exceed."""
        place = np.searchsorted(self.num_so_far, np.ceil(self.count * percent / 100))
        return int(self.value_ns[place])

    def up_to(self, value_ns: IntArray) -> list[float]:
        """Share of the times that do not exceed each value."""
        place = np.searchsorted(self.value_ns, value_ns, side="right")
        counts = np.concatenate(([0], self.num_so_far))[place]
        return [round(share, 6) for share in (counts / self.count).tolist()]

    def points(self) -> IntArray:
        """Values at evenly spread shares, first and last included."""
        if not self.count:
            return self.value_ns
        wanted = np.linspace(1, self.count, min(MOST_POINTS, self.count)).astype(np.int64)
        found: IntArray = self.value_ns[np.searchsorted(self.num_so_far, wanted)]
        return found


def distributions(measured: Mapping[str, Metrics]) -> dict[str, dict[str, Distribution]]:
    """Distributions by kind of time and name; a kind that no schedule has is left out.

    Parameters
    ----------
    measured
        Metrics by the name that the legend shows.
    """
    found = {}
    for name, label in NAMES.items():
        several = {policy: Distribution.of(metrics, name) for policy, metrics in measured.items()}
        if any(one.count for one in several.values()):
            found[label] = several
    return found


def curves_json(found: Mapping[str, Mapping[str, Distribution]]) -> list[dict[str, Any]]:
    """Curves for the page's script; shares are None for a schedule that has no such time."""
    return [_curve(label, list(several.values())) for label, several in found.items()]


def _curve(label: str, several: list[Distribution]) -> dict[str, Any]:
    points = np.unique(np.concatenate([one.points() for one in several]))
    # From below the least time on, where every curve is 0.
    x = np.concatenate((points[:1] - 1, points)) if points[0] > 1 else points
    return {
        "label": label,
        "x_s": (x / NS_PER_S).tolist(),
        "shares": [one.up_to(x) if one.count else None for one in several],
    }


def percentile_rows(found: Mapping[str, Mapping[str, Distribution]]) -> list[list[str]]:
    """The same in numbers: a row for each kind of time and policy."""
    return [
        [label, policy, *(seconds(one.at_share(percent) / NS_PER_S) for percent in SHARES)]
        for label, several in found.items()
        for policy, one in several.items()
        if one.count
    ]
