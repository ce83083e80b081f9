"""Fitting a profile: a machine whose times are known is found again, with its band and its domain."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.costs.estimator import Band, Domain, Estimator, fit_profile
from cspsched.costs.estimator.features import attention_features, one_backend
from cspsched.costs.estimator.quality import without_rising_rate
from cspsched.costs.estimator.steps import fit_steps
from cspsched.costs.estimator.write import cost_text, write_cost
from cspsched.costs.fit import Measurements, batch_features, relative_errors
from cspsched.costs.presets import cost_names, describe_cost, load_cost
from cspsched.costs.rows import make_rows, preferred_backends
from cspsched.errors import CostError, InputError, UsageError
from cspsched.problem.cost import BatchFeatures, CostModel, PiecewiseLinear, triangle
from tests.support.profile_rows import (
    HEAD_FLOOR_US,
    HEAD_TOKEN_US,
    LAYER_FLOOR_US,
    LAYER_TOKEN_US,
    LAYERS,
    MODEL,
    REDUCE_US_PER_BYTE,
    all_rows,
    attention_rows,
    decode_us,
    prefill_us,
    token_rows,
)


def batch(**counts: int) -> BatchFeatures[int]:
    """Features of a batch, all zero but those given."""
    return BatchFeatures(**{name: counts.get(name, 0) for name in BatchFeatures._fields})


FITTED = fit_profile(all_rows(), MODEL, name="made-up")
UNIFIED = replace(FITTED.cost, mixed_request=Fraction(7, 3), mixed_context=PiecewiseLinear.linear("5/2"))


@pytest.mark.parametrize("tokens", [1, 50, 128, 300, 2048, 4096])
def test_token_operators_are_found_again(tokens):
    """All layers take the floor up to 100 tokens, and half a microsecond a token beyond."""
    expected_ns = 1000 * LAYERS * max(LAYER_FLOOR_US, LAYER_TOKEN_US * tokens)

    assert FITTED.cost.batch_time_ns(batch(tokens=tokens)) == pytest.approx(expected_ns, rel=0.03)


@pytest.mark.parametrize("generating", [1, 8, 100, 1024])
def test_the_head_is_found_again(generating):
    """The head is paid by those who get a token, once a batch and not in every layer."""
    added = FITTED.cost.head.ceil(generating)

    assert added == pytest.approx(1000 * (HEAD_FLOOR_US + HEAD_TOKEN_US * generating), rel=0.05)


@pytest.mark.parametrize(("number", "chunk", "before"), [(1, 512, 0), (3, 128, 1000), (8, 1024, 256)])
def test_prefill_attention_is_found_again(number, chunk, before):
    """Batches that are no points of the grid, with and without earlier context."""
    cost = FITTED.cost
    work = number * (triangle(before + chunk) - triangle(before))
    of_attention = batch(
        prefill_attention=work, prefill_tokens=number * chunk, prefill_context=number * before,
        num_prefills=number,
    )  # fmt: skip
    time_ns = cost.batch_time_ns(of_attention) - cost.step_ceil

    assert time_ns == pytest.approx(1000 * LAYERS * prefill_us(number, chunk, before), rel=0.02)


@pytest.mark.parametrize(("number", "length"), [(2, 100), (10, 3000), (64, 16_384)])
def test_decode_attention_is_found_again(number, length):
    """Decodes pay for a launch, for their number, and for what they read."""
    cost = FITTED.cost
    time_ns = cost.batch_time_ns(batch(decode_context=number * length, num_decodes=number)) - cost.step_ceil

    assert time_ns == pytest.approx(1000 * LAYERS * decode_us(number, number * length), rel=0.01)


features = st.lists(st.integers(0, 50_000), min_size=8, max_size=8)


@given(features, features)
def test_fitted_time_is_monotone(small, more):
    """More of anything never takes less time: every slope is at least 0."""
    low = BatchFeatures(*small)
    high = BatchFeatures(*(a + b for a, b in zip(small, more, strict=True)))

    assert FITTED.cost.batch_time_ns(low) <= FITTED.cost.batch_time_ns(high)


@given(features)
def test_estimate_lies_in_its_band(counts):
    """Low, middle and high are ordered, and the middle is the cost model's own time."""
    one = BatchFeatures(*counts)
    estimate = FITTED.estimator.estimate(one)

    assert estimate.low_ns <= estimate.time_ns <= estimate.high_ns
    assert estimate.time_ns == FITTED.cost.batch_time_ns(one)


