"""Statistics of traces against published figures, numpy and pandas."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.problem.request import Request
from cspsched.trace import Trace, describe, read_trace
from tests.support.places import DATA

TRACES = DATA / "traces"
needs_data = pytest.mark.skipif(not TRACES.is_dir(), reason="the public traces are not beside the checkout")

SECOND = 1_000_000_000


def trace_of(arrivals_ns, prompts=None, outputs=None):
    """Trace with given arrivals; all lengths 1 unless given."""
    ones = [1] * len(arrivals_ns)
    columns = zip(arrivals_ns, prompts or ones, outputs or ones, strict=True)
    requests = tuple(
        Request(request_id=f"r{k}", arrival_ns=time, prompt_tokens=prompt, output_tokens=output)
        for k, (time, prompt, output) in enumerate(columns)
    )
    return Trace(name="made", format="native", requests=requests)


def summary(tokens):
    return tokens.mean, tokens.p50, tokens.p95, tokens.p99, tokens.max


@needs_data
def test_azure_2023_code_has_its_published_figures():
    """Row azure23_code of the table of trace statistics, to the digits printed there."""
    statistics = describe(read_trace(TRACES / "azure2023_code.csv"))

    assert pytest.approx(2.57, abs=0.005) == statistics.rate_per_s
    assert pytest.approx((2048, 1469, 7303, 7436, 7437), abs=0.5) == summary(statistics.prompt_tokens)
    assert pytest.approx((27.9, 13, 90, 251, 1899), abs=0.5) == summary(statistics.output_tokens)
    assert pytest.approx(13.2, abs=0.05) == statistics.interarrival_cv
    assert pytest.approx(164, abs=0.5) == statistics.dispersion_60s
    assert pytest.approx(-0.021, abs=0.0005) == statistics.spearman_prompt_output
    assert statistics.warnings == ()


@needs_data
def test_azure_2023_conversation_has_its_published_figures():
    """Row azure23_conv of the table of trace statistics, to the digits printed there."""
    statistics = describe(read_trace(TRACES / "azure2023_conv.csv"))

    assert pytest.approx(5.53, abs=0.005) == statistics.rate_per_s
    assert pytest.approx((1155, 1020, 4083, 4142, 14050), abs=0.5) == summary(statistics.prompt_tokens)
    assert pytest.approx((211, 129, 451, 601, 1000), abs=0.5) == summary(statistics.output_tokens)
    assert pytest.approx(1.09, abs=0.005) == statistics.interarrival_cv
    assert pytest.approx(16, abs=0.5) == statistics.dispersion_60s
    assert pytest.approx(0.073, abs=0.0005) == statistics.spearman_prompt_output
    assert statistics.warnings == ()


@needs_data
def test_vidur_arxiv_has_its_published_figures():
    """Row vidur arxiv-4K: lengths and correlation; without arrivals there is no rate."""
    statistics = describe(read_trace(TRACES / "vidur_arxiv_summarization_4k.csv"))

    assert pytest.approx((2588, 2730, 3813, 3933, 4054), abs=0.5) == summary(statistics.prompt_tokens)
    assert pytest.approx((291, 167, 736, 3271, 4056), abs=0.5) == summary(statistics.output_tokens)
    assert pytest.approx(-0.114, abs=0.0005) == statistics.spearman_prompt_output
    assert statistics.rate_per_s is None


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=60))
def test_token_statistics_agree_with_numpy(tokens):
    """Mean, percentiles and maximum are numpy's."""
    statistics = describe(trace_of([0] * len(tokens), prompts=tokens))
    expected = (np.mean(tokens), *np.percentile(tokens, [50, 95, 99]), max(tokens))

    assert pytest.approx(expected) == summary(statistics.prompt_tokens)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=2, max_size=40))
def test_rank_correlation_agrees_with_pandas(pairs):
    """Equal values share the mean of their ranks; a constant column has no correlation."""
    prompts, outputs = (list(column) for column in zip(*pairs, strict=True))
    got = describe(trace_of([0] * len(pairs), prompts, outputs)).spearman_prompt_output

    if 1 in (len(set(prompts)), len(set(outputs))):
        assert got is None
    else:
        ranks = [pd.Series(column).rank().to_numpy() for column in (prompts, outputs)]
        assert pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-9) == got


