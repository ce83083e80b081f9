"""Tables of LLMServingSim (casys-kaist/LLMServingSim, profiler/perf): vLLM's own layers, microseconds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cspsched.costs.importers.source import Source
from cspsched.costs.models import LlmModel
from cspsched.costs.rows import check_rows, make_rows, refuse

if TYPE_CHECKING:
    import pandas as pd

PROJECT = "LLMServingSim"
DENSE = {
    "embedding": "embed",
    "layernorm": "rmsnorm",
    "qkv_proj": "qkv_proj",
    "qk_norm": "qk_norm",
    "rotary_emb": "rope",
    "o_proj": "o_proj",
    "gate_up_proj": "gate_up",
    "act_fn": "silu_mul",
    "down_proj": "down",
    "final_layernorm": "final_norm",
}
"""Layers of the dense table; a norm adds its residual in the same kernel."""
SEQUENCE = {"lm_head": "lm_head", "sampler": "sampler"}
REGIMES = ("pure", "mixed")
"""Decodes alone, and beside a chunk."""
SKEW_FORWARDS = 3
"""The skew table holds the sum of its three forwards, not their mean: at equal batches it is 3.0 times the
attention table (median 2.99 on both GPUs, decodes alone and beside a chunk)."""


def import_llmservingsim(paths: Sequence[Path], model: LlmModel, tensor_parallel: int = 1) -> pd.DataFrame:
    """Rows of a model from the CSV files of one profile, whatever kinds they are.

    The files do not say of which model and parallelism they are: the caller does.

    Raises
    ------
    InputError
        If a file is none of LLMServingSim's, or a row makes no sense.
    """
    import pandas as pd

    parts = []
    for path in paths:
        source = Source.read(path)
        rows = make_rows(
            _reader(source)(source)
            | {"model": model.name, "tp": tensor_parallel, "backend": "llmservingsim", "kernel_impl": "vLLM"}
        )
        check_rows(rows, str(path))
        parts.append(rows)
    return pd.concat(parts, ignore_index=True)


def _reader(source: Source) -> Callable[[Source], dict[str, object]]:
    if source.has("prefill_chunk", "kv_prefill", "n_decode", "kv_decode"):
        return _attention
    if source.has("regime", "kv_big", "t_skew_us"):
        return _skew
    if source.has("tokens", "activated_experts"):
        return _experts
    if source.has("layer", "tokens"):
        return _dense
    if source.has("layer", "sequences"):
        return _per_sequence
    raise source.foreign(PROJECT)


def _dense(source: Source) -> dict[str, object]:
    columns = _layers(source, DENSE)
    return columns | {"num_tokens": source.counts("tokens", 1)}


def _per_sequence(source: Source) -> dict[str, object]:
    columns = _layers(source, SEQUENCE)
    return columns | {"num_tokens": source.counts("sequences", 1)}


def _layers(source: Source, names: dict[str, str]) -> dict[str, object]:
    layers = source.text("layer")
    unknown = np.array([layer not in names for layer in layers])
    refuse(unknown, str(source.path), f"unknown operator {{}}; known: {', '.join(names)}", layers)
    return {"op": [names[str(layer)] for layer in layers], "t_us": source.times_us("time_us", 1.0)}


def _experts(source: Source) -> dict[str, object]:
    specs = [json.dumps({"active_experts": int(n)}) for n in source.counts("activated_experts", 1)]
    return {
        "op": "experts",
        "num_tokens": source.counts("tokens", 1),
        "batch_spec": specs,
        "t_us": source.times_us("time_us", 1.0),
    }


def _attention(source: Source) -> dict[str, object]:
    """One prefill chunk beside equally long decodes; either may be missing."""
    chunk, before, decodes, kv = (
        source.counts(name) for name in ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
    )
    refuse(chunk + decodes < 1, str(source.path), "neither a prefill nor a decode in the batch")
    operator = np.where(decodes == 0, "attn_prefill", np.where(chunk == 0, "attn_decode", "attn_mixed"))
    return {
        "op": operator.astype(object),
        "chunk": chunk,
        "kv": np.where(chunk > 0, before, kv),
        "n_seq": np.where(decodes == 0, 1, decodes),
        "kv_total": decodes * kv,
        "kv_max": np.where(decodes == 0, 0, kv),
        "t_us": source.times_us("time_us", 1.0),
    }


def _skew(source: Source) -> dict[str, object]:
    """Decodes of two lengths, some beside a chunk: `nb` of them read `kv_big`, the others `kvs`."""
    names = ("n", "nb", "pc", "kp", "kvs", "kv_big")
    number, big, chunk, before, short, long = (source.counts(name).tolist() for name in names)
    regimes = source.text("regime")
    unknown = np.array([regime not in REGIMES for regime in regimes])
    refuse(unknown, str(source.path), f"unknown regime {{}}; known: {', '.join(REGIMES)}", regimes)
    specs, operators = [], []
    for n, b, c, k, s, m in zip(number, big, chunk, before, short, long, strict=True):
        decodes = [[1, m]] * b + [[1, s]] * (n - b)
        specs.append(json.dumps({"chunks": [[c, k], *decodes] if c else decodes}))
        operators.append("attn_mixed" if c else "attn_decode")
    ragged = {"chunk": -1, "kv": -1, "n_seq": number}
    times = source.times_us("t_skew_us", 1 / SKEW_FORWARDS)
    return ragged | {"op": operators, "batch_spec": specs, "t_us": times}
