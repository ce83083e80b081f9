"""The integer cost form: exact, rounded up per term, monotone, the same for one batch and for many."""

from __future__ import annotations

import json
from fractions import Fraction
from math import ceil
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cspsched.errors import CostError, InputError
from cspsched.problem.cost import (
    CONSTANT_TERMS,
    FUNCTION_FEATURES,
    FUNCTION_TERMS,
    INT64_SAFE,
    MIXED_FEATURES,
    BatchFeatures,
    CostModel,
    PiecewiseLinear,
    read_rational,
    triangle,
)
from tests.oracles.naive_referee import height, naive_duration
from tests.support.strategies import UNIT, check, check_briefly, cost_models, piecewise

chunk_lists = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 30)), max_size=3)
context_lists = st.lists(st.integers(1, 60), max_size=3)


def features_of(chunks: list[tuple[int, int]], contexts: list[int], generating: int) -> BatchFeatures[int]:
    """Features of chunks (n, c), and of decodes with n carried tokens."""
    return BatchFeatures(
        tokens=sum(c for _, c in chunks) + len(contexts),
        prefill_attention=sum(triangle(n + c) - triangle(n) for n, c in chunks),
        prefill_tokens=sum(c for _, c in chunks),
        prefill_context=sum(n for n, _ in chunks),
        decode_context=sum(contexts),
        num_generating=generating,
        num_prefills=len(chunks),
        num_decodes=len(contexts),
    )


def stacked(batches: list[BatchFeatures[int]]) -> BatchFeatures[Any]:
    """One array for each feature."""
    return BatchFeatures(*(np.array(column, dtype=np.int64) for column in zip(*batches, strict=True)))


@given(cost_models(), chunk_lists, context_lists, st.integers(0, 6))
@check
def test_batch_time_is_every_term_rounded_up(cost, chunks, contexts, generating):
    """The integer evaluation is the sum of the exact terms of section 4, each rounded up once per batch."""
    expected = naive_duration(cost, chunks, contexts, generating)

    assert expected == cost.batch_time_ns(features_of(chunks, contexts, generating))


def test_terms_are_rounded_one_by_one():
    """Three terms of a third each take 3 ns: they are rounded before they are added."""
    third = Fraction(1, 3)
    cost = CostModel(name="thirds", step=third, prefill_batch=third, tokens=PiecewiseLinear.linear(third))

    assert cost.batch_time_ns(features_of([(0, 1)], [], 0)) == 3
    assert cost.batch_time_ns(features_of([(0, 4)], [], 0)) == 4


def test_requests_are_rounded_together():
    """Three decodes at a third each cost 1 ns: c_d n_dec is one term, not one for every request."""
    cost = CostModel(name="thirds", step=Fraction(1), decode_request=Fraction(1, 3))

    assert cost.batch_time_ns(features_of([], [5, 5, 5], 3)) == 2
    assert cost.batch_time_ns(features_of([], [5, 5, 5, 5], 4)) == 3


@pytest.mark.parametrize(
    ("chunks", "contexts", "expected"),
    [([(0, 5)], [], 111), ([], [5], 1001), ([(0, 5)], [5], 1111), ([(3, 1), (0, 1)], [7, 7], 1111)],
)
def test_batch_terms_are_paid_once_and_only_if_there_is_one(chunks, contexts, expected):
    """A batch of only prefills pays b_p, of only decodes b_d, a hybrid one both, however many there are."""
    cost = CostModel(name="b", step=Fraction(1), prefill_batch=Fraction(110), decode_batch=Fraction(1000))

    assert expected == cost.batch_time_ns(features_of(chunks, contexts, 0))


@given(cost_models(), st.lists(st.tuples(chunk_lists, context_lists, st.integers(0, 6)), max_size=5))
@check_briefly
def test_arrays_are_priced_like_single_batches(cost, drawn):
    """`batch_times_ns` gives the numbers of `batch_time_ns`, as int64."""
    batches = [features_of(*batch) for batch in drawn]
    columns = stacked(batches) if batches else BatchFeatures(*[np.zeros(0, dtype=np.int64)] * 8)
    times = cost.batch_times_ns(columns)

    assert np.int64 == times.dtype
    assert [cost.batch_time_ns(batch) for batch in batches] == times.tolist()


