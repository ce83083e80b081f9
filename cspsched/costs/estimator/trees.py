"""Trees over a fitted term: the unrounded estimator of attention inside the grid that was measured.

They learn the logarithm of measured over fitted from shapes of several head counts at once. Outside the
range of any feature the fitted term answers alone, as trees know nothing there.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cspsched.costs.fit import FloatArray

NUM_TREES = 100
CONTRADICTION = 2.0
"""A measurement this many times as long as one of a larger point is a slip of the measurement."""


class CorrectedByTrees:
    """Times of a fitted term, multiplied inside the hull by a factor that trees have learned.

    Parameters
    ----------
    features
        Positive features of shape (num_points, num_features). Points that a larger one contradicts are not
        learned from: a tree repeats what it has seen, and a slip would be the answer for its neighbours.
    fitted, times
        What the term says and what was measured, shape (num_points,) each.
    """

    def __init__(self, features: FloatArray, fitted: FloatArray, times: FloatArray) -> None:
        from sklearn.ensemble import ExtraTreesRegressor

        kept = ~contradicted(features, times)
        features, fitted, times = features[kept], fitted[kept], times[kept]
        self._low, self._high = features.min(axis=0), features.max(axis=0)
        self._trees = ExtraTreesRegressor(NUM_TREES, random_state=0, n_jobs=1)
        self._trees.fit(_logs(features, fitted), np.log(times / fitted))

    def inside(self, features: FloatArray) -> npt.NDArray[np.bool_]:
        """Whether each point lies in the range of every feature, shape (num_points,)."""
        return np.asarray(((features >= self._low) & (features <= self._high)).all(axis=1))

    def __call__(self, features: FloatArray, fitted: FloatArray) -> FloatArray:
        """Times at some points, given what the term says there."""
        factors = np.exp(self._trees.predict(_logs(features, fitted)))
        return np.where(self.inside(features), fitted * factors, fitted)


def contradicted(features: FloatArray, times: FloatArray) -> npt.NDArray[np.bool_]:
    """Points that take far longer than one at least as large in every feature, shape (num_points,)."""
    least_of_larger = np.array([times[(features >= point).all(axis=1)].min() for point in features])
    return np.asarray(times > CONTRADICTION * least_of_larger)


def _logs(features: FloatArray, fitted: FloatArray) -> FloatArray:
    return np.log2(np.column_stack([features, fitted]))
