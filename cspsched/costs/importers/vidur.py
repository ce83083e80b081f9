"""Tables of Vidur (microsoft/vidur, data/profiling): compute, attention and network CSVs, milliseconds.

Vidur measures neither the language-model head (it names none) nor a batch of prefills: a model fitted to its
tables alone leaves the head out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cspsched.costs.importers.source import US_PER_MS, Source
from cspsched.costs.models import LlmModel
from cspsched.costs.rows import check_rows, make_rows, refuse
from cspsched.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

PROJECT = "Vidur"
STATISTIC = "time_stats."
TOKEN_OPERATORS = {
    "emb": "embed",
    "input_layernorm": "input_norm",
    "post_attention_layernorm": "post_norm",
    "attn_pre_proj": "qkv_proj",
    "attn_rope": "rope",
    "attn_post_proj": "o_proj",
    "mlp_up_proj": "gate_up",
    "mlp_act": "silu_mul",
    "mlp_down_proj": "down",
    "add": "residual",
}
"""Operators of the compute table. Its one `add` a block stands for two residual additions."""
RESHAPES = ("attn_input_reshape", "attn_output_reshape")
"""Copies that no engine of today makes; not taken over."""


def import_vidur(paths: Sequence[Path], model: LlmModel) -> pd.DataFrame:
    """Rows of a model from Vidur's CSV files, whatever kinds they are.

    Raises
    ------
    InputError
        If a file is none of Vidur's, is of another model, or a row makes no sense.
    """
    import pandas as pd

    parts = []
    for path in paths:
        source = Source.read(path)
        if source.has("num_tokens", "n_embd"):
            parts.append(_compute(source, model))
        elif source.has("is_prefill", "prefill_chunk_size"):
            parts.append(_attention(source, model))
        elif source.has("collective", "num_workers", "size"):
            parts.append(_network(source, model))
        else:
            raise source.foreign(PROJECT)
        check_rows(parts[-1], f"{path} (as rows)")
    return pd.concat(parts, ignore_index=True)


def _compute(source: Source, model: LlmModel) -> pd.DataFrame:
    import pandas as pd

    source.require_value("n_head", model.num_heads, model.name)
    source.require_value("n_kv_head", model.num_kv_heads, model.name)
    source.require_value("n_embd", model.hidden_size, model.name)
    tokens, ranks = source.counts("num_tokens", 1), source.counts("num_tensor_parallel_workers", 1)
    parts = []
    for name in _operators(source, [*TOKEN_OPERATORS]):
        columns = _times(source, name)
        columns |= {"op": TOKEN_OPERATORS[name], "num_tokens": tokens, "tp": ranks, "model": model.name}
        parts.append(make_rows(columns | _origin("torch, sarathi layers")))
    return pd.concat(parts, ignore_index=True)


def _operators(source: Source, known: list[str]) -> list[str]:
    """Operators of a table; an unknown one is refused, as its time would be lost in silence."""
    found = [str(name).split(".")[1] for name in source.frame.columns if str(name).startswith(STATISTIC)]
    unknown = [name for name in found if name not in known]
    if unknown:
        raise InputError(f"{source.path}: unknown operator {unknown[0]!r}; known: {', '.join(known)}")
    return list(dict.fromkeys(found))


def _times(source: Source, operator: str) -> dict[str, object]:
    return {
        "t_us": source.times_us(f"{STATISTIC}{operator}.median", US_PER_MS),
        "t_min_us": source.times_us(f"{STATISTIC}{operator}.min", US_PER_MS),
    }


def _attention(source: Source, model: LlmModel) -> pd.DataFrame:
    import pandas as pd

    _operators(source, ["attn_prefill", "attn_decode", "attn_kv_cache_save", *RESHAPES])
    for name, expected in (("n_q_head", model.num_heads), ("n_kv_head", model.num_kv_heads)):
        source.require_value(name, expected, model.name)
    is_prefill = np.array([str(value).lower() == "true" for value in source.text("is_prefill")])
    prefill, decode = source.where(is_prefill), source.where(~is_prefill)
    parts = []
    if len(prefill.frame):
        sizes = prefill.counts("batch_size", 1)
        refuse(sizes != 1, str(source.path), "batch_size of a prefill is {}, expected 1", sizes.tolist())
        columns = {"chunk": prefill.counts("prefill_chunk_size", 1), "kv": prefill.counts("kv_cache_size")}
        parts.append(_attention_rows(prefill, "attn_prefill", columns | {"n_seq": 1}, model))
    if len(decode.frame):
        sizes, kv = decode.counts("batch_size", 1), decode.counts("kv_cache_size")
        columns = {"n_seq": sizes, "kv": kv, "kv_max": kv, "kv_total": sizes * kv}
        parts.append(_attention_rows(decode, "attn_decode", columns, model))
    return pd.concat(parts, ignore_index=True)


def _attention_rows(
    source: Source, operator: str, point: Mapping[str, object], model: LlmModel
) -> pd.DataFrame:
    columns = {**point, **_times(source, operator)}
    columns |= {"op": operator, "tp": source.counts("num_tensor_parallel_workers", 1), "model": model.name}
    return make_rows(columns | _origin("FlashAttention, paged"))


def _network(source: Source, model: LlmModel) -> pd.DataFrame:
    """Collectives inside one node: ranks on several nodes cross another network."""
    ranks, here = source.counts("num_workers", 2), source.counts("devices_per_node", 1)
    kinds = source.text("collective")
    refuse(
        np.array([kind not in ("all_reduce", "send_recv") for kind in kinds]),
        str(source.path),
        "unknown collective {}; known: all_reduce, send_recv",
        kinds,
    )
    source.counts("size", 1)
    for name in _operators(source, ["all_reduce", "send_recv"]):
        _times(source, name)
    inside = source.where(ranks == here)
    if not len(inside.frame):
        raise InputError(f"{source.path}: no row has all of its workers on one node")
    operator = str(inside.text("collective")[0])
    columns = _times(inside, operator) | {"op": operator, "bytes": inside.counts("size", 1)}
    columns |= {"tp": inside.counts("num_workers", 2), "model": model.name}
    return make_rows(columns | _origin("NCCL"))


def _origin(kernel: str) -> dict[str, object]:
    return {"backend": "vidur", "kernel_impl": kernel, "dtype": "float16"}
