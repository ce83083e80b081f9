"""A recorded case as an instance and a policy, ready to be replayed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cspsched.errors import UsageError
from cspsched.policies.base import Policy, make_policy
from cspsched.problem.instance import Instance
from cspsched.problem.request import Request
from cspsched.recording.engines import (
    DYNAMIC_CHUNKS,
    OF_THE_INSTANCE,
    Dialect,
    Engine,
    NotSimulatedError,
    cost_of,
    dialect_of,
    engine_of,
    limits_of,
    switches_of,
    with_bugs,
)
from cspsched.recording.log import Recording


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a recorded engine was given, in our words."""

    instance: Instance
    policy: Policy
    notes: tuple[str, ...]
    """What the reader of a verdict must know."""


def make_setup(
    recording: Recording, source: str, config: Mapping[str, Any], requests: tuple[Request, ...], where: str
) -> Setup:
    """Instance and policy of a recorded run.

    Parameters
    ----------
    source
        What the engine calls itself.
    config
        The engine's configuration, by its own names.
    where
        File of the configuration, for messages.

    Raises
    ------
    NotSimulatedError
        If the run needs what is not simulated: a setting, measured times, a request that the engine dropped.
    InputError
        If the configuration lacks a value or holds a wrong one.
    """
    engine = engine_of(source, config)
    dialect = dialect_of(engine, config)
    config = {**dialect.defaults, **config}
    cost = cost_of(config, where)
    if cost is None:
        raise NotSimulatedError("measured times (the configuration has no cost; see 'import-schedule')")
    limits = limits_of(engine, config, where)
    notes = []
    if engine is Engine.VLLM_V1:
        longest = config["max_model_len"]
        requests, num_cut = _ended_at_model_len(requests, longest)
        if num_cut:
            notes.append(f"requests that the engine ends early, at max_model_len {longest}: {num_cut}")
    policy = _policy(dialect, with_bugs(engine, config))
    if not getattr(getattr(policy, "settings", None), "emulate_bugs", False):
        _refuse_other_outputs(recording, requests)
    instance = Instance(requests=requests, limits=limits, cost=cost, switches=switches_of(config))
    rejections = instance.split_rejected()[1]
    if rejections:
        raise NotSimulatedError(rejections[0].reason)
    _refuse_other_watermark(recording, policy, config)
    return Setup(instance=instance, policy=policy, notes=tuple(notes))


def _ended_at_model_len(requests: tuple[Request, ...], max_model_len: int) -> tuple[tuple[Request, ...], int]:
    """Requests with the output that vLLM V1 lets them have, and how many are cut.

    The engine ends a request once prompt and output are max_model_len long; nothing else depends on it.
    """
    given = []
    for request in requests:
        room = max_model_len - request.prompt_tokens
        if room < 1:
            name = request.request_id
            raise NotSimulatedError(
                f"request {name!r} has a prompt of {request.prompt_tokens} tokens, and max_model_len is "
                f"{max_model_len}"
            )
        given.append(replace(request, output_tokens=min(request.output_tokens, room)))
    return tuple(given), sum(old != new for old, new in zip(requests, given, strict=True))


def _refuse_other_outputs(recording: Recording, requests: tuple[Request, ...]) -> None:
    """A request that the engine dropped, or that it gave more tokens than asked for, is not simulated."""
    emitted = Counter(name for iteration in recording.iterations for name in iteration.emitted)
    finished = {name for iteration in recording.iterations for name in iteration.finished}
    for request in requests:
        name, wanted, made = request.request_id, request.output_tokens, emitted[request.request_id]
        if name in finished and made != wanted:
            raise NotSimulatedError(
                f"request {name!r} finishes with {made} output tokens instead of {wanted}"
            )
        if recording.is_complete and name not in finished:
            raise NotSimulatedError(f"request {name!r} never finishes ({made} of {wanted} output tokens)")


def _policy(dialect: Dialect, config: Mapping[str, Any]) -> Policy:
    plain = make_policy(dialect.policy)
    known = getattr(plain, "settings", None)
    settings = {}
    for key, value in config.items():
        if key in OF_THE_INSTANCE or key in dialect.unused or value is None:
            continue
        if key in DYNAMIC_CHUNKS and not config.get("enable_dynamic_chunking_schedule"):
            continue
        if hasattr(known, key) or key in _aliases(plain):
            settings[key] = str(value).lower() if isinstance(value, bool) else str(value)
        elif key not in dialect.neutral or value != dialect.neutral[key]:
            raise NotSimulatedError(f"{key}={str(value).lower() if isinstance(value, bool) else value}")
    text = ",".join(f"{key}={value}" for key, value in settings.items())
    try:
        return make_policy(f"{dialect.policy}:{text}")
    except UsageError as error:
        raise NotSimulatedError(str(error)) from None


def _aliases(policy: Policy) -> set[str]:
    """Other names of a policy's settings."""
    fields = getattr(getattr(policy, "settings", None), "__dataclass_fields__", {})
    return {alias for one in fields.values() for alias in one.metadata.get("aliases", ())}


def _refuse_other_watermark(recording: Recording, policy: Policy, config: Mapping[str, Any]) -> None:
    """The blocks kept free were a constant of the recorded engine; ours must be the same."""
    share = getattr(getattr(policy, "settings", None), "watermark", 0.0)
    ours, theirs = int(share * config["num_kv_blocks"]), recording.watermark_blocks
    if theirs is not None and theirs != ours:
        raise NotSimulatedError(f"a watermark of {theirs} KV blocks ({policy.label} keeps {ours} free)")
