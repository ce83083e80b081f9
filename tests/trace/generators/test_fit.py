"""Profiles fitted to traces: what was drawn is found again, and the distances are what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from cspsched.errors import TraceError
from cspsched.problem.columns import RequestColumns, Requests, columns_of
from cspsched.trace import Trace, describe, read_trace
from cspsched.trace.generators import Description, Profile, fit_profile, generate_trace, load_profile
from cspsched.trace.generators.arrivals import Renewal
from cspsched.trace.generators.fit import dispersion
from cspsched.trace.generators.fit_lengths import fit_lengths, length_error
from cspsched.trace.generators.lengths import LengthMixture, QuantileTable
from cspsched.trace.generators.rate import Modulation, RateShape, Spells
from cspsched.trace.generators.record import Lognormal
from tests.support.places import DATA

TRACES = DATA / "traces"
needs_data = pytest.mark.skipif(not TRACES.is_dir(), reason="the public traces are not beside the checkout")
MADE = Description(name="made", source="made for a test")
CHAT = load_profile("chat").lengths


def trace_of(times_s, prompts=None, outputs=None):
    ones = np.ones(len(times_s), dtype=np.int64)
    columns = RequestColumns.of_fields(
        request_id=[f"r{k}" for k in range(len(times_s))],
        arrival_ns=np.rint(np.asarray(times_s) * 1e9).astype(np.int64),
        prompt_tokens=ones if prompts is None else np.asarray(prompts),
        output_tokens=ones if outputs is None else np.asarray(outputs),
    )
    return Trace(name="made", format="made", requests=Requests(columns))


def fit_again(num_requests=60_000, **changes):
    """The fit of a trace drawn from a profile."""
    profile = Profile(name="made", source="a test", lengths=CHAT, **{"rate_per_s": 4.0, **changes})
    return fit_profile(generate_trace(profile, num_requests=num_requests, seed=11), MADE)


@pytest.mark.parametrize("family", ["gamma", "weibull"])
@pytest.mark.parametrize("cv", [0.5, 2.0])
def test_renewal_process_is_found_again(family, cv):
    """Family, variation and rate of a constant process; no silences, and hardly any modulation."""
    found = fit_again(arrivals=Renewal(family=family, cv=cv))

    assert found.arrivals.family == family
    assert pytest.approx(cv, rel=0.05) == found.arrivals.cv
    assert pytest.approx(4.0, rel=0.05) == found.rate_per_s
    assert found.arrivals_error.ks < 0.05
    assert found.rate.modulation is None or found.rate.modulation.cv < 0.1


def test_modulation_is_found_again():
    """A factor that varies by 0.4 and remembers 0.85 from minute to minute; its own sample varies by 0.47."""
    found = fit_again(rate=RateShape(modulation=Modulation(cv=0.4, phi=0.85)))
    modulation = found.rate.modulation
    per_minute = modulation.phi ** (60 / modulation.step_s)

    assert pytest.approx(1.0, abs=0.05) == found.arrivals.cv
    assert pytest.approx(0.44, abs=0.06) == modulation.cv
    assert pytest.approx(0.85, abs=0.06) == per_minute


def test_silences_are_found_again():
    """Spells of about 40 s with arrivals and 60 s without: both means within 15 %."""
    spells = Spells(on=Lognormal(mu=math.log(40), sigma=0.3), off=Lognormal(mu=math.log(60), sigma=0.3))
    found = fit_again(rate=RateShape(spells=spells)).rate.spells

    assert pytest.approx(spells.on.mean, rel=0.15) == found.on.mean
    assert pytest.approx(spells.off.mean, rel=0.15) == found.off.mean


def test_hours_are_found_again():
    """Three days of a rate that is three times as high in the second half of the day."""
    hours = (*[1.0] * 12, *[3.0] * 12)
    found = fit_again(num_requests=60_000, rate_per_s=0.2, rate=RateShape(hours=hours)).rate.hours

    assert found is not None
    assert pytest.approx(0.5, rel=0.1) == np.mean(found[1:11])
    assert pytest.approx(1.5, rel=0.1) == np.mean(found[13:23])


@needs_data
@pytest.mark.parametrize(("name", "most_ratio"), [("azure2023_conv", 1.1), ("azure2023_code", 1.3)])
def test_traces_of_a_fit_are_dispersed_as_the_trace(name, most_ratio):
    """At 1, 10 and 60 s, where the trace has dozens of windows; the gaps vary as they did."""
    trace = read_trace(TRACES / f"{name}.csv")
    found = fit_profile(trace, MADE)

    assert [row.window_s for row in found.dispersion] == [1, 10, 60, 300]
    for row in found.dispersion[:3]:
        assert 1 / most_ratio < row.profile / row.trace < most_ratio
        assert pytest.approx(row.trace, rel=1e-3) == dispersion(
            columns_of(trace.requests).arrival_ns / 1e9, row.window_s
        )


@given(st.lists(st.integers(1, 300), min_size=100, max_size=300))
def test_distances_of_lengths_are_those_of_a_table_of_all_tokens(lengths):
    """KS and W1 by the naive way: the probability of every number of tokens, and scipy's distance."""
    data = np.array(lengths)
    fitted = fit_lengths(data, data).prompt
    tokens = np.arange(0, data.max() + 2)
    share = np.array([np.mean(data <= token) for token in tokens])
    probability = np.diff(fitted.cdf(tokens), prepend=0.0)
    error = length_error(fitted, data)

    assert pytest.approx(np.abs(share - fitted.cdf(tokens)).max(), abs=1e-6) == error.ks
    w1 = wasserstein_distance(data, tokens, v_weights=probability)
    assert pytest.approx(w1 / data.mean(), abs=1e-5) == error.w1_over_mean
    assert error.ks < 0.02


