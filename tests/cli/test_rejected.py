"""A request that can never fit is told and counted, and changes nothing else, whatever the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.problem.request import Request
from tests.support.command_line import invoke
from tests.support.strategies import check_briefly, instances

HEADER = "request_id,arrival_s,prompt_tokens,output_tokens"
SERVED = ("a,{0},20,3", "b,{1},9,4", "c,{2},30,2")
TOO_LARGE = "big,{0},900,9"
ROOM = ("--kv-tokens", "64", "--block-tokens", "1")
COMMANDS = {
    "simulate": (),
    "bound": ("--objective", "latency"),
    "solve": ("--deterministic", "--time-limit", "2s"),
    "compare": ("--heuristics", "vllm", "sarathi", "--time-limit", "20s"),
    "improve": ("--steps", "20", "--objective", "latency"),
    "bracket": ("--steps", "20", "--objective", "latency"),
    "windows": ("--num", "2", "--objective", "latency"),
}
TIMES = ("created", "elapsed_s", "seconds", "wall_s", "time_s", "provenance")
"""Fields that differ from run to run."""


def trace_of(*rows):
    """Rows with their arrivals filled in."""
    return "\n".join([HEADER, *rows, ""])


def plain(data):
    """JSON without what is told of the rejected and without clocks."""
    if isinstance(data, dict):
        left_out = ("rejected", "warnings", *TIMES)
        return {name: plain(value) for name, value in data.items() if name not in left_out}
    return [plain(value) for value in data] if isinstance(data, list) else data


@pytest.fixture
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_folder")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_rejected_request_that_comes_first_changes_no_value(command, capsys):
    """Before all others or between them: the JSON is that of the rest, and the reason is told."""
    rest = (row.format(*(0.1, 0.11, 0.3)) for row in SERVED)
    alone = trace_of(*(row.format(0, 0.01, 0.2) for row in SERVED))
    Path("alone.csv").write_text(alone, encoding="utf-8")
    Path("first.csv").write_text(trace_of(TOO_LARGE.format(0), *rest), encoding="utf-8")
    between = alone.replace("\nc,", f"\n{TOO_LARGE.format(0.05)}\nc,")
    Path("between.csv").write_text(between, encoding="utf-8")
    found = {}
    for name in ("alone", "first", "between"):
        options = (*ROOM, *COMMANDS[command], "--json")
        outcome = invoke(capsys, command, f"{name}.csv", *options)
        assert outcome.code == 0, outcome.err
        told = "request 'big' alone needs 908 KV blocks" in outcome.out + outcome.err
        assert told == (name != "alone")
        found[name] = plain(json.loads(outcome.out))
    assert found["alone"] == found["first"] == found["between"]


@check_briefly
@given(instances(), st.integers(0, 4), st.integers(0, 50), st.integers(0, 60))
def test_split_rejected_gives_back_what_was_there_before(instance, place, early, arrival):
    """One that is too large, at any place and time: what is left is the instance, its clock included."""
    first = min(request.arrival_ns for request in instance.requests)
    moved = [replace(request, arrival_ns=request.arrival_ns - first + early) for request in instance.requests]
    tokens = instance.limits.kv_tokens + 1
    big = Request(request_id="big", arrival_ns=arrival, prompt_tokens=tokens, output_tokens=1)
    with_big = replace(instance, requests=(*moved[:place], big, *moved[place:]))
    servable, rejections = with_big.split_rejected()
    start = min(early, arrival)
    assert [rejection.request for rejection in rejections] == [big]
    assert servable == replace(
        instance,
        requests=tuple(replace(one, arrival_ns=one.arrival_ns - early + start) for one in moved),
    )
    assert servable.split_rejected() == (servable, ())
