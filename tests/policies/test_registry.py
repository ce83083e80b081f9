"""Policies by name, with settings from text, and policies of the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any, ClassVar

import pytest

from cspsched.errors import UsageError
from cspsched.policies import base
from cspsched.policies.base import make_policy, policy_names
from cspsched.policies.sarathi import Sarathi, SarathiSettings
from cspsched.policies.settings import describe_settings, split_settings
from cspsched.policies.vllm_v1 import QueueOrder, VllmSettings, VllmV1
from cspsched.problem.cost import CostModel
from cspsched.problem.instance import Instance, Limits
from cspsched.problem.request import Request
from cspsched.simulate import Policy, Step, simulate


@dataclass(frozen=True, kw_only=True)
class OwnSettings:
    most: int = 1


@dataclass(frozen=True)
class Own:
    """A user's policy: the first `most` requests in the queue, whole prompts."""

    settings: OwnSettings = OwnSettings()
    name: ClassVar[str] = "own"
    settings_type: ClassVar[type[OwnSettings]] = OwnSettings

    @property
    def label(self) -> str:
        return f"own:most={self.settings.most}"

    def new_run(self, instance: Instance) -> OwnRun:
        return OwnRun(self.settings.most)


class OwnRun:
    def __init__(self, most: int) -> None:
        self.most = most
        self.queue: list[int] = []

    def submit(self, request: int) -> None:
        self.queue.append(request)

    def schedule(self, step: Step) -> None:
        for request in self.queue[: self.most]:
            tokens = step.known_tokens[request] - step.computed_tokens[request]
            step.schedule(request, tokens, step.missing_blocks(request, tokens))

    def retire(self, requests: Sequence[int]) -> None:
        for request in requests:
            self.queue.remove(request)


class Plain(Own):
    """A policy without settings."""

    settings_type: ClassVar[Any] = None


class NoPolicy:
    """Something else."""


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages that bring policies, good and bad ones."""
    points = EntryPoints(
        EntryPoint(name, f"{__name__}:{attribute}", base.ENTRY_POINT_GROUP)
        for name, attribute in (
            ("own", "Own"), ("plain", "Plain"), ("none", "NoPolicy"), ("gone", "Gone"), ("vllm", "Own"),
        )
    )  # fmt: skip
    monkeypatch.setattr(base, "entry_points", lambda *, group: points.select(group=group))


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain checkout: no metadata at all."""
    monkeypatch.setattr(base, "entry_points", lambda *, group: EntryPoints())


def three_requests() -> Instance:
    requests = tuple(
        Request(request_id=f"r{i}", arrival_ns=0, prompt_tokens=2, output_tokens=2) for i in range(3)
    )
    limits = Limits(kv_blocks=20, block_tokens=1, max_batch_tokens=20, max_batch_requests=20)
    return Instance(requests=requests, limits=limits, cost=CostModel(name="unit", step=Fraction(1)))


@pytest.mark.usefixtures("not_installed")
def test_built_in_policies_need_no_metadata() -> None:
    """They work from a plain checkout."""
    assert policy_names() == list(base.BUILT_IN)
    assert make_policy("vllm") == VllmV1()
    assert make_policy("sarathi") == Sarathi()


@pytest.mark.usefixtures("installed")
def test_entry_points_come_after_the_built_in_names() -> None:
    """And cannot replace them."""
    assert policy_names() == [*base.BUILT_IN, "gone", "none", "own", "plain"]
    assert isinstance(make_policy("vllm"), VllmV1)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(("text", "batches"), [("own", 6), ("own:most=3", 2), ("own:most=2", 4)])
def test_a_policy_of_a_users_own_runs(text: str, batches: int) -> None:
    """With its settings, typed by its dataclass."""
    assert simulate(three_requests(), make_policy(text)).schedule.num_batches == batches


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("plain:most=2", "policy 'plain' takes no settings, got 'most=2'"),
        ("none", "policy 'none' is a NoPolicy without name, label and new_run"),
        ("gone", "policy 'gone' cannot be loaded from .*:Gone: .*Gone"),
        ("own:mots=2", "policy 'own' has no setting 'mots', did you mean 'most'\\?; it knows: most"),
    ],
)
def test_a_bad_policy_of_a_users_own_is_refused(text: str, message: str) -> None:
    """Each with a sentence."""
    with pytest.raises(UsageError, match=message):
        make_policy(text)


