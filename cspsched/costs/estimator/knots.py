"""Where the slopes of piecewise-linear terms change: few knots, and enough data behind the last one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cspsched.costs.fit import FloatArray, Measurements, ramp_columns, robust_fit
from cspsched.problem.cost import IntArray

TAIL_SHARE = 0.25
"""Least share of the distinct counts beyond the last knot: with fewer, the slope there would be made up."""
MOST_CANDIDATES = 32
LEAST_GAIN = 0.02
"""A knot stays out unless it lowers the squared error by this share."""


def choose_knots(
    fixed: FloatArray, counts: Mapping[str, IntArray], measured: Measurements, most: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """Knots of terms that are fitted together, each added where it lowers the squared relative error most.

    Parameters
    ----------
    fixed
        Columns of the constants beside the terms, shape (num_points, num_constants).
    counts
        What each term is a function of, shape (num_points,) each.
    measured
        The times, and what lies beside the terms.
    most
        Largest number of knots of each term.
    """
    chosen: dict[str, list[int]] = {name: [0] for name in counts}
    candidates = {(name, knot) for name, x in counts.items() for knot in _candidates(x)}
    error = _error(fixed, counts, measured, chosen)
    while candidates := {(name, knot) for name, knot in candidates if len(chosen[name]) < most[name]}:
        errors = {
            (name, knot): _error(fixed, counts, measured, chosen | {name: sorted([*chosen[name], knot])})
            for name, knot in candidates
        }
        best = min(errors, key=lambda candidate: (errors[candidate], candidate))
        if errors[best] > error * (1 - LEAST_GAIN):
            break
        error = errors[best]
        chosen[best[0]] = sorted([*chosen[best[0]], best[1]])
        candidates.remove(best)
    return {name: tuple(knots) for name, knots in chosen.items()}


def last_knot(x: IntArray) -> float:
    """Largest count that may be a knot: enough distinct counts lie beyond it."""
    points = np.unique(x[x > 0])
    return float(np.quantile(points, 1 - TAIL_SHARE)) if len(points) else 0.0


def within(knots: Sequence[int], x: IntArray) -> tuple[int, ...]:
    """Those of some knots that the data allow."""
    last = last_knot(x)
    return tuple(knot for knot in knots if knot <= last and knot < x.max()) or (0,)


def _candidates(x: IntArray) -> list[int]:
    """Counts with enough data behind them, spread evenly over the logarithm where they are many."""
    points = np.unique(x[x > 0])
    allowed = points[(points <= last_knot(x)) & (points < x.max())]
    if len(allowed) > MOST_CANDIDATES:
        wanted = np.geomspace(allowed[0], allowed[-1], MOST_CANDIDATES)
        allowed = np.unique(allowed[np.abs(np.log(allowed[:, None] / wanted)).argmin(axis=0)])
    return [int(point) for point in allowed]


def _error(
    fixed: FloatArray,
    counts: Mapping[str, IntArray],
    measured: Measurements,
    knots: Mapping[str, Sequence[int]],
) -> float:
    columns = np.hstack([fixed, *(ramp_columns(x, knots[name]) for name, x in counts.items())])
    found = robust_fit(columns, measured.times_ns, 1, measured.beside_ns, measured.weights)
    beside = 0.0 if measured.beside_ns is None else measured.beside_ns
    squares = np.square((columns @ found + beside) / measured.times_ns - 1)
    return float(squares.sum() if measured.weights is None else measured.weights @ squares)
