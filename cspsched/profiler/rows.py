"""Rows of a profile: one measured point each, in one Arrow schema."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cspsched.costs.models import LlmModel
from cspsched.profiler.operators import find_operator, work_of
from cspsched.profiler.points import Point
from cspsched.profiler.shapes import RankShape

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from cspsched.profiler.timing import Sample

ROW_TYPES = {
    "profile_id": "string", "model": "string", "family": "string", "tp": "int32", "dtype": "string",
    "op": "string", "backend": "string", "kernel_impl": "string", "num_tokens": "int64", "chunk": "int64",
    "kv": "int64", "n_seq": "int64", "kv_total": "int64", "kv_max": "int64", "kv_var": "float64",
    "batch_spec": "string", "page_size": "int32", "t_us": "float64", "t_min_us": "float64",
    "t_p10_us": "float64", "t_p90_us": "float64", "iqr_us": "float64", "reps": "int32", "noisy": "int8",
    "flops": "int64", "bytes": "int64", "repeat_index": "int32",
}  # fmt: skip
"""Columns and their types; `cspsched.costs.rows` says what they mean to a fit."""
KEY_COLUMNS = ("model", "tp", "op", "backend", "num_tokens", "chunk", "kv", "n_seq", "batch_spec")
"""What tells rows apart; empty counts are -1."""
RowKey = tuple[Any, ...]
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowContext:
    """What all rows of a run share."""

    profile_id: str
    model: LlmModel
    page_size: int


def make_row(point: Point, shape: RankShape, context: RowContext, sample: Sample, kernel_impl: str) -> Row:
    """Row of a measured point; times in microseconds."""
    work = work_of(point, shape)
    return {
        "profile_id": context.profile_id,
        "model": context.model.name,
        "family": find_operator(point.operator, context.model).family.value,
        "tp": point.tensor_parallel,
        "dtype": shape.dtype,
        "op": point.operator,
        "backend": point.backend,
        "kernel_impl": kernel_impl,
        **_batch_columns(point),
        "page_size": context.page_size if point.operator.startswith(("attn", "kv_")) else 0,
        "t_us": sample.median_us,
        "t_min_us": sample.min_us,
        "t_p10_us": sample.p10_us,
        "t_p90_us": sample.p90_us,
        "iqr_us": sample.iqr_us,
        "reps": sample.repeats,
        "noisy": int(sample.noisy),
        "flops": work.flops,
        "bytes": work.num_bytes,
        "repeat_index": sample.repeat_index,
    }


def _batch_columns(point: Point) -> Row:
    """What is measured; chunk and kv are -1 where the sequences differ."""
    contexts = np.array([chunk.context for chunk in point.chunks])
    first = point.chunks[0]
    spec: dict[str, Any] = {}
    if point.is_ragged:
        spec["chunks"] = [list(chunk) for chunk in point.chunks]
    if point.active_experts:
        spec["active_experts"] = point.active_experts
    return {
        "num_tokens": point.num_tokens,
        "chunk": -1 if point.is_ragged else first.tokens,
        "kv": -1 if point.is_ragged else first.context,
        "n_seq": len(point.chunks),
        "kv_total": int(contexts.sum()),
        "kv_max": int(contexts.max()),
        "kv_var": float(contexts.var()),
        "batch_spec": json.dumps(spec, separators=(",", ":")) if spec else "",
    }


def point_key(point: Point, model: str) -> RowKey:
    """Key of the row that a point will have."""
    columns = _batch_columns(point)
    head = (model, point.tensor_parallel, point.operator, point.backend)
    return (*head, *(columns[name] for name in KEY_COLUMNS[len(head) :]))


def row_keys(table: pd.DataFrame) -> set[RowKey]:
    """Keys of all rows of a table."""
    return set(zip(*(table[name].tolist() for name in KEY_COLUMNS), strict=True))


def arrow_schema() -> pa.Schema:
    """The schema of every file of rows."""
    import pyarrow as pa

    return pa.schema([(name, pa.type_for_alias(kind)) for name, kind in ROW_TYPES.items()])


def write_rows(rows: Iterable[Row] | pd.DataFrame, path: Path) -> None:
    """Write rows to a Parquet file, complete or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not hasattr(rows, "columns"):
        table = pa.Table.from_pylist(list(rows), schema=arrow_schema())
    else:
        table = pa.Table.from_pandas(rows, schema=arrow_schema(), preserve_index=False)
    partial = path.with_suffix(".partial")
    pq.write_table(table, partial, compression="zstd")
    partial.replace(path)
