"""Reads the public operator tables of aiconfigurator as measured batches (milliseconds in, nanoseconds out).

Tables of ai-dynamo/aiconfigurator, one file an operator and device: GEMMs by (m, n, k), attention by batch
size, sequence length and heads. They hold kernels of one layer on one rank; here times are of all layers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cspsched.costs.fit import FloatArray, Measurements, batch_features
from cspsched.costs.models import Device, LlmModel
from cspsched.errors import InputError
from cspsched.problem.cost import IntArray, triangle

if TYPE_CHECKING:
    import pandas as pd

NS_PER_MS = 1e6
NS_PER_US = 1e3
ACHIEVED_BANDWIDTH = 0.8
"""Share of the peak bandwidth assumed for elementwise kernels (an assumption, not measured)."""
LAYER_ELEMENTWISE_OPS = ("layernorm", "layernorm", "rotary_emb", "act_fn")
"""Elementwise kernels of one layer under the names of LLMServingSim's table (a norm adds its residual)."""


def read_gemms(folder: Path, device: str) -> pd.DataFrame:
    """Columns m, n, k and latency (milliseconds) of a device such as `h100`."""
    import pandas as pd

    return pd.read_parquet(find_table(folder, f"prof_aic_{device}_*_gemm_bf16.parquet"))


def read_attention(folder: Path, device: str, phase: str, model: LlmModel) -> pd.DataFrame:
    """Attention rows of a model's heads; phase is `context` or `generation`."""
    import pandas as pd

    table = pd.read_csv(find_table(folder, f"prof_aic_{device}_*_{phase}_attention_bf16.csv"))
    rows = table[
        (table["num_heads"] == model.num_heads)
        & (table["num_key_value_heads"] == model.num_kv_heads)
        & (table["head_dim"] == model.head_dim)
    ]
    if rows.empty:
        raise InputError(f"the {phase} attention table of {device} has no rows for the heads of {model.name}")
    return rows


def find_table(folder: Path, pattern: str) -> Path:
    """The one file of a folder that matches a pattern.

    Raises
    ------
    InputError
        If there is none, or more than one.
    """
    paths = sorted(folder.glob(pattern))
    if len(paths) != 1:
        raise InputError(f"{folder} holds {len(paths)} files {pattern}, expected exactly one")
    return paths[0]


def context_attention(table: pd.DataFrame, model: LlmModel) -> Measurements:
    """Prefill attention of all layers: every request processes its whole prompt at once (n = 0)."""
    size, length = (table[column].to_numpy(np.int64) for column in ("batch_size", "isl"))
    return Measurements(
        features=batch_features(
            tokens=size * length,
            prefill_tokens=size * length,
            prefill_attention=size * triangle(length),
            num_prefills=size,
        ),
        times_ns=_layers_ns(table, model),
    )


def generation_attention(table: pd.DataFrame, model: LlmModel) -> Measurements:
    """Decode attention of all layers.

    The kernel reads `step + 1` entries, of which the last is the token's own: a carried context of `step`.
    """
    size, step = (table[column].to_numpy(np.int64) for column in ("batch_size", "step"))
    return Measurements(
        features=batch_features(tokens=size, decode_context=size * step, num_decodes=size),
        times_ns=_layers_ns(table, model),
    )


def token_linear(
    gemms: pd.DataFrame, model: LlmModel, elementwise: Callable[[FloatArray], FloatArray]
) -> Measurements:
    """Everything that depends on the number of tokens: the GEMMs of all layers plus elementwise kernels.

    Parameters
    ----------
    elementwise
        Nanoseconds of the elementwise kernels of all layers, from a number of tokens.
    """
    qkv, *others = (gemm_times_ms(gemms, n, k) for n, k in layer_gemms(model))
    layer_ms = sum(others, start=qkv)
    tokens = layer_ms.index.to_numpy(np.int64)
    times_ns = model.num_layers * NS_PER_MS * np.asarray(layer_ms, dtype=np.float64)
    times_ns += elementwise(tokens.astype(np.float64))
    return Measurements(features=batch_features(tokens=tokens), times_ns=times_ns)