def test_noise_widens_the_band():
    """Times of a fifth more and a fifth less make a band of about that width."""
    rows = all_rows()
    generator = np.random.default_rng(0)
    rows["t_us"] *= np.where(generator.random(len(rows)) < 0.5, 0.8, 1.2)
    noisy = fit_profile(rows, MODEL).band

    assert FITTED.band.high["decode_attention"] < Fraction("1.02")
    assert noisy.low["decode_attention"] < Fraction("0.9")
    assert noisy.high["decode_attention"] > Fraction("1.1")


def test_measured_percentiles_widen_the_band():
    """Repetitions that spread by a half show in the band, though their medians are met exactly."""
    rows = all_rows()
    rows["t_p10_us"], rows["t_p90_us"] = 0.5 * rows["t_us"], 1.5 * rows["t_us"]
    band = fit_profile(rows, MODEL).band

    assert band.low["decode_attention"] == pytest.approx(0.5, abs=0.02)
    assert band.high["prefill_attention"] == pytest.approx(1.5, abs=0.02)


def test_beyond_the_measured_range_the_answer_says_so():
    """A batch larger than any that was measured gets a time and a flag, never an error."""
    inside = FITTED.estimator.estimate(batch(tokens=4096, num_decodes=64, decode_context=1000))
    outside = FITTED.estimator.estimate(batch(tokens=5000, num_decodes=100, decode_context=1000))

    assert inside.extrapolated == ()
    assert outside.extrapolated == ("tokens", "num_decodes")
    assert outside.time_ns > inside.time_ns


def test_tensor_parallel_adds_two_all_reduces_a_layer():
    """With two ranks the token term holds the shard's time and the messages of the hidden activations."""
    sizes = 2.0 ** np.arange(10, 28)
    reduce = make_rows({"op": "all_reduce", "bytes": sizes, "t_us": 1 + REDUCE_US_PER_BYTE * sizes, "tp": 2})
    rows = pd.concat([all_rows(1), all_rows(2), reduce], ignore_index=True)
    cost = fit_profile(rows, MODEL, 2).cost
    message_us = 1 + REDUCE_US_PER_BYTE * 1024 * MODEL.hidden_size * 2

    assert cost.batch_time_ns(batch(tokens=1024)) == pytest.approx(
        1000 * LAYERS * (LAYER_TOKEN_US * 1024 / 2 + 2 * message_us), rel=0.03
    )


def test_logits_of_a_spread_vocabulary_are_gathered():
    """Each rank has a share of the vocabulary, so the head also pays an all-gather of all logits."""
    sizes = 2.0 ** np.arange(10, 30)
    reduce = make_rows({"op": "all_reduce", "bytes": sizes, "t_us": 1.0, "tp": 2})
    gather = make_rows({"op": "all_gather", "bytes": sizes, "t_us": 20 + sizes / 1e5, "tp": 2})
    without, with_gather = (
        fit_profile(pd.concat([all_rows(2), *more], ignore_index=True), MODEL, 2).cost.head
        for more in ([reduce], [reduce, gather])
    )
    for generating in (1, 64, 1024):
        expected_ns = 1000 * (20 + generating * MODEL.vocab_size * 2 / 1e5)
        added = with_gather.ceil(generating) - without.ceil(generating)
        assert added == pytest.approx(expected_ns, rel=0.06)


@given(
    st.lists(st.integers(1, 5000), min_size=1, max_size=5, unique=True),
    st.lists(st.integers(0, 10**7), min_size=6, max_size=6),
    st.integers(0, 10**9), st.integers(1, 9000), st.integers(1, 9000),
)  # fmt: skip
def test_two_batches_never_take_less_than_one_of_all_their_tokens(knots, slopes, step, one, other):
    """Whatever was fitted: clocks that fall under large products would reward small chunks."""
    knots = (0, *sorted(knots))
    raw = PiecewiseLinear(knots, tuple(Fraction(slope, 10**4) for slope in slopes[: len(knots)]))
    terms = without_rising_rate({"step": Fraction(step), "tokens": raw}, "tokens")
    term = terms["tokens"]

    assert terms["step"] + term.exact(one + other) <= 2 * terms["step"] + term.exact(one) + term.exact(other)
    assert term.exact(one) <= raw.exact(one)


