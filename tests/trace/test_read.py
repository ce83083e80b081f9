"""Reading traces: formats, exact times, selection, and every sentence that refuses a file."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime, timedelta
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.errors import InputError, TraceError, UsageError
from cspsched.problem.request import Request
from cspsched.trace import Trace, read_trace, write_trace
from cspsched.trace.cells import TimeUnit, arrival_in_seconds
from cspsched.trace.formats import FORMATS
from cspsched.trace.selection import Selection
from cspsched.trace.write import trace_text
from tests.support.places import DATA

TRACES = DATA / "traces"
needs_data = pytest.mark.skipif(not TRACES.is_dir(), reason="the public traces are not beside the checkout")

NATIVE_HEADER = "request_id,arrival_s,prompt_tokens,output_tokens\n"
AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
NATIVE = (
    "native (arrival_s,prompt_tokens,output_tokens,[request_id],"
    "[priority],[client_id],[ttft_limit_s],[tpot_limit_s],[max_tokens],[predicted_tokens],"
    "[session_id],[think_time_s],[prefix_id],[prefix_tokens])"
)
TRIED = (
    f"tried {', '.join(one.name for one in FORMATS)}; name the columns with --columns, "
    "as 'cspsched trace list' shows"
)
SKIP_ROW = "(drop the row, or use --limit/--window to leave it out)"


@pytest.fixture
def trace_file(tmp_path):
    """Write text to a file called trace.csv and return its path."""

    def write(text: str) -> Path:
        path = tmp_path / "trace.csv"
        path.write_bytes(text.encode())
        return path

    return write


def refusal(path, **selection):
    """Return what read_trace says about a file that it refuses."""
    with pytest.raises(TraceError) as caught:
        read_trace(path, **selection)
    return str(caught.value).replace(str(path), "trace.csv")


def rows_of(trace):
    return [
        (r.request_id, r.arrival_ns, r.prompt_tokens, r.output_tokens, r.priority) for r in trace.requests
    ]


# Optional columns


def test_clients_limits_and_prefixes(trace_file):
    """Each column by itself, in any order; an empty cell is no client, no limit, no prefix."""
    header = "prefix_tokens,prefix_id,tpot_limit_s,ttft_limit_s,client_id," + NATIVE_HEADER
    text = "4,sys,0.05,1.5, alice ,a,0,5,3\n,,,,,b,1,5,3\n0,,,2,,c,1,5,3\n"
    first, second, third = read_trace(trace_file(header + text)).requests

    assert (first.client_id, first.ttft_limit_ns, first.tpot_limit_ns) == ("alice", 1_500_000_000, 50_000_000)
    assert first.prefix == (("sys", 4),)
    assert second == Request(request_id="b", arrival_ns=10**9, prompt_tokens=5, output_tokens=3)
    assert (third.ttft_limit_ns, third.prefix) == (2 * 10**9, ())


def test_declared_and_predicted_outputs(trace_file):
    """An empty cell declares nothing and predicts nothing; a limit may be the output itself."""
    text = "max_tokens,predicted_tokens," + NATIVE_HEADER + "3,9,a,0,5,3\n,,b,1,5,3\n4.0,1,c,2,5,3\n"
    first, second, third = read_trace(trace_file(text)).requests

    assert (first.max_tokens, first.predicted_tokens) == (3, 9)
    assert (second.max_tokens, second.predicted_tokens) == (None, None)
    assert (third.max_tokens, third.predicted_tokens) == (4, 1)


def test_sessions_and_think_times(trace_file):
    """A session stands alone, too; an empty cell is no session and no time."""
    text = "session_id,think_time_s," + NATIVE_HEADER + "x,,a,0,5,3\nx,1.5,b,1,5,3\n,,c,2,5,3\n"
    turns = [(one.session_id, one.think_time_ns) for one in read_trace(trace_file(text)).requests]

    assert turns == [("x", 0), ("x", 1_500_000_000), ("", 0)]


@pytest.mark.parametrize(
    ("columns", "cells", "message"),
    [
        ("max_tokens", "2", "max_tokens is 2, expected at least the output, 3"),
        ("max_tokens", "0", "max_tokens is '0', expected a whole number of at least 1"),
        ("max_tokens", "1e12", "max_tokens is '1e12', expected a whole number of at least 1"),
        ("max_tokens", "1000000000000", "max_tokens is '1000000000000', expected at most 1000000000"),
        ("think_time_s", "3", "think_time_s is 3 without a session_id, expected 0 or an empty cell"),
        ("session_id,think_time_s", ",0.5", "think_time_s is 0.5 without a session_id, expected 0 or an"),
        (
            "session_id,think_time_s",
            "a,-1",
            "think_time_s is '-1', expected a number of seconds of at least 0",
        ),
        ("session_id", "a\tb", "session_id is 'a\\tb', expected a name of printable characters"),
        ("predicted_tokens", "2.5", "predicted_tokens is '2.5', expected a whole number of at least 1"),
        ("client_id", "a\tb", "client_id is 'a\\tb', expected a name of printable characters"),
        (
            "ttft_limit_s",
            "0",
            "ttft_limit_s is '0', expected a finite number of seconds above 0, or an empty",
        ),
        ("ttft_limit_s", "1e-12", "ttft_limit_s is '1e-12', expected a finite number of seconds above 0"),
        ("tpot_limit_s", "nan", "tpot_limit_s is 'nan', expected a finite number of seconds above 0"),
        ("tpot_limit_s", "1e10", "tpot_limit_s is '1e10', expected at most 9000000000 seconds"),
        ("prefix_id,prefix_tokens", "x,-1", "prefix_tokens is '-1', expected a whole number of at least 0"),
        ("prefix_id,prefix_tokens", "x,1.5", "prefix_tokens is '1.5', expected a whole number of at least 0"),
        (
            "prefix_id,prefix_tokens",
            "x,",
            "prefix_id is 'x' and prefix_tokens is 0, expected both or neither",
        ),
        ("prefix_id,prefix_tokens", ",3", "prefix_id is '' and prefix_tokens is 3, expected both or neither"),
        ("prefix_id,prefix_tokens", "x,6", "prefix_tokens is 6, expected at most the prompt, 5"),
    ],
)
def test_wrong_optional_cells_are_refused(trace_file, columns, cells, message):
    """With line, column, what was got and what to do."""
    said = refusal(trace_file(f"{NATIVE_HEADER.strip()},{columns}\na,0,5,3,{cells}\n"))

    assert said.startswith(f"trace.csv line 2: {message}")
    assert said.endswith(SKIP_ROW)


@pytest.mark.parametrize(
    ("column", "other"), [("prefix_id", "prefix_tokens"), ("prefix_tokens", "prefix_id")]
)
def test_half_a_prefix_is_refused(trace_file, column, other):
    """The two columns make one segment."""
    expected = f"trace.csv line 1: column {column!r} needs {other!r} beside it (add or remove one)"
    assert expected == refusal(trace_file(f"{NATIVE_HEADER.strip()},{column}\na,0,5,3,1\n"))


# Formats


def test_native_file_with_priorities(trace_file):
    """A native file gives names, exact nanoseconds since the first arrival, tokens and priorities."""
    header = "request_id,arrival_s,prompt_tokens,output_tokens,priority\n"
    trace = read_trace(trace_file(header + "a,10.000000001,5,3,-2\nb,10.5,7,1,0\n"))

    assert trace.name == "trace"
    assert trace.format == "native"
    assert rows_of(trace) == [("a", 0, 5, 3, -2), ("b", 499_999_999, 7, 1, 0)]


def test_columns_may_stand_in_any_order(trace_file):
    """The header says which column is which, not the position."""
    trace = read_trace(trace_file("output_tokens,arrival_s, request_id,prompt_tokens\n3,0,a,5\n"))

    assert rows_of(trace) == [("a", 0, 5, 3, 0)]


def test_azure_2023_times_are_exact(trace_file):
    """Seven digits of fraction are read exactly, over midnight, without a final newline."""
    text = AZURE_HEADER + "2023-11-16 23:59:59.9999999,374,44\n2023-11-17 00:00:00.0000001,396,109"
    trace = read_trace(trace_file(text.replace("\n", "\r\n")))

    assert trace.format == "azure"
    assert rows_of(trace) == [("r0", 0, 374, 44, 0), ("r1", 200, 396, 109, 0)]


def test_azure_2024_times_carry_an_offset(trace_file):
    """Six digits and +00:00 are read, and a whole second without a fraction."""
    text = AZURE_HEADER + "2024-05-10 00:00:00.009930+00:00,1,2\n2024-05-10 00:00:01+00:00,3,4\n"

    assert [r.arrival_ns for r in read_trace(trace_file(text)).requests] == [0, 990_070_000]


@given(st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2100, 1, 1)))
def test_azure_times_agree_with_datetime(moment):
    """The hand-written parser and the standard library's arithmetic differ nowhere."""
    text = f"{moment:%Y-%m-%d %H:%M:%S.%f}+00:00"
    microseconds = (moment - datetime(1, 1, 1)) // timedelta(microseconds=1)

    moment_ns, first_ns = (TimeUnit.UTC.parse(one) for one in (text, "0001-01-01 00:00:00"))

    assert microseconds * 1000 == moment_ns - first_ns


