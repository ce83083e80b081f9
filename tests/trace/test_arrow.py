"""A large trace is read in columns: the same requests, or the same sentence, as row by row."""

from __future__ import annotations

import csv
import io
import pickle
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cspsched.errors import CspschedError, InputError, TraceError
from cspsched.problem.columns import RequestColumns, Requests
from cspsched.problem.cost import CostModel
from cspsched.problem.instance import Instance, Limits
from cspsched.serving import Serving, make_instance
from cspsched.trace import delimited, read_trace
from cspsched.trace.arrow import plain_columns

HEADER = "request_id,arrival_s,prompt_tokens,output_tokens\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens"
LIMITS = Limits(kv_blocks=100, block_tokens=16, max_batch_tokens=64, max_batch_requests=8)


def both_ways(path, monkeypatch, **selection):
    """Trace or sentence, by rows and in columns."""
    answers = []
    for size in (10**9, 0):
        monkeypatch.setattr(delimited, "LARGE_BYTES", size)
        try:
            answers.append(read_trace(path, **selection))
        except CspschedError as error:
            answers.append(f"{type(error).__name__}: {error}")
    return answers


NUMBERS = st.sampled_from(
    [
        "1",
        "17",
        "007",
        "12.0",
        "12.",
        "0",
        "-3",
        "+5",
        "1_000",
        "",
        " 8 ",
        "12.5",
        "0x1F",
        "1e3",
        "٣",
        "1000000001",
    ]
)
ARRIVALS = st.sampled_from(
    ["0", "0.5", ".5", "5.", ".", "1.000000001", "1.0000000005", "1e-3", "-1", "+2", " 3", "1.2.3", "", "9e9",
     "9000000001", "9000000000.000000001", "1700000000.123456789", "nan", "12345678901234567890"]
)  # fmt: skip
NAMES = st.sampled_from(["a", "b c", " d ", "e", "ü", "", "\u2028", "f\x07", '"q"', "g", "h", "i", "j", "k"])
CLIENTS, PREFIXES = st.sampled_from(["", "x", " y"]), st.sampled_from(["", "1", "2"])
LIMIT_CELLS = st.sampled_from(["", "1.5", "0", "2"])


@given(data=st.data(), ending=st.sampled_from(["\n", "\r\n", "\n\n"]), mostly=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_columns_say_what_rows_say(data, ending, mostly, tmp_path, monkeypatch):
    """Whatever the cells are: equal traces, or the same words about the same cell."""
    good = st.tuples(
        st.uuids().map(str),
        st.decimals(0, 10**6, places=9).map(str),
        st.integers(1, 10**9).map(str),
        st.integers(1, 5000).map(str),
    )
    odd = st.tuples(NAMES, ARRIVALS, NUMBERS, NUMBERS)
    rows = data.draw(st.lists(good, min_size=1, max_size=6))
    if not mostly:
        rows += data.draw(st.lists(odd, min_size=1, max_size=2))
    header = HEADER.strip().split(",")
    if data.draw(st.booleans()):
        header += ["client_id", "ttft_limit_s", "prefix_id", "prefix_tokens", "priority", "max_tokens"]
        priorities, limits = st.sampled_from(["0", "-2", "7"]), st.sampled_from(["", "5", "5000"])
        extra = st.tuples(CLIENTS, LIMIT_CELLS, CLIENTS, PREFIXES, priorities, limits)
        rows = [(*row, *data.draw(extra)) for row in rows]
    order = data.draw(st.permutations(range(len(header))))
    text = ending.join(",".join(row[k] for k in order) for row in (header, *rows)) + ending
    path = tmp_path / "trace.csv"
    path.write_bytes(text.encode())
    selection = data.draw(st.sampled_from([{}, {"limit": 2}, {"scale_rate": 1.1}, {"window": (0.0, 5.0)}]))

    by_rows, in_columns = both_ways(path, monkeypatch, **selection)

    assert by_rows == in_columns


@pytest.mark.parametrize(
    "text",
    [
        AZURE + ",NumImages\n0001-01-01 00:00:00,5,6,2\n9999-12-31 00:00:00,7,8,0\n",
        AZURE + ",NumImages\n2023-11-17 00:00:00,5,6,2\n2023-11-16 00:00:00,7,8,0\n",
        AZURE + "\n2023-11-16 18:17:03.9799600,5,6\n2023-11-16 18:17:01.5,7,8\n",
        "num_prefill_tokens,num_decode_tokens\n5,6\n7,8\n",
        "arrived_at,num_prefill_tokens,num_decode_tokens,note\n2.5,5,6,x\n1.5,7,8,\n",
        HEADER + "a,0,1,1\na,1,1,1\n",
        HEADER + "a,0,1\n,1,1,1,1\n",
        HEADER,
        "",
        HEADER.replace("output_tokens", "outputs") + "a,0,1,1\n",
        HEADER.replace("arrival_s", "request_id") + "a,0,1,1\n",
        "\n\n" + HEADER + "\na,0,1,1\n",
        HEADER + "a,0,1,1\n  \nb,1,1,1",
        HEADER + '"a\nb",0,1,1\n',
        HEADER + "a,0,1,1\rb,1,1,1\n",
    ],
)  # fmt: skip
def test_other_formats_and_broken_files(text, tmp_path, monkeypatch):
    """Azure, Vidur, and files that are no traces: the same either way."""
    path = tmp_path / "trace.csv"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())

    by_rows, in_columns = both_ways(path, monkeypatch)

    assert by_rows == in_columns


