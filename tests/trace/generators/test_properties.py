"""What generated traces must have: rate, dispersion, dependence, seeds, no lost arrival."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest, spearmanr

from cspsched.errors import UsageError
from cspsched.problem.columns import Requests
from cspsched.trace.generators import Profile, generate_trace, load_profile
from cspsched.trace.generators.arrivals import Renewal, weibull_cv, weibull_shape
from cspsched.trace.generators.clients import Client, LognormalRates, Population, ZipfRates
from cspsched.trace.generators.lengths import LengthMixture, Lengths, QuantileTable
from cspsched.trace.generators.rate import Modulation, RateShape, Spells
from cspsched.trace.generators.record import Lognormal
from cspsched.trace.generators.sessions import Sessions
from cspsched.trace.write import trace_text

NS = 1_000_000_000
SPIKY = QuantileTable(tokens=(1, 5, 5, 5, 40, 900))
CHAT = load_profile("chat").lengths
SESSIONS = Sessions(
    mean_turns=3.0, gap_s=Lognormal(mu=2.0, sigma=0.5), new_tokens=QuantileTable(tokens=(10, 40, 90))
)
SHAPES = {
    "constant": {},
    "weibull": {"arrivals": Renewal(family="weibull", cv=3.0)},
    "hours": {"rate": RateShape(hours=(*[1.0] * 12, *[3.0] * 12), weekdays=(1, 1, 1, 1, 1, 0.5, 0.5))},
    "modulation": {"rate": RateShape(modulation=Modulation(cv=0.4, phi=0.85))},
    "spells": {"rate": RateShape(spells=Spells(on=Lognormal(mu=3, sigma=1), off=Lognormal(mu=2, sigma=0.5)))},
    "clients": {"clients": Population(number=20, rates=ZipfRates(exponent=1.0), length_sigma=0.5)},
    "listed": {"clients": (Client(share=1, arrivals=Renewal(cv=4.0)), Client(share=3))},
    "sessions": {"sessions": SESSIONS},
}


def profile_of(lengths=CHAT, **changes):
    return Profile(name="made", source="made for a test", rate_per_s=2.0, lengths=lengths, **changes)


def columns_of(trace):
    assert isinstance(trace.requests, Requests)
    return trace.requests.columns


def arrivals_s(trace):
    return columns_of(trace).arrival_ns / NS


def dispersion(times_s, window_s):
    """Variance over mean of the counts in whole windows."""
    counts = np.bincount((times_s // window_s).astype(int))[: int(times_s[-1] // window_s)]
    return counts.var() / counts.mean()


@pytest.mark.parametrize("shape", SHAPES)
def test_same_seed_gives_the_same_bytes_of_every_shape(shape):
    """The seed determines the file; another seed gives another."""
    profile = profile_of(**SHAPES[shape])
    texts = [trace_text(generate_trace(profile, num_requests=300, seed=seed).requests) for seed in (4, 4, 5)]

    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_has_the_rate_asked_for(shape):
    """So many requests as asked, sorted from 0, or as many as the rate gives in a time (within 5 sigma)."""
    profile = profile_of(**SHAPES[shape])
    by_number = generate_trace(profile, num_requests=777, rate_per_s=1.0, seed=1)
    weeks = 2 if shape == "hours" else 1
    times_s = arrivals_s(generate_trace(profile, duration_s=weeks * 604_800.0, rate_per_s=0.5, seed=2))
    expected = weeks * 302_400
    spread = math.sqrt(expected * dispersion(times_s, 7200.0))

    assert len(by_number.requests) == 777
    assert by_number.requests[0].arrival_ns == times_s[0] == 0
    assert times_s[-1] < weeks * 604_800
    assert abs(len(times_s) - expected) < 5 * spread


@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "sessions"])
def test_no_arrival_is_lost_at_the_end(shape):
    """The requests of a duration are the first ones of a longer trace, all of them that arrive in it."""
    profile = profile_of(**SHAPES[shape])
    hour = arrivals_s(generate_trace(profile, duration_s=3600.0, seed=8))
    more = arrivals_s(generate_trace(profile, num_requests=len(hour) + 1, seed=8))

    np.testing.assert_allclose(more[: len(hour)], hour, atol=2e-6)
    assert more[-1] > 3600 - 60


def test_poisson_counts_are_dispersed_as_poisson_counts():
    """With a variation of 1 the index of dispersion per minute is 1 within 0.1, also of many clients."""
    for shape in ({}, SHAPES["clients"]):
        times_s = arrivals_s(generate_trace(profile_of(**shape), num_requests=200_000, seed=3))

        assert pytest.approx(1.0, abs=0.1) == dispersion(times_s, 60.0)


@given(st.sampled_from(["gamma", "weibull"]), st.floats(0.3, 4.0), st.integers(0, 99))
def test_counts_vary_in_every_window(family, cv, seed):
    """Gaps are not stretched to fill windows: the counts of ten minutes differ."""
    profile = profile_of(arrivals=Renewal(family=family, cv=cv))
    times_s = arrivals_s(generate_trace(profile, duration_s=6000.0, seed=seed))
    counts = np.bincount((times_s // 600).astype(int), minlength=10)

    assert counts.var() > 0


@pytest.mark.parametrize("family", ["gamma", "weibull"])
@pytest.mark.parametrize("cv", [0.3, 1.0, 3.0])
def test_gaps_have_mean_one_and_the_variation_asked_for(family, cv):
    """Of a million gaps, within 1 and 3 %."""
    gaps = Renewal(family=family, cv=cv).gaps(np.random.default_rng(1), 1_000_000)

    assert pytest.approx(1.0, rel=0.015) == gaps.mean()
    assert pytest.approx(cv, rel=0.03) == gaps.std()


@given(st.floats(0.02, 90.0))
def test_weibull_shape_is_the_inverse_of_its_variation(cv):
    """The shape that is found has the variation that was asked for."""
    assert pytest.approx(cv, rel=1e-9) == weibull_cv(weibull_shape(cv))


@pytest.mark.parametrize("family", ["gamma", "weibull"])
def test_a_process_that_has_run_for_ever_has_its_rate_from_the_start(family):
    """The first arrival has the density 1 - F of the gaps: mean (1 + cv^2) / 2."""
    arrivals = Renewal(family=family, cv=2.0)
    rng = np.random.default_rng(0)
    first = [arrivals.first(rng) for _ in range(20_000)]

    assert pytest.approx((1 + 2.0**2) / 2, rel=0.05) == np.mean(first)


def test_rescaled_time_is_the_cumulative_rate():
    """Arrivals of a day whose rate has two levels are Poisson on the clock of the rate (KS test)."""
    profile = profile_of(rate=RateShape(hours=(*[1.0] * 12, *[3.0] * 12)))
    times_s = arrivals_s(generate_trace(profile, duration_s=86_400.0, rate_per_s=1.0, seed=5))
    # Linear over the hours between 11:30 and 12:30, and between 23:30 and 0:30.
    grid_s = np.arange(0, 86_401, 1.0)
    hours = np.interp(grid_s / 3600, [0, 0.5, 11.5, 12.5, 23.5, 24], [1, 0.5, 0.5, 1.5, 1.5, 1])
    clock = np.interp(times_s, grid_s, np.concatenate(([0], np.cumsum((hours[1:] + hours[:-1]) / 2))))

    assert kstest(np.diff(clock), "expon").pvalue > 0.01
    assert (
        pytest.approx(3.0, rel=0.05) == np.sum(times_s > 45_000) / np.sum(times_s < 41_400) * 41_400 / 41_400
    )


def test_modulation_has_its_variation_and_memory():
    """The factor is lognormal of mean 1 and the variation asked for; its log correlates by phi."""
    factors = Modulation(cv=0.5, phi=0.8).draw(np.random.default_rng(2), 400_000)
    logarithms = np.log(factors)

    assert pytest.approx(1.0, rel=0.01) == factors.mean()
    assert pytest.approx(0.5, rel=0.03) == factors.std()
    assert pytest.approx(0.8, abs=0.01) == np.corrcoef(logarithms[1:], logarithms[:-1])[0, 1]


def test_nothing_arrives_in_a_spell_of_silence():
    """Spells of exactly 10 s with arrivals and 30 s without: no request in the silent ones."""
    spells = Spells(on=Lognormal(mu=math.log(10), sigma=0), off=Lognormal(mu=math.log(30), sigma=0))
    times_s = arrivals_s(
        generate_trace(profile_of(rate=RateShape(spells=spells)), num_requests=50_000, seed=1)
    )

    assert (times_s % 40 <= 10 + 1e-5).all()
    assert pytest.approx(2.0, rel=0.05) == len(times_s) / times_s[-1]


@pytest.mark.parametrize("wanted", [-0.9, -0.5, -0.02, 0.0, 0.07, 0.6])
def test_ranks_correlate_as_asked(wanted):
    """Spearman's correlation of 100,000 requests is the one asked for, within 0.02."""
    profile = profile_of(CHAT.model_copy(update={"rank_correlation": wanted}))
    columns = columns_of(generate_trace(profile, num_requests=100_000, seed=6))

    assert abs(spearmanr(columns.prompt_tokens, columns.output_tokens).statistic - wanted) < 0.02