def test_vidur_file_ignores_other_columns(trace_file):
    """Vidur files have columns that we do not need."""
    text = "num_prefill_tokens,num_decode_tokens,pd_ratio,arrived_at\n10,2,5.0,1.5\n20,4,5.0,0.25\n"
    trace = read_trace(trace_file(text))

    assert trace.format == "vidur"
    assert rows_of(trace) == [("r0", 0, 20, 4, 0), ("r1", 1_250_000_000, 10, 2, 0)]


def test_vidur_file_without_arrivals_arrives_at_once(trace_file):
    """Without the column arrived_at every request arrives at 0, in the order of the file."""
    trace = read_trace(trace_file("num_prefill_tokens,num_decode_tokens\n10,2\n5,4\n"))

    assert rows_of(trace) == [("r0", 0, 10, 2, 0), ("r1", 0, 5, 4, 0)]


def test_rows_are_sorted_and_ties_keep_the_order_of_the_file(trace_file):
    """Rows need not be sorted; requests that arrive together stay as they stand in the file."""
    trace = read_trace(trace_file(NATIVE_HEADER + "late,2,1,1\nx,1,1,1\nb,1,1,1\na,1,1,1\n"))

    assert [r.request_id for r in trace.requests] == ["x", "b", "a", "late"]


def test_byte_order_mark_blank_lines_quotes_and_blanks_are_harmless(trace_file):
    """What spreadsheets leave behind does not stop a file from being read."""
    header = "\ufeff" + NATIVE_HEADER.replace("request_id", '"request_id"')
    trace = read_trace(trace_file(header + '\n"a, the first", 0.5 ,12.0, 03 \n\n'))

    assert rows_of(trace) == [("a, the first", 0, 12, 3, 0)]


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0),
        ("-0.0", 0),
        ("1e-9", 1),
        (".25", 250_000_000),
        ("3.", 3_000_000_000),
        ("+1.5E2", 150_000_000_000),
        ("0.1", 100_000_000),
        ("1700000000.123456789", 1_700_000_000_123_456_789),
        ("0.0000000014", 1),
        ("0.0000000016", 2),
        ("9000000000", 9_000_000_000_000_000_000),
    ],
)
def test_seconds_are_read_digit_by_digit(text, nanoseconds):
    """Seconds are rounded to the nearest nanosecond as decimal numbers; no float stands in between."""
    assert nanoseconds == arrival_in_seconds(text)


