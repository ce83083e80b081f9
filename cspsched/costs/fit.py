"""Fits terms of a cost model to measured operator times: non-negative, piecewise linear, relative errors.

Every fitted term is non-decreasing with f(0) = 0 by construction (a sum of ramps with coefficients >= 0),
so it extrapolates with its last slope and keeps the batch time monotone. The method is non-negative least
squares on relative residuals: trees and unconstrained polynomials extrapolate badly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cspsched.errors import InputError
from cspsched.problem.cost import (
    FUNCTION_FEATURES,
    FUNCTION_TERMS,
    MIXED_FEATURES,
    BatchFeatures,
    IntArray,
    PiecewiseLinear,
)

FloatArray = npt.NDArray[np.float64]
Terms = dict[str, Fraction | PiecewiseLinear]
"""Terms of a cost model under their names there, ready for `CostModel(name=..., **terms)`."""

SLOPE_DIGITS = 4
"""Decimals kept of a slope in nanoseconds: errors far below any fit's, denominators of at most 10^4."""
LEAST_RESIDUAL = 1e-3
"""Relative residuals below this weigh alike, so that no point takes over."""


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """Batches and how long an operator took on each.

    Attributes
    ----------
    features
        Integer arrays of shape (num_batches,).
    times_ns
        Positive times in nanoseconds, shape (num_batches,).
    beside_ns
        What terms that are not fitted here say of each batch, shape (num_batches,); None is 0.
    weights
        How much each squared relative residual counts, shape (num_batches,), above 0; None is 1.
    """

    features: BatchFeatures[IntArray]
    times_ns: FloatArray
    beside_ns: FloatArray | None = None
    weights: FloatArray | None = None

    def __post_init__(self) -> None:
        if not len(self.times_ns) or not (self.times_ns > 0).all():
            raise InputError(f"{len(self.times_ns)} measured times, expected at least one and all above 0")

    def subset(self, mask: npt.NDArray[np.bool_]) -> Measurements:
        """Only the batches where the mask, of shape (num_batches,), is true."""
        features = BatchFeatures(*(column[mask] for column in self.features))
        beside = None if self.beside_ns is None else self.beside_ns[mask]
        weights = None if self.weights is None else self.weights[mask]
        return Measurements(
            features=features, times_ns=self.times_ns[mask], beside_ns=beside, weights=weights
        )


class RelativeErrors(NamedTuple):
    """How far predictions are from measurements, relative to the measurements (0.05 is 5 %)."""

    mean: float
    p95: float
    bias: float
    """Mean of the signed errors; negative where predictions are too low."""


def batch_features(**columns: IntArray) -> BatchFeatures[IntArray]:
    """Features of shape (num_batches,), all zero but those given."""
    zeros = np.zeros(len(next(iter(columns.values()))), dtype=np.int64)
    return BatchFeatures(*(columns.get(name, zeros) for name in BatchFeatures._fields))


def fit_terms(
    measured: Measurements,
    *,
    constants: Sequence[str] = (),
    knots: Mapping[str, Sequence[int]],
    rounds: int = 1,
) -> Terms:
    """Fit the named terms of a cost model together.

    Parameters
    ----------
    constants
        Constant terms to fit, such as `step` or `decode_request`.
    knots
        For each piecewise-linear term its knots; the first is 0.
    rounds
        Reweighted fits: one minimises squared relative residuals, more come near the absolute ones.

    Returns
    -------
    Terms
        Constants in whole nanoseconds, slopes rounded to `SLOPE_DIGITS` decimals.

    Raises
    ------
    InputError
        If nothing was measured beyond a last knot, so that its slope would be made up.
    """
    for name, at in knots.items():
        _require_tail(name, feature_column(name, measured.features), at)
    blocks = [constant_column(name, measured.features)[:, None] for name in constants]
    blocks += [ramp_columns(feature_column(name, measured.features), at) for name, at in knots.items()]
    found = robust_fit(np.hstack(blocks), measured.times_ns, rounds, measured.beside_ns, measured.weights)
    coefficients = iter(found)
    terms: Terms = {name: Fraction(round(next(coefficients))) for name in constants}
    for name, at in knots.items():
        terms[name] = PiecewiseLinear(tuple(at), tuple(_slope(next(coefficients)) for _ in at))
    return terms


def fit_piecewise_linear(
    x: IntArray, y_ns: FloatArray, knots: Sequence[int]
) -> tuple[Fraction, PiecewiseLinear]:
    """Fit `floor + f(x)` with f(0) = 0 and f non-decreasing.

    Parameters
    ----------
    x, y_ns
        Counts and times in nanoseconds, shape (num_points,) each.

    Returns
    -------
    tuple
        The floor in whole nanoseconds, and f.
    """
    _require_tail("x", x, knots)
    columns = np.hstack([np.ones((len(x), 1)), ramp_columns(x, knots)])
    floor, *slopes = non_negative_fit(columns, y_ns)
    return Fraction(round(floor)), PiecewiseLinear(tuple(knots), tuple(map(_slope, slopes)))


