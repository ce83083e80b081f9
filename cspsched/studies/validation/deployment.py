"""Which shipped facts the words of a run's file mean, and what its engine was set to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from cspsched.costs.devices import device_names, load_device
from cspsched.costs.facts import TOML
from cspsched.errors import InputError
from cspsched.serving import Serving
from cspsched.studies.validation.cells import Row

ENGINE = "vllm:async_scheduling=true,enable_prefix_caching=true"
"""Policy of a run that names none: vLLM as it comes."""
SWITCHES = (
    "async_scheduling", "enable_chunked_prefill", "policy", "long_prefill_token_threshold",
    "scheduler_reserve_full_isl",
)  # fmt: skip
"""Settings of vLLM's scheduler that the policy knows under the same name."""
COUNTS = (
    "tensor_parallel", "data_parallel", "kv_tokens", "kv_blocks", "block_tokens", "max_batch_tokens",
    "max_batch_requests", "max_model_len",
)  # fmt: skip
ALIASES = {
    "tp": "tensor_parallel",
    "tensor_parallel_size": "tensor_parallel",
    "data_parallel_size": "data_parallel",
    "max_num_batched_tokens": "max_batch_tokens",
    "max_num_seqs": "max_batch_requests",
    "block_size": "block_tokens",
}
"""The engine's words for limits."""


def device_name(text: str) -> str:
    """Shipped device of a text such as `NVIDIA GeForce RTX 4090` or `H100 SXM 80GB`.

    It is the one with that title, else the longest name whose words are all in the text; a text that means
    none is returned as it is.
    """
    words = set(re.findall(r"[a-z0-9]+", text.lower()))
    words |= {word.removesuffix("gb") for word in words}
    titled = [name for name in device_names() if load_device(name).title == text]
    found = [name for name in device_names() if set(name.split("-")) <= words]
    return titled[0] if titled else max(found, key=len, default=text)


def require_facts(serving: Serving, where: str) -> None:
    """Refuse a deployment without a model, or on a device that is not known.

    Raises
    ------
    InputError
        Names the file and what to do.
    """
    if serving.model is None and serving.cost is None:
        raise InputError(f"{where} names no model; give --model and --device")
    is_file = serving.device is not None and serving.device.endswith(TOML)
    if serving.device is not None and not is_file and serving.device not in device_names():
        raise InputError(
            f"{where}: device is {serving.device!r}, which is none of {', '.join(device_names())}; "
            "give --device"
        )


def serving_of(row: Row) -> Serving:
    """The deployment that a row or table states, in our words or the engine's.

    Raises
    ------
    InputError
        If a limit is no number.
    """
    given: dict[str, Any] = {}
    for column in row.cells:
        name = ALIASES.get(column, column)
        if name in COUNTS and row.has(column):
            given[name] = row.count(column)
    for name in ("model", "cost"):
        if row.has(name):
            given[name] = row.text(name)
    if row.has("device"):
        given["device"] = device_name(row.text("device"))
    if row.has("gpu_memory_utilization"):
        given["gpu_memory_utilization"] = row.number("gpu_memory_utilization")
    return Serving(**given)


def merged(asked: Serving, stated: Serving) -> Serving:
    """What was asked for goes before what a file states, and that before the defaults."""
    usual = Serving()
    kept = {
        field.name: getattr(stated, field.name)
        for field in fields(Serving)
        if getattr(asked, field.name) == getattr(usual, field.name)
    }
    if asked.kv_tokens is not None or asked.kv_blocks is not None:
        kept |= {"kv_tokens": asked.kv_tokens, "kv_blocks": asked.kv_blocks}
    return replace(asked, **kept)


def engine_of(meta: Mapping[str, Any], where: str) -> tuple[Serving, str]:
    """Deployment and policy of vLLM's configuration, as a run's `meta.json` has it.

    What the file does not say is left to the defaults: older runs have neither the device nor the size of the
    KV cache. A pool has one block more than can be used, the null block; what vLLM tells of groups of data
    parallelism is the sum of their pools.

    Raises
    ------
    InputError
        If there is no configuration of an engine.
    """
    engine = meta.get("engine_kwargs")
    if not isinstance(engine, dict) or "model" not in meta:
        raise InputError(
            f"{where}: no configuration of vLLM as a benchmark writes it (model, engine_kwargs); take the "
            "file away and give --model, --device and the limits"
        )
    scheduler = {**engine, **_part(_part(meta, "resolved_config"), "scheduler_config")}
    cache, device = _part(meta, "kv_cache"), _part(meta, "hardware").get("device_name")
    blocks, groups = cache.get("num_gpu_blocks"), engine.get("data_parallel_size") or 1
    given = {
        "model": meta["model"],
        "device": device and device_name(device),
        "tensor_parallel": engine.get("tensor_parallel_size"),
        "data_parallel": groups,
        "expert_parallel": engine.get("enable_expert_parallel"),
        "block_tokens": cache.get("block_size"),
        "kv_blocks": blocks and blocks // groups - 1,
        "max_batch_tokens": scheduler.get("max_num_batched_tokens"),
        "max_batch_requests": scheduler.get("max_num_seqs"),
        "max_model_len": engine.get("max_model_len"),
    }
    serving = Serving(**{name: value for name, value in given.items() if value is not None})
    settings = {"enable_prefix_caching": cache.get("enable_prefix_caching", True), "async_scheduling": True}
    settings |= {name: scheduler[name] for name in SWITCHES if name in scheduler}
    text = ",".join(f"{name}={_setting(value)}" for name, value in settings.items())
    return serving, f"vllm:{text}"


def _part(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = data.get(key)
    return found if isinstance(found, dict) else {}


def _setting(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
