"""The catalogue of policies: sources, engines, settings; and what holds for every policy there is."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, fields, replace
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.cli.group import cspsched_group, run
from cspsched.policies import base
from cspsched.policies.base import BUILT_IN, make_policy
from cspsched.policies.catalogue import (
    READS_OUTPUTS,
    SOURCES,
    Source,
    describe_policy,
    lengths_known_to,
)
from cspsched.problem.instance import Instance, Switches
from cspsched.referee.rules import find_violations
from cspsched.serving import make_instance
from cspsched.simulate import simulate
from cspsched.trace import read_trace
from tests.support.places import DATA
from tests.support.policy_runs import batches, evictions, instance_of
from tests.support.strategies import check, instances

TRACES = DATA / "traces"
needs_data = pytest.mark.skipif(not TRACES.is_dir(), reason="the public traces are not beside the checkout")


def test_every_built_in_policy_has_a_source() -> None:
    """And nothing else has one; the address is one that can be opened."""
    assert set(SOURCES) == set(BUILT_IN)
    assert all(source.url.startswith("https://") for source in SOURCES.values())
    assert all(source.program and source.version for source in SOURCES.values())


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_policy_is_described(name: str) -> None:
    """A first line, its source, that it compiles, and a sentence for every setting."""
    entry = describe_policy(name)

    assert entry.name == name == make_policy(name).name
    assert entry.follows.endswith(".")
    assert entry.source == SOURCES[name]
    assert entry.engine == "compiled"
    assert [setting.name for setting in entry.settings if not setting.meaning] == []
    settings_type = getattr(make_policy(name), "settings_type", None)
    expected = [field.name for field in fields(settings_type)] if settings_type else []
    assert [setting.name for setting in entry.settings] == expected


@check
@given(instances(), st.sampled_from(sorted(BUILT_IN)))
def test_every_policy_serves_by_the_rules(instance: Instance, name: str) -> None:
    """With its defaults on any tiny instance where a batch holds every prompt and refill."""
    budget = max(request.peak_kv_tokens for request in instance.requests)
    limits = replace(
        instance.limits, max_batch_tokens=max(budget, instance.limits.max_batch_tokens), max_model_len=None
    )
    instance = replace(instance, limits=limits, switches=Switches())

    assert find_violations(instance, simulate(instance, make_policy(name)).schedule) == []


@needs_data
@pytest.mark.parametrize(("trace", "limit"), [("azure2023_code", 1000), ("azure2023_conv", 150)])
def test_every_policy_finishes_the_azure_traces(trace: str, limit: int) -> None:
    """The first requests on the default device, with default settings, by the rules.

    Fewer of the conversations, whose long outputs make many batches: the suite is to stay short.
    """
    instance = make_instance(read_trace(TRACES / f"{trace}.csv", limit=limit))
    violations = {
        name: find_violations(instance, simulate(instance, make_policy(name)).schedule) for name in BUILT_IN
    }
    assert {name: found for name, found in violations.items() if found} == {}


@needs_data
@pytest.mark.parametrize("name", BUILT_IN)
def test_too_long_requests_are_rejected_alike(name: str) -> None:
    """The instance rejects what is longer than max_model_len; every policy serves the same rest."""
    instance = make_instance(read_trace(TRACES / "azure2023_conv.csv", limit=40))
    limited = replace(instance, limits=replace(instance.limits, max_model_len=1000))
    kept, rejections = limited.split_rejected()
    served = set(simulate(kept, make_policy(name)).schedule.request.tolist())

    assert len(rejections) == sum(request.peak_kv_tokens > 1000 for request in instance.requests) > 0
    assert served == set(range(len(kept.requests)))


# The command


def test_the_command_shows_one_policy_with_the_meaning_of_its_settings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Default, choices and sentence of each; and the source."""
    assert run(cspsched_group, ["policies", "infermax"]) == 0
    text = capsys.readouterr().out

    assert "source: InferMax 2024, https://arxiv.org/abs/2411.07447; engine: compiled" in text
    assert '    eviction = "newest" (one of newest, shortest, histogram)\n        Who is evicted' in text
    assert "vllm" not in text


