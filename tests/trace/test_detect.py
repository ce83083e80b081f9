"""Which format a file has is found by its columns, told, and never guessed where two could fit."""

from __future__ import annotations

import json

import pytest

from cspsched.errors import TraceError, UsageError
from cspsched.trace import read_trace
from cspsched.trace.formats import FORMATS
from tests.support.places import DATA

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the recorded data is not beside the checkout")


@pytest.fixture
def lines_file(tmp_path):
    """Write objects as JSON lines and return the path."""

    def write(*rows):
        path = tmp_path / "trace.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


def hashed(prompt, num_hashes, **more):
    row = {"timestamp": 1000, "input_length": prompt, "output_length": 5, "hash_ids": list(range(num_hashes))}
    return row | more


def refusal(path, **how):
    with pytest.raises(TraceError) as caught:
        read_trace(path, **how)
    return str(caught.value).replace(str(path), "FILE")


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        ([hashed(655, 2)], "mooncake"),
        ([hashed(655, 1)], "mooncake"),
        ([hashed(655, 41)], "bailian"),
        ([hashed(9, 1), hashed(100, 7)], "bailian"),
        ([hashed(9, 1), hashed(100, 1)], "mooncake"),
        ([hashed(655, 41, chat_id=7)], "bailian"),
    ],
)
def test_the_number_of_hashes_tells_mooncake_from_bailian(rows, name, lines_file):
    """The last block may be partial or missing; `chat_id` is Bailian's alone. The note says so."""
    trace = read_trace(lines_file(*rows))
    unit, tokens = {"mooncake": ("milliseconds", 512), "bailian": ("seconds", 16)}[name]

    assert trace.format == name
    assert f"timestamp in {unit}, hash_ids of {tokens}-token blocks" in trace.notes[0]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"timestamp": 0, "input_length": 655, "output_length": 5}, "there are no hash_ids"),
        (hashed(9, 1), "both fit hash_ids"),
        (hashed(655, 9), "neither fits hash_ids"),
    ],
)
def test_where_both_or_neither_fit_the_format_is_asked_for(row, why, lines_file):
    """The units differ by a thousand: nothing is guessed, and both names are read when given."""
    path = lines_file(row, row)

    assert refusal(path) == (
        "FILE: timestamp is in ms with blocks of 512 tokens (mooncake) or in s with blocks of 16 (bailian), "
        f"and {why}; say which by --format mooncake or --format bailian"
    )
    if why != "neither fits hash_ids":
        assert read_trace(path, trace_format="mooncake").format == "mooncake"
        assert read_trace(path, trace_format="bailian").format == "bailian"


def test_a_unit_that_is_given_is_taken(lines_file):
    """1,000 ms or 1,000 s after the first."""
    path = lines_file({"timestamp": 0, "input_length": 5, "output_length": 5}, hashed(5, 1))

    assert read_trace(path, trace_format="dynamo").requests[1].arrival_ns == 10**9
    assert read_trace(path, trace_format="bailian").requests[1].arrival_ns == 10**12


def test_an_unknown_format_is_refused(lines_file):
    """All names are listed."""
    with pytest.raises(UsageError) as caught:
        read_trace(lines_file(hashed(655, 2)), trace_format="moon")

    assert str(caught.value) == (
        f"there is no trace format 'moon'; there are {', '.join(one.name for one in FORMATS)}"
    )


def test_a_format_that_is_given_needs_its_columns(lines_file):
    """What is missing, and what is there."""
    assert refusal(lines_file(hashed(655, 2)), trace_format="azure") == (
        "FILE: columns TIMESTAMP, ContextTokens, GeneratedTokens are missing for format azure; "
        "found 'timestamp', 'input_length', 'output_length', 'hash_ids'"
    )


def test_format_and_columns_exclude_each_other(lines_file):
    """Both say what the columns are."""
    with pytest.raises(UsageError, match="--format and --columns both say what the columns are"):
        read_trace(lines_file(hashed(655, 2)), trace_format="azure", columns="prompt=a,output=b")


RUN = {
    "completed": 2,
    "request_rate": 4.0,
    "max_concurrency": None,
    "input_lens": [5, 6],
    "output_lens": [1, 2],
}
HINT = "run 'vllm bench serve' with --save-result --save-detailed, in a version that keeps start_times"


@pytest.mark.parametrize(
    "left_out",
    [("start_times",), ("start_times", "input_lens", "output_lens"), ("start_times", "output_lens")],
)
def test_a_run_of_vllm_without_times_is_refused(left_out, lines_file):
    """It says what is missing, and how to run the benchmark so that it is there."""
    run = {name: value for name, value in RUN.items() if name not in left_out}
    said = refusal(lines_file(run))

    assert "start_times" in said
    assert f"missing for format vllm-bench ({HINT})" in said


def test_a_run_of_sglang_that_sent_all_at_once_needs_no_times(lines_file):
    """Else its arrivals are not known."""
    run = RUN | {"sharegpt_output_len": None, "request_rate": float("inf")}
    trace = read_trace(lines_file(run))

    assert [one.arrival_ns for one in trace.requests] == [0, 0]
    assert "all requests arrive at 0: request_rate is inf and max_concurrency is not set" in trace.notes
    for changed in ({"request_rate": 4.0}, {"max_concurrency": 8}):
        assert "start_times is missing" in refusal(lines_file(run | changed))


def test_several_runs_are_refused(lines_file):
    """A line each, as SGLang appends them."""
    assert refusal(lines_file(RUN, RUN)) == (
        "FILE holds 2 runs of a benchmark, expected one (keep one line of it)"
    )


def test_lists_of_different_length_are_refused(lines_file):
    """A list with an entry too few would shift all others."""
    assert refusal(lines_file(RUN | {"start_times": [0.5]})) == (
        "FILE: start_times has 1 entries and input_lens 2, expected as many (save the run again)"
    )


def test_a_run_over_several_lines_is_one_object(tmp_path):
    """JSON may be laid out for reading."""
    path = tmp_path / "run.json"
    path.write_text(json.dumps(RUN | {"start_times": [1.5, 2.0]}, indent=2), encoding="utf-8")

    assert [one.arrival_ns for one in read_trace(path).requests] == [0, 500_000_000]


@needs_data
def test_windows_of_clients_are_no_requests():
    """The sentence says what makes requests of them."""
    said = refusal(DATA / "traces" / "servegen_client_windows.parquet")

    assert "has rates of clients in windows of time and no requests" in said
    assert "cspsched trace generate" in said


def test_many_columns_are_not_all_shown(lines_file):
    """A sentence stays a sentence."""
    said = refusal(lines_file({f"column_{k}": k for k in range(500)}))

    assert "'column_11' and 488 more" in said
    assert len(said) < 900
