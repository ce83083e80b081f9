"""Columns of a trace and settings of policies that do nothing are named, once, and those that do are not."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from cspsched.policies.base import BUILT_IN, make_policy
from cspsched.policies.needs import RequestData, unmet_needs
from cspsched.problem.request import Request
from cspsched.trace import read_trace
from cspsched.trace.trace import Trace
from cspsched.unused import warnings_for
from tests.support.command_line import invoke

CASES = [
    ("vllm:policy=priority", RequestData.PRIORITY, "priority of its own, so it acts as fcfs"),
    ("vllm-v0:policy=priority", RequestData.PRIORITY, "priority of its own, so it acts as fcfs"),
    ("sglang:enable_priority_scheduling=true", RequestData.PRIORITY, "so none goes before another for it"),
    ("sglang:retraction_policy=priority", RequestData.PRIORITY, "so it retracts as by length"),
    ("vllm:enable_prefix_caching=true", RequestData.SHARED_PREFIX, "share a prefix, so only preempted"),
    ("vtc", RequestData.CLIENT, "client_id of its own, so all are one client and it acts as fcfs"),
    ("niyama", RequestData.LIMIT, "TTFT or TPOT limit, so those of its settings hold for all"),
]


def trace_of(**columns):
    """A trace `made` of three requests with values of some fields."""
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    requests = tuple(
        Request(request_id=f"r{k}", arrival_ns=k, prompt_tokens=20, output_tokens=2, **row)
        for k, row in enumerate(rows or [{}] * 3)
    )
    return Trace(name="made", format="native", requests=requests)


DATA = {
    RequestData.PRIORITY: {"priority": (0, 1, 0)},
    RequestData.CLIENT: {"client_id": ("x", "y", "x")},
    RequestData.LIMIT: {"tpot_limit_ns": (None, 5, None)},
    RequestData.SHARED_PREFIX: {"prefix": ((("s", 9),), (), (("s", 5),))},
}


@pytest.mark.parametrize(("policy", "data", "told"), CASES)
def test_a_setting_without_data_is_told_and_one_with_data_is_not(policy, data, told):
    """Its label, the trace, what is missing and what then happens; nothing where requests differ in it."""
    (warning,) = warnings_for(trace_of(), [policy])

    assert warning.startswith(f"policy {policy}: no ")
    assert "of made" in warning
    assert told in warning
    assert warnings_for(trace_of(**DATA[data]), [policy]) == []


@pytest.mark.parametrize("columns", [{"priority": (7, 7, 7)}, {"client_id": ("x", "x", "x")}])
def test_what_all_requests_have_alike_tells_none_apart(columns):
    """The same priority or client for all is as good as none."""
    assert len(warnings_for(trace_of(**columns), ["vllm:policy=priority", "vtc"])) == 2


def test_a_prefix_of_one_request_alone_is_not_shared():
    """Two streams of one request each are no shared prefix."""
    trace = trace_of(prefix=((("s", 9),), (("t", 9),), ()))
    assert len(warnings_for(trace, ["vllm:enable_prefix_caching=true"])) == 1


@pytest.mark.parametrize("name", BUILT_IN)
def test_default_settings_need_nothing_but_clients_and_limits(name):
    """Of the built-in policies only vtc and niyama look at more than arrivals and lengths unless told to."""
    unmet = list(unmet_needs(make_policy(name), trace_of().requests))
    assert bool(unmet) == (name in ("vtc", "niyama"))


def test_settings_that_speak_of_priorities_and_prefixes_state_their_need():
    """No setting by that name is forgotten; infermax means phases, tiers of niyama only break ties."""
    silent = []
    for name in set(BUILT_IN) - {"infermax"}:
        settings_type = type(getattr(make_policy(name), "settings", None))
        for setting in fields(settings_type) if hasattr(settings_type, "__dataclass_fields__") else ():
            speaks = "prefix_caching" in setting.name or setting.name == "enable_priority_scheduling"
            speaks |= any(word == "priority" for word in getattr(setting.type, "split", list)())
            if speaks and "need" not in setting.metadata:
                silent.append((name, setting.name))
    assert silent == []


AZURE = "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n"
IMAGES = f"{AZURE}2024-10-15 00:00:00.100000,2,1024,80\n2024-10-15 00:00:01.200000,0,256,120\n"
PLAIN = f"{AZURE}2024-10-15 00:00:00.100000,0,1024,80\n2024-10-15 00:00:01.200000,0,256,120\n"
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens,{}\n0,9,2,1,1\n1,9,2,1,1\n"


@pytest.mark.parametrize(
    ("text", "warnings"),
    [
        (IMAGES, ["column NumImages (2 images in 1 of 2 requests) is not simulated"]),
        (IMAGES.replace(",2,", ",2.0,"), ["column NumImages (2 images in 1 of 2 requests) is not simulated"]),
        (PLAIN, []),
        (VIDUR.format("num_total_tokens,pd_ratio"), []),
        (VIDUR.format("tenant,pd_ratio"), ["column tenant is not simulated"]),
        (VIDUR.format("tenant,session"), ["columns tenant, session are not simulated"]),
    ],
)
def test_columns_that_are_not_used_are_named_in_one_line(text, warnings, tmp_path):
    """With what they count, if that is known; not those that count nothing or follow from the others."""
    (tmp_path / "trace.csv").write_text(text, encoding="utf-8")
    assert warnings_for(read_trace(tmp_path / "trace.csv")) == warnings


def test_only_requests_that_are_kept_count(tmp_path):
    """With --limit the images of what was left out are none."""
    (tmp_path / "trace.csv").write_text(IMAGES.replace(",0,256", ",3,256"), encoding="utf-8")
    (column,) = read_trace(tmp_path / "trace.csv", limit=1).unused_columns
    assert column.amount == "2 images in 1 of 1 requests"


@pytest.mark.parametrize(
    "command",
    [
        ("simulate", "--policy", "vllm:policy=priority"),
        ("solve", "--heuristics", "vllm:policy=priority", "--limit", "1"),
        ("solve", "--heuristics", "vllm:policy=priority", "--relax", "memory", "--time-limit", "5s"),
    ],
)
def test_commands_tell_it_on_stderr_and_in_their_json(command, capsys, tmp_path, monkeypatch):
    """A line each on stderr, and the list `warnings` in the JSON."""
    monkeypatch.chdir(tmp_path)
    Path("images.csv").write_text(IMAGES, encoding="utf-8")
    name, *options = command
    outcome = invoke(capsys, name, "images.csv", *options, "--kv-tokens", "1104", "--json")
    assert outcome.code == 0, outcome.err
    warnings = json.loads(outcome.out)["warnings"]
    assert [warning.split()[0] for warning in warnings] == ["column", "policy"]
    for warning in warnings:
        assert f"warning: {warning}\n" in outcome.err
