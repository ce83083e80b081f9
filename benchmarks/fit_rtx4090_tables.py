"""Fit the shipped cost model of the RTX 4090 to the operator tables of LLMServingSim.

Usage: python benchmarks/fit_rtx4090_tables.py DATA_FOLDER [--out FOLDER]

DATA_FOLDER holds `prof_llmservingsim_RTX4090_llama8b_{dense,per_sequence,attention}.csv`. No measured run of
a server is used. Prints how well each operator was met.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd

from cspsched.costs.estimator.quality import describe
from cspsched.costs.estimator.write import decimals
from cspsched.costs.fit import (
    FloatArray,
    Measurements,
    Terms,
    batch_features,
    fit_terms,
    price_terms,
    relative_errors,
)
from cspsched.problem.cost import COST_SCHEMA, PiecewiseLinear, triangle

NAME, TABLES = "rtx-4090-llama-3.1-8b", "prof_llmservingsim_RTX4090_llama8b"
NUM_LAYERS = 32
KV_TOKENS = 41_408
"""What fits on the device beside the weights (2588 blocks of 16): no batch reads more."""
GRAPH_SIZES = (1, 2, 4, *range(8, 129, 8))
"""Up to 512 tokens vLLM pads a batch to the next size that it has captured as a CUDA graph."""
LAYER_OPS = {
    "act_fn": 1, "down_proj": 1, "gate_up_proj": 1, "layernorm": 2, "o_proj": 1, "qkv_proj": 1,
    "rotary_emb": 1,
}  # fmt: skip
ONCE_OPS = ("embedding", "final_layernorm")
HEAD_KNOTS = (0, 1, 16, 20, 64, 128, 192, 208, 256)
SOURCE = (
    "casys-kaist/LLMServingSim (MIT), profiler/perf, RTX 4090, vLLM 0.19, bf16: dense, per_sequence and "
    "attention tables. Token operators: the table itself, rising, at captured CUDA graph sizes up to 128 and "
    "every 128 tokens from there on. Attention: non-negative fits to batches of at most 64 decodes and 41408 "
    "KV entries, all that the device holds beside the weights. Written by benchmarks/fit_rtx4090_tables.py"
)
LEAVES_OUT = (
    "CPU work between batches (hidden by asynchronous scheduling, as far as it is shorter than a batch). "
    "Contexts of very different length in one batch"
)


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """A table of the profile."""
    return pd.read_csv(folder / f"{TABLES}_{name}.csv")


def rising(folder: Path, name: str, key: str, ops: Mapping[str, int]) -> tuple[FloatArray, FloatArray]:
    """Sizes, and nanoseconds of some operators together, made non-decreasing."""
    table = read_table(folder, name).pivot_table(index=key, columns="layer", values="time_us")
    total = sum(table[op] * times for op, times in ops.items())
    return table.index.to_numpy(float), np.maximum.accumulate(total.to_numpy() * 1000.0)


def through(points: Mapping[int, float]) -> PiecewiseLinear:
    """The piecewise-linear function from 0 through some points; its last slope goes on."""
    x, y = [0, *points], [0.0, *points.values()]
    slopes = np.diff(y) / np.diff(x)
    return PiecewiseLinear(tuple(x[:-1]), tuple(Fraction(f"{slope:.4f}") for slope in slopes))


def token_terms(folder: Path) -> Terms:
    """What depends on the tokens of a batch alone: a staircase of graph sizes, then a line."""
    ops = {op: times * NUM_LAYERS for op, times in LAYER_OPS.items()} | dict.fromkeys(ONCE_OPS, 1)
    sizes, times = rising(folder, "dense", "tokens", ops)
    points: dict[int, float] = {}
    for below, size in zip((0, *GRAPH_SIZES), GRAPH_SIZES, strict=False):
        points[below + 1] = points[size] = float(np.interp(size, sizes, times))
    for size in range(256, int(sizes[-1]) + 1, 128):
        points[size] = float(np.interp(size, sizes, times))
    return {"tokens": through(points)}


def head_terms(folder: Path) -> Terms:
    """Head and sampler, by sequences that get a token."""
    sizes, times = rising(folder, "per_sequence", "sequences", {"lm_head": 1, "sampler": 1})
    return {"head": through({k: float(np.interp(k, sizes, times)) for k in HEAD_KNOTS[1:]})}


def attention(rows: pd.DataFrame) -> Measurements:
    """Attention of all layers on batches of one prefill chunk and equal decodes."""
    chunk, context, decodes, kv = (
        rows[name].to_numpy(np.int64) for name in ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
    )
    features = batch_features(
        tokens=chunk + decodes,
        prefill_attention=triangle(context + chunk) - triangle(context),
        prefill_tokens=chunk,
        prefill_context=context,
        decode_context=decodes * kv,
        num_prefills=(chunk > 0).astype(np.int64),
        num_decodes=decodes,
    )
    return Measurements(features=features, times_ns=rows["time_us"].to_numpy() * 1000.0 * NUM_LAYERS)


def decode_terms(measured: Measurements) -> Terms:
    """Attention of batches of decodes."""
    knots = {"decode_context": (0, 2048, 8192, 16384)}
    return fit_terms(measured, constants=("decode_batch", "decode_request"), knots=knots)


def prefill_terms(measured: Measurements) -> Terms:
    """Attention of a chunk alone."""
    knots = {"prefill_attention": (0,), "prefill_tokens": (0,), "prefill_context": (0,)}
    return fit_terms(measured, constants=("prefill_batch",), knots=knots)


def mixed_terms(measured: Measurements, alone: Terms) -> Terms:
    """What decodes cost on top beside a chunk; errors relative to the whole batch."""
    beside = replace(measured, beside_ns=price_terms(alone, measured.features))
    return fit_terms(beside, knots={"mixed_context": (0,)})


def fit(folder: Path) -> tuple[Terms, dict[str, str]]:
    """All terms, and how well the fitted ones meet the tables."""
    rows = read_table(folder, "attention")
    read = rows["n_decode"] * rows["kv_decode"]
    held = read + rows["kv_prefill"] + rows["prefill_chunk"]
    decodes = attention(
        rows[(rows["prefill_chunk"] == 0) & rows["n_decode"].between(1, 64) & (rows["kv_decode"] >= 256)
             & (read <= 2 * KV_TOKENS)]
    )  # fmt: skip
    chunks = rows[(rows["prefill_chunk"] > 0) & (rows["kv_prefill"] <= 4096) & (held <= KV_TOKENS)]
    prefills = attention(chunks[chunks["n_decode"] == 0])
    mixed = attention(chunks[chunks["n_decode"].between(1, 64) & (chunks["kv_decode"] >= 256)])
    alone = decode_terms(decodes) | prefill_terms(prefills)
    terms = alone | mixed_terms(mixed, alone)
    errors = {
        name: "in sample " + describe(relative_errors(price_terms(terms, m.features), m.times_ns))
        for name, m in (
            ("prefill_attention", prefills), ("decode_attention", decodes), ("mixed_attention", mixed)
        )
    }  # fmt: skip
    return token_terms(folder) | head_terms(folder) | terms, errors


def cost_file(terms: Terms, fit_error: Mapping[str, str]) -> str:
    """Text of the cost file."""
    lines = ["# Written by benchmarks/fit_rtx4090_tables.py; do not edit."]
    described = {
        "schema": COST_SCHEMA, "name": NAME, "model": "llama-3.1-8b", "device": "rtx-4090",
        "title": "Llama 3.1 8B on one NVIDIA GeForce RTX 4090, bf16, fitted to measured kernels of vLLM 0.19",
        "source": SOURCE, "leaves_out": LEAVES_OUT,
    }  # fmt: skip
    lines += [f'{key} = "{text}"' for key, text in described.items()]
    lines += ["tensor_parallel = 1"]
    lines += [f'{key}_ns = "{term}"' for key, term in terms.items() if isinstance(term, Fraction)]
    for key, term in terms.items():
        if isinstance(term, PiecewiseLinear):
            lines += ["", f"[{key}]", f"knots = {list(term.knots)}", f"slopes_ns = {decimals(term.slopes)}"]
    lines += ["", "[fit_error]", *(f'{key} = "{text}"' for key, text in fit_error.items())]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit and write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("models/costs"))
    parsed = parser.parse_args(arguments)
    terms, errors = fit(parsed.data_folder)
    (parsed.out / f"{NAME}.toml").write_text(cost_file(terms, errors))
    for operator, text in errors.items():
        print(f"{operator:20} {text}")


if __name__ == "__main__":
    main()