def test_quotes_are_left_to_the_reader_of_rows():
    """A file with quotes is not plain."""
    assert plain_columns(HEADER + '"a",0,1,1\n', ",") is None


def write_native(path, count):
    """A trace of so many requests, all arrivals different."""
    buffer = io.StringIO()
    rows = ((f"r{k}", f"{k / 7:.9f}", 1 + k % 90, 1 + k % 30) for k in range(count))
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    path.write_text(HEADER + buffer.getvalue(), encoding="utf-8")


def test_instances_of_columns_are_those_of_requests(tmp_path, monkeypatch):
    """Fingerprint, rejections, SLO limits and requests are equal, and so is what was pickled."""
    write_native(tmp_path / "trace.csv", 200)
    by_rows, in_columns = both_ways(tmp_path / "trace.csv", monkeypatch)
    serving = Serving(kv_tokens=96, ttft_limit_s=1.5)
    rows, columns = make_instance(by_rows, serving), make_instance(in_columns, serving)

    assert isinstance(columns.requests, Requests)
    assert rows.fingerprint() == columns.fingerprint()
    assert (
        rows.split_rejected()
        == columns.split_rejected()
        == pickle.loads(pickle.dumps(columns)).split_rejected()
    )
    assert isinstance(columns.split_rejected()[0].requests, Requests)
    assert rows.requests[3:9] == columns.requests[3:9]
    assert hash(rows.requests) == hash(columns.requests)
    assert rows.requests[-1] == columns.requests[-1]


def test_the_fingerprint_of_optional_fields(tmp_path, monkeypatch):
    """Clients, limits, prefixes, what is declared and predicted, and sessions stand in the canonical JSON."""
    path = tmp_path / "trace.csv"
    header = HEADER.strip() + ",client_id,ttft_limit_s,prefix_id,prefix_tokens,max_tokens,predicted_tokens"
    header += ",session_id,think_time_s\n"
    path.write_text(header + "a,0,9,1,me,,p,3,7,,s,\nb,1,9,1,,2.5,,,,4,s,6\n", encoding="utf-8")
    by_rows, in_columns = both_ways(path, monkeypatch)

    assert make_instance(by_rows).fingerprint() == make_instance(in_columns).fingerprint()
    text = path.read_text(encoding="utf-8")
    for cell, other in ((",7,,s", ",8,,s"), (",4,s", ",5,s"), ("s,6", "t,6"), ("s,6", "s,7")):
        path.write_text(text.replace(cell, other), encoding="utf-8")
        assert make_instance(read_trace(path)).fingerprint() != make_instance(by_rows).fingerprint()


