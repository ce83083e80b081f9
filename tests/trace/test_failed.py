"""Requests that failed are left out, and told once."""

from __future__ import annotations

import json

import pytest

from cspsched.errors import TraceError
from cspsched.trace import describe, read_trace
from tests.support.places import DATA
from tests.support.trace_samples import SAMPLES

TRIED = DATA / "tried"
needs_data = pytest.mark.skipif(not TRIED.is_dir(), reason="the tried inputs are not beside the checkout")
(AIPERF,) = (one for one in SAMPLES if one.format == "aiperf")
(VLLM,) = (one for one in SAMPLES if one.format == "vllm-bench")
(BURSTGPT,) = (one for one in SAMPLES if one.format == "burstgpt")
FAILED_RECORD = {
    "metadata": {"x_request_id": "32ee", "request_start_ns": 1759879161119147826, "was_cancelled": True},
    "metrics": {"error_isl": {"value": 550, "unit": "tokens"}},
    "error": {"code": 499, "type": "RequestCancellationError", "message": "Request was cancelled"},
}


@needs_data
def test_the_failed_row_of_burstgpt():
    """3 requests, mean prompt 600, first arrival 0 (5 s in the file), span 113 s; the failed one is told."""
    trace = read_trace(TRIED / "04_burstgpt_four_rows.csv")
    statistics = describe(trace)

    assert (statistics.num_requests, statistics.prompt_tokens.mean, statistics.span_s) == (3, 600, 113)
    assert trace.requests[0].arrival_ns == 0
    assert trace.notes[-1] == "1 of 4 requests failed (Response tokens is 0 or missing) and are left out"


def test_a_failed_request_does_not_begin_the_trace(tmp_path):
    """Nor does it count for a limit."""
    path = tmp_path / "trace.csv"
    path.write_bytes(BURSTGPT.changed(0, BURSTGPT.output, 0))

    assert [one.arrival_ns for one in read_trace(path).requests] == [0, 31 * 10**9]
    assert len(read_trace(path, limit=2).requests) == 2


@pytest.mark.parametrize("cell", ["0", "0.0", "", " "])
def test_no_output_in_any_writing_is_a_failure(cell, tmp_path):
    """While a wrong number is refused."""
    path = tmp_path / "trace.csv"
    path.write_bytes(BURSTGPT.changed(1, BURSTGPT.output, cell))

    assert [one.prompt_tokens for one in read_trace(path).requests] == [906, 1779]


def test_a_record_with_an_error_is_a_failure(tmp_path):
    """AIPerf's failed record has neither lengths nor a first token; its error is an object."""
    path = tmp_path / "profile_export.jsonl"
    path.write_bytes(AIPERF.content + json.dumps(FAILED_RECORD).encode())
    trace = read_trace(path)

    assert [one.request_id for one in trace.requests] == [name for name, *_ in AIPERF.requests]
    assert trace.notes[-1] == "1 of 4 requests failed (error is set) and are left out"
    assert trace.unused_columns == ()


def test_an_error_counts_where_there_is_output(tmp_path):
    """A request that broke off has an error and some tokens."""
    path = tmp_path / "run.json"
    path.write_bytes(VLLM.changed(1, "errors", "Traceback: connection reset"))
    trace = read_trace(path)

    assert [one.prompt_tokens for one in trace.requests] == [550, 80]
    assert trace.notes[-1] == "1 of 3 requests failed (errors is set) and are left out"


def test_a_file_of_failures_is_refused(tmp_path):
    """A trace has at least one request."""
    path = tmp_path / "trace.csv"
    path.write_text("Timestamp,Request tokens,Response tokens\n1,5,0\n2,5,0\n", encoding="utf-8")

    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert str(caught.value) == (
        f"{path}: 2 of 2 requests failed (Response tokens is 0 or missing), "
        "expected at least one that did not"
    )


def test_zero_is_wrong_where_no_request_can_have_failed(tmp_path):
    """Azure's trace has no failures: its 0 is refused as before."""
    path = tmp_path / "trace.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2024-01-01 00:00:00,5,0\n", encoding="utf-8")

    with pytest.raises(TraceError, match="GeneratedTokens is '0', expected a whole number of at least 1"):
        read_trace(path)
