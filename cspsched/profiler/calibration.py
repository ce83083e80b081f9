"""Adapts a cost model to measured whole steps: a step time, and one factor for each group of terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from cspsched.costs.fit import FloatArray, Terms, non_negative_fit, price_terms
from cspsched.errors import InputError
from cspsched.problem.cost import BatchFeatures, CostModel, IntArray, PiecewiseLinear

LEAST_BATCHES = 12
FACTOR_DIGITS = 4
GROUPS = {
    "prefill": ("prefill_attention", "prefill_tokens", "prefill_context", "prefill_request", "prefill_batch"),
    "decode": ("decode_context", "decode_request", "decode_batch", "mixed_context", "mixed_request"),
    "tokens": ("tokens", "head"),
}
"""Terms that share a factor: their operators share what the profile misses."""


class Calibration(NamedTuple):
    """A calibrated cost model and what was changed."""

    cost: CostModel
    step_ns: int
    """Step time in place of the model's own."""
    factors: dict[str, float]
    """By group, what its terms were multiplied by."""


def calibrate(cost: CostModel, features: BatchFeatures[IntArray], times_ns: FloatArray) -> Calibration:
    """Fit the step time and a factor >= 0 for each group, by relative errors.

    Parameters
    ----------
    features, times_ns
        Measured batches, shape (num_batches,) each.

    Raises
    ------
    InputError
        If there are too few batches for so many numbers.
    """
    if len(times_ns) < LEAST_BATCHES:
        raise InputError(f"{len(times_ns)} measured batches, calibration needs at least {LEAST_BATCHES}")
    groups = {name: _terms(cost, names) for name, names in GROUPS.items()}
    columns = [np.ones(len(times_ns)), *(price_terms(terms, features) for terms in groups.values())]
    step_ns, *factors = non_negative_fit(np.stack(columns, axis=1), times_ns)
    exact = [_exact(factor, column) for factor, column in zip(factors, columns[1:], strict=True)]
    scaled: Terms = {"step": Fraction(round(step_ns))}
    for factor, terms in zip(exact, groups.values(), strict=True):
        scaled |= {name: _times(term, factor) for name, term in terms.items()}
    names = dict(zip(groups, map(float, exact), strict=True))
    changed: dict[str, Any] = {"name": f"{cost.name}-calibrated", **scaled}
    return Calibration(replace(cost, **changed), round(step_ns), names)


def _terms(cost: CostModel, names: Sequence[str]) -> Terms:
    return {name: getattr(cost, name) for name in names}


def _exact(factor: float, column: FloatArray) -> Fraction:
    """Factor of a group; one that no batch showed anything of stays as it is."""
    return Fraction(f"{factor:.{FACTOR_DIGITS}f}") if column.any() else Fraction(1)


def _times(term: Fraction | PiecewiseLinear, factor: Fraction) -> Fraction | PiecewiseLinear:
    if isinstance(term, PiecewiseLinear):
        return PiecewiseLinear(term.knots, tuple(slope * factor for slope in term.slopes))
    return term * factor
