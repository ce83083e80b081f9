"""From a trace to an instance: which model on which device, and the engine's limits there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from cspsched.costs.compose import default_cost
from cspsched.costs.devices import engine_defaults, load_device
from cspsched.costs.kv_capacity import KvPlan, plan_kv_capacity
from cspsched.costs.models import LlmModel, load_model, model_name, usual_name
from cspsched.costs.parallelism import ONE_GPU, Parallelism
from cspsched.costs.presets import (
    DEFAULT_DEVICE,
    DEFAULT_MODEL,
    cost_names,
    describe_cost,
    load_cost,
)
from cspsched.errors import InputError, UsageError
from cspsched.problem.columns import Requests
from cspsched.problem.cost import CostModel
from cspsched.problem.instance import Instance, Limits, Switches
from cspsched.problem.request import Request
from cspsched.trace.trace import Trace
from cspsched.units import NS_PER_S

DEGREES = (1, 2, 4, 8)
"""Degrees of tensor parallelism that are tried for a model that is too large."""
HOST_MEMORY_BYTES = 4 * 2**30
"""vLLM's default `swap_space` of each GPU."""
SWAP_BYTES_PER_S = 25_000_000_000
"""What is left of PCIe 4.0 x16 (16 GT/s x 16 lanes x 128/130 / 8 bit = 31.5 GB/s in each direction) after
packets and pinned copies, about 80 %; an assumption, not measured here. PCIe 5.0 has twice as much."""


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Model, device and limits of one replica; None takes the engine's or the cost model's default.

    Attributes
    ----------
    model, device, tensor_parallel
        Names of shipped facts; defaults: those of the cost model, else Llama-3.1-8B on an H100.
    data_parallel, expert_parallel
        Groups of GPUs that share the experts and serve requests of their own, of which this replica is one;
        whether each GPU holds whole experts (see `Parallelism`). Defaults: those of the cost model, else
        none.
    cost
        Name of a shipped cost model or a TOML/JSON file; default: the one measured on model and device.
    kv_cache_dtype
        Type of KV elements, `bf16` or `fp8`; default: the model's.
    kv_tokens, kv_blocks
        KV capacity; default: what the KV capacity planner leaves.
    max_batch_tokens, max_batch_requests
        C and R; default: those of vLLM V1 on the device.
    host_memory_bytes
        Host memory of each GPU for swapped KV cache; default: 4 GiB where the switches allow swap, else none.
    swap_bytes_per_s
        Rate at which each GPU moves KV cache from and to host memory; default: that of the cost model if it
        has one, else 25 GB/s.
    """

    model: str | None = None
    device: str | None = None
    tensor_parallel: int | None = None
    data_parallel: int | None = None
    expert_parallel: bool | None = None
    cost: str | Path | None = None
    kv_cache_dtype: str | None = None
    block_tokens: int = 16
    kv_tokens: int | None = None
    kv_blocks: int | None = None
    max_batch_tokens: int | None = None
    max_batch_requests: int | None = None
    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.92
    host_memory_bytes: int | None = None
    swap_bytes_per_s: int | None = None
    ttft_limit_s: float | None = None
    tpot_limit_s: float | None = None
    switches: Switches = field(default_factory=Switches)


def make_instance(trace: Trace, serving: Serving | None = None) -> Instance:
    """Instance of a trace, by default served by Llama-3.1-8B on one H100.

    Raises
    ------
    UsageError
        If a name is unknown, both kv_tokens and kv_blocks are given, or host memory or its rate is given
        although the switches allow no swap.
    InputError
        If a file cannot be read, or the capacity holds no KV block.
    """
    serving = serving or Serving()
    _, device, parallelism = hardware(serving)
    # The facts come first: a misspelt name is told as such, not as a pair without measurements.
    model = model_of(serving)
    max_model_len = serving.max_model_len or model.max_model_len
    batch_tokens, batch_requests = _batch_limits(serving, device)
    _require_room(serving, model, device)
    cost = load_cost(cost_of(serving))
    block_bytes = serving.block_tokens * model.kv_bytes_per_token(parallelism.tensor)
    limits = Limits(
        kv_blocks=_kv_blocks(serving),
        block_tokens=serving.block_tokens,
        max_batch_tokens=batch_tokens,
        max_batch_requests=batch_requests,
        max_model_len=max_model_len,
        host_kv_blocks=_host_kv_blocks(serving, block_bytes),
    )
    cost = _with_swap(cost, serving, block_bytes)
    requests = _with_slos(trace.requests, serving)
    return Instance(requests=requests, limits=limits, cost=cost, switches=serving.switches)


def _with_slos(requests: Sequence[Request], serving: Serving) -> Sequence[Request]:
    """The requests with the limits of the set-up, as far as they have none."""
    if not isinstance(requests, Requests):
        return tuple(_with_slo(request, serving) for request in requests)
    limits_ns = {
        f"{name}_limit_ns": None if limit_s is None else round(limit_s * NS_PER_S)
        for name, limit_s in (("ttft", serving.ttft_limit_s), ("tpot", serving.tpot_limit_s))
    }
    return Requests(requests.columns.with_limits(**limits_ns))


def _with_slo(request: Request, serving: Serving) -> Request:
    """The request with the limits of the set-up, as far as it has none."""
    given = {"ttft_limit_ns": serving.ttft_limit_s, "tpot_limit_ns": serving.tpot_limit_s}
    missing: dict[str, Any] = {
        name: round(limit_s * NS_PER_S)
        for name, limit_s in given.items()
        if limit_s is not None and getattr(request, name) is None
    }
    return replace(request, **missing) if missing else request


def _host_kv_blocks(serving: Serving, block_bytes: int) -> int:
    """KV blocks that host memory holds; every rank keeps its share of each block."""
    preemption = serving.switches.preemption
    if preemption.swaps:
        given = serving.host_memory_bytes
        return (HOST_MEMORY_BYTES if given is None else given) // block_bytes
    if serving.host_memory_bytes is not None or serving.swap_bytes_per_s is not None:
        raise UsageError(
            f"host memory or its rate is given, but preemption {preemption} moves nothing there; "
            "allow swap (--preemption swap or either)"
        )
    return 0


def _with_swap(cost: CostModel, serving: Serving, block_bytes: int) -> CostModel:
    """The cost model with the time of a block between device and host; all ranks move theirs at once."""
    rate = serving.swap_bytes_per_s
    if not serving.switches.preemption.swaps or (rate is None and cost.swap_block):
        return cost
    rate = SWAP_BYTES_PER_S if rate is None else rate
    if rate < 1:
        raise UsageError(f"swap_bytes_per_s is {rate}, expected at least 1")
    return replace(cost, swap_block=Fraction(block_bytes * NS_PER_S, rate))


def _require_room(serving: Serving, model: LlmModel, device: str) -> None:
    """Say which degrees of tensor parallelism there are where one GPU is too small and none was named."""
    names = cost_names()
    is_named = serving.tensor_parallel is not None or serving.cost is not None
    # A cost model of one GPU was measured on one, so the model fits there.
    if is_named or usual_name(model.name, device) in names or _fits(serving, device, 1):
        return
    fitting = [degree for degree in DEGREES if _fits(serving, device, degree)]
    measured = [
        degree for degree in fitting if usual_name(model.name, device, Parallelism(tensor=degree)) in names
    ]
    if fitting:
        how = "with a cost model" if measured else "no cost model ships for it, so give --cost, too"
        raise UsageError(
            f"{model.name} does not fit on one {device}: "
            f"give --tensor-parallel {_listed(measured or fitting)} ({how})"
        )


def _fits(serving: Serving, device: str, degree: int) -> bool:
    """Whether a model leaves room for a KV block on so many GPUs."""
    try:
        named = replace(serving, device=device, tensor_parallel=degree)
        return plan_memory(named).kv_blocks > 0
    except InputError:
        return False


def _listed(degrees: list[int]) -> str:
    *others, last = map(str, degrees)
    return f"{', '.join(others)} or {last}" if others else last


def plan_memory(serving: Serving) -> KvPlan:
    """Where the memory of one rank goes, byte by byte; same errors as `make_instance`."""
    _, device, parallelism = hardware(serving)
    model = model_of(serving)
    _require_room(serving, model, device)
    batch_tokens, batch_requests = _batch_limits(serving, device)
    return plan_kv_capacity(
        model,
        load_device(device),
        parallelism=parallelism,
        block_tokens=serving.block_tokens,
        gpu_memory_utilization=serving.gpu_memory_utilization,
        max_batch_tokens=batch_tokens,
        max_batch_requests=batch_requests,
    )


def cost_of(serving: Serving) -> str | Path:
    """Name or file of the cost model of a set-up: its own, or the one of its model and device."""
    _, device, parallelism = hardware(serving)
    return serving.cost or default_cost(model_of(serving), device, parallelism)


def model_of(serving: Serving) -> LlmModel:
    """Facts of the model that is served, with the type of its KV cache; same errors as `load_model`."""
    model = load_model(hardware(serving).model)
    if serving.kv_cache_dtype in (None, model.kv_cache):
        return model
    name = f"{model.name}-kv-{serving.kv_cache_dtype}"
    return replace(model, name=name, kv_cache=str(serving.kv_cache_dtype))


class Hardware(NamedTuple):
    """Names of the model and the device, and how many of these share it."""

    model: str
    device: str
    parallelism: Parallelism


def hardware(serving: Serving) -> Hardware:
    """Model, device and parallelism: as given, as the cost model was measured, or the default."""
    measured = describe_cost(serving.cost) if serving.cost else None
    model = model_name(serving.model or (measured and measured.model) or DEFAULT_MODEL)
    device = serving.device or (measured and measured.device) or DEFAULT_DEVICE
    usual = (measured and measured.parallelism) or ONE_GPU
    if usual.pipeline > 1:
        raise UsageError(
            f"cost model {serving.cost} is of one of {usual.pipeline} pipeline stages, and one replica of a "
            "single stage is simulated; give a cost model of the whole model"
        )
    has_expert_parallel = serving.expert_parallel
    parallelism = Parallelism(
        tensor=serving.tensor_parallel or usual.tensor,
        data=serving.data_parallel or usual.data,
        has_expert_parallel=usual.has_expert_parallel if has_expert_parallel is None else has_expert_parallel,
    )
    return Hardware(model, device, parallelism)


def _batch_limits(serving: Serving, device: str) -> tuple[int, int]:
    defaults = engine_defaults(load_device(device))
    return (
        serving.max_batch_tokens or defaults.max_batch_tokens,
        serving.max_batch_requests or defaults.max_batch_requests,
    )


def _kv_blocks(serving: Serving) -> int:
    if serving.kv_tokens is not None and serving.kv_blocks is not None:
        raise UsageError("both kv_tokens and kv_blocks are given; give one of them")
    if serving.kv_blocks is not None:
        return serving.kv_blocks
    if serving.kv_tokens is None:
        return plan_memory(serving).kv_blocks
    if serving.kv_tokens < serving.block_tokens:
        raise InputError(
            f"kv_tokens is {serving.kv_tokens}, less than one KV block of {serving.block_tokens} tokens; "
            "give more, or smaller blocks (block_tokens)"
        )
    return serving.kv_tokens // serving.block_tokens
