"""`cspsched trace convert`: another format, and a word about what it cannot hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cspsched.trace import read_trace
from tests.support.command_line import invoke
from tests.support.trace_samples import SAMPLES

(MOONCAKE,) = (one for one in SAMPLES if one.format == "mooncake")
(NATIVE,) = (one for one in SAMPLES if one.format == "native")


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mooncake.jsonl").write_bytes(MOONCAKE.content)
    Path("native.csv").write_bytes(NATIVE.content)


def test_the_same_requests_in_another_format(capsys):
    """What is lost is one line; the JSON lists it, too."""
    outcome = invoke(capsys, "trace", "convert", "native.csv", "out.jsonl", "--to", "mooncake", "--json")

    assert outcome.code == 0
    assert "warning: format mooncake does not hold names of requests\n" in outcome.err
    assert outcome.err.endswith("wrote 3 requests to out.jsonl\n")
    assert json.loads(outcome.out) == {
        "schema": "cspsched/converted-trace/1",
        "file": "out.jsonl",
        "format": "mooncake",
        "num_requests": 3,
        "not_held": ["names of requests"],
    }
    before, after = (read_trace(name).requests for name in ("native.csv", "out.jsonl"))
    assert [one.arrival_ns for one in before] == [one.arrival_ns for one in after]


def test_a_conversion_that_loses_nothing_says_nothing_of_it(capsys):
    """Prefixes of Mooncake are hashes again."""
    outcome = invoke(capsys, "trace", "convert", "mooncake.jsonl", "out.parquet", "--to", "mooncake")

    assert "warning" not in outcome.err
    assert read_trace("out.parquet").requests == read_trace("mooncake.jsonl").requests


def test_standard_output_has_the_trace_alone(capsys):
    """For a pipe."""
    outcome = invoke(capsys, "trace", "convert", "mooncake.jsonl", "-", "--to", "burstgpt", "--limit", "2")

    assert outcome.out == "Timestamp,Request tokens,Response tokens\n0,655,52\n10.535,672,26\n"


def test_a_trace_may_be_written_over_itself(capsys):
    """It is read before it is written."""
    invoke(capsys, "trace", "convert", "native.csv", "native.csv")

    assert len(read_trace("native.csv").requests) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (
            ("native.csv", "out", "--to", "servegen"),
            2,
            "format servegen (ServeGen, client windows) is read and not",
        ),
        (("native.csv", "out", "--to", "x"), 2, "there is no trace format 'x'"),
        (("native.csv", "missing/out"), 1, "missing/out cannot be written: No such file or directory"),
        (("native.csv",), 2, "Missing argument 'OUTPUT'"),
        (("nowhere.csv", "out"), 1, "nowhere.csv does not exist"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments, code, said, capsys):
    """And nothing is written."""
    outcome = invoke(capsys, "trace", "convert", *arguments)

    assert (outcome.code, outcome.out) == (code, "")
    assert said in outcome.err
    assert not Path("out").exists()
