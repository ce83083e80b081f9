"""Minorants are below the batch time of every batch that can occur, and as high as lines can be."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspsched.bounds.parts.minorant import (
    MAX_SCALE,
    MAX_TANGENTS,
    Minorant,
    find_objections,
    lower_hull,
    minorants,
    reachable_maxima,
    slope_through_origin,
    tangents,
)
from cspsched.errors import InputError
from cspsched.problem.cost import CostModel, PiecewiseLinear
from cspsched.problem.instance import Instance, Limits
from cspsched.problem.request import Request
from tests.oracles.naive_bounds import compositions, lower_envelope, piecewise_linear, tiny_instances

STAIRS = PiecewiseLinear((0, 4, 5, 8, 9), tuple(map(Fraction, (0, 8, 0, 8, 0))))


def one_request_instance(cost, prompt=6, output=4):
    """A lone request with ample limits."""
    request = Request(request_id="a", arrival_ns=0, prompt_tokens=prompt, output_tokens=output)
    limits = Limits(kv_blocks=50, block_tokens=1, max_batch_tokens=16, max_batch_requests=4)
    return Instance(requests=(request,), limits=limits, cost=cost)


@settings(max_examples=200, deadline=None)
@given(instance=tiny_instances(max_requests=4, max_prompt=9, max_output=6), data=st.data())
def test_every_minorant_is_below_random_batches(instance, data):
    """T >= minorant on any batch that memory, budget and slots allow."""
    batch = data.draw(compositions(instance))
    time_ns = instance.cost.batch_time_ns(batch)
    for minorant in minorants(instance):
        assert minorant.at(batch) <= time_ns


@settings(max_examples=200, deadline=None)
@given(instance=tiny_instances(max_requests=4, max_prompt=9, max_output=6), data=st.data())
def test_reachable_maxima_contain_random_batches(instance, data):
    """No batch has a feature beyond its bound."""
    batch = data.draw(compositions(instance))
    assert all(got <= most for got, most in zip(batch, reachable_maxima(instance), strict=True))


@given(instance=tiny_instances(max_requests=4, max_prompt=9, max_output=6))
def test_checker_has_no_objection_to_derived_minorants(instance):
    """What `minorants` derives passes `find_objections`."""
    for minorant in minorants(instance):
        assert list(find_objections(minorant, instance.cost, reachable_maxima(instance))) == []


@pytest.mark.parametrize("name", list(Minorant.__dataclass_fields__))
def test_checker_objects_to_any_raised_coefficient(name):
    """On an affine cost the minorant is the cost: each coefficient raised by a billionth is refused."""
    terms = {
        term: PiecewiseLinear.linear(k + 1)
        for k, term in enumerate(
            ("tokens", "prefill_attention", "prefill_tokens", "prefill_context", "decode_context", "head")
        )
    }
    cost = CostModel(
        name="affine", step=Fraction(3), prefill_batch=Fraction(5), decode_batch=Fraction(2), **terms
    )
    instance = one_request_instance(cost)
    tight = next(m for m in minorants(instance) if m.tokens == 1)
    raised = replace(tight, **{name: getattr(tight, name) + Fraction(1, 10**9)})
    assert list(find_objections(raised, cost, reachable_maxima(instance)))


def test_checker_objects_to_negative_coefficients():
    """A minorant with a negative coefficient is refused: loose features would lift the bound."""
    cost = CostModel(name="unit", step=Fraction(1))
    instance = one_request_instance(cost)
    negative = replace(minorants(instance)[0], head=Fraction(-1))
    assert "a coefficient is negative" in list(find_objections(negative, cost, reachable_maxima(instance)))


@given(function=piecewise_linear(), bottom=st.integers(0, 3), width=st.integers(0, 9))
def test_lower_hull_is_the_envelope_at_every_integer(function, bottom, width):
    """The lines' maximum equals the convex hull found by trying all chords."""
    lines = lower_hull(function, bottom, bottom + width)
    for x, least in lower_envelope(function, bottom, bottom + width).items():
        assert max(line.intercept + line.slope * x for line in lines) == least


@given(function=piecewise_linear(), top=st.integers(1, 12))
def test_slope_through_origin_is_the_least_ratio(function, top):
    """The steepest line through the origin touches the smallest f(x) / x over all integers."""
    assert slope_through_origin(function, top) == min(function.exact(x) / x for x in range(1, top + 1))


def test_slope_of_a_feature_that_is_always_zero():
    """A feature that cannot occur is priced at nothing."""
    assert slope_through_origin(PiecewiseLinear.linear(7), 0) == 0


@given(function=piecewise_linear(), top=st.integers(1, 12), overhead=st.integers(1, 30))
def test_tangents_are_below_with_an_intercept_that_keeps_the_batch_price(function, top, overhead):
    """Every tangent is below the function on [1, top], and overhead + intercept is never negative."""
    lines = tangents(function, top, overhead)
    assert 1 <= len(lines) <= MAX_TANGENTS
    for slope, intercept in lines:
        assert overhead + intercept >= 0
        assert all(intercept + slope * x <= function.exact(x) for x in range(1, top + 1))
    assert lines[0].slope == 0


def test_tangents_of_a_stair_follow_its_corners():
    """A stair of 8 after 4 and after 8 tokens: flat up to 4, then its edge, or the steepest line allowed.

    The hull on [1, 8] runs from (4, 0) to (8, 8) with intercept -8. A price of 6 per batch stops at -6.
    """
    assert [tuple(line) for line in tangents(STAIRS, 8, 8)] == [(0, 0), (2, -8)]
    assert [tuple(line) for line in tangents(STAIRS, 8, 6)] == [(0, 0), (Fraction(3, 2), -6)]


def test_many_tangents_are_thinned_and_keep_both_ends():
    """A convex function of 40 pieces keeps 8 tangents, the flattest and the steepest among them."""
    function = PiecewiseLinear(tuple(range(40)), tuple(Fraction(k, 10) for k in range(40)))
    lines = tangents(function, 40, 1000)
    assert len(lines) == MAX_TANGENTS
    assert lines[0].slope == 0
    assert lines[-1].slope == Fraction(39, 10)


def test_unhandy_denominators_are_rounded_down():
    """Coefficients with huge common denominators become coarser and stay below the cost."""
    cost = CostModel(
        name="odd",
        step=Fraction(1),
        prefill_request=Fraction(10**9, 10**9 + 7),
        decode_request=Fraction(1, 10**12),
        tokens=PiecewiseLinear.linear(Fraction(10**6, 10**6 + 3)),
    )
    instance = one_request_instance(cost)
    for minorant in minorants(instance):
        assert list(find_objections(minorant, cost, reachable_maxima(instance))) == []
        assert minorant.decode_request == Fraction(1, 10**12), "a price does not vanish"
        assert minorant.prefill_request == Fraction(999_999, 10**6)
    assert MAX_SCALE > 10**6


def test_details_round_trip():
    """A minorant written into details is read back exactly."""
    minorant = minorants(one_request_instance(CostModel(name="odd", step=Fraction(1, 3))))[0]
    assert minorant == Minorant.from_details(minorant.to_details())


def test_details_without_minorant_are_refused():
    """Missing coefficients are named."""
    with pytest.raises(InputError, match="minorant_batch_ns"):
        Minorant.from_details({})