@needs_data
@pytest.mark.parametrize(("name", "rows"), [("azure2023_code", 8_819), ("azure2023_conv", 19_366)])
def test_whole_azure_file_is_read(name, rows):
    """The public files are read to the last row, which has no newline."""
    trace = read_trace(TRACES / f"{name}.csv")

    assert rows == len(trace.requests)
    assert trace.requests[0].arrival_ns == 0


@needs_data
def test_last_row_of_the_azure_conversation_trace():
    """19:14:08.4025270 - 18:15:46.6805900 is 3501.7219370 s, and the row's tokens are the file's."""
    last = read_trace(TRACES / "azure2023_conv.csv").requests[-1]

    assert rows_of(Trace(name="", format="", requests=(last,)))[0][:4] == (
        "r19365",
        3_501_721_937_000,
        197,
        183,
    )


@needs_data
def test_public_vidur_file_is_read():
    """Vidur's arXiv trace has no arrivals and more columns than we read."""
    trace = read_trace(TRACES / "vidur_arxiv_summarization_4k.csv")

    assert len(trace.requests) == 28_257
    assert rows_of(trace)[0] == ("r0", 0, 3772, 54, 0)


# Files that cannot be read


def test_missing_file_is_refused(tmp_path):
    """A path that is not there is said to be so."""
    with pytest.raises(InputError, match=r"nowhere\.csv does not exist"):
        read_trace(tmp_path / "nowhere.csv")


