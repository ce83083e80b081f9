"""The shipped profiles: fitted again where the data are, and what traces of them look like."""

from __future__ import annotations

import runpy

import numpy as np
import pytest

from cspsched.problem.columns import columns_of
from cspsched.trace import describe
from cspsched.trace.generators import generate_trace, load_profile
from tests.support.places import DATA, ROOT

TRACES = DATA / "traces"
needs_data = pytest.mark.skipif(not TRACES.is_dir(), reason="the public traces are not beside the checkout")
SCRIPT = runpy.run_path(str(ROOT / "benchmarks" / "fit_profiles.py"))
NAMES = sorted([*SCRIPT["TRACES"], *SCRIPT["POOLS"]])


def numbers_of(data, place=""):
    """Every leaf of JSON by its place."""
    if isinstance(data, dict):
        return {k: v for key, value in data.items() for k, v in numbers_of(value, f"{place}.{key}").items()}
    if isinstance(data, list):
        return {k: v for i, value in enumerate(data) for k, v in numbers_of(value, f"{place}.{i}").items()}
    return {place: data}


@needs_data
@pytest.mark.parametrize("name", NAMES)
def test_a_profile_is_what_the_script_fits_to_the_data(name):
    """Every number within 1 %, every word and every quantile the same."""
    shipped = load_profile(name)
    again = SCRIPT["fitted_profile"](name, TRACES, shipped.fit_date)
    was, now = numbers_of(shipped.to_json()), numbers_of(again.to_json())

    assert set(was) == set(now)
    for place, value in was.items():
        close = pytest.approx(value, rel=0.01, abs=1e-4) if isinstance(value, float) else value
        assert close == now[place], place


PUBLISHED = {
    "azure-2023-code": (2.57, 2048, 27.9, 13.2, -0.021),
    "azure-2023-conv": (5.53, 1155, 211, 1.09, 0.073),
    "mooncake-conversation": (3.40, 12_035, 343, None, 0.072),
    "mooncake-synthetic": (3.91, 15_325, 149, 1.01, -0.517),
    "arxiv-summarization": (None, 2588, 291, None, -0.114),
}
"""Rate, mean prompt, mean output, variation of the gaps and Spearman's correlation of the traces."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_long_traces_of_a_profile_have_the_published_statistics(name):
    """Rate of ten traces together, and lengths and correlation of the first.

    The silences of code are few and long: they decide its rate and the variation of its gaps, which take more
    than 10^6 requests to settle.
    """
    rate, prompt, output, cv, correlation = PUBLISHED[name]
    close = 0.1 if name == "azure-2023-code" else 0.01
    profile = load_profile(name)
    if rate is None:
        profile = profile.model_copy(update={"rate_per_s": (rate := 1.0)})
    traces = [generate_trace(profile, num_requests=100_000, seed=seed) for seed in range(10)]
    made = describe(traces[0])

    spans_s = [trace.requests[-1].arrival_ns / 1e9 for trace in traces]
    assert pytest.approx(rate, rel=close) == 1_000_000 / sum(spans_s)
    assert pytest.approx(prompt, rel=0.03) == made.prompt_tokens.mean
    assert pytest.approx(output, rel=0.03) == made.output_tokens.mean
    assert pytest.approx(correlation, abs=0.02) == made.spearman_prompt_output
    if cv is not None:
        assert pytest.approx(cv, rel=3 * close) == made.interarrival_cv


@pytest.mark.parametrize(
    ("name", "top", "share"), [("m-large", 10, 0.63), ("m-mid", 1, 0.52), ("m-small", 10, 0.93)]
)
def test_pools_are_as_uneven_as_published(name, top, share):
    """Share of the load of the first clients of ServeGen's pools, within 3 points."""
    profile = load_profile(f"servegen-{name}").with_lengths_of(load_profile("tiny"))
    made = columns_of(generate_trace(profile, num_requests=100_000, seed=1).requests)
    _, counts = np.unique(made.client_id, return_counts=True)

    assert pytest.approx(share, abs=0.03) == np.sort(counts)[-top:].sum() / counts.sum()


@pytest.mark.parametrize(
    ("name", "field", "published"),
    [
        ("m-small", "prompt", (448, 106, 1422, 3461)),
        ("m-small", "output", (57, 12, 178, 346)),
        ("deepseek-r1", "prompt", (636, 206, 1879, 11_975)),
        ("deepseek-r1", "output", (1034, 552, 1954, 8452)),
    ],
)
def test_lengths_of_pools_are_those_published(name, field, published):
    """Mean, p50, p95 and p99 within 15 %."""
    lengths = getattr(load_profile(f"servegen-{name}").lengths, field)
    drawn = lengths.draw(np.random.default_rng(0), 400_000)

    assert pytest.approx(published, rel=0.15) == (drawn.mean(), *np.percentile(drawn, [50, 95, 99]))
