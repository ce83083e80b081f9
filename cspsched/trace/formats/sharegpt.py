"""ShareGPT: conversations as text. Lengths are counted without a tokenizer, which is told.

Source: ShareGPT_V3_unfiltered_cleaned_split.json of anon8231489123/ShareGPT_Vicuna_unfiltered, and how vLLM's
benchmarks read it (vllm/benchmarks/datasets.py, ShareGPTDataset): the first two turns are prompt and output.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from cspsched.errors import TraceError
from cspsched.trace.cells import TimeUnit
from cspsched.trace.format import Layout, TraceFormat
from cspsched.trace.table import ListColumn, Table
from cspsched.units import ceil_div

LETTERS_PER_TOKEN = 4
"""Of English text, as a rule of thumb of the vendors of tokenizers."""


def _with_lengths(table: Table) -> Table:
    """The conversations of at least two turns, with the tokens of the first two."""
    conversations = table.columns["conversations"].values(table.all_rows)
    lengths: list[tuple[int, int]] = []
    kept: list[int] = []
    for row, turns in enumerate(conversations):
        first_two = turns[:2] if isinstance(turns, list) else []
        texts = [turn.get("value") if isinstance(turn, dict) else None for turn in first_two]
        if len(texts) == 2 and all(isinstance(text, str) and text for text in texts):
            kept.append(row)
            lengths.append((_num_tokens(texts[0]), _num_tokens(texts[1])))
    if not kept:
        raise TraceError(f"{table.source} has no conversation with two turns of text, expected at least one")
    notes = [
        f"lengths are letters over {LETTERS_PER_TOKEN}, rounded up, of the first two turns: no tokenizer"
    ]
    if "arrival_s" not in table.columns:
        notes.append("all requests arrive at 0: the file has no arrivals")
    left_out = table.num_rows - len(kept)
    if left_out:
        notes.append(f"{left_out:,} of {table.num_rows:,} conversations have no two turns and are left out")
    rows = np.array(kept)
    columns = {name: ListColumn(column.values(rows)) for name, column in table.columns.items()}
    prompts, outputs = zip(*lengths, strict=True)
    return replace(
        table,
        columns={**columns, "prompt_tokens": ListColumn(prompts), "output_tokens": ListColumn(outputs)},
        places=[table.places[row] for row in kept],
        notes=(*table.notes, *notes),
    )


def _num_tokens(text: Any) -> int:
    return ceil_div(len(text), LETTERS_PER_TOKEN)


SHAREGPT = TraceFormat(
    name="sharegpt",
    title="ShareGPT, text of conversations",
    layout=Layout.LIST,
    arrival_column="arrival_s",
    arrival_unit=TimeUnit.S,
    prompt_column="prompt_tokens",
    output_column="output_tokens",
    may_lack_arrivals=True,
    source_columns=("conversations",),
    derived_columns=("id", "conversations"),
    prepare=_with_lengths,
    is_written=False,
)