def test_directory_is_refused(tmp_path):
    """A directory is no trace."""
    with pytest.raises(InputError, match="is a directory, expected a file"):
        read_trace(tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    """A binary file is refused by its first byte that is not UTF-8."""
    path = tmp_path / "trace.csv"
    path.write_bytes(b"request_id\xff\xfe")

    with pytest.raises(InputError, match=r"is no UTF-8 text \(byte 10\)"):
        read_trace(path)


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_empty_file_is_refused(trace_file, text):
    """Nothing, or nothing but blank lines, is no trace."""
    expected = "trace.csv is empty, expected a header line and one line per request"
    assert expected == refusal(trace_file(text))


def test_header_alone_is_refused(trace_file):
    """A trace has at least one request."""
    expected = "trace.csv has a header and no requests, expected one line per request below it"
    assert expected == refusal(trace_file(NATIVE_HEADER))


def test_unknown_header_is_refused(trace_file):
    """The columns found and the formats known are named."""
    expected = f"trace.csv line 1: no known format has the columns 'a', 'b'; {TRIED}"
    assert expected == refusal(trace_file("a,b\n1,2\n"))


def test_missing_column_is_refused(trace_file):
    """The column that is missing for the closest format is named."""
    expected = (
        "trace.csv line 1: column output_tokens is missing for format native; "
        f"found 'request_id', 'arrival_s', 'prompt_tokens'; {TRIED}"
    )
    assert expected == refusal(trace_file("request_id,arrival_s,prompt_tokens\na,0,1\n"))


def test_missing_columns_are_refused(trace_file):
    """Several missing columns are all named; the header's line counts blank lines above it."""
    expected = (
        "trace.csv line 2: columns TIMESTAMP, GeneratedTokens are missing for format azure; "
        f"found 'ContextTokens'; {TRIED}"
    )
    assert expected == refusal(trace_file("\nContextTokens\n1\n"))


def test_unknown_column_of_a_native_file_is_refused(trace_file):
    """A misspelt optional column is not ignored."""
    expected = f"trace.csv line 1: column 'prio' is unknown, expected {NATIVE} (remove or rename it)"
    assert expected == refusal(trace_file(NATIVE_HEADER.strip() + ",prio\na,0,1,1,1\n"))


def test_repeated_column_is_refused(trace_file):
    """Two columns of one name leave open which one counts."""
    expected = "trace.csv line 1: column 'arrival_s' appears twice, expected it once (rename one)"
    assert expected == refusal(trace_file("request_id,arrival_s,arrival_s\na,0,0\n"))


@pytest.mark.parametrize(
    ("row", "fields"), [("a,0,1", "3 fields"), ("a,0,1,1,", "5 fields"), ("a", "1 field"), (" ", "1 field")]
)
def test_row_of_another_width_is_refused(trace_file, row, fields):
    """A row has as many fields as the header, not one fewer or more."""
    expected = (
        f"trace.csv line 3: {fields}, expected 4: request_id, arrival_s, prompt_tokens, output_tokens "
        "(repair or drop the row)"
    )
    assert expected == refusal(trace_file(f"{NATIVE_HEADER}ok,0,1,1\n{row}\n"))


def test_lines_are_counted_over_blank_lines_and_quoted_breaks(trace_file):
    """The line in a message is the one an editor shows, where the row begins."""
    text = 'num_prefill_tokens,num_decode_tokens,note\n1,1,"two\nlines"\n\n1,0,"also\ntwo"\n'
    assert "trace.csv line 5: num_decode_tokens is '0'" in refusal(trace_file(text))


def test_open_quote_is_refused(trace_file):
    """A quote that never closes is found at its line and does not swallow the rest of the file."""
    expected = "trace.csv line 3: no valid CSV (unexpected end of data); repair or drop the line"
    assert expected == refusal(trace_file(NATIVE_HEADER + 'a,0,1,1\n"b,0,1,1\nc,0,1,1\n'))


# Cells


@pytest.mark.parametrize(
    "value", ["-3", "0", "-0", "-0.0", "12.5", "", "x", "1e3", "nan", "1_000", "0x10", "٣", "1,5"]
)
@pytest.mark.parametrize(("column", "row"), [("prompt_tokens", "a,0,{},1"), ("output_tokens", "a,0,1,{}")])
def test_token_count_that_is_no_count_is_refused(trace_file, column, row, value):
    """Token counts are whole numbers of at least 1; the sentence names file, line, column, value, remedy."""
    expected = f"trace.csv line 2: {column} is {value!r}, expected a whole number of at least 1 {SKIP_ROW}"
    quoted = f'"{value}"'
    assert expected == refusal(trace_file(NATIVE_HEADER + row.format(quoted) + "\n"))


@pytest.mark.parametrize(
    ("value", "tokens"), [("1", 1), ("12.0", 12), ("7.", 7), ("0012", 12), ("1000000000", 10**9)]
)
def test_token_count_may_be_written_as_a_float(trace_file, value, tokens):
    """12.0 is 12, for so does pandas write a column with an empty cell."""
    assert tokens == read_trace(trace_file(f"{NATIVE_HEADER}a,0,{value},1\n")).requests[0].prompt_tokens


@pytest.mark.parametrize("value", ["1000000001", "9" * 50])
def test_token_count_beyond_all_sense_is_refused(trace_file, value):
    """A count that would overflow later is refused here."""
    expected = f"trace.csv line 2: prompt_tokens is '{value}', expected at most 1000000000 in size {SKIP_ROW}"
    assert expected == refusal(trace_file(f"{NATIVE_HEADER}a,0,{value},1\n"))


def test_column_is_named_as_in_the_file(trace_file):
    """An Azure file is told about its own column, not about ours."""
    expected = f"trace.csv line 2: GeneratedTokens is '0', expected a whole number of at least 1 {SKIP_ROW}"
    assert expected == refusal(trace_file(AZURE_HEADER + "2023-11-16 18:15:46.6805900,374,0"))


def test_long_cell_is_shortened(trace_file):
    """A sentence stays a sentence, whatever stands in the cell."""
    shown = "y" * 60 + "..."
    expected = (
        f"trace.csv line 2: prompt_tokens is '{shown}', expected a whole number of at least 1 {SKIP_ROW}"
    )
    assert expected == refusal(trace_file(f"{NATIVE_HEADER}a,0,{'y' * 5000},1\n"))


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "", "soon", "1_0", "1e9999", "0x1", "1:30"])
def test_arrival_that_is_no_number_is_refused(trace_file, value):
    """Arrivals are finite decimal numbers; nothing but digits, sign, point and exponent is read."""
    reason = "expected a finite number of seconds, at least 0 (drop the row)"
    expected = f"trace.csv line 2: arrival_s is '{value}', {reason}"
    assert expected == refusal(trace_file(f"{NATIVE_HEADER}a,{value},1,1\n"))