@given(cost_models(), chunk_lists, context_lists, st.sampled_from(BatchFeatures._fields), st.integers(1, 25))
@check_briefly
def test_batch_time_is_monotone_in_every_feature(cost, chunks, contexts, feature, more):
    """More of any feature never makes a batch shorter."""
    batch = features_of(chunks, contexts, 1)
    larger = batch._replace(**{feature: getattr(batch, feature) + more})

    assert cost.batch_time_ns(batch) <= cost.batch_time_ns(larger)


@given(st.integers(0, 40), st.lists(st.integers(1, 9), min_size=1, max_size=6))
@check_briefly
def test_prefill_attention_telescopes(held, chunks):
    """However a prompt is cut, its chunks add up to W(n + c) - W(n)."""
    total, position = 0, held
    for c in chunks:
        total += triangle(position + c) - triangle(position)
        position += c

    assert triangle(held + sum(chunks)) - triangle(held) == total


@given(piecewise(), st.lists(st.integers(0, 90), max_size=6))
@check
def test_piecewise_linear_values(function, points):
    """`exact` is the area under the slopes, `ceil` rounds it up, `ceil_array` gives the same numbers."""
    rounded = function.ceil_array(np.array(points, dtype=np.int64))

    assert [height(function, x) for x in points] == [function.exact(x) for x in points]
    assert [ceil(height(function, x)) for x in points] == [function.ceil(x) for x in points]
    assert [function.ceil(x) for x in points] == rounded.tolist()


@pytest.mark.parametrize(
    ("function", "points"),
    [
        (PiecewiseLinear.linear(Fraction(INT64_SAFE - 1)), [0, 1]),
        (PiecewiseLinear.linear(Fraction(INT64_SAFE)), [0, 1]),
        (PiecewiseLinear.linear(Fraction(10**12 + 1, 10**12)), [10**7, 3, 0]),
        (PiecewiseLinear.linear(Fraction(1, 10**30)), [1, 10**9]),
        (PiecewiseLinear((0, 10**30), (Fraction(1), Fraction(2))), [5]),
        (PiecewiseLinear((0, 10), (Fraction(1), Fraction(10**30))), [5, 9]),
        (PiecewiseLinear((0, 10), (Fraction(1), Fraction(10**30))), [10]),
        (PiecewiseLinear((0, 10, 10**15), (Fraction(1), Fraction(10**9), Fraction(1))), [5, 10**9]),
    ],
)
def test_array_values_do_not_overflow(function, points):
    """Numerators, denominators and knots beyond 64 bits, reached or not, give the exact value rounded up."""
    rounded = function.ceil_array(np.array(points, dtype=np.int64))

    assert [ceil(height(function, x)) for x in points] == rounded.tolist()


@given(
    st.fractions(min_value=0, max_value=10**6, max_denominator=2**40),
    st.fractions(min_value=0, max_value=10**6, max_denominator=2**40),
    st.lists(st.integers(0, 10**12), min_size=1, max_size=4),
)
@example(Fraction(2**40 + 1, 2**40), Fraction(1), [2**23, 2**22])
@check_briefly
def test_array_values_across_the_overflow_border(first, second, points):
    """On both sides of the fallback to Python integers the numbers are the exact ones rounded up."""
    function = PiecewiseLinear((0, 2**20), (first, second))
    rounded = function.ceil_array(np.array(points, dtype=np.int64))

    assert [ceil(height(function, x)) for x in points] == rounded.tolist()


def test_a_batch_beyond_64_bits_is_refused():
    """A duration of 2^63 - 1 ns fits into the arrays, one of 2^63 ns is refused with a sentence."""
    batch = stacked([features_of([(0, 1)], [], 1)])

    longest = CostModel(name="slow", step=Fraction(2**63 - 1))
    assert longest.batch_times_ns(batch).tolist() == [2**63 - 1]
    with pytest.raises(CostError, match=f"'slow': a batch may take {2**63} ns, 64 bits are too few"):
        CostModel(name="slow", step=Fraction(2**63)).batch_times_ns(batch)


