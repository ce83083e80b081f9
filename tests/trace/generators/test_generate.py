"""Generated and shipped traces."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.errors import UsageError
from cspsched.resources import data_root
from cspsched.trace import describe, read_trace
from cspsched.trace.generators import generate_trace, load_profile
from cspsched.trace.generators.arrivals import Renewal
from cspsched.trace.shipped import shipped_trace_path, shipped_traces
from cspsched.trace.write import trace_text

CHAT, TINY = load_profile("chat"), load_profile("tiny")


@pytest.fixture(scope="module")
def long_chat():
    """100,000 chat requests at 5 requests/s, described."""
    return describe(generate_trace(CHAT, num_requests=100_000, rate_per_s=5.0, seed=7))


@pytest.mark.parametrize("profile", [CHAT, TINY])
def test_same_seed_gives_the_same_bytes(profile):
    """The seed determines the file, and another seed gives another."""
    texts = [
        trace_text(generate_trace(profile, num_requests=50, rate_per_s=3.0, seed=seed).requests)
        for seed in (4, 4, 5)
    ]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


@given(st.integers(1, 40), st.floats(0.01, 1000.0), st.integers(0, 2**32))
def test_generated_requests_keep_to_the_profile(num_requests, rate_per_s, seed):
    """As many as asked for, sorted, the first at 0, whole microseconds, lengths within the clip."""
    requests = generate_trace(TINY, num_requests=num_requests, rate_per_s=rate_per_s, seed=seed).requests

    assert [f"r{k}" for k in range(num_requests)] == [r.request_id for r in requests]
    assert requests[0].arrival_ns == 0
    assert all(r.arrival_ns % 1000 == 0 for r in requests)
    assert all(4 <= r.prompt_tokens <= 40 and 2 <= r.output_tokens <= 12 for r in requests)


def test_chat_lengths_resemble_the_azure_conversation_trace(long_chat):
    """Mean, median and tail are those of the trace that the mixture was fitted to, within 10 %."""
    prompt, output = long_chat.prompt_tokens, long_chat.output_tokens

    assert pytest.approx((1155, 1020, 4083), rel=0.1) == (prompt.mean, prompt.p50, prompt.p95)
    assert pytest.approx((211, 129, 451, 601), rel=0.05) == (output.mean, output.p50, output.p95, output.p99)
    assert prompt.max <= 14050
    assert output.max <= 1000


def test_chat_prompt_and_output_are_independent(long_chat):
    """The rank correlation is 0 within 0.02, not 1 as in a generator that uses one uniform for both."""
    assert pytest.approx(0.0, abs=0.02) == long_chat.spearman_prompt_output


def test_chat_arrivals_have_the_rate_and_variation_asked_for(long_chat):
    """5 requests/s and a coefficient of variation of 1.07, within 2 %."""
    assert pytest.approx(5.0, rel=0.02) == long_chat.rate_per_s
    assert pytest.approx(1.07, rel=0.02) == long_chat.interarrival_cv


def test_variation_of_one_is_a_poisson_process():
    """With a coefficient of variation of 1 the counts per minute vary as Poisson counts do."""
    profile = CHAT.model_copy(update={"arrivals": Renewal(cv=1.0)})
    statistics = describe(generate_trace(profile, num_requests=100_000, rate_per_s=1.0, seed=3))

    assert pytest.approx(1.0, abs=0.1) == statistics.dispersion_60s


def test_more_variation_is_burstier():
    """The knob turns the variation that comes out."""
    profile = CHAT.model_copy(update={"arrivals": Renewal(cv=3.0)})
    statistics = describe(generate_trace(profile, num_requests=100_000, rate_per_s=1.0, seed=3))

    assert pytest.approx(3.0, rel=0.05) == statistics.interarrival_cv


def test_rate_only_stretches_time():
    """The same seed at half the rate gives the same lengths at twice the times."""
    fast = generate_trace(TINY, num_requests=30, rate_per_s=2.0, seed=1).requests
    slow = generate_trace(TINY, num_requests=30, rate_per_s=1.0, seed=1).requests

    assert [(r.prompt_tokens, r.output_tokens) for r in fast] == [
        (r.prompt_tokens, r.output_tokens) for r in slow
    ]
    assert all(abs(2 * a.arrival_ns - b.arrival_ns) <= 2000 for a, b in zip(fast, slow, strict=True))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_requests": 0}, "num_requests is 0, expected at least 1 and at most 100000000"),
        ({"rate_per_s": 0.0}, "rate_per_s is 0.0, expected a finite rate above 0"),
        ({"rate_per_s": float("nan")}, "rate_per_s is nan, expected a finite rate above 0"),
        ({"rate_per_s": float("inf")}, "rate_per_s is inf, expected a finite rate above 0"),
        (
            {"rate_per_s": 1e-12},
            "rate_per_s is 1e-12: the trace spans over 9000000000 s, expected a higher rate",
        ),
        ({"seed": -1}, "seed is -1, expected at least 0"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, sentence):
    """A wrong number is named with what was expected."""
    with pytest.raises(UsageError) as caught:
        generate_trace(CHAT, **{"num_requests": 5, "rate_per_s": 1.0, "seed": 0, **arguments})

    assert sentence == str(caught.value)


def test_shipped_traces_are_what_their_readme_makes(tmp_path, monkeypatch):
    """The code in traces/README.md gives every shipped trace again, byte for byte."""
    readme = (data_root() / "traces" / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, {})

    assert shipped_traces() == sorted(path.stem for path in tmp_path.iterdir())
    for name in shipped_traces():
        assert shipped_trace_path(name).read_bytes() == Path(f"{name}.csv").read_bytes()


@pytest.mark.parametrize(("name", "num_requests"), [("tiny-12", 12), ("chat-2000", 2000)])
def test_shipped_traces_can_be_read(name, num_requests):
    """Every shipped trace has the requests that its name says."""
    assert num_requests == len(read_trace(shipped_trace_path(name)).requests)


def test_unknown_shipped_trace_is_refused():
    """The names that there are, are named."""
    with pytest.raises(UsageError) as caught:
        shipped_trace_path("chat")

    assert str(caught.value) == "no shipped trace is called 'chat'; there are burst-6, chat-2000, tiny-12"
