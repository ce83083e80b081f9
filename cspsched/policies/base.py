"""The registry of policies: built-in names, entry points of the group `cspsched.policies`, users' own files.

A policy is an object behind `Policy` (name, label, `new_run`). A factory, usually its class, is called
without arguments, or, if it has a `settings_type` (a frozen dataclass), with one object of that type.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from inspect import signature
from typing import Any

from cspsched.errors import CspschedError, UsageError
from cspsched.policies.settings import nearest, read_settings, split_settings
from cspsched.policies.text import PolicyText
from cspsched.policies.user_file import load_from_file
from cspsched.simulate import Policy, PolicyRun, Step
from cspsched.simulate.decisions import BatchMode, DecisionPolicy, View
from cspsched.simulate.kernel.rules import HasKernelRules
from cspsched.simulate.protocol import StepPolicy
from cspsched.simulate.watch import described, is_ours

__all__ = [
    "BatchMode", "DecisionPolicy", "Policy", "PolicyRun", "Step", "View", "add_setting",
    "make_policy", "policy_names",
]  # fmt: skip

ENTRY_POINT_GROUP = "cspsched.policies"
DEFAULT_HEURISTICS = ("vllm", "sarathi")
"""Policies that are looked at where none is named."""
BUILT_IN = {
    "vllm": "cspsched.policies.vllm_v1:VllmV1",
    "sarathi": "cspsched.policies.sarathi:Sarathi",
    "vllm-v0": "cspsched.policies.vllm_v0:VllmV0",
    "sarathi-vllm": "cspsched.policies.sarathi_vllm:SarathiVllm",
    "orca": "cspsched.policies.orca:Orca",
    "faster-transformer": "cspsched.policies.faster_transformer:FasterTransformer",
    "simple-chunking": "cspsched.policies.simple_chunking:SimpleChunking",
    "sglang": "cspsched.policies.sglang:Sglang",
    "tensorrt-llm": "cspsched.policies.tensorrt_llm:TensorrtLlm",
    "lightllm": "cspsched.policies.lightllm:Lightllm",
    "tgi": "cspsched.policies.tgi:Tgi",
    "mc-sf": "cspsched.policies.mc_sf:McSf",
    "smallest-volume": "cspsched.policies.smallest_volume:SmallestVolume",
    "sorted-f": "cspsched.policies.sorted_f:SortedF",
    "sjf": "cspsched.policies.sjf:Sjf",
    "srpt": "cspsched.policies.srpt:Srpt",
    "trail": "cspsched.policies.srpt:Trail",
    "fastserve": "cspsched.policies.fastserve:Fastserve",
    "vtc": "cspsched.policies.vtc:Vtc",
    "niyama": "cspsched.policies.niyama:Niyama",
    "infermax": "cspsched.policies.infermax:Infermax",
    "vidur-vllm": "cspsched.policies.vidur_vllm:VidurVllm",
    "vidur-sarathi": "cspsched.policies.vidur_sarathi:VidurSarathi",
    "vidur-orca": "cspsched.policies.vidur_reserving:VidurOrca",
    "vidur-faster-transformer": "cspsched.policies.vidur_reserving:VidurFasterTransformer",
    "vidur-lightllm": "cspsched.policies.vidur_lightllm:VidurLightllm",
}
"""Known without any installed metadata, and not to be replaced by an entry point."""


def policy_names() -> list[str]:
    """Names of all policies: the built-in ones first, then those that other packages bring."""
    others = sorted(_entry_points().keys() - BUILT_IN.keys())
    return [*BUILT_IN, *others]


def make_policy(text: str) -> Policy:
    """Policy from its name and settings, such as `vllm`, `vllm:max_num_seqs=256` or `sarathi:chunk=512`.

    `my_file.py:MyPolicy`, again with settings behind a colon, is one of the user's own; the file is run.
    `base=` in front of either is a label: results name the policy so.

    Raises
    ------
    UsageError
        If the policy or a setting is unknown, a value or the label is wrong, or a policy of another package
        or of the user's own cannot be loaded or made or is none.
    """
    wanted = PolicyText.read(text)
    _require_own_label(wanted)
    factory = load_from_file(wanted.file, wanted.attribute) if wanted.file else _load(wanted.name)
    with _making(wanted.name, factory):
        policy = _made(wanted, factory)
    return policy if wanted.label is None else _labelled(policy, wanted.label)


def split_policies(text: str) -> list[str]:
    """Policies of a text such as `vllm,sarathi:chunk=512,max_num_seqs=64`; settings stay with their policy.

    A part is a setting if the part before has some and it is `name=value`, with no colon.
    """
    policies: list[str] = []
    for part in text.split(","):
        has_settings = bool(policies) and "=" in policies[-1] and ":" in policies[-1]
        if has_settings and "=" in part and ":" not in part:
            policies[-1] += f",{part}"
        else:
            policies.append(part)
    return policies


def add_setting(text: str, setting: str) -> str:
    """The text of a policy with one more setting, such as `emulate_bugs=true`."""
    wanted = PolicyText.read(text)
    return str(replace(wanted, settings=",".join(filter(None, (wanted.settings, setting)))))


def _made(wanted: PolicyText, factory: Any) -> Policy:
    """What a factory makes of the settings, if that is a policy."""
    name, settings_type = wanted.name, getattr(factory, "settings_type", None)
    settings = split_settings(wanted.settings, name)
    if settings and settings_type is None:
        raise UsageError(f"policy {name!r} takes no settings, got {wanted.settings!r}")
    arguments = () if settings_type is None else (read_settings(settings_type, settings, name),)
    try:
        signature(factory).bind(*arguments)
    except TypeError as error:
        raise UsageError(f"policy {name!r} cannot be made: {error}") from None
    policy = factory(*arguments)
    if not isinstance(policy, StepPolicy | HasKernelRules):
        raise UsageError(f"policy {name!r} is a {type(policy).__name__} without name, label and new_run")
    if not isinstance(policy.label, str) or len(policy.label.splitlines()) != 1:
        raise UsageError(f"policy {name!r}: label is {policy.label!r}, expected a line of text")
    return policy


@contextmanager
def _making(name: str, factory: Any) -> Iterator[None]:
    """What the code of others raises as it makes a policy is wrong use, told in a sentence."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, CspschedError) or is_ours(factory):
            raise
        raise UsageError(f"policy {name!r} cannot be made: {described(error)}") from error


