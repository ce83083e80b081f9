"""How far attention of heads that no table has is from the truth (docs/costs.md).

Usage: python benchmarks/attention_heads.py [SYSTEM ...]

Needs the extra `aic`. Hides the rows of one number of KV heads, derives them from fewer as the importer does,
and compares: lengths of at least 128 tokens, head_dim 128, 16 bit.
"""

from __future__ import annotations

import sys

import numpy as np

from cspsched.costs.importers.aiconfigurator import AicTables, installed_tables
from cspsched.costs.importers.attention_heads import PROMPT_LENGTH, attention_of_heads

SYSTEMS = ("h100_sxm", "h200_sxm")
HEADS = ((8, 8), (16, 8), (32, 8), (4, 4), (32, 4))
HEAD_DIM, LEAST_LENGTH = 128, 128


def main() -> None:
    """Print a row for each system, phase and number of heads."""
    print("| system | phase | heads | derived | points | MAPE | bias |")
    print("|---|---|---|---|---:|---:|---:|")
    for system in sys.argv[1:] or SYSTEMS:
        tables = AicTables.read(installed_tables(system))
        for kind, length in (("generation", "step"), ("context", PROMPT_LENGTH)):
            for heads, kv_heads in HEADS:
                source = tables.table(kind)
                truth, _ = attention_of_heads(source, length, heads, kv_heads, HEAD_DIM)
                others = source.where(source.counts("num_key_value_heads", 1) != kv_heads)
                derived, how = attention_of_heads(others, length, heads, kv_heads, HEAD_DIM)
                both = truth.merge(derived, on=["batch_size", length])
                both = both[both[length] >= LEAST_LENGTH]
                errors = (both["t_us_y"] / both["t_us_x"] - 1).to_numpy()
                print(
                    f"| {system} | {kind} | {heads}/{kv_heads} | {how} | {len(errors)} "
                    f"| {np.abs(errors).mean():.1%} | {errors.mean():+.1%} |"
                )


if __name__ == "__main__":
    main()