@given(st.lists(st.integers(0, 10**12), min_size=3, max_size=40).map(sorted))
def test_gap_statistics_agree_with_numpy(arrivals_ns):
    """Variation is the standard deviation of the gaps over their mean; the quantum divides every gap."""
    statistics = describe(trace_of(arrivals_ns))
    gaps = np.diff(arrivals_ns)

    if gaps.any():
        assert pytest.approx(np.std(gaps) / np.mean(gaps), rel=1e-9) == statistics.interarrival_cv
        assert np.gcd.reduce(gaps) == statistics.quantum_ns
        assert gaps[gaps > 0].min() == statistics.tick_ns
    else:
        assert statistics.interarrival_cv is None
        assert statistics.quantum_ns is statistics.tick_ns is None


@given(st.lists(st.integers(0, 600 * SECOND), min_size=2, max_size=60).map(sorted))
def test_dispersion_agrees_with_a_histogram(arrivals_ns):
    """Counts in whole windows of 60 s from the first arrival; the window cut off at the end is left out."""
    got = describe(trace_of(arrivals_ns)).dispersion_60s
    num_windows = (arrivals_ns[-1] - arrivals_ns[0]) // (60 * SECOND)

    if num_windows < 2:
        assert got is None
    else:
        windows = [(time - arrivals_ns[0]) // (60 * SECOND) for time in arrivals_ns]
        counts = np.bincount(windows)[:num_windows]
        assert pytest.approx(np.var(counts) / np.mean(counts)) == got


def test_one_request_has_no_rate():
    """What a single request does not determine is None, never 0 or infinity."""
    statistics = describe(trace_of([0], prompts=[7], outputs=[3]))

    assert summary(statistics.prompt_tokens) == (7.0, 7, 7, 7, 7)
    assert statistics.span_s == 0.0
    assert statistics.rate_per_s is None
    assert statistics.interarrival_cv is None
    assert statistics.dispersion_60s is None
    assert statistics.spearman_prompt_output is None
    assert statistics.quantum_ns is None


def test_regular_arrivals_have_no_variation():
    """One request a second: rate 1 over the span, variation 0, dispersion 0, tick 1 s, no warning."""
    statistics = describe(trace_of([k * SECOND for k in range(301)]))

    assert statistics.span_s == 300.0
    assert pytest.approx(301 / 300) == statistics.rate_per_s
    assert statistics.interarrival_cv == 0.0
    assert statistics.dispersion_60s == 0.0
    assert statistics.quantum_ns == SECOND
    assert statistics.warnings == ()


def test_coarse_clock_is_warned_about():
    """Ten requests at every third second, as in Mooncake's traces, are the clock's and not a burst."""
    statistics = describe(trace_of([3 * SECOND * (k // 10) for k in range(200)]))

    assert statistics.quantum_ns == 3 * SECOND
    assert statistics.warnings == (
        "90% of the gaps are 0 and the others at least 3 s: the clock is coarse, and the bursts at its ticks "
        "are not real (--dejitter uniform draws arrivals within their ticks)",
    )


@pytest.mark.parametrize(
    "arrivals_ns",
    [
        pytest.param([3 * SECOND * (k // 10) for k in range(100)], id="fewer than 100 gaps"),
        pytest.param([999_999 * (k // 10) for k in range(200)], id="tick below 1 ms"),
        pytest.param([SECOND * (2 * k // 3) for k in range(200)], id="most gaps not 0"),
        pytest.param([0] * 200, id="all at once"),
    ],
)
def test_clock_that_may_be_fine_is_not_warned_about(arrivals_ns):
    """The warning needs enough gaps, a tick of at least 1 ms, and more zero gaps than others."""
    assert describe(trace_of(arrivals_ns)).warnings == ()


def test_shifting_all_arrivals_changes_nothing():
    """Only differences of arrivals count."""
    arrivals = [0, 5, 70 * SECOND, 71 * SECOND, 200 * SECOND]
    shifted = [time + 12_345 for time in arrivals]

    assert [b - a for a, b in pairwise(arrivals)] == [b - a for a, b in pairwise(shifted)]
    assert describe(trace_of(arrivals)) == describe(trace_of(shifted))


def test_json_carries_schema_and_plain_values():
    """The JSON form survives a dump and a load and names its schema."""
    statistics = describe(trace_of([0, SECOND, 3 * SECOND], prompts=[1, 2, 3], outputs=[3, 2, 1]))
    data = statistics.to_json()

    assert data == json.loads(json.dumps(data))
    assert data["schema"] == "cspsched/trace-statistics/1"
    assert data["num_requests"] == 3
    assert data["prompt_tokens"] == {"mean": 2.0, "p50": 2.0, "p95": 2.9, "p99": 2.98, "max": 3}
    assert pytest.approx(data["spearman_prompt_output"]) == -1.0
    assert data["warnings"] == []
