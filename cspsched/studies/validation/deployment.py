"""Which shipped facts the words of a run's file mean, and what its engine was set to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from cspsched.costs.models import device_names, load_device
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
    if serving.device is not None and serving.device not in device_names():
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
    """Deployment and policy of vLLM's resolved configuration, as a run's `meta.json` has it.

    The pool has one block more than can be used, the null block.

    Raises
    ------
    InputError
        If a part is missing.
    """
    try:
        scheduler = meta["resolved_config"]["scheduler_config"]
        cache, engine = meta["kv_cache"], meta["engine_kwargs"]
        serving = Serving(
            model=meta["model"],
            device=device_name(meta["hardware"]["device_name"]),
            tensor_parallel=engine["tensor_parallel_size"],
            data_parallel=engine.get("data_parallel_size"),
            expert_parallel=engine.get("enable_expert_parallel"),
            block_tokens=cache["block_size"],
            kv_blocks=cache["num_gpu_blocks"] - 1,
            max_batch_tokens=scheduler["max_num_batched_tokens"],
            max_batch_requests=scheduler["max_num_seqs"],
            max_model_len=engine["max_model_len"],
        )
        settings = {"enable_prefix_caching": cache["enable_prefix_caching"]}
        settings |= {name: scheduler[name] for name in SWITCHES if name in scheduler}
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{where}: no configuration of vLLM as a benchmark writes it ({error} missing); take the file "
            "away and give --model, --device and the limits"
        ) from None
    text = ",".join(f"{name}={_setting(value)}" for name, value in settings.items())
    return serving, f"vllm:{text}"


def _setting(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
