"""What the shape of a batch does to attention, beside the tokens in it: the questions of docs/costs.md.

Usage: python benchmarks/attention_shapes.py DATA_FOLDER

DATA_FOLDER holds `prof_aic_*_attention_*` (ai-dynamo/aiconfigurator), 32 query and 8 KV heads. Two tables:
equal prefills in one batch beside what a single prefill of length sqrt(sum p^2), Vidur's look-up, and the sum
of single prefills would say (interpolated between measured lengths); and decodes that read 131,072 KV entries
in all.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from cspsched.costs.importers.aiconfigurator import AicTables
from cspsched.costs.importers.attention_heads import attention_of_heads

DEVICES, HEADS, KV_HEADS, HEAD_SIZE = ("h200", "h100", "a100"), 32, 8, 128
LEAST_LENGTHS = (128, 1024)
KV_ENTRIES = 131_072


def points(folder: Path, device: str, phase: str) -> pd.DataFrame:
    """Measured batches of a device: batch_size, length, t_us."""
    tables = AicTables.read(sorted(folder.glob(f"prof_aic_{device}_*attention*")))
    kind, length = ("generation", "step") if phase == "decode" else ("context", "isl")
    grid, _ = attention_of_heads(tables.table(kind), length, HEADS, KV_HEADS, HEAD_SIZE)
    return grid.rename(columns={length: "length"})


def prefills(folder: Path, device: str, least: int) -> str:
    """Errors of both ways to price batches of several prefills of so many tokens or more."""
    table = points(folder, device, "prefill")
    single = table[table["batch_size"] == 1].sort_values("length")
    several = table[(table["batch_size"] > 1) & (table["length"] >= least)]
    several = several[several["length"] * np.sqrt(several["batch_size"]) <= single["length"].max()]
    size, length = several["batch_size"].to_numpy(), several["length"].to_numpy()

    measured_us = several["t_us"].to_numpy()
    merged = np.interp(np.sqrt(size) * length, single["length"], single["t_us"]) / measured_us - 1
    added = size * np.interp(length, single["length"], single["t_us"]) / measured_us - 1
    return (
        f"{device}: {len(several):3} batches of prefills of {least:4} tokens or more: one of sqrt(sum p^2) "
        f"{merged.mean():+.1%} (worst {merged.min():+.1%}), sum of single ones {added.mean():+.1%}"
    )


def decodes(folder: Path, device: str) -> str:
    """Microseconds a layer for the same KV entries, read by ever more requests."""
    table = points(folder, device, "decode")
    # The table counts the token that is generated: contexts are one less than powers of two.
    same = table[table["batch_size"] * (table["length"] + 1) == KV_ENTRIES].sort_values("batch_size")
    times = ", ".join(
        f"{size} x {length + 1}: {t_us:.0f} us"
        for size, length, t_us in same[["batch_size", "length", "t_us"]].itertuples(index=False)
    )
    return f"{device}: decodes that read {KV_ENTRIES:,} entries: {times}"


def main() -> None:
    """Print one line for each device and question."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_folder", type=Path)
    folder = parser.parse_args().data_folder
    for device in DEVICES:
        for least in LEAST_LENGTHS:
            print(prefills(folder, device, least))
        print(decodes(folder, device), flush=True)


if __name__ == "__main__":
    main()