def test_the_sum_of_terms_is_guarded_too():
    """Two terms that fit one by one and not together are refused instead of wrapping around."""
    cost = CostModel(name="slow", step=Fraction(2**62), tokens=PiecewiseLinear.linear(2**62))

    with pytest.raises(CostError, match="64 bits are too few"):
        cost.batch_times_ns(stacked([features_of([(0, 1)], [], 1)]))


@pytest.mark.parametrize(
    ("knots", "slopes", "message"),
    [
        ((), (), "0 knots starting at () and 0 slopes, expected as many slopes as knots"),
        ((0, 4), (1,), "2 knots starting at (0,) and 1 slopes, expected as many slopes as knots"),
        ((1,), (1,), "1 knots starting at (1,) and 1 slopes, expected as many slopes as knots and 0 as the"),
        ((0, 4, 4), (1, 1, 1), "knots (0, 4, 4) are not strictly increasing"),
        ((0, 4), (1, -1), "must all be at least 0"),
    ],
)
def test_malformed_terms_are_refused(knots, slopes, message):
    """Knots start at 0 and rise, there is one slope for each, and none is negative."""
    with pytest.raises(CostError) as caught:
        PiecewiseLinear(knots, tuple(map(Fraction, slopes)))

    assert message in str(caught.value)


@pytest.mark.parametrize("name", CONSTANT_TERMS)
def test_negative_constants_are_refused(name):
    """Every constant is at least 0; -1 is refused with its name."""
    assert CostModel(name="fine", **{"step": Fraction(1), name: Fraction(1)})
    with pytest.raises(CostError, match=f"cost model 'bad': {name} is -1, expected >= 0"):
        CostModel(name="bad", **{"step": Fraction(1), name: Fraction(-1)})


@pytest.mark.parametrize(
    ("terms", "is_fine"),
    [
        ({}, False),
        ({"step": Fraction(1, 10**9)}, True),
        ({"prefill_batch": Fraction(1)}, False),
        ({"decode_batch": Fraction(1)}, False),
        ({"prefill_batch": Fraction(1), "decode_batch": Fraction(1)}, True),
        ({"tokens": PiecewiseLinear.linear(1)}, True),
        ({"tokens": PiecewiseLinear((0, 1), (Fraction(0), Fraction(1)))}, False),
        ({"prefill_tokens": PiecewiseLinear.linear(1)}, False),
    ],
)
def test_every_batch_takes_time(terms, is_fine):
    """A model under which a batch of one token may be free is refused."""
    if is_fine:
        assert CostModel(name="c", **terms)
    else:
        with pytest.raises(CostError, match="'c': a batch of one token takes no time; give a step time"):
            CostModel(name="c", **terms)


@given(cost_models())
@check_briefly
def test_json_round_trip(cost):
    """What is written as JSON text is read as the same model, to the last digit."""
    assert cost == CostModel.from_json(json.loads(json.dumps(cost.to_json())))


