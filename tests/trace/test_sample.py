"""Fewer and more requests of a trace."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.errors import UsageError
from cspsched.problem.request import Request
from cspsched.trace import Trace, describe
from cspsched.trace.generators import generate_trace, load_profile
from cspsched.trace.sample import sample_trace

SECOND = 1_000_000_000


def trace_of(arrivals_ns):
    requests = tuple(
        Request(
            request_id=f"r{k}",
            arrival_ns=time,
            prompt_tokens=10 + k,
            output_tokens=1 + k,
            priority=k,
            client_id=f"c{k}",
            prefix=((f"p{k // 2}", 5),),
        )
        for k, time in enumerate(arrivals_ns)
    )
    return Trace(name="made", format="native", requests=requests)


def lengths_of(trace):
    return Counter((r.prompt_tokens, r.output_tokens, r.priority, r.client_id) for r in trace.requests)


@given(
    st.lists(st.integers(0, 10**10), min_size=1, max_size=12).map(sorted),
    st.integers(1, 40),
    st.integers(0, 9),
)
def test_requests_are_drawn_whole_and_in_order(arrivals_ns, wanted, seed):
    """As many as asked for, by arrival, uniquely named; each request of the trace once more or not."""
    trace = trace_of([time - arrivals_ns[0] for time in arrivals_ns])
    sampled = sample_trace(trace, num_requests=wanted, seed=seed).trace
    counts = lengths_of(sampled)

    assert len(sampled.requests) == wanted == len({request.request_id for request in sampled.requests})
    assert sampled.requests[0].arrival_ns == 0 or wanted > len(arrivals_ns)
    assert all(before.arrival_ns <= after.arrival_ns for before, after in pairwise(sampled.requests))
    assert set(counts) <= set(lengths_of(trace))
    assert {counts[key] - wanted // len(arrivals_ns) for key in lengths_of(trace)} <= {0, 1}


@given(st.lists(st.integers(0, 10**10), min_size=2, max_size=12).map(sorted), st.integers(0, 9))
def test_thinned_requests_keep_their_distances(arrivals_ns, seed):
    """Two requests that are kept are as far apart as they were."""
    trace = trace_of([time - arrivals_ns[0] for time in arrivals_ns])
    was = {request.request_id: request for request in trace.requests}
    kept = sample_trace(trace, num_requests=len(arrivals_ns) // 2, seed=seed).trace.requests
    first = was[kept[0].request_id]

    for request in kept:
        old = was[request.request_id]
        assert request.arrival_ns == old.arrival_ns - first.arrival_ns
        assert request.prefix == old.prefix


@given(st.lists(st.integers(0, 10**10), min_size=3, max_size=12, unique=True).map(sorted), st.integers(0, 9))
def test_a_copy_is_the_trace_on_a_circle(arrivals_ns, seed):
    """The gaps of the second copy are those of the trace in their circular order, and one mean gap."""
    arrivals_ns = [time - arrivals_ns[0] for time in arrivals_ns]
    doubled = sample_trace(trace_of(arrivals_ns), num_requests=2 * len(arrivals_ns), seed=seed).trace
    copy = [request for request in doubled.requests if request.prefix[0][0].endswith("~1")]
    start = [request.priority for request in copy].index(0)
    turned = copy[start:] + copy[:start]
    span_ns = arrivals_ns[-1]
    period_ns = span_ns + max(span_ns // (len(arrivals_ns) - 1), 1)

    assert [request.priority for request in turned] == list(range(len(arrivals_ns)))
    assert [(r.arrival_ns - turned[0].arrival_ns) % period_ns for r in turned] == arrivals_ns
    assert {request.prefix[0][0] for request in doubled.requests} == {
        f"p{k // 2}{suffix}" for k in range(len(arrivals_ns)) for suffix in ("", "~1")
    }


def test_rate_is_that_of_the_span_and_bursts_stay():
    """Half and twice the rate of a trace: the counts per minute stay as they are dispersed, not the clock."""
    trace = generate_trace(load_profile("chat"), num_requests=20_000, rate_per_s=5.0, seed=1)
    for factor in (0.5, 2.0):
        statistics = describe(sample_trace(trace, rate_per_s=5.0 * factor, seed=3).trace)

        assert pytest.approx(5.0 * factor, rel=0.01) == statistics.rate_per_s
        assert pytest.approx(describe(trace).span_s, rel=0.01) == statistics.span_s


def test_what_was_done_is_said_and_repeats():
    """One sentence each; the same seed gives the same requests."""
    trace = trace_of([0, 1, 2, 3])
    fewer, whole, more, twice = (sample_trace(trace, num_requests=n, seed=7) for n in (3, 4, 9, 8))

    assert fewer.how == "3 of 4 requests, drawn without replacement (seed 7)"
    assert whole.how == "the whole trace"
    assert whole.trace is trace
    turned = ", every copy but the first turned in time by a random offset (seed 7)"
    assert more.how == f"2 times the whole trace and 1 more{turned}"
    assert twice.how == f"2 times the whole trace{turned}"
    assert sample_trace(trace, num_requests=9, seed=7).trace == more.trace


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "expected one of num_requests and rate_per_s (--requests, --rate)"),
        (
            {"num_requests": 1, "rate_per_s": 1.0},
            "expected one of num_requests and rate_per_s (--requests, --rate)",
        ),
        ({"rate_per_s": float("nan")}, "rate_per_s is nan, expected a finite rate above 0"),
        ({"rate_per_s": 0.1}, "that makes 0 requests, expected at least 1 and at most 100000000"),
        ({"rate_per_s": 1e300}, "that makes 200000000 requests, expected at least 1 and at most 100000000"),
        ({"num_requests": 0}, "that makes 0 requests, expected at least 1 and at most 100000000"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(arguments, sentence):
    """One sentence each."""
    with pytest.raises(UsageError) as caught:
        sample_trace(trace_of([0, SECOND]), seed=0, **arguments)

    assert sentence == str(caught.value)


def test_requests_that_arrive_together_have_no_rate():
    """A number can be asked of them, a rate cannot."""
    with pytest.raises(UsageError, match="all requests of the trace arrive together"):
        sample_trace(trace_of([0, 0]), rate_per_s=1.0, seed=0)