def test_negative_arrival_is_refused(trace_file):
    """No request arrives before 0."""
    expected = (
        "trace.csv line 3: arrival_s is '-0.5', expected a number of seconds of at least 0 (drop the row)"
    )
    assert expected == refusal(trace_file(NATIVE_HEADER + "a,0,1,1\nb,-0.5,1,1\n"))


@pytest.mark.parametrize("value", ["9000000001", "1e999"])
def test_arrival_beyond_64_bits_is_refused(trace_file, value):
    """Milliseconds since 1970 taken for seconds are noticed, and no exponent fills the memory."""
    expected = (
        f"trace.csv line 2: arrival_s is '{value}', expected at most 9000000000 seconds; "
        "is it in milliseconds? (drop the row)"
    )
    assert expected == refusal(trace_file(f"{NATIVE_HEADER}a,{value},1,1\n"))


@pytest.mark.parametrize(
    "value",
    [
        "2023-11-16",
        "2023-02-30 18:15:46.6805900",
        "2023-11-16 24:00:00",
        "2023-11-16 18:60:46",
        "2023-11-16 18:15:46.",
        "2023-11-16 18:15:46.1234567890",
        "2023-11-16 18:15:46+02:00",
        "12.5",
        "",
    ],
)
def test_timestamp_that_is_none_is_refused(trace_file, value):
    """Dates that do not exist, other zones and more digits than nanoseconds are refused."""
    expected = (
        f"trace.csv line 2: TIMESTAMP is '{value}', expected a UTC time like 2023-11-16 18:17:03.9799600 "
        "or 2024-05-10 00:00:00.009930+00:00 (drop the row)"
    )
    assert expected == refusal(trace_file(f"{AZURE_HEADER}{value},1,1\n"))


