"""Times of matrix products by shape: as measured, or between the shapes around one that was not.

The tables hold every n with every k of a list, at the same rows m. Between shapes, times are linear in n and
in k; how far that is from shapes held out: `benchmarks/estimator_accuracy.py`.
"""

from __future__ import annotations

import numpy as np

from cspsched.costs.fit import FloatArray
from cspsched.costs.importers.source import US_PER_MS, Source
from cspsched.errors import InputError
from cspsched.problem.cost import IntArray
from cspsched.units import ceil_div

LEAST_SIDE = 256
"""Shapes with a smaller side behave otherwise and are no part of an LLM's layers."""


Positions = IntArray | tuple[int, ...]


class GemmGrid:
    """Measured times of C = A B with A of (m, k) and B of (k, n), weights of one type."""

    def __init__(self, source: Source) -> None:
        frame = source.frame.assign(t_us=source.times_us("latency", US_PER_MS))
        sides = {name: np.unique(source.counts(name, 1), return_inverse=True) for name in ("m", "n", "k")}
        self._path = source.path
        (self._m, at_m), (self._n, at_n), (self._k, at_k) = sides.values()
        median = frame["t_us"].groupby([at_m, at_n, at_k]).median()
        self._times_us: FloatArray = np.full((len(self._m), len(self._n), len(self._k)), np.nan)
        """Microseconds by m, n, k; NaN where a shape lacks the rows."""
        self._times_us[tuple(median.index.get_level_values(level) for level in range(3))] = median

    def times_us(self, n: int, k: int) -> tuple[IntArray, FloatArray, str]:
        """Rows m (ascending), microseconds at each, and how they came about.

        A shape that is narrower than the grid, such as a router of few experts, takes as long as its least
        n; one that is wider is scaled from the largest.

        Raises
        ------
        InputError
            If the grid does not reach the k.
        """
        least, largest = int(self._n[0]), int(self._n[-1])
        if n < least:
            m, times, how = self.times_us(least, k)
            return m, times, f"as n = {least}, {how}"
        if n > largest:
            m, times, how = self.times_us(largest, k)
            return m, times * (n / largest), f"scaled from n = {largest}, {how}"
        if not self._k[0] <= k <= self._k[-1]:
            raise InputError(
                f"{self._path}: the GEMM table covers k from {self._k[0]} to {self._k[-1]}, asked for "
                f"n = {n}, k = {k}"
            )
        times = self._between(n, k)
        at_n, at_k = np.flatnonzero(self._n == n), np.flatnonzero(self._k == k)
        is_hole = np.isnan(times).all()
        if is_hole:
            times = self._between(n, k, without_n=at_n)
        known = ~np.isnan(times)
        how = "measured" if len(at_n) and len(at_k) and not is_hole else "between shapes"
        return self._m[known], times[known], how

    def held_out_errors(self, most_tokens: int = 8192) -> FloatArray:
        """Relative errors of whole shapes, each from those around it that have neither its n nor its k."""
        rows = self._m <= most_tokens
        errors = [
            (self._between(int(self._n[i]), int(self._k[j]), (i,), (j,)) / self._times_us[:, i, j] - 1)[rows]
            for i in range(1, len(self._n) - 1) if self._n[i] >= LEAST_SIDE
            for j in range(1, len(self._k) - 1) if self._k[j] >= LEAST_SIDE
        ]  # fmt: skip
        found = np.concatenate(errors)
        return found[~np.isnan(found)]

    def _between(self, n: int, k: int, without_n: Positions = (), without_k: Positions = ()) -> FloatArray:
        """Microseconds by m of a shape, some positions of n and of k left out."""
        along_n = _linear(np.delete(self._times_us, without_n, axis=1), np.delete(self._n, without_n), n)
        return _linear(np.delete(along_n, without_k, axis=1), np.delete(self._k, without_k), k)


def ceil_share(size: int, tensor_parallel: int) -> int:
    """Features of one rank, rounded up as weights are padded."""
    return ceil_div(size, tensor_parallel)


def _linear(values: FloatArray, known: IntArray, x: int) -> FloatArray:
    """Values at a point of their second axis, linear between the two known points around it."""
    above = int(np.searchsorted(known, x))
    if known[above] == x:
        return np.asarray(values[:, above], dtype=np.float64)
    weight = (x - known[above - 1]) / (known[above] - known[above - 1])
    return np.asarray((1 - weight) * values[:, above - 1] + weight * values[:, above], dtype=np.float64)
