"""Whether a table of aiconfigurator makes sense: every row of it, whatever is taken of it later."""

from __future__ import annotations

import numpy as np

from cspsched.costs.importers.source import US_PER_MS, Source
from cspsched.costs.rows import refuse, refuse_mixed_units

KERNELS = (
    "gemm_dtype", "gemm_type", "attn_dtype", "kv_cache_dtype", "moe_dtype", "nccl_dtype", "allreduce_dtype",
    "beam_width", "window_size", "kernel_source", "distribution",
)  # fmt: skip
"""Columns that tell kernels of one table apart."""
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "alltoall")
SHAPES = {
    "gemm": (("n", "k"), ("m",)),
    "context": (("num_heads", "num_key_value_heads", "head_dim"), ("batch_size", "isl")),
    "generation": (("num_heads", "num_key_value_heads", "head_dim"), ("batch_size", "step")),
    "mla_context": (("num_heads", "step"), ("batch_size", "isl")),
    "mla_generation": (("num_heads",), ("batch_size", "step")),
    "moe": (
        ("hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size"),
        ("num_tokens",),
    ),
    "nccl": (("num_gpus",), ("message_size",)),
    "custom": (("num_gpus",), ("message_size",)),
}
"""Columns of each table whose rows are compared where they are alike, and those whose product is the size."""


def check_table(source: Source, kind: str) -> None:
    """Refuse a table with a row that makes no sense, also one that no model will ask for.

    Raises
    ------
    InputError
        For a time or a count that is none, an unknown collective, times in different units.
    """
    import pandas as pd

    where, (same, sizes) = str(source.path), SHAPES[kind]
    times = source.times_us("latency", US_PER_MS)
    counts = {name: source.counts(name) for name in (*same, *sizes) if source.has(name)}
    if kind in ("nccl", "custom"):
        names = source.text("op_name")
        unknown = np.array([name not in COLLECTIVES for name in names])
        refuse(unknown, where, f"unknown collective {{}}; known: {', '.join(COLLECTIVES)}", names)
    work = np.prod([np.maximum(counts[name], 1.0) for name in sizes], axis=0)
    labels = [np.asarray(source.frame[name], dtype=str) for name in (*same, *KERNELS) if source.has(name)]
    groups = pd.MultiIndex.from_arrays(labels).factorize()[0].astype(np.int64)
    refuse_mixed_units(groups, work, times, where, np.full(len(times), kind, dtype=object))
