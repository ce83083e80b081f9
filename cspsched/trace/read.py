"""Reads a trace of any known format into columns: the one way from a file to requests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cspsched.errors import TraceError
from cspsched.problem.columns import Prefix, RequestColumns, Requests
from cspsched.problem.cost import IntArray
from cspsched.problem.request import MAX_TOKENS
from cspsched.trace.cells import token_count
from cspsched.trace.delimited import delimited_table
from cspsched.trace.detect import choose_format
from cspsched.trace.failed import without_failed_rows
from cspsched.trace.format import PrefixHashes, TraceFormat
from cspsched.trace.hashes import HashesError, prefixes_of_hashes
from cspsched.trace.jitter import Jitter
from cspsched.trace.naming import DROP, DROP_OR_SKIP, read_names, unused_columns
from cspsched.trace.optional import read_optional_fields
from cspsched.trace.records import json_table
from cspsched.trace.selection import Selection
from cspsched.trace.source import Source, read_source
from cspsched.trace.table import Table
from cspsched.trace.trace import Trace

_PARQUET = b"PAR1"


def read_trace(
    path: str | Path,
    *,
    limit: int | None = None,
    window: tuple[float, float] | None = None,
    scale_rate: float | None = None,
    trace_format: str | None = None,
    columns: str | None = None,
    dejitter: str | None = None,
) -> Trace:
    """Read a trace; its columns tell the format.

    Failed requests are left out and arrivals drawn within their ticks first; then comes the window, then the
    limit, then the rate is scaled. Only the rows that are kept must have sensible token counts and names; the
    arrivals of all rows are needed to know which those are.

    Parameters
    ----------
    path : str or Path
        Delimited text, JSON or Parquet, plain or packed by gzip or Zstandard; `-` is standard input. Rows in
        any order.
    limit : int, optional
        Keep the first so many requests by arrival; rows that arrive together keep the order of the file.
    window : tuple[float, float], optional
        Keep arrivals in [start, end), in seconds since the file's first arrival. The end may be `math.inf`.
    scale_rate : float, optional
        Multiply the arrival rate by this factor.
    trace_format : str, optional
        Name of a format, such as `mooncake`, in the place of a look at the columns.
    columns : str, optional
        Which column is what, such as `arrival=timestamp:ms,prompt=input_tokens,output=output_tokens`.
    dejitter : str, optional
        `uniform` or `uniform:SEED`: draw each arrival within its tick of the clock.

    Returns
    -------
    Trace
        Sorted by arrival; times are integer nanoseconds since the first request that was kept. Its notes say
        what was taken for what.

    Raises
    ------
    InputError
        If the file cannot be read, or is no text where text is expected.
    TraceError
        If no format fits, a row or a cell makes no sense, or no request arrives in the window.
    UsageError
        If an argument makes no sense.
    """
    selection = Selection(window=window, limit=limit, scale_rate=scale_rate)
    jitter = None if dejitter is None else Jitter.of(dejitter)
    made, table = choose_format(read_table(read_source(Path(path))), trace_format, columns)
    return _trace(*without_failed_rows(table, made), made, selection, jitter)


def read_table(source: Source) -> Table:
    """Return the table of a source; its first bytes tell whether it is Parquet, JSON or delimited text.

    Raises
    ------
    InputError
        If it is no UTF-8 text and no Parquet.
    TraceError
        If it is damaged or has no rows.
    """
    if source.data.startswith(_PARQUET):
        # Loads pyarrow, which text does not need.
        from cspsched.trace.arrow import parquet_table

        return parquet_table(source)
    start = source.data[:1000].removeprefix("\N{BOM}".encode()).lstrip()[:1]
    return json_table(source) if start in (b"{", b"[") else delimited_table(source)


def _trace(
    table: Table, rows: IntArray, made: TraceFormat, selection: Selection, jitter: Jitter | None
) -> Trace:
    arrivals_ns = _arrivals(table, made, rows)
    # Stable: requests that arrive together stay in the order of the file.
    order = np.argsort(arrivals_ns, kind="stable")
    elapsed_ns = arrivals_ns[order] - arrivals_ns[order[0]]
    notes = [*table.notes]
    if jitter is not None:
        elapsed_ns, note = jitter.spread(elapsed_ns)
        notes.append(note)
    if made.id_column is not None and made.id_column not in table.columns:
        notes.append(f"requests are named r0, r1, ... by arrival: there is no column {made.id_column}")
    kept = selection.kept(elapsed_ns)
    some = slice(kept.start, kept.stop)
    rows = rows[order[some]]
    prompts = _token_counts(table, made.prompt_column, rows)
    outputs = _token_counts(table, made.output_column, rows)
    lengths = (prompts.tolist(), outputs.tolist())
    extra = read_optional_fields(table, rows, made.optional_columns, *lengths, remedy=DROP_OR_SKIP)
    if made.prefix_hashes is not None:
        extra |= _prefixes(table, made.prefix_hashes, rows, prompts)
    columns = RequestColumns.of_fields(
        request_id=read_names(table, made, rows, kept),
        arrival_ns=_rebased(elapsed_ns[some], selection),
        prompt_tokens=prompts,
        output_tokens=outputs,
        **extra,
    )
    # The names have just been found to be unique.
    columns.__dict__["repeated_name"] = None
    return Trace(
        name=table.stem,
        format=made.name,
        requests=Requests(columns),
        unused_columns=tuple(unused_columns(table, made, rows)),
        notes=tuple(notes),
    )


def _arrivals(table: Table, made: TraceFormat, rows: IntArray) -> IntArray:
    """Arrivals since any moment; Python integers where the years do not fit into 64 bits."""
    column, unit = made.arrival_column, made.arrival_unit
    if column not in table.columns:
        return np.zeros(len(rows), dtype=np.int64)
    plain = table.columns[column].times_ns(rows, unit)
    if plain is not None:
        return plain
    values = table.parse(column, unit.parse, rows, remedy=DROP)
    first, last = min(values), max(values)
    return np.array([value - first for value in values], dtype=np.int64 if last - first < 2**63 else object)


def _rebased(elapsed_ns: IntArray, selection: Selection) -> IntArray:
    """As `Selection.rebased`, which says whether the trace is too long."""
    if selection.scale_rate is not None:
        return np.array(selection.rebased(elapsed_ns.tolist()), dtype=np.int64)
    selection.rebased(elapsed_ns[[0, -1]].tolist())
    return np.asarray(elapsed_ns - elapsed_ns[0], dtype=np.int64)


def _token_counts(table: Table, column: str, rows: IntArray) -> IntArray:
    plain = table.columns[column].whole_numbers(rows)
    if plain is not None and plain.min() >= 1 and plain.max() <= MAX_TOKENS:
        return plain
    return np.array(table.parse(column, token_count, rows, remedy=DROP_OR_SKIP), dtype=np.int64)


def _prefixes(
    table: Table, hashed: PrefixHashes, rows: IntArray, prompts: IntArray
) -> dict[str, Sequence[Prefix]]:
    """The field of prefixes from the column of hashes, none if there is no such column."""
    if hashed.column not in table.columns:
        return {}
    lists = table.columns[hashed.column].values(rows)
    try:
        return {"prefix": prefixes_of_hashes(lists, prompts.tolist(), hashed.block_tokens)}
    except HashesError as error:
        where = table.where(int(rows[error.position]))
        raise TraceError(f"{where}: {hashed.column} {error} ({DROP_OR_SKIP})") from None