def head_gemm(gemms: pd.DataFrame, model: LlmModel) -> Measurements:
    """The language-model head on the rows of the requests that generate a token."""
    times_ms = gemm_times_ms(gemms, model.vocab_size, model.hidden_size)
    times_ns = NS_PER_MS * np.asarray(times_ms, dtype=np.float64)
    rows = times_ms.index.to_numpy(np.int64)
    return Measurements(features=batch_features(num_generating=rows), times_ns=times_ns)


def layer_gemms(model: LlmModel) -> list[tuple[int, int]]:
    """Shapes (n output, k input features) of the GEMMs of one dense layer: qkv, o, gate and up, down."""
    q_size, kv_size = (heads * model.head_dim for heads in (model.num_heads, model.num_kv_heads))
    return [
        (q_size + 2 * kv_size, model.hidden_size),
        (model.hidden_size, q_size),
        (2 * model.intermediate_size, model.hidden_size),
        (model.hidden_size, model.intermediate_size),
    ]


def gemm_times_ms(gemms: pd.DataFrame, n: int, k: int) -> pd.Series[float]:
    """Milliseconds by m (the index) of a GEMM shape, interpolated linearly where the table lacks it.

    Between grid points a time is linear in n and in k; above the largest n it is proportional to n.
    """
    low, high, weight = _bracket(gemms["k"].unique(), k)
    times = [_times_at_k(gemms[gemms["k"] == grid], n) for grid in (low, high)]
    return ((1 - weight) * times[0] + weight * times[1]).dropna()


def elementwise_ns(model: LlmModel, device: Device, launch_ns: float) -> Callable[[FloatArray], FloatArray]:
    """Derived, not measured: time of the elementwise kernels of all layers, by number of tokens.

    Per token and layer they move 8 h (two norms with their residuals) + 2 (q + kv) (rotary) + 4 kv (KV write)
    + 3 f (activation) elements at `ACHIEVED_BANDWIDTH` of the peak, and take at least `launch_ns` a layer.
    """
    q_size, kv_size = (heads * model.head_dim for heads in (model.num_heads, model.num_kv_heads))
    elements = 8 * model.hidden_size + 2 * (q_size + kv_size) + 4 * kv_size + 3 * model.intermediate_size
    bandwidth = ACHIEVED_BANDWIDTH * device.memory_bandwidth_bytes_per_s
    slope_ns = elements * model.dtype_bytes / bandwidth * 1e9
    return lambda tokens: model.num_layers * np.maximum(slope_ns * tokens, launch_ns)


def read_launch_ns(folder: Path) -> float:
    """Nanoseconds of one layer's elementwise kernels on one token (RTX 4090, vLLM 0.19, LLMServingSim)."""
    import pandas as pd

    table = pd.read_csv(find_table(folder, "prof_llmservingsim_RTX4090_*_dense.csv"))
    single = table[table["tokens"] == 1].set_index("layer")["time_us"]
    return float(sum(single[op] for op in LAYER_ELEMENTWISE_OPS)) * NS_PER_US


def _times_at_k(rows: pd.DataFrame, n: int) -> pd.Series[float]:
    grid = rows["n"].unique()
    largest = int(grid.max())
    if n > largest:
        return n / largest * _times_at(rows, largest)
    low, high, weight = _bracket(grid, n)
    return (1 - weight) * _times_at(rows, low) + weight * _times_at(rows, high)


def _times_at(rows: pd.DataFrame, n: int) -> pd.Series[float]:
    return rows[rows["n"] == n].set_index("m")["latency"].sort_index()


def _bracket(grid: IntArray, value: int) -> tuple[int, int, float]:
    """Grid neighbours of a value and the weight of the upper one."""
    if not grid.min() <= value <= grid.max():
        raise InputError(f"the GEMM table covers {grid.min()} to {grid.max()}, asked for {value}")
    low, high = int(grid[grid <= value].max()), int(grid[grid >= value].min())
    return low, high, 0.0 if low == high else (value - low) / (high - low)


def _layers_ns(table: pd.DataFrame, model: LlmModel) -> FloatArray:
    return model.num_layers * NS_PER_MS * np.asarray(table["latency"], dtype=np.float64)