def some_columns(**changed):
    """Two requests in columns."""
    numbers = {"arrival_ns": [0, 1], "prompt_tokens": [3, 4], "output_tokens": [1, 2]} | changed
    return RequestColumns.of_fields(
        request_id=["a", "b"], **{name: np.array(values) for name, values in numbers.items()}
    )


@pytest.mark.parametrize("field", ["prompt_tokens", "output_tokens"])
def test_a_column_refuses_what_a_request_refuses(field):
    """The sentence is that of the request."""
    with pytest.raises(TraceError, match=f"request 'b': {field} is 0, expected at least 1"):
        some_columns(**{field: [1, 0]})


@pytest.mark.parametrize(
    ("field", "values", "message"),
    [
        ("max_tokens", [None, 1], "max_tokens is 1, expected at least its output_tokens, 2"),
        ("max_tokens", [None, 2 * 10**9], "max_tokens is 2000000000, expected at most 1000000000"),
        ("predicted_tokens", [5, -1], "predicted_tokens is -1, expected at least 1"),
        ("think_time_ns", [5, -1], "think_time_ns is -1, expected 0 to 9000000000000000000"),
        ("ttft_limit_ns", [5, -1], "ttft_limit_ns is -1, expected at least 1"),
    ],
)
def test_an_optional_column_refuses_what_a_request_refuses(field, values, message):
    """The sentence is that of the request, and what is not given is fine."""
    numbers = {"arrival_ns": [0, 1], "prompt_tokens": [3, 4], "output_tokens": [1, 2]}
    columns = {name: np.array(column) for name, column in numbers.items()}

    with pytest.raises(TraceError, match=f"request 'b': {message}"):
        RequestColumns.of_fields(request_id=["a", "b"], **columns, **{field: values})


def test_names_are_unique():
    """An instance refuses a name that appears twice."""
    twice = replace(some_columns(), request_id=["a", "a"])

    with pytest.raises(InputError, match="request_id 'a' appears twice"):
        Instance(requests=Requests(twice), limits=LIMITS, cost=CostModel(name="one", step=Fraction(1)))


# Parquet


def parquet(path, **columns):
    """A Parquet file with these columns."""
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize(
    "arrivals",
    [
        pa.array([0.5, 1.25]),
        pa.array([0.5, 1.25], pa.float32()),
        pa.array([Decimal("0.5"), Decimal("1.25")], pa.decimal128(10, 2)),
        pa.array(["0.5", "1.25"]),
        pa.array(["0.5", "1.25"], pa.large_string()),
        pa.array(["0.5", "1.25"]).dictionary_encode(),
    ],
    ids=lambda arrivals: str(arrivals.type),
)
@pytest.mark.parametrize(
    "prompts",
    [
        pa.array([5, 7]),
        pa.array([5, 7], pa.uint8()),
        pa.array([5.0, 7.0]),
        pa.array(["5", "7"]),
        pa.array(["5", " 7.0 "]),
        pa.array([Decimal(5), Decimal(7)], pa.decimal128(10, 2)),
    ],
    ids=lambda prompts: str(prompts.type),
)
def test_parquet_columns_of_any_type_are_read(arrivals, prompts, tmp_path):
    """As long as the numbers are whole."""
    path = parquet(tmp_path / "t.parquet", arrival_s=arrivals, prompt_tokens=prompts, output_tokens=prompts)

    assert [(one.arrival_ns, one.prompt_tokens) for one in read_trace(path).requests] == [
        (0, 5),
        (750_000_000, 7),
    ]


@pytest.mark.parametrize("kind", [pa.timestamp("ns"), pa.timestamp("us", tz="UTC"), pa.timestamp("s")])
def test_parquet_moments(kind, tmp_path):
    """Of any resolution; one with a zone is a moment in UTC."""
    moments = pa.array([1_700_000_000, 1_700_000_002], pa.int64()).cast(pa.timestamp("s")).cast(kind)
    path = parquet(tmp_path / "t.parquet", TIMESTAMP=moments, ContextTokens=[5, 7], GeneratedTokens=[1, 2])

    assert [one.arrival_ns for one in read_trace(path).requests] == [0, 2 * 10**9]


