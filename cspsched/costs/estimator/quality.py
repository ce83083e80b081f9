"""How good a fit is: errors on what it has seen, on what was held out, beyond its range; and its band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from cspsched.costs.estimator.knots import choose_knots, within
from cspsched.costs.fit import (
    SLOPE_DIGITS,
    FloatArray,
    Measurements,
    RelativeErrors,
    Terms,
    constant_column,
    feature_column,
    fit_terms,
    predicted_ns,
    price_terms,
    relative_errors,
)
from cspsched.problem.cost import FUNCTION_FEATURES, MIXED_FEATURES, BatchFeatures, IntArray
from cspsched.problem.piecewise import PiecewiseLinear

NUM_FOLDS = 10
ROUNDS = 10
NEAR_SHARE = {"tokens": 0.5, "head": 0.5}
"""What counts as near when extrapolation is tried: up to this share of the largest size."""
NEAR_LENGTH_SHARE = 0.25
BAND_QUANTILES = (0.1, 0.9)
BAND_DIGITS = 3
LEAST_FACTOR = 0.001
UNIT = 10**SLOPE_DIGITS
RATED = {"tokens": "tokens", "prefill_attention": "prefill_tokens"}
"""By group, the term that counts the tokens of a batch."""


@dataclass(frozen=True)
class Group:
    """Terms that are fitted together to one kind of work."""

    name: str
    measured: Measurements
    constants: tuple[str, ...]
    knots: Mapping[str, tuple[int, ...]]

    @classmethod
    def choose(
        cls, name: str, measured: Measurements, constants: tuple[str, ...], most: Mapping[str, int]
    ) -> Group:
        """A group with knots where the measurements ask for them, at most so many a term.

        Knots are at most a third of the distinct counts, so that each slope rests on a few points.
        """
        counts = {term: feature_column(term, measured.features) for term in most}
        fixed = [constant_column(constant, measured.features)[:, None] for constant in constants]
        fixed.append(np.zeros((len(measured.times_ns), 0)))
        allowed = {term: min(most[term], max(2, len(np.unique(x)) // 3)) for term, x in counts.items()}
        knots = choose_knots(np.hstack(fixed), counts, measured, allowed)
        return cls(name, measured, constants, knots)

    def fit(self, measured: Measurements) -> Terms:
        """Terms fitted to some of the measurements; knots without enough data behind them are left out."""
        features = measured.features
        knots = {name: within(knots, feature_column(name, features)) for name, knots in self.knots.items()}
        # Least absolute residuals would give the mixed batches up for the prefills, which fit exactly.
        rounds = ROUNDS if measured.beside_ns is None else 1
        terms = fit_terms(measured, constants=self.constants, knots=knots, rounds=rounds)
        term = RATED.get(self.name)
        return without_rising_rate(terms, term) if term in terms else terms

    @property
    def sizes(self) -> IntArray:
        """How large each batch is: its tokens or requests, or the mean length of its sequences."""
        features = self.measured.features
        if self.name == "tokens":
            return features.tokens
        if self.name == "head":
            return features.num_generating
        requests = np.maximum(features.num_prefills + features.num_decodes, 1)
        read = features.prefill_tokens + features.prefill_context + features.decode_context
        lengths: IntArray = read // requests
        return lengths


def without_rising_rate(terms: Terms, name: str) -> Terms:
    """Terms in which no batch takes longer than its tokens in two batches, as far as one term of them says.

    Large matrix products are up to 6 % slower a token than small ones in measured tables, as a GPU lowers its
    clock under them. Left in, a prompt would be prefilled faster in smaller chunks. A slope is at most the
    time a token of the batch at its knot, the constants of a batch included.
    """
    term = terms[name]
    assert isinstance(term, PiecewiseLinear)
    base = sum((constant for constant in terms.values() if isinstance(constant, Fraction)), Fraction(0))
    slopes: list[Fraction] = []
    for at, (knot, slope) in enumerate(zip(term.knots, term.slopes, strict=True)):
        reached = base + PiecewiseLinear(term.knots[:at], tuple(slopes)).exact(knot) if at else base
        slopes.append(min(slope, Fraction(reached * UNIT // knot, UNIT)) if knot else slope)
    return {**terms, name: PiecewiseLinear(term.knots, tuple(slopes))}


def in_sample(group: Group, terms: Terms) -> RelativeErrors:
    """Errors on the batches that were fitted."""
    return relative_errors(predicted_ns(terms, group.measured), group.measured.times_ns)


def held_out(group: Group) -> RelativeErrors | None:
    """Errors on batches that the fit has not seen: shuffled folds, each predicted from the others.

    None where there are too few batches to leave any out.
    """
    measured = group.measured
    order = np.random.default_rng(0).permutation(len(measured.times_ns))
    if len(order) < 2 * NUM_FOLDS:
        return None
    predicted = np.empty(len(order))
    for fold in np.array_split(order, NUM_FOLDS):
        seen = np.ones(len(order), dtype=np.bool_)
        seen[fold] = False
        terms = group.fit(measured.subset(seen))
        predicted[~seen] = predicted_ns(terms, measured.subset(~seen))
    return relative_errors(predicted, measured.times_ns)


def extrapolated(group: Group) -> RelativeErrors | None:
    """Errors beyond the range of a fit: half of the largest tokens or requests, a quarter of the longest.

    None where nothing is left on one of the two sides.
    """
    near = group.sizes <= NEAR_SHARE.get(group.name, NEAR_LENGTH_SHARE) * group.sizes.max()
    if near.sum() < NUM_FOLDS or near.all():
        return None
    beyond, seen = group.measured.subset(~near), group.measured.subset(near)
    most = {term: len(knots) for term, knots in group.knots.items()}
    terms = Group.choose(group.name, seen, group.constants, most).fit(seen)
    return relative_errors(predicted_ns(terms, beyond), beyond.times_ns)


def describe(errors: RelativeErrors) -> str:
    """Errors in percent."""
    return f"MAPE {errors.mean:.1%}, p95 {errors.p95:.1%}, bias {errors.bias:+.1%}"


def error_text(group: Group, terms: Terms) -> str:
    """One line about a group: seen, held out, extrapolated."""
    parts = [("in sample", in_sample(group, terms)), ("held out", held_out(group))]
    parts.append(("extrapolated", extrapolated(group)))
    return "; ".join(f"{name} {describe(errors)}" for name, errors in parts if errors is not None)


def band_of(
    terms: Terms, measured: Measurements, low_ns: FloatArray, high_ns: FloatArray
) -> tuple[Fraction, Fraction]:
    """Factors on fitted terms at which a tenth of the measurements lies below, and a tenth above.

    Parameters
    ----------
    terms, measured
        What was fitted to which batches; what lies beside the terms has no factor.
    low_ns, high_ns
        Times of the measurements at their own 10th and 90th percentile, shape (num_batches,) each.

    Returns
    -------
    tuple
        A factor above 0 and at most 1, and one of at least 1.
    """
    own = price_terms(terms, measured.features)
    # Batches that pay nothing of these terms say nothing about them.
    paid = own > 0
    beside = np.zeros(len(own)) if measured.beside_ns is None else measured.beside_ns
    low, high = (
        float(np.quantile((times - beside)[paid] / own[paid], quantile)) if paid.any() else 1.0
        for times, quantile in zip((low_ns, high_ns), BAND_QUANTILES, strict=True)
    )
    return _rounded(min(max(low, LEAST_FACTOR), 1.0)), _rounded(max(high, 1.0))


def largest_features(groups: Sequence[Group]) -> dict[str, int]:
    """Largest value of every feature that terms were fitted over."""
    largest: dict[str, int] = {}
    for group in groups:
        counts = {"num_prefills", "num_decodes"} if group.name not in ("tokens", "head") else set()
        counts |= {(FUNCTION_FEATURES | MIXED_FEATURES)[term] for term in group.knots}
        for name in BatchFeatures._fields:
            most = int(getattr(group.measured.features, name).max()) if name in counts else 0
            if most:
                largest[name] = max(most, largest.get(name, 0))
    return largest


def _rounded(factor: float) -> Fraction:
    return Fraction(f"{factor:.{BAND_DIGITS}f}")
