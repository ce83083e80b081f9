"""Tables and knots of the estimator: non-decreasing whatever was measured, sane beyond it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspsched.costs.estimator.knots import choose_knots, last_knot, within
from cspsched.costs.estimator.tables import ExpertTable, MonotoneTable, expected_experts, rising
from cspsched.costs.estimator.trees import CorrectedByTrees, contradicted
from cspsched.costs.fit import Measurements, batch_features

points = st.lists(
    st.tuples(st.integers(1, 5000), st.floats(0.1, 1e6)),
    min_size=2,
    max_size=30,
    unique_by=lambda point: point[0],
)


@given(points, st.lists(st.integers(0, 20_000), min_size=2, max_size=2))
def test_table_never_decreases(measured, pair):
    """Whatever was measured, even noise, more tokens never take less time, inside and beyond the table."""
    x, times = (np.array(column) for column in zip(*measured, strict=True))
    low, high = MonotoneTable(x.astype(np.int64), times)(np.sort(pair))

    assert low <= high * (1 + 1e-12)


@given(points)
def test_table_keeps_what_rises(measured):
    """Measurements that rise already are the table."""
    x = np.sort(np.array([point[0] for point in measured]))
    times = np.sort(np.array([point[1] for point in measured]))

    assert MonotoneTable(x, times)(x) == pytest.approx(times)


@given(st.lists(st.floats(1.0, 1e6), min_size=1, max_size=40))
def test_falling_neighbours_are_pooled(times):
    """The result rises, and lies between the least and the largest time."""
    found = rising(np.array(times), np.ones(len(times)))

    assert (np.diff(found) >= 0).all()
    assert found.min() >= min(times) * (1 - 1e-12)
    assert found.max() <= max(times) * (1 + 1e-12)


def test_pooling_is_the_weighted_mean():
    """Times 4 and 2 that fall get their mean weighted by 1/t^2: (4/16 + 2/4)/(1/16 + 1/4)."""
    assert rising(np.array([1.0, 4.0, 2.0, 9.0]), np.ones(4)).tolist() == pytest.approx([1.0, 2.4, 2.4, 9.0])


def test_table_goes_on_with_the_slope_of_its_last_quarter():
    """A floor of 100 up to 100 tokens and one a token from there on: 1000 tokens take 1000."""
    x = np.arange(1, 401)
    table = MonotoneTable(x, np.maximum(x, 100).astype(float))

    assert table(np.array([1000])) == pytest.approx([1000.0])
    assert table(np.array([0])) == pytest.approx([100.0])
    assert table.largest == 400


def test_noisy_points_pull_a_table_less():
    """Of two times of one count the steady one is taken; where times fall, it weighs more in their mean."""
    x, noisy, steady = np.array([1, 2, 2, 3]), 0.25, 1.0
    table = MonotoneTable(x, np.array([1.0, 4.0, 8.0, 2.0]), np.array([steady, noisy, noisy / 2, steady]))
    # 4 counts a quarter: (4 / 4 / 16 + 2 / 4) / (1 / 4 / 16 + 1 / 4).
    expected = (noisy * 4 / 16 + 2 / 4) / (noisy / 16 + 1 / 4)

    assert table([1, 2, 3]) == pytest.approx([1.0, expected, expected])


def test_single_point_is_a_constant():
    """One measurement says nothing about a slope."""
    assert MonotoneTable(np.array([64]), np.array([5.0]))([1, 64, 1000]).tolist() == [5.0, 5.0, 5.0]


def test_experts_are_asked_at_the_expected_number():
    """With two of four experts a token, one token activates two and a thousand activate all four."""
    tokens, active = (grid.ravel() for grid in np.meshgrid([1, 1000], [2, 4]))
    table = ExpertTable(tokens, active, 10.0 * active + 0.01 * tokens)
    one, many = table.at_expected(np.array([1, 1000]), num_experts=4, experts_per_token=2)

    assert one == pytest.approx(20.01)
    assert many == pytest.approx(50.0)
    assert table.largest == 1000


@given(st.integers(1, 10_000))
def test_expected_experts_are_between_a_token_s_and_all(tokens):
    """E (1 - (1 - k/E)^N) starts at k and never passes E."""
    (found,) = expected_experts(np.array([tokens]), num_experts=128, experts_per_token=8)

    assert 8 - 1e-9 <= found <= 128


@given(st.integers(3, 200), st.integers(1, 12))
@settings(max_examples=25, deadline=None)  # the first fit imports scikit-learn
def test_a_quarter_of_the_counts_lies_behind_the_last_knot(number, most):
    """However many knots are asked for, the last slope rests on a quarter of the distinct counts."""
    x = np.arange(1, number + 1)
    times = 100.0 + x + 50.0 * (x > number // 2) * (x - number // 2)
    measured = Measurements(features=batch_features(tokens=x), times_ns=times)
    (knots,) = choose_knots(np.ones((number, 1)), {"tokens": x}, measured, {"tokens": most}).values()

    assert 1 <= len(knots) <= most
    assert list(knots) == sorted(set(knots))
    assert knots[0] == 0
    assert (x > knots[-1]).sum() >= 0.25 * number - 1


def test_the_knot_goes_where_the_slope_changes():
    """A kink at 64 tokens is found with one knot."""
    x = np.arange(1, 257)
    times = 1000.0 + x + 30.0 * np.maximum(x - 64, 0)
    measured = Measurements(features=batch_features(tokens=x), times_ns=times)
    knots = choose_knots(np.ones((256, 1)), {"tokens": x}, measured, {"tokens": 2})

    assert knots["tokens"][0] == 0
    assert knots["tokens"][1] == pytest.approx(64, rel=0.1)


def test_knots_without_data_behind_them_are_dropped():
    """Half of the data takes the knots beyond its own three quarters with it."""
    x = np.arange(1, 101)

    assert within((0, 30, 60, 90), x) == (0, 30, 60)
    assert within((0, 30, 60, 90), x[:50]) == (0, 30)
    assert last_knot(np.zeros(3, dtype=np.int64)) == 0.0


def test_trees_correct_inside_the_hull_and_are_silent_outside():
    """A factor of 1.5 that the term misses is learned where it was seen; beyond, the term answers alone."""
    size = np.arange(1.0, 101.0)[:, None]
    fitted = 10.0 * size[:, 0]
    trees = CorrectedByTrees(size, fitted, 1.5 * fitted)
    inside, outside = trees(np.array([[50.5], [200.0]]), np.array([505.0, 2000.0]))

    assert inside == pytest.approx(1.5 * 505.0)
    assert outside == 2000.0


def test_slips_of_a_measurement_are_not_learned():
    """A point five times as long as the next larger one is told, and its neighbours keep their factor."""
    size = np.arange(1.0, 101.0)[:, None]
    fitted = 10.0 * size[:, 0]
    times = fitted.copy()
    times[49] *= 5
    trees = CorrectedByTrees(size, fitted, times)

    assert np.flatnonzero(contradicted(size, times)).tolist() == [49]
    assert trees(np.array([[50.0]]), np.array([500.0])) == pytest.approx(500.0, rel=0.02)