def test_missing_collective_is_refused():
    """Two ranks without an all-reduce would be priced as if talking were free."""
    with pytest.raises(InputError, match=r"llama-3\.1-8b over 2 ranks needs all_reduce"):
        fit_profile(all_rows(2), MODEL, 2)


def test_a_stage_has_its_share_of_the_layers():
    """Two stages halve the layers' time; sending to the next stage is added once, the head stays whole."""
    sizes = 2.0 ** np.arange(10, 28)
    send = make_rows({"op": "send_recv", "bytes": sizes, "t_us": 1000.0, "tp": 1})
    rows = pd.concat([all_rows(), send], ignore_index=True)
    stage = fit_profile(rows, MODEL, pipeline_stages=2).cost
    expected_ns = 1000 * (LAYERS / 2 * LAYER_TOKEN_US * 2048 + 1000)

    assert stage.batch_time_ns(batch(tokens=2048)) == pytest.approx(expected_ns, rel=0.03)
    assert stage.head.ceil(64) == pytest.approx(FITTED.cost.head.ceil(64), rel=1e-6)


def two_backends(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Rows of the same operator by two implementations."""
    rows = [first.assign(backend="eager"), second.assign(backend="compiled")]
    return pd.concat(rows, ignore_index=True)


def test_the_preferred_backend_is_taken():
    """The first of the wanted implementations that was measured, whichever is faster."""
    rows = two_backends(token_rows(), token_rows().assign(t_us=1.0))

    chosen = one_backend(rows, {"gate_up": ("fused", "eager", "compiled")})
    assert set(chosen["backend"]) == {"eager"}
    assert len(chosen) == len(token_rows())


def test_the_widest_backend_is_taken_where_none_is_preferred():
    """Three fast points do not make up for a grid; repeated points count once; of equal grids the fastest."""
    slow, fast = token_rows(), token_rows().assign(t_us=1.0)
    few = pd.concat([fast[:3]] * 20, ignore_index=True)

    assert set(one_backend(two_backends(slow, few))["backend"]) == {"eager"}
    assert set(one_backend(two_backends(slow, fast))["backend"]) == {"compiled"}
    assert set(one_backend(two_backends(slow, fast), {"down": ("eager",)})["backend"]) == {"compiled"}


def test_a_profile_folder_names_its_backends(tmp_path):
    """The order is that of meta.json; a file of rows has none; anything else is refused."""
    (tmp_path / "meta.json").write_text('{"backends": {"gate_up": ["eager", "compiled"]}}')

    assert preferred_backends(tmp_path) == {"gate_up": ("eager", "compiled")}
    assert preferred_backends(tmp_path / "rows.csv") == {}
    (tmp_path / "meta.json").write_text('{"backends": ["eager"]}')
    with pytest.raises(
        InputError, match=r"meta\.json: backends are \['eager'\], expected a list of names for"
    ):
        preferred_backends(tmp_path)


def test_noisy_rows_count_less():
    """A third of the decodes half as long again: flagged, they bend the fit less than unflagged."""
    rows, told = all_rows(), all_rows()
    bad = (rows["op"] == "attn_decode") & (rows["n_seq"] >= 16)
    for each in (rows, told):
        each.loc[bad, "t_us"] *= 1.5
    told["noisy"] = bad.astype(int)
    one = batch(decode_context=8000, num_decodes=8)
    errors = [
        abs((cost.batch_time_ns(one) - cost.step_ceil) / (1000 * LAYERS * decode_us(8, 8000)) - 1)
        for cost in (fit_profile(each, MODEL).cost for each in (rows, told))
    ]

    assert errors[1] < errors[0]


def test_ragged_batches_become_features():
    """A chunk of 64 beside decodes of 100 and 900; a prompt of one token is still a prefill."""
    specs = ['{"chunks": [[64, 32], [1, 100], [1, 900]]}', '{"chunks": [[1, 0], [5, 2]]}']
    rows = make_rows(
        {"op": ["attn_mixed", "attn_prefill"], "batch_spec": specs, "t_us": [9.0, 1.0], "n_seq": 3}
    )
    found = attention_features(rows)

    assert found.prefill_attention.tolist() == [triangle(96) - triangle(32), 1 + triangle(7) - triangle(2)]
    assert found.prefill_tokens.tolist() == [64, 6]
    assert found.prefill_context.tolist() == [32, 2]
    assert found.decode_context.tolist() == [1000, 0]
    assert found.num_prefills.tolist() == [1, 2]
    assert found.num_decodes.tolist() == [2, 0]
    assert found.tokens.tolist() == [66, 6]


MIXED_US, MIXED_US_PER_ENTRY = 0.2, 0.0007


def mixed_rows() -> pd.DataFrame:
    """A chunk beside decodes in one kernel: the sum of both, and more for each decode and what it reads."""
    chunk, number, kv = (grid.ravel() for grid in np.meshgrid([64, 256, 1024], [1, 4, 16, 64], [256, 4096]))
    total = kv * number
    times = (
        prefill_us(1, chunk, 0) + decode_us(number, total) + MIXED_US * number + MIXED_US_PER_ENTRY * total
    )
    columns = {"op": "attn_mixed", "chunk": chunk, "kv": 0, "n_seq": number, "kv_total": total}
    return make_rows(columns | {"t_us": times, "tp": 1})


def test_mixed_terms_are_found_again():
    """Only the unified engine prices what decodes cost on top beside a prefill; all else stays the same."""
    rows = pd.concat([all_rows(), mixed_rows()], ignore_index=True)
    split, unified = (
        fit_profile(rows, MODEL, engine=engine, name="made-up") for engine in ("split", "unified")
    )
    plain = replace(unified.cost, mixed_request=Fraction(0), mixed_context=PiecewiseLinear())
    more = batch(decode_context=10 * 900, num_decodes=10, num_prefills=1)

    assert split.cost == FITTED.cost == plain
    assert unified.cost.batch_time_ns(more) - plain.batch_time_ns(more) == pytest.approx(
        1000 * LAYERS * 10 * (MIXED_US + 900 * MIXED_US_PER_ENTRY), rel=0.03
    )
    assert "held out MAPE" in unified.fit_error["mixed_attention"]
    assert unified.band.low["mixed_attention"] <= 1 <= unified.band.high["mixed_attention"]


@given(features, features)
def test_unified_time_is_monotone(small, more):
    """The first prefill switches the mixed terms on; that never makes a batch shorter."""
    low = BatchFeatures(*small)
    high = BatchFeatures(*(a + b for a, b in zip(small, more, strict=True)))

    assert UNIFIED.batch_time_ns(low._replace(num_prefills=0)) <= UNIFIED.batch_time_ns(low)
    assert UNIFIED.batch_time_ns(low) <= UNIFIED.batch_time_ns(high)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (lambda: all_rows(4), "no rows of tensor_parallel 1"),
        (lambda: token_rows(), "no rows of attn_prefill"),
        (lambda: attention_rows(), "no operator that depends on the tokens"),
        (lambda: all_rows().assign(t_us=0.0), r"profile row 1: t_us is 0.0, expected a time above 0"),
        (lambda: all_rows().assign(op="gemm"), r"profile row 1: unknown operator 'gemm'; known: embed"),
        (
            lambda: all_rows().assign(batch_spec="{]"),
            r"profile row 1: batch_spec is '\{\]', expected JSON such as",
        ),
        (lambda: all_rows().assign(batch_spec="[1]"), r"profile row 1: batch_spec is '\[1\]', expected JSON"),
    ],
)
def test_profiles_that_make_no_sense_are_refused(rows, complaint):
    """What is missing or wrong is said."""
    with pytest.raises(InputError, match=complaint):
        fit_profile(rows(), MODEL)


def test_cost_file_round_trip(tmp_path):
    """A written fit is read as the same cost model, band and domain."""
    path = tmp_path / "made-up.toml"
    write_cost(FITTED, {"title": 'the "made-up" one', "leaves_out": "all"}, "a test", path)
    read = Estimator.load(path)

    assert read.cost == FITTED.cost == load_cost(path)
    assert read == FITTED.estimator
    assert describe_cost(path).title == 'the "made-up" one'
    assert set(describe_cost(path).fit_error) == {"tokens", "head", "prefill_attention", "decode_attention"}
    assert cost_text(FITTED, {}, "a test").startswith("# Written by a test; do not edit.")


def test_cost_file_is_toml(tmp_path):
    """Another ending is refused, a folder that is missing too."""
    with pytest.raises(UsageError, match=r"expected a name that ends in \.toml"):
        write_cost(FITTED, {}, "a test", tmp_path / "cost.json")
    with pytest.raises(InputError, match="cannot be written"):
        write_cost(FITTED, {}, "a test", tmp_path / "missing" / "cost.toml")


@pytest.mark.parametrize(
    ("band", "complaint"),
    [
        ({"low": {"token": "1"}, "high": {}}, "unknown key 'token'"),
        ({"low": {"tokens": "0"}, "high": {}}, "band.low.tokens is 0, expected more than 0"),
        ({"low": {}, "high": {"head": "much"}}, "band.high.head is 'much', expected an exact number"),
        ({"low": {}}, "high missing"),
    ],
)
def test_malformed_band_is_refused(band, complaint):
    """A band is two tables of factors above 0."""
    with pytest.raises(InputError, match=complaint):
        Band.from_json(band, "cost.toml: band")


def test_band_of_unknown_work_is_refused():
    """A factor on work that the model does not know would be lost."""
    with pytest.raises(CostError, match=r"band.low: unknown work 'gpu'"):
        Band({"gpu": Fraction(1)}, {})


def test_malformed_domain_is_refused():
    """A domain names features of a batch."""
    with pytest.raises(InputError, match="unknown key 'token'"):
        Domain.from_json({"token": 1}, "cost.toml: domain")


@pytest.mark.parametrize("name", [name for name in cost_names() if describe_cost(name).fit_error])
def test_every_shipped_fit_has_a_band_around_it(name):
    """The ends of the band enclose the model's own time for decodes, a prompt, and both."""
    estimator = Estimator.load(name)
    decodes = batch(tokens=64, num_decodes=64, num_generating=64, decode_context=64_000)
    prompt = batch(tokens=512, prefill_tokens=512, prefill_attention=triangle(512), num_prefills=1)

    for one in (decodes, prompt):
        estimate = estimator.estimate(one)
        assert estimate.low_ns <= estimate.time_ns <= estimate.high_ns
        assert estimate.extrapolated == ()


def test_steps_are_fitted_to_whole_batches():
    """Batches priced by a known model give a model that prices new batches alike."""
    truth = CostModel(
        name="truth",
        step=Fraction(5_000_000),
        decode_request=Fraction(3000),
        tokens=PiecewiseLinear((0, 256), (Fraction(1000), Fraction(20_000))),
        decode_context=PiecewiseLinear.linear(40),
    )
    generator = np.random.default_rng(0)
    decodes = generator.integers(1, 100, 400)
    chunk = generator.integers(0, 2000, 400) * (generator.random(400) < 0.5)
    drawn = batch_features(
        tokens=decodes + chunk, prefill_tokens=chunk, num_prefills=(chunk > 0).astype(np.int64),
        num_decodes=decodes, decode_context=decodes * generator.integers(100, 3000, 400),
    )  # fmt: skip
    times = truth.batch_times_ns(drawn).astype(float)
    seen = np.arange(400) < 300
    fitted = fit_steps(Measurements(features=drawn, times_ns=times).subset(seen), "log")
    unseen = BatchFeatures(*(column[~seen] for column in drawn))

    assert relative_errors(fitted.cost.batch_times_ns(unseen).astype(float), times[~seen]).mean < 0.02
    assert "held out MAPE" in fitted.fit_error["steps"]


def test_few_batches_are_too_few():
    """Ten timed batches, or hundreds of one size, cannot tell terms apart."""
    for tokens in (np.arange(1, 11), np.full(300, 7)):
        measured = Measurements(features=batch_features(tokens=tokens), times_ns=np.full(len(tokens), 1e6))
        with pytest.raises(InputError, match="too few to fit to, expected at least 30 of several sizes"):
            fit_steps(measured, "log")
