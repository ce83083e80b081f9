"""What is written in another format, and what is said to be lost."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.problem.request import Request
from cspsched.trace import read_trace, write_trace
from cspsched.trace.detect import format_called
from cspsched.trace.formats import FORMATS
from cspsched.trace.write import trace_bytes

WRITTEN = [one for one in FORMATS if one.is_written and not one.refusal]
PLAIN = Request(request_id="r0", arrival_ns=0, prompt_tokens=600, output_tokens=3)
RICH = Request(
    request_id="x",
    arrival_ns=1_500_000_001,
    prompt_tokens=700,
    output_tokens=5,
    priority=2,
    client_id="me",
    ttft_limit_ns=10**9,
    prefix=(("sys", 600),),
)


@pytest.mark.parametrize(
    ("name", "losses"),
    [
        ("native", ()),
        ("azure", ("names of requests", "priorities", "clients", "SLO limits", "prefixes")),
        ("splitwise", ("priorities", "clients", "SLO limits", "prefixes")),
        (
            "mooncake",
            ("names of requests", "priorities", "clients", "SLO limits",
             "88 shared tokens that fill no block of 512"),
        ),
        ("bailian", ("priorities", "clients", "SLO limits", "8 shared tokens that fill no block of 16")),
    ],
)  # fmt: skip
def test_what_a_format_cannot_hold_is_returned(name, losses, tmp_path):
    """Two prompts share 600 tokens: one block of 512, or 37 of 16."""
    requests = [replace(PLAIN, prefix=(("sys", 600),), prompt_tokens=900), RICH]
    assert write_trace(requests, tmp_path / "trace", format_called(name)) == losses

    again = read_trace(tmp_path / "trace", trace_format=name).requests
    assert [one.arrival_ns for one in again] == [0, 1_500_000_001]
    if name == "native":
        assert tuple(requests) == again


def test_native_text_keeps_the_first_segment():
    """A row has place for one; how many requests lose more is said."""
    request = replace(PLAIN, prefix=(("a", 5), ("b", 6)))
    content, losses = trace_bytes([request, replace(PLAIN, request_id="r1")], format_called("native"))

    assert losses == ("prefixes of 1 requests behind their first segment",)
    assert b"a,5" in content


TIMES = st.lists(st.integers(0, 10**18), min_size=1, max_size=6).map(sorted)


@pytest.mark.parametrize("made", WRITTEN, ids=lambda made: made.name)
@given(times=TIMES, suffix=st.sampled_from(["", ".parquet"]))
def test_times_come_back_to_the_nanosecond(made, times, suffix, tmp_path_factory):
    """In any unit, of thirty years, as text and as Parquet."""
    requests = tuple(
        Request(request_id=f"r{k}", arrival_ns=time - times[0], prompt_tokens=600 + k, output_tokens=1 + k)
        for k, time in enumerate(times)
    )
    path = tmp_path_factory.mktemp("times") / f"trace{suffix}"

    assert write_trace(requests, path, made) == ()
    assert read_trace(path, trace_format=made.name).requests == requests


@pytest.mark.parametrize("suffix", [".csv.gz", ".csv.zst", ".parquet"])
def test_the_same_requests_give_the_same_bytes(suffix, tmp_path):
    """No time of day is in an archive."""
    for name in ("a", "b"):
        write_trace([PLAIN], tmp_path / f"{name}{suffix}")

    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