@pytest.mark.parametrize("value", ["high", "1.5", ""])
def test_priority_that_is_none_is_refused(trace_file, value):
    """Priorities are whole numbers."""
    expected = f"trace.csv line 2: priority is '{value}', expected a whole number {SKIP_ROW}"
    assert expected == refusal(trace_file(f"{NATIVE_HEADER.strip()},priority\na,0,1,1,{value}\n"))


@pytest.mark.parametrize("value", ["", "  ", "a\tb", "a\u2028b"])
def test_name_that_is_none_is_refused(trace_file, value):
    """A request has a name, without control characters."""
    expected = (
        f"trace.csv line 2: request_id is {value!r}, expected a name of printable characters {SKIP_ROW}"
    )
    assert expected == refusal(trace_file(f"{NATIVE_HEADER}{value},0,1,1\n"))


def test_repeated_name_is_refused_with_both_lines(trace_file):
    """Names are unique; both lines are named, in the order of the file even if they arrive the other way."""
    expected = (
        "trace.csv line 4: request_id is 'a', which line 2 already has, expected unique names "
        "(rename one, or drop the row, or use --limit/--window to leave it out)"
    )
    assert expected == refusal(trace_file(NATIVE_HEADER + "a,5,1,1\nb,0,1,1\na,0,1,1\n"))


# Window, limit, rate


@pytest.fixture
def five_arrivals(trace_file):
    """Five requests, arriving 0, 1, 2, 3 and 10 s after the first, the file's clock starting at 100 s."""
    return trace_file(NATIVE_HEADER + "".join(f"q{t},{100 + t},1,1\n" for t in (10, 0, 1, 2, 3)))


def test_limit_keeps_the_first_by_arrival(five_arrivals):
    """The limit counts by arrival, not by the order of the file."""
    assert [r.request_id for r in read_trace(five_arrivals, limit=2).requests] == ["q0", "q1"]


def test_limit_beyond_the_end_keeps_all(five_arrivals):
    """A limit larger than the trace is no error."""
    assert len(read_trace(five_arrivals, limit=99).requests) == 5


@pytest.mark.parametrize(
    ("window", "kept"),
    [
        ((1, 3), ["q1", "q2"]),
        ((1, 3.000000001), ["q1", "q2", "q3"]),
        ((1.000000001, 3), ["q2"]),
        ((3, math.inf), ["q3", "q10"]),
        ((0, 1000), ["q0", "q1", "q2", "q3", "q10"]),
    ],
)
def test_window_is_half_open(five_arrivals, window, kept):
    """The start is in the window, the end is not, to the nanosecond."""
    trace = read_trace(five_arrivals, window=window)

    assert kept == [r.request_id for r in trace.requests]


def test_times_are_since_the_first_request_kept(five_arrivals):
    """A window's trace starts at 0 again."""
    trace = read_trace(five_arrivals, window=(2, 11))

    assert [r.arrival_ns for r in trace.requests] == [0, 1_000_000_000, 8_000_000_000]


def test_window_then_limit_then_rate(five_arrivals):
    """The limit counts within the window, and the window is in seconds of the file."""
    trace = read_trace(five_arrivals, window=(1, 11), limit=3, scale_rate=2.0)

    assert [row[:2] for row in rows_of(trace)] == [("q1", 0), ("q2", 500_000_000), ("q3", 1_000_000_000)]


def test_generated_names_do_not_depend_on_the_window(trace_file):
    """r2 is the third arrival of the whole file, also where the first two are left out."""
    text = "num_prefill_tokens,num_decode_tokens,arrived_at\n1,1,0\n1,1,1\n1,1,2\n"

    assert [r.request_id for r in read_trace(trace_file(text), window=(2, 3)).requests] == ["r2"]


def test_wrong_rows_outside_the_selection_do_no_harm(trace_file):
    """As the messages promise, a row that is left out need not have sensible tokens or its own name."""
    path = trace_file(NATIVE_HEADER + "a,0,1,1\nb,1,-3,1\na,2,1,1\n")

    assert [r.request_id for r in read_trace(path, limit=1).requests] == ["a"]
    assert [r.request_id for r in read_trace(path, window=(2, 3)).requests] == ["a"]


