"""Rows of a made-up device whose operator times are known."""

from __future__ import annotations

import numpy as np
import pandas as pd

from cspsched.costs.models import load_model
from cspsched.costs.rows import make_rows
from cspsched.problem.cost import triangle

MODEL = load_model("llama-3.1-8b")
LAYERS = MODEL.num_layers
TOKENS = np.array([1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096])
LAYER_FLOOR_US, LAYER_TOKEN_US = 50.0, 0.5
HEAD_FLOOR_US, HEAD_TOKEN_US = 300.0, 2.0
REDUCE_US_PER_BYTE = 1e-5


def token_rows(ranks: int = 1) -> pd.DataFrame:
    """One operator that stands for a layer: a floor, then linear."""
    times = np.maximum(LAYER_FLOOR_US, LAYER_TOKEN_US * TOKENS) / ranks
    return make_rows({"op": "gate_up", "num_tokens": TOKENS, "t_us": times, "tp": ranks})


def head_rows(ranks: int = 1) -> pd.DataFrame:
    """Head: a floor and a slope over the requests that get a token."""
    times = HEAD_FLOOR_US + HEAD_TOKEN_US * TOKENS
    return make_rows({"op": "lm_head", "num_tokens": TOKENS, "t_us": times, "tp": ranks})


def prefill_us(number, chunk, before):
    """Time of the made-up prefill kernel."""
    return 5 + number * (1 + 0.002 * chunk + 1e-5 * (triangle(before + chunk) - triangle(before)))


def decode_us(number, total):
    """Time of the made-up decode kernel."""
    return 4 + 0.1 * number + 0.001 * total


def attention_rows(ranks: int = 1) -> pd.DataFrame:
    """Attention kernels on a grid."""
    number, chunk, before = (
        grid.ravel() for grid in np.meshgrid([1, 4, 16], [64, 256, 1024], [0, 512, 4096])
    )
    columns = {"op": "attn_prefill", "n_seq": number, "chunk": chunk, "kv": before}
    prefill = make_rows(columns | {"t_us": prefill_us(number, chunk, before), "tp": ranks})
    number, length = (grid.ravel() for grid in np.meshgrid([1, 4, 16, 64], [64, 256, 1024, 4096, 16384]))
    columns = {"op": "attn_decode", "n_seq": number, "kv": length, "kv_total": number * length}
    decode = make_rows(columns | {"t_us": decode_us(number, number * length), "tp": ranks})
    return pd.concat([prefill, decode], ignore_index=True)


def all_rows(ranks: int = 1) -> pd.DataFrame:
    """Everything that a profile needs."""
    return pd.concat([token_rows(ranks), head_rows(ranks), attention_rows(ranks)], ignore_index=True)
