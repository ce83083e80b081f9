"""Which engine recorded a schedule, and what its configuration is in our words: limits, cost, settings.

Sources: the arguments of vLLM 0.33.0 (V1), of vLLM 0.9.2 (V0) and of sarathi-serve@96f9911. Every key is
mapped, or known to change nothing at its value, or refused: a replay under another configuration is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from typing import Any

from cspsched.errors import CspschedError, InputError
from cspsched.problem.cost import CostModel, PiecewiseLinear
from cspsched.problem.instance import Limits, Preemption, Switches
from cspsched.recording.values import number_of
from cspsched.units import NS_PER_S


class NotSimulatedError(CspschedError):
    """A recorded case needs what no policy here simulates."""


class Engine(StrEnum):
    """Who recorded a schedule."""

    VLLM_V1 = "vllm v1"
    VLLM_V0 = "vllm v0"
    SARATHI_SERVE = "sarathi-serve"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How the configuration of an engine, or of one of its schedulers, is read.

    Attributes
    ----------
    policy
        Name of our policy.
    defaults
        Values of keys that a configuration leaves out.
    neutral
        Keys that need no setting of the policy as long as they have this value.
    unused
        Keys that this scheduler does not look at.
    """

    policy: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    neutral: Mapping[str, Any] = field(default_factory=dict)
    unused: frozenset[str] = frozenset()


OF_THE_INSTANCE = frozenset(
    {"num_kv_blocks", "num_cpu_blocks", "block_size", "max_model_len", "cost", "max_iterations", "scheduler"}
)
"""Keys that are no setting of a policy: limits, cost, and the recording's own stop."""
V1_OFF = {
    "enable_prefix_caching": False,
    "async_scheduling": False,
    "long_prefill_token_threshold_adaptive": False,
    "prefill_schedule_interval": 1,
    "max_num_active_seqs": None,
    "num_lookahead_tokens": 0,
}
"""What of vLLM V1 may be left out of a replay, because it is switched off."""
DYNAMIC_CHUNKS = frozenset(
    {"low_chunk_size", "high_chunk_size", "chunk_schedule_max_tokens", "chunk_schedule_stages"}
)
CHUNKS = frozenset({"chunk_size", "enable_dynamic_chunking_schedule", *DYNAMIC_CHUNKS})
ALWAYS_UNUSED = frozenset({"fix_max_tokens"})
"""The recording's own switch for the bug of sarathi-serve that `with_bugs` reads."""
SCHEDULERS_WITH_BUG = ("sarathi", "vllm", "simple_chunking")
"""Those of sarathi-serve that preempt, and then forget what was generated."""

VLLM_V1 = Dialect(
    policy="vllm",
    defaults={
        **V1_OFF,
        "max_num_batched_tokens": 2048,
        "max_num_seqs": 128,
        "max_model_len": 8192,
        "enable_prefix_caching": True,
    },
    neutral=V1_OFF,
)
VLLM_V0 = Dialect(
    policy="vllm-v0",
    defaults={"max_num_seqs": 128},
    neutral={"enable_prefix_caching": False, "num_lookahead_tokens": 0, "num_scheduler_steps": 1},
)
SARATHI_SERVE = {
    "sarathi": Dialect(policy="sarathi", unused=ALWAYS_UNUSED | {"max_batched_tokens"}),
    "vllm": Dialect(policy="sarathi-vllm", unused=ALWAYS_UNUSED | CHUNKS),
    "orca": Dialect(policy="orca", unused=ALWAYS_UNUSED | CHUNKS | {"max_batched_tokens"}),
    "faster_transformer": Dialect(
        policy="faster-transformer", unused=ALWAYS_UNUSED | CHUNKS | {"max_batched_tokens"}
    ),
    "simple_chunking": Dialect(
        policy="simple-chunking",
        unused=ALWAYS_UNUSED | DYNAMIC_CHUNKS | {"max_batched_tokens", "enable_dynamic_chunking_schedule"},
    ),
}
V0_KEYS = ("num_cpu_blocks", "preemption_mode", "delay_factor")
COST_KEYS = ("a", "b", "c", "swap_block")