@given(st.floats(-1, 1), st.integers(0, 9))
def test_dependence_changes_no_length(wanted, seed):
    """With and without a correlation the same prompts and outputs are drawn, in another order."""
    lengths = Lengths(prompt=CHAT.prompt, output=SPIKY)
    alone = lengths.draw(np.random.default_rng(seed), 200)
    joined = lengths.model_copy(update={"rank_correlation": wanted}).draw(np.random.default_rng(seed), 200)

    assert alone[0].tolist() == joined[0].tolist()
    assert sorted(alone[1].tolist()) == sorted(joined[1].tolist())


@pytest.mark.parametrize(
    "lengths", [SPIKY, CHAT.prompt, LengthMixture(weights=(1,), mu=(1,), sigma=(1,), clip=(2, 9))]
)
def test_drawn_lengths_have_the_distribution_that_is_said(lengths):
    """The share of lengths up to each number of tokens is `cdf`, within 4 standard deviations."""
    drawn = lengths.draw(np.random.default_rng(7), 200_000)
    tokens = np.arange(0, drawn.max() + 2)
    share = np.searchsorted(np.sort(drawn), tokens, side="right") / len(drawn)

    assert np.abs(share - lengths.cdf(tokens)).max() < 4 * 0.5 / math.sqrt(len(drawn))
    assert lengths.cdf(np.array([10**9]))[0] == 1.0


