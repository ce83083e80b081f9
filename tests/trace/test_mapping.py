"""Columns under other names: given by `--columns`, or guessed where only one guess fits."""

from __future__ import annotations

import pytest

from cspsched.errors import TraceError, UsageError
from cspsched.trace import read_trace


@pytest.fixture
def trace_file(tmp_path):
    """Write text to a file and return its path."""

    def write(text):
        path = tmp_path / "log.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def rows_of(trace):
    return [(one.request_id, one.arrival_ns, one.prompt_tokens, one.output_tokens) for one in trace.requests]


TWO = "when,in,out,who\n{},5,3,a\n{},7,1,b\n"


@pytest.mark.parametrize(
    ("unit", "first", "second", "elapsed_ns"),
    [
        ("s", "1.5", "2.000000001", 500_000_001),
        ("ms", "1500", "2000.000001", 500_000_001),
        ("us", "1500000", "2000000.001", 500_000_001),
        ("ns", "1500000000", "2000000001", 500_000_001),
        ("utc", "2024-05-10T23:59:59.5Z", "2024-05-11 00:00:00.000000001", 500_000_001),
    ],
)
def test_every_unit_is_exact(unit, first, second, elapsed_ns, trace_file):
    """Down to the nanosecond."""
    columns = f"arrival=when:{unit},prompt=in,output=out,id=who"
    trace = read_trace(trace_file(TWO.format(first, second)), columns=columns)

    assert rows_of(trace) == [("a", 0, 5, 3), ("b", elapsed_ns, 7, 1)]
    assert trace.format == "columns"


def test_without_arrivals_all_arrive_at_once(trace_file):
    """And it is told."""
    trace = read_trace(trace_file(TWO.format(1, 2)), columns="prompt=in, output=out")

    assert rows_of(trace) == [("r0", 0, 5, 3), ("r1", 0, 7, 1)]
    assert trace.notes == ("all requests arrive at 0: --columns names no arrival",)
    assert [one.name for one in trace.unused_columns] == ["when", "who"]


def test_hashes_and_optional_columns(trace_file):
    """Blocks of any size; optional columns keep their own names."""
    text = 'in,out,blocks,priority\n5,3,"[1, 2]",4\n6,1,"[1, 3]",0\n'
    first, second = read_trace(trace_file(text), columns="prompt=in,output=out,hashes=blocks:4").requests

    assert first.prefix == second.prefix == (("p0", 4),)
    assert first.priority == 4


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ("", "--columns has '', expected each of arrival, prompt, output, id, hashes once at most"),
        ("prompt", "--columns has 'prompt', expected each of"),
        ("prompt=in,prompt=out", "--columns has 'prompt=out', expected each of"),
        ("size=in", "--columns has 'size=in', expected each of"),
        ("prompt=in", "--columns names no output, expected arrival=timestamp:ms,prompt=input_tokens"),
        (
            "prompt=in,output=nothing",
            "line 1: --columns names 'nothing', which is no column; found 'when', 'in'",
        ),
        (
            "arrival=when,prompt=in,output=out",
            "--columns has arrival=when without a unit, expected one of s, ms",
        ),
        (
            "arrival=when:h,prompt=in,output=out",
            "--columns has arrival=when:h, expected a unit of s, ms, us, ns",
        ),
        ("arrival=then:s,prompt=in,output=out", "--columns names 'then', which is no column"),
        ("prompt=in,output=out,hashes=who", "--columns has hashes=who, expected tokens of a block"),
        ("prompt=in,output=out,hashes=who:0", "--columns has hashes=who:0, expected tokens of a block"),
    ],
)
def test_a_text_that_makes_no_sense_is_refused(columns, said, trace_file):
    """With what was expected, as a usage error."""
    with pytest.raises(UsageError) as caught:
        read_trace(trace_file(TWO.format(1, 2)), columns=columns)

    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("header", "first", "second", "option"),
    [
        ("arrival_ms,input_tokens,completion_tokens", "0", "1500", "arrival_ms:ms,prompt=input_tokens"),
        ("Timestamp (s),Input Tokens,Output Tokens", "1", "2.5", "Timestamp (s):s,prompt=Input Tokens"),
        (
            "createdAt,promptTokens,outputLength",
            "2024-01-01 00:00:00",
            "2024-01-01 00:00:01.5",
            "createdAt:utc",
        ),
        ("start_time_ns,isl,osl", "0", "1500000000", "start_time_ns:ns,prompt=isl,output=osl"),
    ],
)
def test_plain_names_are_guessed_and_told(header, first, second, option, trace_file):
    """The note gives the option that says the same, and with it the trace is the same."""
    path = trace_file(f"{header}\n{first},5,3\n{second},7,1\n")
    trace = read_trace(path)

    assert rows_of(trace) == [("r0", 0, 5, 3), ("r1", 1_500_000_000, 7, 1)]
    (note,) = trace.notes
    assert note.startswith(f"columns are guessed by their names; the same as --columns arrival={option}")
    assert read_trace(path, columns=note.rpartition("--columns ")[2]).requests == trace.requests


@pytest.mark.parametrize(
    "header",
    [
        "timestamp,input_tokens,output_tokens",
        "arrival_ms,input_tokens,prompt_tokens,output_tokens",
        "arrival_ms,start_time_s,input_tokens,output_tokens",
        "arrival_ms,input_tokens",
    ],
)
def test_nothing_is_guessed_where_a_unit_or_a_name_is_open(header, trace_file):
    """The remedy is the option."""
    path = trace_file(f"{header}\n{','.join('5' for _ in header.split(','))}\n")
    with pytest.raises(TraceError, match="name the columns with --columns"):
        read_trace(path)
