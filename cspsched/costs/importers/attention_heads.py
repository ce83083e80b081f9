"""Attention tables of aiconfigurator by numbers of heads, and what stands in for numbers that they lack."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cspsched.costs.importers.source import US_PER_MS, Source
from cspsched.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

PROMPT_LENGTH = "isl"
"""Column of the table of prefills with the tokens of each prompt."""


def attention_of_heads(
    source: Source, length: str, heads: int, kv_heads: int, head_dim: int
) -> tuple[pd.DataFrame, str]:
    """Attention rows (batch_size, the length, t_us) of so many heads, and how they came about.

    Where the number of query heads was not measured, times are linear between the next fewer and the next
    more query heads of as many KV heads. Where no such number of KV heads was, as in models without grouped
    queries, prefills are those of as many query heads over the most KV heads that were measured (their work
    is the queries'), and decodes those of more requests with as many KV heads in all (their work is the KV
    cache's). How far that is from the truth: docs/costs.md.
    """
    q, kv = source.counts("num_heads", 1), source.counts("num_key_value_heads", 1)
    of_size = np.ones(len(q), dtype=np.bool_)
    if source.has("head_dim"):
        of_size = source.counts("head_dim") == head_dim
    if not (of_size & (kv == kv_heads)).any():
        fewer = [int(n) for n in np.unique(kv[of_size]) if n < kv_heads and kv_heads % n == 0]
        for measured_kv in reversed(fewer):
            share = 1 if length == PROMPT_LENGTH else kv_heads // measured_kv
            if heads % share == 0 and (of_size & (kv == measured_kv) & (q == heads // share)).any():
                frame, _ = attention_of_heads(source, length, heads // share, measured_kv, head_dim)
                frame = frame[frame["batch_size"] % share == 0]
                frame = frame.assign(batch_size=frame["batch_size"] // share)
                return frame, f"from {heads // share} query heads over {measured_kv} KV heads"
    what = f"{kv_heads} KV heads (head_dim {head_dim})"
    return _between_heads(source, length, heads, of_size & (kv == kv_heads), what)


def _between_heads(
    source: Source, length: str, heads: int, keep: np.typing.NDArray[np.bool_], what: str
) -> tuple[pd.DataFrame, str]:
    """Rows of so many query heads among rows of the same KV heads."""
    q = source.counts("num_heads", 1)
    measured = sorted({int(number) for number in q[keep]})
    below, above = ([n for n in measured if n <= heads], [n for n in measured if n >= heads])
    if not below or not above:
        raise InputError(
            f"{source.path} has no attention of {heads} query heads over {what}; query heads measured there: "
            f"{', '.join(map(str, measured)) or 'none'}"
        )
    low, high = below[-1], above[0]
    parts = [grid_of(source.where(keep & (q == n)), length) for n in (low, high)]
    if low == high:
        return parts[0].reset_index(), "measured"
    weight = (heads - low) / (high - low)
    between = ((1 - weight) * parts[0] + weight * parts[1]).dropna()
    return between.reset_index(), f"between {low} and {high} query heads"


def grid_of(rows: Source, length: str) -> pd.DataFrame:
    """Median time by batch size and length."""
    import pandas as pd

    frame = pd.DataFrame(
        {
            "batch_size": rows.counts("batch_size", 1),
            length: rows.counts(length),
            "t_us": rows.times_us("latency", US_PER_MS),
        }
    )
    return frame.groupby(["batch_size", length]).median()