def test_a_table_keeps_its_point_masses():
    """A quantile that stands still is a length of its own: 5 tokens have the mass between its two ends."""
    low, high = SPIKY.cdf(np.array([4, 5]))

    assert high - low > (math.cos(math.pi / 5) - math.cos(3 * math.pi / 5)) / 2


def test_clients_have_their_shares_and_rhythms():
    """One request of the bursty client to three of the other; its gaps vary by 4, the other's by 1."""
    trace = generate_trace(profile_of(**SHAPES["listed"]), num_requests=100_000, seed=2)
    times_s, owners = arrivals_s(trace), np.array(columns_of(trace).client_id)
    gaps_s = {name: np.diff(times_s[owners == name]) for name in ("c0", "c1")}

    assert pytest.approx(0.25, rel=0.05) == np.mean(owners == "c0")
    for name, cv in (("c0", 4.0), ("c1", 1.0)):
        assert pytest.approx(cv, rel=0.05) == gaps_s[name].std() / gaps_s[name].mean()


@pytest.mark.parametrize(
    ("rates", "largest"), [(ZipfRates(exponent=1.0), 0.278), (LognormalRates(sigma=0.0), 0.05)]
)
def test_a_population_is_as_uneven_as_asked(rates, largest):
    """The first of 20 clients has 1 / (1 + 1/2 + ... + 1/20) by Zipf, and a 20th if all are equal."""
    trace = generate_trace(
        profile_of(clients=Population(number=20, rates=rates)), num_requests=100_000, seed=3
    )

    assert pytest.approx(largest, abs=0.01) == np.mean(
        [request.client_id == "c0" for request in trace.requests]
    )


def test_clients_have_lengths_of_their_own():
    """A client's own lengths are its own; another's are the profile's."""
    short = Lengths(prompt=QuantileTable(tokens=(3, 3)), output=QuantileTable(tokens=(2, 2)))
    clients = (Client(share=1, lengths=short), Client(share=1))
    trace = generate_trace(
        profile_of(Lengths(prompt=SPIKY, output=SPIKY), clients=clients), num_requests=500, seed=0
    )
    lengths = defaultdict(set)
    for request in trace.requests:
        lengths[request.client_id].add((request.prompt_tokens, request.output_tokens))

    assert lengths["c0"] == {(3, 2)}
    assert len(lengths["c1"]) > 50


def test_a_turn_begins_with_the_whole_conversation():
    """The prompt of a turn is the prompt and the output of the one before and new tokens."""
    trace = generate_trace(profile_of(sessions=SESSIONS), num_requests=5_000, seed=4)
    turns = defaultdict(list)
    for request in trace.requests:
        ((stream, tokens),) = request.prefix
        assert tokens == request.prompt_tokens
        turns[stream].append(request)
    pairs = [pair for session in turns.values() for pair in pairwise(session)]

    assert len(pairs) > 2_000
    assert {
        after.prompt_tokens - before.prompt_tokens - before.output_tokens for before, after in pairs
    } <= set(range(10, 91))
    assert all(before.arrival_ns < after.arrival_ns for before, after in pairs)


@pytest.mark.parametrize(
    ("changes", "arguments", "sentence"),
    [
        ({"lengths": None}, {}, "profile made has no lengths: take those of another one (--lengths NAME)"),
        ({"rate_per_s": None}, {}, "profile made has no rate of its own, expected one (--rate)"),
        ({}, {"duration_s": 1.0}, "expected one of num_requests and duration_s"),
        ({}, {"num_requests": None}, "expected one of num_requests and duration_s"),
        (
            {},
            {"num_requests": None, "duration_s": 0.0},
            "duration_s is 0.0, expected seconds above 0, at most 9000000000",
        ),
        (
            {"rate": SHAPES["modulation"]["rate"]},
            {"rate_per_s": 1e-8},
            "the rate changes over more than 20,000,000 steps before the last arrival; expected a higher "
            "rate, fewer requests or a shorter duration",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes, arguments, sentence):
    """One sentence each."""
    profile = profile_of().model_copy(update=changes)

    with pytest.raises(UsageError) as caught:
        generate_trace(profile, **{"num_requests": 50, "seed": 0, **arguments})

    assert sentence == str(caught.value)
