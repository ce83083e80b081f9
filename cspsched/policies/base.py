"""The registry of policies: built-in names, entry points of the group `cspsched.policies`, users' own files.

A policy is an object behind `Policy` (name, label, `new_run`). A factory, usually its class, is called
without arguments, or, if it has a `settings_type` (a frozen dataclass), with one object of that type.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from inspect import signature
from typing import Any

from cspsched.errors import UsageError
from cspsched.policies.settings import nearest, read_settings, split_settings
from cspsched.policies.user_file import load_from_file, split_file_policy
from cspsched.simulate import Policy, PolicyRun, Step
from cspsched.simulate.decisions import BatchMode, DecisionPolicy, View

__all__ = [
    "BatchMode", "DecisionPolicy", "Policy", "PolicyRun", "Step", "View", "add_setting",
    "make_policy", "policy_names",
]  # fmt: skip

ENTRY_POINT_GROUP = "cspsched.policies"
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

    Raises
    ------
    UsageError
        If the policy or a setting is unknown, a value is wrong, or a policy of another package or of the
        user's own cannot be loaded or is none.
    """
    in_file = split_file_policy(text.strip())
    if in_file:
        path, attribute, settings_text = in_file
        name, factory = f"{path}:{attribute}", load_from_file(path, attribute)
    else:
        name, _, settings_text = text.strip().partition(":")
        factory = _load(name)
    settings_type = getattr(factory, "settings_type", None)
    settings = split_settings(settings_text, name)
    if settings_type is not None:
        return _made(name, factory, read_settings(settings_type, settings, name))
    if settings:
        raise UsageError(f"policy {name!r} takes no settings, got {settings_text!r}")
    return _made(name, factory)


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
    in_file = split_file_policy(text.strip())
    has_settings = bool(in_file[2]) if in_file else ":" in text
    return f"{text.strip()}{',' if has_settings else ':'}{setting}"


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
    except (ImportError, AttributeError) as error:
        where = points[name].value
        raise UsageError(f"policy {name!r} cannot be loaded from {where}: {error}") from None


def _made(name: str, factory: Any, *arguments: Any) -> Policy:
    """What a factory makes of its arguments, if that is a policy."""
    try:
        signature(factory).bind(*arguments)
    except TypeError as error:
        raise UsageError(f"policy {name!r} cannot be made: {error}") from None
    policy = factory(*arguments)
    if not isinstance(policy, Policy):
        raise UsageError(f"policy {name!r} is a {type(policy).__name__} without name, label and new_run")
    return policy