def engine_of(source: str, config: Mapping[str, Any]) -> Engine:
    """Engine of a recording, by what it calls itself or else by keys that only one engine has."""
    if "sarathi" in source or "scheduler" in config:
        return Engine.SARATHI_SERVE
    if " V0" in source or any(key in config for key in V0_KEYS):
        return Engine.VLLM_V0
    return Engine.VLLM_V1


def dialect_of(engine: Engine, config: Mapping[str, Any]) -> Dialect:
    """How to read a configuration.

    Raises
    ------
    NotSimulatedError
        If sarathi-serve ran a scheduler that is not known.
    """
    if engine is Engine.SARATHI_SERVE:
        scheduler = str(config.get("scheduler"))
        if scheduler not in SARATHI_SERVE:
            raise NotSimulatedError(f"scheduler {scheduler} of sarathi-serve")
        return SARATHI_SERVE[scheduler]
    return VLLM_V0 if engine is Engine.VLLM_V0 else VLLM_V1


def with_bugs(engine: Engine, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration, and whether the recorded program had the bugs that our policies emulate."""
    forgets = config.get("scheduler") in SCHEDULERS_WITH_BUG and not config.get("fix_max_tokens", False)
    bugs = engine is Engine.VLLM_V0 or (engine is Engine.SARATHI_SERVE and forgets)
    return {**config, **({"emulate_bugs": True} if bugs else {})}


def limits_of(engine: Engine, config: Mapping[str, Any], where: str) -> Limits:
    """Capacities of a recorded run.

    vLLM V1 counts its null block, which holds no tokens. The token budget of the others is one of a batch
    with prefills only, which the policy minds: there C is as large as the KV cache, and so never binds.

    Raises
    ------
    InputError
        If a value is missing or makes no sense.
    """
    num_blocks = number_of(config, "num_kv_blocks", where) - (engine is Engine.VLLM_V1)
    block_tokens = number_of(config, "block_size", where, default=16)
    most_requests = number_of(config, "max_num_seqs", where, default=128)
    batch_tokens = num_blocks * block_tokens
    if engine is Engine.VLLM_V1:
        batch_tokens = number_of(config, "max_num_batched_tokens", where, default=2048)
        if config.get("max_num_active_seqs") is not None:
            most_requests = max(most_requests, number_of(config, "max_num_active_seqs", where))
    longest = config.get("max_model_len")
    return Limits(
        kv_blocks=num_blocks,
        block_tokens=block_tokens,
        max_batch_tokens=batch_tokens,
        max_batch_requests=most_requests,
        max_model_len=None if longest is None else number_of(config, "max_model_len", where),
        host_kv_blocks=number_of(config, "num_cpu_blocks", where, default=0),
    )


def switches_of(config: Mapping[str, Any]) -> Switches:
    """What a schedule beside a recorded run may do: everything; swap only where the engine has it."""
    swaps = config.get("preemption_mode") == Preemption.SWAP
    return Switches(preemption=Preemption.EITHER if swaps else Preemption.RECOMPUTE)


def cost_of(config: Mapping[str, Any], where: str) -> CostModel | None:
    """Cost of a run on a virtual clock: a + b tokens + c (computed before + scheduled), and moved blocks.

    None if there is none: the times were measured.

    Raises
    ------
    NotSimulatedError
        If it has a part that is not known.
    InputError
        If a coefficient is missing or no number >= 0.
    """
    coefficients = config.get("cost")
    if coefficients is None:
        return None
    if not isinstance(coefficients, dict) or any(key not in coefficients for key in "abc"):
        raise InputError(f"{where}: cost is {coefficients!r}, expected numbers a, b, c in seconds")
    unknown = sorted(set(coefficients) - set(COST_KEYS))
    if unknown:
        raise NotSimulatedError(f"cost.{unknown[0]}")
    step, per_token, per_kv, swap_block = (_nanoseconds(coefficients, key, where) for key in COST_KEYS)
    read = PiecewiseLinear.linear(per_kv)
    return CostModel(
        name="recorded",
        step=step,
        swap_block=swap_block,
        tokens=PiecewiseLinear.linear(per_token + per_kv),
        prefill_context=read,
        decode_context=read,
    )


def _nanoseconds(coefficients: dict[str, Any], key: str, where: str) -> Fraction:
    value = coefficients.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise InputError(f"{where}: cost.{key} is {value!r}, expected a number of seconds >= 0")
    return Fraction(str(value)) * NS_PER_S
