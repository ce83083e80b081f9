"""Whole published files against a naive reading of their lines."""

from __future__ import annotations

import csv
import json
from datetime import datetime
from fractions import Fraction

import pytest

from cspsched.trace import read_trace
from tests.support.places import DATA

TRACES, RUN = DATA / "traces", DATA / "real_runs" / "rtx4090_llama-3.1-8b_vllm-0.19" / "requests.jsonl"
pytestmark = pytest.mark.skipif(not TRACES.is_dir(), reason="the public traces are not beside the checkout")


def lengths(trace):
    return [(one.prompt_tokens, one.output_tokens) for one in trace.requests]


@pytest.mark.parametrize(("name", "rows"), [("code", 8_819), ("conv", 19_366)])
def test_azure_2023(name, rows):
    """Every row, and the span to the last digit of seven."""
    path = TRACES / f"azure2023_{name}.csv"
    with path.open(newline="", encoding="utf-8") as file:
        lines = sorted(csv.DictReader(file), key=lambda row: row["TIMESTAMP"])
    first, last = (lines[k]["TIMESTAMP"] for k in (0, -1))
    whole = [datetime.fromisoformat(one[:19]).timestamp() for one in (first, last)]
    elapsed_ns = (int(whole[1] - whole[0])) * 10**9 + (int(last[20:]) - int(first[20:])) * 100
    trace = read_trace(path)

    assert len(lines) == rows
    assert lengths(trace) == [(int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in lines]
    assert trace.requests[-1].arrival_ns == elapsed_ns


def test_vidur():
    """All requests arrive at once, in the order of the file."""
    path = TRACES / "vidur_arxiv_summarization_4k.csv"
    with path.open(newline="", encoding="utf-8") as file:
        expected = [
            (int(row["num_prefill_tokens"]), int(row["num_decode_tokens"])) for row in csv.DictReader(file)
        ]
    trace = read_trace(path)

    assert lengths(trace) == expected
    assert {one.arrival_ns for one in trace.requests} == {0}
    assert trace.unused_columns == ()


@pytest.mark.parametrize("name", ["conversation", "synthetic"])
def test_mooncake(name):
    """Every row in the order of its stamp."""
    path = TRACES / f"mooncake_fast25_{name}.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows.sort(key=lambda row: row["timestamp"])
    trace = read_trace(path)

    assert lengths(trace) == [(row["input_length"], row["output_length"]) for row in rows]
    first_ms = rows[0]["timestamp"]
    assert [one.arrival_ns for one in trace.requests] == [
        (row["timestamp"] - first_ms) * 10**6 for row in rows
    ]


@pytest.mark.skipif(not RUN.is_file(), reason="the recorded run is not beside the checkout")
def test_a_run_of_llmservingsim():
    """300 requests; seconds since 1970 with seven decimals are exact."""
    rows = [json.loads(line, parse_float=Fraction) for line in RUN.read_text(encoding="utf-8").splitlines()]
    rows.sort(key=lambda row: row["arrival_time"])
    trace = read_trace(RUN)

    assert len(rows) == 300
    assert lengths(trace) == [(row["input_toks"], row["output_toks"]) for row in rows]
    expected = [round((row["arrival_time"] - rows[0]["arrival_time"]) * 10**9) for row in rows]
    assert [one.arrival_ns for one in trace.requests] == expected