def test_the_command_gives_it_all_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """One row with what the text says."""
    assert run(cspsched_group, ["policies", "orca", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]

    assert (row["program"], row["version"]) == ("sarathi-serve", "96f9911")
    assert row["source"] == "https://github.com/microsoft/sarathi-serve"
    seqs, reservation = row["explained"]
    assert seqs == {"setting": "max_num_seqs", "choices": [], "meaning": "Most running requests."}
    assert reservation["setting"] == "reservation"
    assert reservation["choices"] == ["max", "pow2", "oracle", "declared"]
    assert row["settings"] == {"max_num_seqs": 128, "reservation": "max"}


def test_the_command_refuses_an_unknown_policy(capsys: pytest.CaptureFixture[str]) -> None:
    """With the nearest name."""
    assert run(cspsched_group, ["policies", "vlm"]) == 2
    assert "unknown policy 'vlm', did you mean 'vllm'?" in capsys.readouterr().err


# Policies of others


@dataclass(frozen=True)
class OtherSettings:
    """Settings, of which one has no sentence."""

    first: int = 1
    """What the first means."""
    second: int = 2


class Other:
    """A policy of another package."""

    name: ClassVar[str] = "other"
    label: ClassVar[str] = "other"
    settings_type: ClassVar[type[OtherSettings]] = OtherSettings

    def __init__(self, settings: OtherSettings) -> None:
        self.settings = settings

    def new_run(self, instance: Instance) -> Any:
        raise NotImplementedError


class Sourced(Other):
    """One that says where it comes from."""

    source: ClassVar[Source] = Source(program="P", version="1", url="https://example.org")


@pytest.mark.parametrize(("kind", "source"), [(Other, None), (Sourced, Sourced.source)])
def test_a_policy_of_another_package_may_name_its_source(
    kind: type[Other],
    source: Source | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By an attribute; without one the listing says so, and it runs as plain Python."""
    points = EntryPoints([EntryPoint("other", f"{__name__}:{kind.__name__}", base.ENTRY_POINT_GROUP)])
    monkeypatch.setattr(base, "entry_points", lambda *, group: points.select(group=group))
    entry = describe_policy("other")

    assert (entry.source, entry.engine) == (source, "plain")
    assert [setting.meaning for setting in entry.settings] == ["What the first means.", ""]
    assert run(cspsched_group, ["policies"]) == 0
    listed = capsys.readouterr().out
    assert f"source: {'P 1, https://example.org' if source else '-'}; engine: plain" in listed


@pytest.mark.parametrize("name", BUILT_IN)
def test_who_reads_outputs_is_stated(name):
    """Until a request finishes, a longer output of it changes what a policy does only if that is stated."""
    reads = any(not same_until_its_end(name, random.Random(seed)) for seed in range(100))

    assert reads is (name in READS_OUTPUTS)


def same_until_its_end(name: str, rng: random.Random) -> bool:
    """Whether a policy does the same with a request as with a longer one, up to the end of the shorter."""
    count = rng.randint(3, 7)
    arrivals = [0, *sorted(rng.randint(0, 30) for _ in range(count - 1))]
    rows = [(rng.randint(1, 12), rng.randint(1, 8), arrival) for arrival in arrivals]
    limits = {
        "kv_blocks": rng.randint(23, 30),
        "max_batch_tokens": rng.choice((16, 20, 40)),
        "max_batch_requests": rng.randint(2, 8),
    }
    changed = rng.randrange(count)
    prompt, output, arrival = rows[changed]
    longer = [*rows[:changed], (prompt, output + rng.randint(1, 4), arrival), *rows[changed + 1 :]]
    short, long = (simulate(instance_of(*each, **limits), make_policy(name)) for each in (rows, longer))
    end = max(j for j, entries in enumerate(batches(short)) if changed in dict(entries)) + 1
    early = [[event for event in evictions(one) if event[0] < end] for one in (short, long)]
    return batches(short)[:end] == batches(long)[:end] and early[0] == early[1]


def test_who_reads_outputs_says_so_in_its_rules() -> None:
    """Those that are listed, and no other."""
    instance = instance_of((2, 3), (2, 4))
    known = {name: lengths_known_to(make_policy(name), instance) for name in BUILT_IN}

    assert {name for name, told in known.items() if told} == READS_OUTPUTS
    assert set(known.values()) == {None, "true output lengths"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("vllm", None),
        ("tensorrt-llm:capacity_scheduler_policy=max_utilization", None),
        ("infermax", None),
        ("infermax:reservation=true", "max_tokens of the trace"),
        ("orca", None),
        ("orca:reservation=pow2", "true output lengths"),
        ("orca:reservation=oracle", "true output lengths"),
        ("orca:reservation=declared", "max_tokens of the trace"),
        ("tensorrt-llm", "max_tokens of the trace"),
        ("named=sglang", "max_tokens of the trace"),
        ("sjf", "true output lengths"),
        ("trail:prediction=column", "predicted_tokens of the trace"),
        (
            "mc-sf:prediction=noisy,prediction_sigma=0.3,prediction_seed=7",
            "true output lengths times a lognormal factor (sigma 0.3, seed 7)",
        ),
    ],
)
def test_what_policies_know_of_outputs(text, told):
    """Nothing, the true lengths, what a request declares, or what is predicted of it."""
    instance = instance_of((2, 3), (2, 4))
    first, second = instance.requests
    with_limits = replace(instance, requests=(replace(first, max_tokens=9), second))

    assert told == lengths_known_to(make_policy(text), with_limits)
    if told == "max_tokens of the trace":
        assert lengths_known_to(make_policy(text), instance) == "true output lengths"