def test_empty_window_is_refused(five_arrivals):
    """A window without arrivals is refused with the span of the arrivals."""
    expected = (
        "no request arrives in the window from 4 s to 10 s; the arrivals go from 0 s to 10.0 s "
        "(choose a window that overlaps them)"
    )
    assert expected == refusal(five_arrivals, window=(4, 10))


@pytest.mark.parametrize(
    ("selection", "sentence"),
    [
        ({"limit": 0}, "limit is 0, expected at least 1 request"),
        ({"scale_rate": 0}, "scale_rate is 0, expected a finite factor above 0"),
        ({"scale_rate": -1.5}, "scale_rate is -1.5, expected a finite factor above 0"),
        ({"scale_rate": math.inf}, "scale_rate is inf, expected a finite factor above 0"),
        ({"scale_rate": math.nan}, "scale_rate is nan, expected a finite factor above 0"),
        ({"window": (2, 2)}, "window is 2:2, expected seconds start:end, 0 <= start < end"),
        ({"window": (-1, 2)}, "window is -1:2, expected seconds start:end, 0 <= start < end"),
        ({"window": (0, math.nan)}, "window is 0:nan, expected seconds start:end, 0 <= start < end"),
        (
            {"scale_rate": 1e-300},
            "scale_rate is 1e-300, which spreads the trace over more than 9000000000 s; "
            "expected a larger factor",
        ),
    ],
)
def test_selection_that_makes_no_sense_is_a_usage_error(five_arrivals, selection, sentence):
    """Arguments are refused as such, exit code 2, not as a fault of the file."""
    with pytest.raises(UsageError) as caught:
        read_trace(five_arrivals, **selection)

    assert sentence == str(caught.value)


def test_span_beyond_64_bits_is_refused(trace_file):
    """A mistyped year does not become a time that overflows later."""
    path = trace_file(AZURE_HEADER + "0023-11-16 00:00:00,1,1\n2023-11-16 00:00:00,1,1\n")
    expected = (
        "the arrivals span 63113904000.0 s, expected at most 9000000000 s "
        "(repair them, or use --window to leave some out)"
    )
    assert expected == refusal(path)
    assert len(read_trace(path, window=(1e9, math.inf)).requests) == 1


@given(
    st.lists(st.integers(0, 10**15), min_size=1, max_size=20).map(sorted),
    st.floats(min_value=1e-3, max_value=1e3),
)
def test_rate_is_scaled_exactly(elapsed_ns, factor):
    """Every arrival is the nearest integer to its time over the factor, as an exact rational."""
    exact = [Fraction(t - elapsed_ns[0]) / Fraction(repr(factor)) for t in elapsed_ns]
    rebased = Selection(scale_rate=factor).rebased(elapsed_ns)

    assert all(abs(got - want) <= Fraction(1, 2) for got, want in zip(rebased, exact, strict=True))
    assert sorted(rebased) == rebased


def test_rate_factor_of_one_changes_nothing(five_arrivals):
    """Scaling by 1 is not scaling."""
    assert read_trace(five_arrivals) == read_trace(five_arrivals, scale_rate=1.0)


# Round trip

NAMES = st.text(max_size=12).filter(lambda name: name.isprintable() and name.strip() == name != "")


LIMITS_NS = st.none() | st.integers(1, 10**12)
PREFIXES = st.just(()) | st.tuples(st.tuples(NAMES, st.just(1)))


@st.composite
def request_lists(draw):
    """Requests with unique printable names, sorted by arrival, the first at 0; whatever a row can hold."""
    names = draw(st.lists(NAMES, min_size=1, max_size=8, unique=True))
    size = len(names)
    times = sorted(draw(st.lists(st.integers(0, 10**18), min_size=size, max_size=size)))
    tokens = st.integers(1, 10**9)
    return [
        Request(
            request_id=name,
            arrival_ns=time - times[0],
            prompt_tokens=draw(tokens),
            output_tokens=draw(tokens),
            priority=draw(st.integers(-5, 5)),
            client_id=draw(st.just("") | NAMES),
            ttft_limit_ns=draw(LIMITS_NS),
            tpot_limit_ns=draw(LIMITS_NS),
            prefix=draw(PREFIXES),
            max_tokens=draw(st.none() | st.just(10**9)),
            predicted_tokens=draw(st.none() | tokens),
            session_id="chat" if (think := draw(st.integers(0, 10**12))) else draw(st.just("") | NAMES),
            think_time_ns=think,
        )
        for name, time in zip(names, times, strict=True)
    ]