@needs_data
@pytest.mark.parametrize("name", ["azure2023_conv", "azure2023_code", "vidur_arxiv_summarization_4k"])
def test_drawn_lengths_are_as_near_to_the_trace_as_the_fit_says(name):
    """A table of 256 quantiles is within 0.01 of every real trace, and draws of it are, too."""
    columns = columns_of(read_trace(TRACES / f"{name}.csv").requests)
    fitted = fit_lengths(columns.prompt_tokens, columns.output_tokens)
    drawn = fitted.draw(np.random.default_rng(1), 400_000)
    for data, values, error in zip(
        (columns.prompt_tokens, columns.output_tokens),
        drawn,
        (fitted.prompt_error, fitted.output_error),
        strict=True,
    ):
        tokens = np.arange(data.max() + 1)
        shares = [np.searchsorted(np.sort(one), tokens, side="right") / len(one) for one in (data, values)]
        # 1.63 / sqrt(n) is passed by one sample of a hundred.
        assert np.abs(shares[0] - shares[1]).max() <= error.ks + 1.63 / math.sqrt(len(values))
        assert error.ks < 0.01
        assert error.w1_over_mean < 0.01


@needs_data
def test_mixtures_are_as_near_as_the_published_ones():
    """Mixtures of four lognormals of the conversation trace: KS of at most 0.12 and 0.04."""
    columns = columns_of(read_trace(TRACES / "azure2023_conv.csv").requests)
    fitted = fit_lengths(columns.prompt_tokens, columns.output_tokens, num_components=4)

    assert isinstance(fitted.prompt, LengthMixture)
    assert fitted.prompt_error.ks < 0.12
    assert fitted.output_error.ks < 0.04


@pytest.mark.parametrize("tokens", [[7] * 100, [1, 2] * 50])
@pytest.mark.parametrize("num_components", [None, 3])
def test_few_different_lengths_are_fitted(tokens, num_components):
    """A constant has no rank correlation, and a mixture of more components than values is one."""
    fitted = fit_lengths(np.array(tokens), np.array([7] * 100), num_components=num_components)

    assert fitted.rank_correlation == 0.0
    assert set(fitted.prompt.draw(np.random.default_rng(0), 100).tolist()) <= set(tokens)


def test_regular_arrivals_are_regular_again():
    """One request a second: hardly any variation, and no dispersion that could be compared."""
    found = fit_profile(trace_of(np.arange(1000.0)), MADE)

    assert found.arrivals.cv == 0.01
    assert found.dispersion == ()
    assert (
        pytest.approx(1.0, rel=0.01) == describe(generate_trace(found, num_requests=1000, seed=0)).rate_per_s
    )


def test_a_trace_without_arrivals_has_lengths_only():
    """It is said, and a rate has to be given."""
    found = fit_profile(trace_of(np.zeros(200), prompts=np.arange(1, 201)), MADE)

    assert found.rate_per_s is None
    assert found.notes == (
        "the trace has no arrivals: Poisson ones are assumed, and the rate has to be given",
    )


@pytest.mark.parametrize("times_s", [[0.0] * 99 + [1.0], [0, *np.full(99, 5.0)], np.arange(100) * 1e6])
def test_odd_arrivals_can_be_fitted(times_s):
    """Nearly all together, or very far apart."""
    found = fit_profile(trace_of(times_s), MADE)

    assert len(generate_trace(found, num_requests=50, seed=1).requests) == 50


def test_too_few_requests_are_refused():
    """A hundred are needed."""
    with pytest.raises(TraceError, match="has 99 requests, expected at least 100 to fit a profile to"):
        fit_profile(trace_of(np.arange(99.0)), MADE)


def test_a_profile_survives_its_file(tmp_path):
    """What is fitted, written and read is the same, and draws the same."""
    found = fit_again(num_requests=2_000)
    again = Profile.from_json(found.to_json(), "here")

    assert again == found
    assert isinstance(again.lengths.prompt, QuantileTable)
