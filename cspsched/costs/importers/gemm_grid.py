"""Times of matrix products by shape: as measured, or filled in where the grid lacks a shape.

A roofline (compute or memory, whichever is slower, plus a launch) explains a shape to about 20 %; trees learn
the logarithm of what is left over, with the roofline among their features. Trees never leave the grid: a
shape beyond its largest n is scaled from that n, any other outside is refused.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from cspsched.costs.fit import FloatArray
from cspsched.costs.importers.source import US_PER_MS, Source
from cspsched.errors import InputError
from cspsched.problem.cost import IntArray
from cspsched.units import ceil_div

LAUNCH_US = 2.0
ELEMENT_BYTES = 2
LEAST_SIDE = 256
"""Shapes with a smaller side behave otherwise and are no part of an LLM's layers."""
NUM_TREES = 300


class GemmGrid:
    """Measured times of C = A B with A of (m, k) and B of (k, n), 16-bit."""

    def __init__(self, source: Source) -> None:
        frame = source.frame.assign(t_us=source.times_us("latency", US_PER_MS))
        for name in ("m", "n", "k"):
            frame[name] = source.counts(name, 1)
        grid = frame.groupby(["m", "n", "k"], as_index=False)["t_us"].median()
        self._path = source.path
        self._m, self._n, self._k = (grid[name].to_numpy(np.int64) for name in ("m", "n", "k"))
        self._times_us: FloatArray = grid["t_us"].to_numpy(np.float64)
        self._filler: ShapeFiller | None = None

    def times_us(self, n: int, k: int) -> tuple[IntArray, FloatArray, str]:
        """Rows m (ascending), microseconds at each, and how they came about.

        A shape that is narrower than the grid, such as a router of few experts, takes as long as its least n.

        Raises
        ------
        InputError
            If the grid does not reach the k.
        """
        least, largest = int(self._n.min()), int(self._n.max())
        if n < least:
            m, times, how = self.times_us(least, k)
            return m, times, f"as n = {least}, {how}"
        if n > largest:
            m, times, how = self.times_us(largest, k)
            return m, times * (n / largest), f"scaled from n = {largest}, {how}"
        if not self._k.min() <= k <= self._k.max():
            raise InputError(
                f"{self._path}: the GEMM table covers k from {self._k.min()} to {self._k.max()}, asked for "
                f"n = {n}, k = {k}"
            )
        exact = (self._n == n) & (self._k == k)
        if exact.any():
            return self._m[exact], self._times_us[exact], "measured"
        return *self.filled_us(n, k), "filled in"

    def filled_us(self, n: int, k: int) -> tuple[IntArray, FloatArray]:
        """Rows m and microseconds of a shape as if the grid lacked it, from shapes around it."""
        if self._filler is None:
            self._filler = ShapeFiller(self._m, self._n, self._k, self._times_us)
        m = self._rows_near(n, k)
        return m, self._filler.times_us(m, np.full_like(m, n), np.full_like(m, k))

    def _rows_near(self, n: int, k: int) -> IntArray:
        """Rows m that were measured at the nearest shape: no others are filled in."""
        shapes = self.shapes()
        distance = np.abs(np.log(shapes / np.array([n, k]))).sum(axis=1)
        nearest_n, nearest_k = shapes[distance.argmin()]
        return np.unique(self._m[(self._n == nearest_n) & (self._k == nearest_k)])

    def shapes(self) -> IntArray:
        """Measured shapes (n, k) of layers, shape (num_shapes, 2)."""
        large = (self._n >= LEAST_SIDE) & (self._k >= LEAST_SIDE)
        return np.unique(np.stack([self._n[large], self._k[large]], axis=1), axis=0)

    @cached_property
    def mean_held_out_error(self) -> float:
        """Mean absolute relative error of whole shapes that the trees have not seen."""
        return float(np.abs(self.held_out_errors()).mean())

    def held_out_errors(self, num_folds: int = 5, most_tokens: int = 8192) -> FloatArray:
        """Relative errors of shapes filled in by trees that have seen none of their rows."""
        shapes = np.random.default_rng(0).permutation(self.shapes())
        folds = {(int(n), int(k)): at % num_folds for at, (n, k) in enumerate(shapes)}
        fold = np.array([folds.get(key, -1) for key in zip(self._n.tolist(), self._k.tolist(), strict=True)])
        errors = []
        for held in range(num_folds):
            seen = (fold >= 0) & (fold != held)
            filler = ShapeFiller(self._m[seen], self._n[seen], self._k[seen], self._times_us[seen])
            unseen = (fold == held) & (self._m <= most_tokens)
            found = filler.times_us(self._m[unseen], self._n[unseen], self._k[unseen])
            errors.append(found / self._times_us[unseen] - 1)
        return np.concatenate(errors)


class ShapeFiller:
    """Roofline times a factor learned by trees."""

    def __init__(self, m: IntArray, n: IntArray, k: IntArray, times_us: FloatArray) -> None:
        from sklearn.ensemble import HistGradientBoostingRegressor
        from threadpoolctl import threadpool_limits

        large = (n >= LEAST_SIDE) & (k >= LEAST_SIDE)
        m, n, k, times_us = m[large], n[large], k[large], times_us[large]
        self._rate = float(np.quantile(_flops(m, n, k) / times_us, 0.995))
        self._bandwidth = float(np.quantile((_bytes(m, n, k) / times_us)[m <= np.median(m)], 0.995))
        roof = self._roofline_us(m, n, k)
        # Leaves as large as the classes that a coarse grid makes; one thread, so that threads never wait.
        self._trees = HistGradientBoostingRegressor(
            max_iter=NUM_TREES, learning_rate=0.08, min_samples_leaf=10, random_state=0
        )
        with threadpool_limits(limits=1):
            self._trees.fit(self._features(m, n, k, roof), np.log(times_us / roof))

    def times_us(self, m: IntArray, n: IntArray, k: IntArray) -> FloatArray:
        """Microseconds of shapes inside the grid."""
        from threadpoolctl import threadpool_limits

        roof = self._roofline_us(m, n, k)
        with threadpool_limits(limits=1):
            logs = np.asarray(self._trees.predict(self._features(m, n, k, roof)), dtype=np.float64)
        return np.asarray(roof * np.exp(logs), dtype=np.float64)

    def _roofline_us(self, m: IntArray, n: IntArray, k: IntArray) -> FloatArray:
        return LAUNCH_US + np.maximum(_flops(m, n, k) / self._rate, _bytes(m, n, k) / self._bandwidth)

    @staticmethod
    def _features(m: IntArray, n: IntArray, k: IntArray, roof: FloatArray) -> FloatArray:
        intensity = _flops(m, n, k) / _bytes(m, n, k)
        logs: FloatArray = np.log2(np.stack([m, n, k, roof, intensity], axis=1).astype(np.float64))
        return logs


def ceil_share(size: int, tensor_parallel: int) -> int:
    """Features of one rank, rounded up as weights are padded."""
    return ceil_div(size, tensor_parallel)


def _flops(m: IntArray, n: IntArray, k: IntArray) -> FloatArray:
    return np.asarray(2.0 * m * n * k, dtype=np.float64)


def _bytes(m: IntArray, n: IntArray, k: IntArray) -> FloatArray:
    return np.asarray(ELEMENT_BYTES * (1.0 * m * k + 1.0 * k * n + 1.0 * m * n), dtype=np.float64)