@given(request_lists())
def test_reading_gives_back_what_was_written(tmp_path_factory, requests):
    """Write and read is the identity, to the nanosecond, for every trace that starts at 0."""
    path = tmp_path_factory.mktemp("round") / "trip.csv"
    write_trace(requests, path)

    assert tuple(requests) == read_trace(path).requests


def test_native_text_is_short_and_exact():
    """Nine decimals without their trailing zeros; no priority column where all are 0."""
    requests = [
        Request(request_id="a", arrival_ns=0, prompt_tokens=5, output_tokens=3),
        Request(request_id="b,c", arrival_ns=1_500_000_000, prompt_tokens=5, output_tokens=3),
        Request(request_id="d", arrival_ns=10_000_000_001, prompt_tokens=5, output_tokens=3),
    ]
    assert trace_text(requests) == NATIVE_HEADER + 'a,0,5,3\n"b,c",1.5,5,3\nd,10.000000001,5,3\n'


def test_optional_columns_are_written_where_there_is_something_in_them():
    """A limit of one request makes a column; a prefix makes two; the rest stays away."""
    plain = Request(request_id="a", arrival_ns=0, prompt_tokens=5, output_tokens=3)
    columns = "request_id,arrival_s,prompt_tokens,output_tokens"

    assert trace_text([plain, replace(plain, request_id="b", ttft_limit_ns=1_500_000_000)]) == (
        f"{columns},ttft_limit_s\na,0,5,3,\nb,0,5,3,1.5\n"
    )
    assert trace_text([plain, replace(plain, request_id="b", client_id="x", prefix=(("sys", 4),))]) == (
        f"{columns},client_id,prefix_id,prefix_tokens\na,0,5,3,,,0\nb,0,5,3,x,sys,4\n"
    )


def test_several_segments_are_not_written():
    """A row has one prefix; the sentence says where several can go."""
    request = Request(
        request_id="a", arrival_ns=0, prompt_tokens=5, output_tokens=3, prefix=(("x", 2), ("y", 2))
    )
    with pytest.raises(TraceError, match=r"request 'a': its prefix has 2 segments, .* as JSON instead"):
        trace_text([request])


@pytest.mark.parametrize(
    "change", [{"client_id": " x"}, {"client_id": "x\ny"}, {"prefix": (("", 2),)}, {"prefix": (("x ", 2),)}]
)
def test_names_that_would_not_survive_are_not_written(change):
    """Clients and prefixes are names as requests are; a prefix without one has no segment to come back as."""
    request = Request(request_id="a", arrival_ns=0, prompt_tokens=5, output_tokens=3, **change)

    with pytest.raises(TraceError, match=r"request 'a': .* expected printable characters without blanks"):
        trace_text([request])


def test_nothing_to_write_is_refused(tmp_path):
    """A file without requests could not be read again."""
    with pytest.raises(TraceError, match="no requests to write, expected at least one"):
        write_trace([], tmp_path / "none.csv")


@pytest.mark.parametrize("name", ["", " a", "a\nb"])
def test_name_that_would_not_survive_is_not_written(name):
    """What read_trace would refuse or change is refused when written."""
    request = Request(request_id=name, arrival_ns=0, prompt_tokens=1, output_tokens=1)

    with pytest.raises(TraceError, match="expected printable characters without blanks around them"):
        trace_text([request])


def test_folder_that_is_not_there_is_refused(tmp_path):
    """A file that cannot be written is said so with the system's reason."""
    request = Request(request_id="a", arrival_ns=0, prompt_tokens=1, output_tokens=1)

    with pytest.raises(InputError, match=r"t\.csv cannot be written: No such file or directory"):
        write_trace([request], tmp_path / "missing" / "t.csv")


# Trace


def test_trace_without_requests_is_refused():
    """The value itself holds at least one request."""
    with pytest.raises(TraceError, match="trace 'x' has no requests, expected at least one"):
        Trace(name="x", format="native", requests=())


def test_unsorted_trace_is_refused():
    """The value itself is sorted by arrival."""
    late = Request(request_id="late", arrival_ns=2, prompt_tokens=1, output_tokens=1)
    early = Request(request_id="early", arrival_ns=1, prompt_tokens=1, output_tokens=1)

    with pytest.raises(TraceError, match="'early' stands behind 'late' and arrives before it"):
        Trace(name="x", format="native", requests=(late, early))
