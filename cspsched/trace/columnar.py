"""A large trace from a plain table: the same requests as row by row, in columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cspsched.problem.columns import RequestColumns, Requests
from cspsched.problem.cost import IntArray
from cspsched.problem.request import MAX_TOKENS
from cspsched.trace.cells import arrival_in_seconds, token_count
from cspsched.trace.format import TraceFormat
from cspsched.trace.naming import DROP, DROP_OR_SKIP, read_names, unused_columns
from cspsched.trace.optional import read_optional_fields
from cspsched.trace.plain import PlainTable
from cspsched.trace.selection import Selection
from cspsched.trace.trace import Trace


def read_columns(table: PlainTable, trace_format: TraceFormat, selection: Selection) -> Trace:
    """Trace of a table; same errors as `read_trace`."""
    arrivals_ns = _arrivals(table, trace_format)
    order = np.argsort(arrivals_ns, kind="stable")
    elapsed_ns = arrivals_ns[order] - arrivals_ns[order[0]]
    kept = selection.kept(elapsed_ns)
    some = slice(kept.start, kept.stop)
    rows = order[some]
    prompts = _token_counts(table, trace_format.prompt_column, rows)
    arrival_ns = _rebased(elapsed_ns[some], selection)
    names = _names(table, trace_format, rows, kept)
    outputs = _token_counts(table, trace_format.output_column, rows)
    optional = trace_format.optional_columns
    lengths = (prompts.tolist(), outputs.tolist())
    extra = read_optional_fields(table, rows, optional, *lengths, remedy=DROP_OR_SKIP)
    columns = RequestColumns.of_fields(
        request_id=names, arrival_ns=arrival_ns, prompt_tokens=prompts, output_tokens=outputs, **extra
    )
    if columns.repeated_name is not None:
        read_names(table, trace_format, rows, kept)
    return Trace(
        name=table.path.stem,
        format=trace_format.name,
        requests=Requests(columns),
        unused_columns=tuple(unused_columns(table, trace_format, rows)),
    )


def _arrivals(table: PlainTable, trace_format: TraceFormat) -> IntArray:
    """Arrivals since any moment; Python integers where the years do not fit into 64 bits."""
    column, rows = trace_format.arrival_column, np.arange(table.num_rows)
    if column not in table.header:
        return np.zeros(table.num_rows, dtype=np.int64)
    if trace_format.parse_arrival is arrival_in_seconds:
        plain = table.nanoseconds(column, rows)
        if plain is not None:
            return plain
    values = table.parse(column, trace_format.parse_arrival, rows, remedy=DROP)
    first, last = min(values), max(values)
    return np.array([value - first for value in values], dtype=np.int64 if last - first < 2**63 else object)


def _rebased(elapsed_ns: IntArray, selection: Selection) -> IntArray:
    """As `Selection.rebased`, which says whether the trace is too long."""
    if selection.scale_rate is not None:
        return np.array(selection.rebased(elapsed_ns.tolist()), dtype=np.int64)
    selection.rebased(elapsed_ns[[0, -1]].tolist())
    return np.asarray(elapsed_ns - elapsed_ns[0], dtype=np.int64)


def _token_counts(table: PlainTable, column: str, rows: IntArray) -> IntArray:
    plain = table.whole_numbers(column, rows)
    if plain is not None and plain.min() >= 1 and plain.max() <= MAX_TOKENS:
        return plain
    return np.array(table.parse(column, token_count, rows, remedy=DROP_OR_SKIP), dtype=np.int64)


def _names(
    table: PlainTable, trace_format: TraceFormat, rows: IntArray, positions: Sequence[int]
) -> list[str]:
    """As `read_names`, but for the check that they are unique where they are plain."""
    plain = None if trace_format.id_column is None else table.names(trace_format.id_column, rows)
    return read_names(table, trace_format, rows, positions) if plain is None else plain
