"""Fitting of cost terms: known truths are found again, nonsense is refused."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspsched.costs.fit import (
    Measurements,
    batch_features,
    constant_column,
    feature_column,
    fit_piecewise_linear,
    fit_terms,
    non_negative_fit,
    predicted_ns,
    price_terms,
    ramp_columns,
    relative_errors,
    robust_fit,
)
from cspsched.errors import InputError
from cspsched.problem.cost import (
    CONSTANT_TERMS,
    FUNCTION_FEATURES,
    MIXED_FEATURES,
    CostModel,
    PiecewiseLinear,
)

x_points = np.unique(np.geomspace(1, 10_000, 60).astype(np.int64))


@given(
    st.integers(100, 10**6),
    st.lists(st.integers(0, 10_000), min_size=3, max_size=3).filter(any),
)
@settings(max_examples=30, deadline=None)  # the first fit imports scikit-learn
def test_fit_finds_a_known_function_again(floor, slopes):
    """Times made by a floor and a piecewise-linear function give exactly these back."""
    truth = PiecewiseLinear((0, 64, 1024), tuple(map(Fraction, slopes)))
    times_ns = np.array([float(floor + truth.exact(int(x))) for x in x_points])
    found_floor, found = fit_piecewise_linear(x_points, times_ns, (0, 64, 1024))
    predicted = np.array([float(found_floor + found.exact(int(x))) for x in x_points])

    assert relative_errors(predicted, times_ns).p95 < 1e-3
    assert truth.knots == found.knots


@given(st.lists(st.floats(1.0, 1e9), min_size=len(x_points), max_size=len(x_points)))
@settings(max_examples=30, deadline=None)  # the first fit imports scikit-learn
def test_fit_never_decreases(times_ns):
    """Whatever was measured, even noise, every slope is at least 0."""
    floor, found = fit_piecewise_linear(x_points, np.array(times_ns), (0, 100, 1000))

    assert floor >= 0
    assert min(found.slopes) >= 0


def test_fit_weighs_relative_errors():
    """A fit of one constant to 1 and 100 comes out near 1, as a percent counts the same everywhere."""
    (constant,) = non_negative_fit(np.ones((2, 1)), np.array([1.0, 100.0]))

    assert constant == pytest.approx((1 + 0.01) / (1 + 0.0001))


def test_terms_are_fitted_together():
    """Constants and functions that made the times are told apart."""
    size, context = (grid.ravel() for grid in np.meshgrid(np.arange(1, 20), np.arange(0, 2000, 100)))
    features = batch_features(num_decodes=size, decode_context=size * context)
    times_ns = 5000.0 + 300.0 * size + 7.5 * size * context
    terms = fit_terms(
        Measurements(features=features, times_ns=times_ns),
        constants=("decode_batch", "decode_request"),
        knots={"decode_context": (0,)},
    )

    assert terms == {
        "decode_batch": Fraction(5000),
        "decode_request": Fraction(300),
        "decode_context": PiecewiseLinear((0,), (Fraction("7.5"),)),
    }
    assert price_terms(terms, features) == pytest.approx(times_ns)


def test_fitted_terms_make_a_cost_model():
    """The names of fitted terms are those of the cost model, and both price a batch alike."""
    measured = Measurements(
        features=batch_features(tokens=x_points), times_ns=1e6 + 2000.0 * x_points.astype(np.float64)
    )
    terms = fit_terms(measured, constants=("step",), knots={"tokens": (0, 500)})
    cost = CostModel(name="fitted", **terms)

    assert cost.batch_times_ns(measured.features) == pytest.approx(measured.times_ns, abs=1.0, rel=1e-4)


def test_slope_beyond_the_data_is_refused():
    """A last knot at the largest measured count would leave the last slope without a single point."""
    with pytest.raises(InputError, match="last knot is 10000 and the largest measured value 10000"):
        fit_piecewise_linear(x_points, x_points.astype(np.float64), (0, 10_000))


@pytest.mark.parametrize("times_ns", [[], [1.0, 0.0], [-1.0]])
def test_times_that_are_none_are_refused(times_ns):
    """Relative errors need times above 0, and a fit needs at least one."""
    with pytest.raises(InputError, match="expected at least one and all above 0"):
        Measurements(features=batch_features(tokens=np.ones(len(times_ns), int)), times_ns=np.array(times_ns))


def test_ramps_sum_to_the_count():
    """The ramps of a count add up to the count, however it is cut."""
    assert ramp_columns(x_points, (0, 7, 100)).sum(axis=1).tolist() == x_points.tolist()


@pytest.mark.parametrize("name", [name for name in CONSTANT_TERMS if name != "swap_block"])
def test_every_constant_term_has_a_column(name):
    """An empty batch pays only the step (moving KV blocks is no part of a batch)."""
    empty = batch_features(tokens=np.zeros(3, dtype=np.int64))

    assert [float(name == "step")] * 3 == constant_column(name, empty).tolist()


def test_unknown_terms_are_refused():
    """Only terms of the cost model can be fitted."""
    features = batch_features(tokens=x_points)

    with pytest.raises(InputError, match="'steps' is no constant term; known: step"):
        constant_column("steps", features)
    with pytest.raises(InputError, match="'token' is no piecewise-linear term; known: tokens"):
        feature_column("token", features)


@pytest.mark.parametrize("name", FUNCTION_FEATURES)
def test_every_function_has_its_feature(name):
    """A function is fitted over the feature that the cost model evaluates it on."""
    features = batch_features(**{FUNCTION_FEATURES[name]: x_points})

    assert feature_column(name, features) is x_points


@pytest.mark.parametrize("name", MIXED_FEATURES)
def test_terms_of_mixed_batches_have_their_feature_beside_a_prefill_only(name):
    """Every second batch has a prefill: there the feature counts, and is 0 in the others."""
    with_prefill = np.arange(len(x_points)) % 2
    features = batch_features(**{MIXED_FEATURES[name]: x_points}, num_prefills=with_prefill)

    assert (x_points * with_prefill).tolist() == feature_column(name, features).tolist()
    assert constant_column("mixed_request", features).tolist() == [0.0] * len(x_points)


def test_robust_fit_ignores_a_few_odd_points():
    """Nine points of a line and one three times too low: many rounds find the line, one round does not."""
    x = np.arange(1.0, 11.0)[:, None]
    times_ns = 50.0 * x[:, 0]
    times_ns[6] /= 3
    (once,), (often,) = (robust_fit(x, times_ns, rounds) for rounds in (1, 10))

    assert often == pytest.approx(50.0, rel=1e-3)
    assert once < 40.0


def test_fit_leaves_to_others_what_lies_beside():
    """Terms explain what is left after what other terms say, and both together are the prediction."""
    measured = Measurements(
        features=batch_features(tokens=x_points),
        times_ns=300.0 + 7.0 * x_points,
        beside_ns=np.full(len(x_points), 300.0),
    )
    terms = fit_terms(measured, knots={"tokens": (0,)}, rounds=5)

    assert terms == {"tokens": PiecewiseLinear((0,), (Fraction(7),))}
    assert predicted_ns(terms, measured) == pytest.approx(measured.times_ns)
    assert measured.subset(x_points > 5).beside_ns is not None