def price_terms(
    terms: Mapping[str, Fraction | PiecewiseLinear], features: BatchFeatures[IntArray]
) -> FloatArray:
    """Sum of some terms on many batches, in nanoseconds, unrounded; shape (num_batches,)."""
    total = np.zeros(len(features.tokens))
    for name, term in terms.items():
        if isinstance(term, PiecewiseLinear):
            slopes = np.array([float(slope) for slope in term.slopes])
            total += ramp_columns(feature_column(name, features), term.knots) @ slopes
        else:
            total += float(term) * constant_column(name, features)
    return total


def predicted_ns(terms: Mapping[str, Fraction | PiecewiseLinear], measured: Measurements) -> FloatArray:
    """What terms say of measured batches together with what lies beside them; shape (num_batches,)."""
    priced = price_terms(terms, measured.features)
    return priced if measured.beside_ns is None else priced + measured.beside_ns


def relative_errors(predicted_ns: FloatArray, measured_ns: FloatArray) -> RelativeErrors:
    """Mean and 95th percentile of the absolute relative errors, and their signed mean."""
    errors = predicted_ns / measured_ns - 1
    return RelativeErrors(
        mean=float(np.abs(errors).mean()),
        p95=float(np.percentile(np.abs(errors), 95)),
        bias=float(errors.mean()),
    )


def non_negative_fit(columns: FloatArray, y: FloatArray, targets: FloatArray | None = None) -> FloatArray:
    """Coefficients >= 0 that minimise the sum of squared relative residuals.

    Parameters
    ----------
    columns
        Shape (num_points, num_coefficients).
    y
        Positive, shape (num_points,).
    targets
        What the columns over y should sum to, shape (num_points,); ones where it is not given.
    """
    from scipy.optimize import nnls

    relative = columns / y[:, None]
    # Columns of like size keep the active-set method well conditioned; an all-zero column stays as it is.
    scale = np.where(relative.max(axis=0) > 0, relative.max(axis=0), 1.0)
    found, _ = nnls(relative / scale, np.ones(len(y)) if targets is None else targets)
    return np.asarray(found / scale, dtype=np.float64)


def robust_fit(
    columns: FloatArray,
    y: FloatArray,
    rounds: int,
    beside: FloatArray | None = None,
    weights: FloatArray | None = None,
) -> FloatArray:
    """Coefficients >= 0 that come near the least sum of absolute relative residuals.

    Each round weighs a residual by the inverse of its size in the round before (iteratively reweighted least
    squares), so that a few odd points do not bend the fit.

    Parameters
    ----------
    columns, y
        As in `non_negative_fit`.
    beside
        Share of y that others explain, shape (num_points,); None is 0.
    weights
        How much each squared residual counts, shape (num_points,); None is 1.
    """
    targets = np.ones(len(y)) if beside is None else 1 - beside / y
    given = np.ones(len(y)) if weights is None else np.sqrt(weights)
    scales = given
    for left in range(rounds, 0, -1):
        coefficients = non_negative_fit(columns * scales[:, None], y, targets * scales)
        if left > 1:
            residuals = np.abs(columns @ coefficients / y - targets)
            scales = given / np.sqrt(np.maximum(residuals, LEAST_RESIDUAL))
    return coefficients


def ramp_columns(x: IntArray, knots: Sequence[int]) -> FloatArray:
    """Ramps min(max(x - k_i, 0), k_{i+1} - k_i), one column a knot; the last never ends."""
    ends = [*knots[1:], np.inf]
    return np.stack(
        [np.clip(x - start, 0, end - start) for start, end in zip(knots, ends, strict=True)], axis=1
    ).astype(np.float64)


def feature_column(name: str, features: BatchFeatures[IntArray]) -> IntArray:
    """Feature that a piecewise-linear term of the cost model prices, 0 in batches that do not pay it."""
    if name not in FUNCTION_TERMS:
        raise InputError(f"{name!r} is no piecewise-linear term; known: {', '.join(FUNCTION_TERMS)}")
    column: IntArray
    if name in MIXED_FEATURES:
        column = getattr(features, MIXED_FEATURES[name]) * (features.num_prefills > 0)
    else:
        column = getattr(features, FUNCTION_FEATURES[name])
    return column


def constant_column(name: str, features: BatchFeatures[IntArray]) -> FloatArray:
    """How often a batch pays a constant term, shape (num_batches,)."""
    columns = {
        "step": np.ones(len(features.tokens)),
        "prefill_batch": features.num_prefills > 0,
        "decode_batch": features.num_decodes > 0,
        "prefill_request": features.num_prefills,
        "decode_request": features.num_decodes,
        "mixed_request": features.num_decodes * (features.num_prefills > 0),
    }
    if name not in columns:
        raise InputError(f"{name!r} is no constant term; known: {', '.join(columns)}")
    return columns[name].astype(np.float64)


def _require_tail(name: str, x: IntArray, knots: Sequence[int]) -> None:
    if x.max() <= knots[-1]:
        raise InputError(
            f"{name}: the last knot is {knots[-1]} and the largest measured value {x.max()}; "
            "expected measurements beyond the last knot, or the slope there is made up"
        )


def _slope(value: float) -> Fraction:
    return Fraction(f"{value:.{SLOPE_DIGITS}f}")
