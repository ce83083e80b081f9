"""A large trace is read in columns: the same requests, or the same sentence, as row by row."""

from __future__ import annotations

import csv
import io
import pickle
from dataclasses import replace
from fractions import Fraction

import numpy as np
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