@given(st.lists(st.floats(0, 9e9), min_size=1, max_size=8))
def test_floats_of_seconds_are_rounded_from_their_exact_value(tmp_path_factory, seconds):
    """To the nearest nanosecond, not from the product with a billion."""
    path = tmp_path_factory.mktemp("floats") / "t.parquet"
    ones = [1] * len(seconds)
    trace = read_trace(parquet(path, arrival_s=pa.array(seconds), prompt_tokens=ones, output_tokens=ones))
    exact = sorted(Fraction(second) * 10**9 for second in seconds)

    for request, time_ns in zip(trace.requests, exact, strict=True):
        assert abs(request.arrival_ns - (time_ns - exact[0])) <= 1


@pytest.mark.parametrize(
    ("column", "cells", "said"),
    [
        ("prompt_tokens", pa.array([5, None]), "row 2: prompt_tokens is '', expected a whole number"),
        ("prompt_tokens", pa.array([5.0, 7.5]), "row 2: prompt_tokens is '7.5', expected a whole number"),
        ("prompt_tokens", pa.array([5.0, float("nan")]), "row 2: prompt_tokens is 'nan', expected a whole"),
        ("prompt_tokens", pa.array([5, -7]), "row 2: prompt_tokens is '-7', expected a whole number"),
        ("prompt_tokens", pa.array([5, 10**12]), "row 2: prompt_tokens is '1000000000000', expected at most"),
        ("prompt_tokens", pa.array([True, False]), "row 1: prompt_tokens is 'true', expected a whole number"),
        ("arrival_s", pa.array([0, None]), "row 2: arrival_s is '', expected a finite number of seconds"),
        ("arrival_s", pa.array([0.0, float("nan")]), "row 2: arrival_s is 'nan', expected a finite number"),
        ("arrival_s", pa.array([0.0, float("inf")]), "row 2: arrival_s is 'inf', expected a finite number"),
        ("arrival_s", pa.array([-1.5, 0.0]), "row 1: arrival_s is '-1.5', expected a number of seconds"),
        ("arrival_s", pa.array([0, 1_700_000_000_000]), "is it in milliseconds?"),
    ],
)  # fmt: skip
def test_a_wrong_cell_of_parquet_is_refused_with_its_row(column, cells, said, tmp_path):
    """In the words of the other formats."""
    columns = {"arrival_s": [0, 1], "prompt_tokens": [5, 7], "output_tokens": [1, 2]} | {column: cells}
    path = parquet(tmp_path / "t.parquet", **columns)
    with pytest.raises(TraceError) as caught:
        read_trace(path)

    assert str(caught.value).startswith(f"{path} row ")
    assert said in str(caught.value)


@pytest.mark.parametrize("cut", [4, 50, -1, -8])
def test_a_damaged_parquet_file_is_refused(cut, tmp_path):
    """In one line."""
    path = parquet(tmp_path / "t.parquet", arrival_s=[0], prompt_tokens=[5], output_tokens=[1])
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(TraceError) as caught:
        read_trace(path)

    assert str(caught.value).startswith(f"{path} is no whole Parquet file (")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [b"arrival_s", b"prompt"])
def test_parquet_whose_text_is_no_utf_8_is_refused(text, tmp_path):
    """In a name of a column, or in a cell."""
    path = parquet(tmp_path / "t.parquet", arrival_s=["0"], prompt_tokens=["prompt"], output_tokens=["1"])
    path.write_bytes(path.read_bytes().replace(text, text[:-1] + b"\xff"))

    with pytest.raises(TraceError, match="is no whole Parquet file"):
        read_trace(path)


def test_parquet_without_rows_is_refused(tmp_path):
    """A trace has at least one request."""
    columns = dict.fromkeys(("arrival_s", "prompt_tokens", "output_tokens"), pa.array([], pa.int64()))
    with pytest.raises(TraceError, match="has columns and no rows, expected one row per request"):
        read_trace(parquet(tmp_path / "t.parquet", **columns))
