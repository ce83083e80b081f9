"""Tables of operators whose time depends on one count: as measured, made non-decreasing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from cspsched.costs.fit import FloatArray
from cspsched.problem.cost import IntArray

TAIL_SHARE = 0.25
"""Share of the points that decides how a table goes on beyond its last one."""


class MonotoneTable:
    """A non-decreasing function through measured points; linear between them.

    Below the first point it is constant (a launch costs what it costs), beyond the last it goes on with the
    slope of the last quarter of the points.

    Parameters
    ----------
    x
        Counts, shape (num_points,), in any order; repeated counts give their median.
    times
        Times at them in any unit, positive, shape (num_points,).
    weights
        How much each point counts, shape (num_points,), above 0; None is 1. Of repeated counts only those
        that count most are looked at, and where times fall, neighbours are pooled by weight.
    """

    def __init__(self, x: IntArray, times: FloatArray, weights: FloatArray | None = None) -> None:
        self.x: IntArray = np.unique(x)
        weights = np.ones(len(x)) if weights is None else weights
        self.weights = np.array([weights[x == point].max() for point in self.x], dtype=np.float64)
        best = weights >= self.weights[np.searchsorted(self.x, x)]
        medians = [np.median(times[(x == point) & best]) for point in self.x]
        self.times = rising(np.array(medians, dtype=np.float64), self.weights)
        first = min(int(len(self.x) * (1 - TAIL_SHARE)), len(self.x) - 2)
        if first < 0:
            self._slope = 0.0
        else:
            rise, run = self.times[-1] - self.times[first], self.x[-1] - self.x[first]
            self._slope = float(rise / run)

    @property
    def largest(self) -> int:
        """Largest count that was measured."""
        return int(self.x[-1])

    def __call__(self, x: npt.ArrayLike) -> FloatArray:
        """Times at some counts, same shape."""
        at = np.asarray(x, dtype=np.float64)
        beyond = np.maximum(at - self.largest, 0)
        return np.interp(at, self.x, self.times) + self._slope * beyond


class ExpertTable:
    """Time of a layer's experts by tokens and by how many experts they activate.

    Parameters
    ----------
    tokens, activated
        Counts of shape (num_points,).
    times, weights
        Times at them, and how much each counts, shape (num_points,) each; no weights are 1.
    """

    def __init__(
        self, tokens: IntArray, activated: IntArray, times: FloatArray, weights: FloatArray | None = None
    ) -> None:
        self._activated: IntArray = np.unique(activated)
        weights = np.ones(len(tokens)) if weights is None else weights
        self._tables = [
            MonotoneTable(tokens[here], times[here], weights[here])
            for here in (activated == n for n in self._activated)
        ]

    @property
    def x(self) -> IntArray:
        """Token counts at which all of the experts that were measured were active."""
        return self._tables[-1].x

    @property
    def weights(self) -> FloatArray:
        """How much each of `x` counts."""
        return self._tables[-1].weights

    @property
    def largest(self) -> int:
        """Largest count of tokens that was measured."""
        return max(table.largest for table in self._tables)

    def at_expected(self, x: IntArray, num_experts: int, experts_per_token: int) -> FloatArray:
        """Times where every token chooses its experts evenly: as many are active as are expected to be."""
        active = expected_experts(x, num_experts, experts_per_token)
        grid = np.stack([table(x) for table in self._tables])
        pairs = zip(active, grid.T, strict=True)
        return np.array([np.interp(number, self._activated, column) for number, column in pairs])


def expected_experts(tokens: IntArray, num_experts: int, experts_per_token: int) -> FloatArray:
    """Expected number of experts that at least one of the tokens chooses: E (1 - (1 - k/E)^N)."""
    return np.asarray(num_experts * (1 - (1 - experts_per_token / num_experts) ** tokens.astype(np.float64)))


def rising(times: FloatArray, weights: FloatArray) -> FloatArray:
    """Nearest non-decreasing times: where they fall, neighbours get their mean (pool adjacent violators).

    Besides its own weight a time has the inverse of its square, as relative errors count.

    Parameters
    ----------
    times, weights
        Above 0, shape (num_points,) each.
    """
    pools: list[list[float]] = []
    for time, own in zip(times.tolist(), weights.tolist(), strict=True):
        pools.append([time, own / time**2, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (high, weight_high, size_high), (low, weight_low, size_low) = pools[-2:]
            weight = weight_high + weight_low
            mean = (high * weight_high + low * weight_low) / weight
            pools[-2:] = [[mean, weight, size_high + size_low]]
    found = [value for value, _, size in pools for _ in range(int(size))]
    return np.array(found, dtype=np.float64)


def total_at(tables: Mapping[str, tuple[MonotoneTable, int]], x: IntArray) -> FloatArray:
    """Sum of some tables, each as often as it is called."""
    return np.asarray(sum(calls * table(x) for table, calls in tables.values()), dtype=np.float64)