def test_json_units_are_multiplied_in_exactly():
    """`ns_per_unit` scales constants and slopes, and leaves knots alone."""
    data = {
        "schema": "cspsched/cost/1",
        "name": "ms",
        "ns_per_unit": "1000000",
        "step_ns": "0.159",
        "tokens": {"knots": [0, 7], "slopes_ns": ["1/3", 2]},
    }
    cost = CostModel.from_json(data)

    assert Fraction(159_000) == cost.step
    assert PiecewiseLinear((0, 7), (Fraction(10**6, 3), Fraction(2 * 10**6))) == cost.tokens


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": "cspsched/cost/2"}, "schema is 'cspsched/cost/2', this version of cspsched reads"),
        ({"name": None}, "name is None, expected text"),
        ({"step_ns": 0.5}, "step_ns is 0.5, expected an exact number as text, such as '97.76' or '2444/25'"),
        ({"step_ns": "fast"}, "step_ns is 'fast', expected an exact number"),
        ({"step_ns": "1/0"}, "step_ns is '1/0', expected an exact number"),
        ({"step_ns": True}, "step_ns is True, expected an exact number"),
        ({"step_ns": "nan"}, "step_ns is 'nan', expected an exact number"),
        ({"step_ns": "-1"}, "step is -1, expected >= 0"),
        ({"ns_per_unit": []}, "ns_per_unit is [], expected an exact number"),
        ({"speed": "1"}, "unknown key 'speed'"),
        ({"tokens": []}, "tokens: expected a table of keys and values, got list"),
        ({"tokens": {"knots": [0]}}, "tokens: slopes_ns missing"),
        ({"tokens": {"knots": 0, "slopes_ns": []}}, "tokens: knots and slopes_ns must be lists"),
        ({"tokens": {"knots": [0, 1.5], "slopes_ns": ["1", "2"]}}, "knots are [0, 1.5], expected whole"),
        ({"tokens": {"knots": [False], "slopes_ns": ["1"]}}, "knots are [False], expected whole numbers"),
        ({"tokens": {"knots": [0], "slopes_ns": ["x"]}}, "tokens.slopes_ns[0] is 'x', expected an exact"),
        ({"tokens": {"knots": [0], "slopes_ns": ["-2"]}}, "must all be at least 0"),
        ({"step_ns": "0"}, "a batch of one token takes no time; give a step time"),
    ],
)
def test_json_errors(changes, message):
    """Every way to get a cost file wrong has its sentence."""
    with pytest.raises(InputError) as caught:
        CostModel.from_json({**UNIT.to_json(), **changes})

    assert message in str(caught.value)


@pytest.mark.parametrize("data", [None, 3, "cost", []])
def test_json_must_be_an_object(data):
    """A cost model is a JSON object."""
    with pytest.raises(InputError, match="cost model: expected a JSON object with schema 'cspsched/cost/1'"):
        CostModel.from_json(data)


@pytest.mark.parametrize(
    ("text", "value"),
    [("97.76", "2444/25"), ("8.6e-8", "86/1000000000"), ("2444/25", "2444/25"), (7, "7"), (" 1 ", "1")],
)
def test_rationals_are_read_exactly(text, value):
    """Decimal, exponent, fraction and whole number are all exact."""
    assert Fraction(value) == read_rational(text, "here")


def test_every_function_has_a_feature():
    """Each piecewise-linear term prices one feature of a batch, and no two the same."""
    assert set(FUNCTION_FEATURES.values()) < set(BatchFeatures._fields)
    assert len(FUNCTION_FEATURES) == len(set(FUNCTION_FEATURES.values()))
    assert set(MIXED_FEATURES.values()) < set(BatchFeatures._fields)
    assert set(FUNCTION_TERMS) == {*FUNCTION_FEATURES, *MIXED_FEATURES}


def test_decodes_cost_more_beside_a_prefill():
    """10 a step; beside a chunk each decode pays 3 more and each entry that it reads 1/2, rounded up once."""
    cost = CostModel(
        name="unified",
        step=Fraction(10),
        mixed_request=Fraction(3),
        mixed_context=PiecewiseLinear.linear(Fraction(1, 2)),
    )

    assert cost.batch_time_ns(features_of([], [4, 5], 2)) == 10
    assert cost.batch_time_ns(features_of([(0, 8)], [], 1)) == 10
    assert cost.batch_time_ns(features_of([(0, 8)], [4, 5], 2)) == 10 + 2 * 3 + 5
    batches = [features_of(chunks, [4, 5], 2) for chunks in ([], [(0, 8)])]
    assert cost.batch_times_ns(stacked(batches)).tolist() == [10, 21]


def test_terms_that_came_later_leave_old_fingerprints_alone():
    """A cost model without them is written as it was before there were any."""
    written = CostModel(name="old", step=Fraction(1)).to_json()

    assert not {"swap_block_ns", "mixed_request_ns", "mixed_context"} & set(written)