def _require_own_label(wanted: PolicyText) -> None:
    """Refuse a label that is the name of another policy, which is a colon forgotten or would mislead."""
    label = wanted.label
    if label is not None and label != wanted.name and label in policy_names():
        raise UsageError(
            f"policy {str(wanted)!r}: {label!r} is a policy itself; its settings stand behind a colon "
            f"({label}:{wanted.name}), and a label has another name"
        )


def _labelled(policy: Policy, label: str) -> Policy:
    """A copy of a policy that goes by a label, whatever its class makes of its settings.

    Its class is derived from the policy's, so that it is all that the policy is, and its runs say the label.
    """
    kind = type(policy)
    body = {"__slots__": (), "__module__": kind.__module__, "label": property(lambda self: label)}
    labelled = copy(policy)
    object.__setattr__(labelled, "__class__", type(kind.__name__, (kind,), body))
    return labelled


def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def _load(name: str) -> Any:
    """Factory of a name."""
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        return getattr(import_module(module), attribute)
    points = _entry_points()
    if name not in points:
        known = policy_names()
        raise UsageError(f"unknown policy {name!r}{nearest(name, known)}; there are: {', '.join(known)}")
    try:
        return points[name].load()
    except (Exception, SystemExit) as error:
        where = points[name].value
        raise UsageError(f"policy {name!r} cannot be loaded from {where}: {described(error)}") from error