@pytest.mark.usefixtures("not_installed")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vlm", "unknown policy 'vlm', did you mean 'vllm'\\?; there are: vllm, sarathi"),
        ("", "unknown policy ''; there are: vllm, sarathi"),
        ("vllm:chunk=5", "policy 'vllm' has no setting 'chunk'; it knows: max_num_seqs, .*, policy"),
        ("vllm:max_num_seq=5", "no setting 'max_num_seq', did you mean 'max_num_seqs'\\?"),
        ("vllm:max_num_seqs=many", "policy 'vllm': max_num_seqs is 'many', expected a whole number"),
        ("vllm:max_num_seqs=0", "policy 'vllm': max_num_seqs is 0, expected at least 1"),
        ("vllm:max_num_batched_tokens=-1", "max_num_batched_tokens is -1, expected at least 1"),
        ("vllm:long_prefill_token_threshold=-1", "long_prefill_token_threshold is -1, expected at least 0"),
        ("vllm:watermark=1", "policy 'vllm': watermark is 1.0, expected at least 0 and below 1"),
        ("vllm:watermark=-0.1", "watermark is -0.1, expected at least 0 and below 1"),
        ("vllm:watermark=nan", "watermark is nan, expected at least 0 and below 1"),
        ("vllm:watermark=low", "watermark is 'low', expected a number"),
        ("vllm:policy=lifo", "policy is 'lifo', expected one of fcfs, priority"),
        ("vllm:enable_chunked_prefill=maybe", "enable_chunked_prefill is 'maybe', expected true or false"),
        ("vllm:max_num_seqs", "setting 'max_num_seqs' is no key=value, such as max_num_seqs=256"),
        ("vllm:max_num_seqs=", "setting 'max_num_seqs=' is no key=value"),
        ("vllm:=3", "setting '=3' is no key=value"),
        ("vllm:watermark=0,watermark=0", "setting 'watermark' is given twice"),
        ("sarathi:chunk=5,chunk_size=6", "'chunk_size' is another name of 'chunk', which is given too"),
        ("sarathi:chunk=0", "policy 'sarathi': chunk is 0, expected at least 1"),
        ("sarathi:max_num_seqs=0", "policy 'sarathi': max_num_seqs is 0, expected at least 1"),
        ("sarathi:watermark=2", "policy 'sarathi': watermark is 2.0, expected"),
    ],
)
def test_wrong_names_and_values_are_refused(text: str, message: str) -> None:
    """What was got, what was expected, which name is near."""
    with pytest.raises(UsageError, match=message):
        make_policy(text)


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("vllm:", VllmV1()),
        (" vllm ", VllmV1()),
        ("vllm:max_num_seqs=256", VllmV1(VllmSettings(max_num_seqs=256))),
        ("vllm:--max-num-seqs=256", VllmV1(VllmSettings(max_num_seqs=256))),
        ("vllm: max-num-seqs = 8 ,", VllmV1(VllmSettings(max_num_seqs=8))),
        ("vllm:max_num_batched_tokens=64", VllmV1(VllmSettings(max_num_batched_tokens=64))),
        ("vllm:policy=priority", VllmV1(VllmSettings(policy=QueueOrder.PRIORITY))),
        ("vllm:watermark=0.01", VllmV1(VllmSettings(watermark=0.01))),
        ("vllm:enable_chunked_prefill=off", VllmV1(VllmSettings(enable_chunked_prefill=False))),
        ("vllm:enable_chunked_prefill=True", VllmV1(VllmSettings(enable_chunked_prefill=True))),
        ("vllm:scheduler_reserve_full_isl=0", VllmV1(VllmSettings(scheduler_reserve_full_isl=False))),
        ("vllm:long_prefill_token_threshold=9", VllmV1(VllmSettings(long_prefill_token_threshold=9))),
        ("sarathi:chunk=64", Sarathi(SarathiSettings(chunk=64))),
        ("sarathi:chunk-size=64", Sarathi(SarathiSettings(chunk=64))),
        ("sarathi:max_num_seqs=3,watermark=0", Sarathi(SarathiSettings(max_num_seqs=3, watermark=0.0))),
    ],
)
def test_settings_are_read_from_text(text: str, policy: Policy) -> None:
    """Typed, by the engine's own names, dashes or underscores."""
    assert make_policy(text) == policy


@pytest.mark.parametrize(
    "label",
    [
        "vllm",
        "vllm:max_num_seqs=256",
        "vllm:long_prefill_token_threshold=512,enable_chunked_prefill=false,policy=priority",
        "vllm:scheduler_reserve_full_isl=false,watermark=0.01",
        "sarathi",
        "sarathi:chunk=64,max_num_seqs=7,watermark=0.0",
    ],
)
def test_a_label_is_read_back_to_the_same_policy(label: str) -> None:
    """It shows what differs from the defaults, in the words that `make_policy` reads."""
    policy = make_policy(label)

    assert policy.label == label
    assert make_policy(policy.label) == policy


def test_default_settings_are_not_shown() -> None:
    """Stating a default changes nothing, not even the label."""
    assert make_policy("sarathi:chunk=512").label == "sarathi"
    assert describe_settings(VllmSettings(watermark=0.0)) == ""


def test_no_settings_are_no_pairs() -> None:
    """Nothing after the colon."""
    assert split_settings("", "vllm") == {}
