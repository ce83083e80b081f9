"""Reads a trace file of any known format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cspsched.errors import TraceError
from cspsched.problem.request import Request
from cspsched.trace.azure import AZURE
from cspsched.trace.cells import request_name, token_count
from cspsched.trace.format import TraceFormat, recognise_format
from cspsched.trace.native import NATIVE
from cspsched.trace.optional import read_optional
from cspsched.trace.selection import Selection
from cspsched.trace.table import Table, read_table
from cspsched.trace.trace import Trace, UnusedColumn
from cspsched.trace.vidur import VIDUR

FORMATS: tuple[TraceFormat, ...] = (NATIVE, AZURE, VIDUR)

_DROP = "drop the row"
_DROP_OR_SKIP = "drop the row, or use --limit/--window to leave it out"


def read_trace(
    path: str | Path,
    *,
    limit: int | None = None,
    window: tuple[float, float] | None = None,
    scale_rate: float | None = None,
) -> Trace:
    """Read a trace file; its header tells the format.

    The window is taken first, then the limit, then the rate is scaled. Only the rows that are kept must have
    sensible token counts and names; the arrivals of all rows are needed to know which those are.

    Parameters
    ----------
    path : str or Path
        Comma-separated file in the native, Azure or Vidur format. Rows in any order.
    limit : int, optional
        Keep the first so many requests by arrival; rows that arrive together keep the order of the file.
    window : tuple[float, float], optional
        Keep arrivals in [start, end), in seconds since the file's first arrival. The end may be `math.inf`.
    scale_rate : float, optional
        Multiply the arrival rate by this factor.

    Returns
    -------
    Trace
        Sorted by arrival; times are integer nanoseconds since the first request that was kept.

    Raises
    ------
    InputError
        If the file cannot be read as text.
    TraceError
        If its header, a row or a cell makes no sense, or if no request arrives in the window.
    UsageError
        If an argument makes no sense.
    """
    selection = Selection(window=window, limit=limit, scale_rate=scale_rate)
    table = read_table(Path(path))
    trace_format = recognise_format(table, FORMATS)
    arrivals_ns = _arrivals(table, trace_format)
    # Stable: requests that arrive together stay in the order of the file.
    order = sorted(range(len(arrivals_ns)), key=arrivals_ns.__getitem__)
    elapsed_ns = [arrivals_ns[row] - arrivals_ns[order[0]] for row in order]
    kept = selection.kept(elapsed_ns)
    rows = order[kept.start : kept.stop]
    prompts = table.parse(trace_format.prompt_column, token_count, rows, remedy=_DROP_OR_SKIP)
    requests = _requests(
        arrivals_ns=selection.rebased(elapsed_ns[kept.start : kept.stop]),
        names=_names(table, trace_format, rows, kept),
        prompts=prompts,
        outputs=table.parse(trace_format.output_column, token_count, rows, remedy=_DROP_OR_SKIP),
        extras=read_optional(table, rows, trace_format.optional_columns, prompts, remedy=_DROP_OR_SKIP),
    )
    return Trace(
        name=table.path.stem,
        format=trace_format.name,
        requests=requests,
        unused_columns=tuple(_unused_columns(table, trace_format, rows)),
    )


def _arrivals(table: Table, trace_format: TraceFormat) -> list[int]:
    if trace_format.arrival_column not in table.header:
        return [0] * len(table.rows)
    rows = range(len(table.rows))
    return table.parse(trace_format.arrival_column, trace_format.parse_arrival, rows, remedy=_DROP)


def _unused_columns(table: Table, trace_format: TraceFormat, rows: Sequence[int]) -> Iterator[UnusedColumn]:
    """Columns that are not read, but for those that follow from others or count nothing."""
    known = {*trace_format.known_columns, *trace_format.derived_columns}
    for position, name in enumerate(table.header):
        if name in known or not name:
            continue
        noun = trace_format.counted_columns.get(name)
        if noun is None:
            yield UnusedColumn(name=name)
            continue
        cells = (table.rows[row][position].strip() for row in rows)
        amounts = [int(cell) for cell in cells if cell.isdecimal() and int(cell)]
        if amounts:
            amount = f"{sum(amounts):,} {noun} in {len(amounts):,} of {len(rows):,} requests"
            yield UnusedColumn(name=name, amount=amount)


def _names(
    table: Table, trace_format: TraceFormat, rows: Sequence[int], positions: Sequence[int]
) -> list[str]:
    """Names from the file, or r0, r1, ... by position in the whole trace, the same whatever is left out."""
    if trace_format.id_column is None:
        return [f"r{position}" for position in positions]
    names = table.parse(trace_format.id_column, request_name, rows, remedy=_DROP_OR_SKIP)
    if len(set(names)) < len(names):
        raise TraceError(_repeated_name(table, trace_format.id_column, sorted(zip(rows, names, strict=True))))
    return names


def _repeated_name(table: Table, column: str, named_rows: Sequence[tuple[int, str]]) -> str:
    first_row: dict[str, int] = {}
    row, name = next(pair for pair in named_rows if first_row.setdefault(pair[1], pair[0]) != pair[0])
    return (
        f"{table.where(row)}: {column} is {name!r}, which line {table.lines[first_row[name]]} already has, "
        f"expected unique names (rename one, or {_DROP_OR_SKIP})"
    )


def _requests(
    *,
    arrivals_ns: Sequence[int],
    names: Sequence[str],
    prompts: Sequence[int],
    outputs: Sequence[int],
    extras: Sequence[dict[str, Any]],
) -> tuple[Request, ...]:
    columns = zip(names, arrivals_ns, prompts, outputs, extras, strict=True)
    return tuple(
        Request(request_id=name, arrival_ns=time, prompt_tokens=prompt, output_tokens=output, **extra)
        for name, time, prompt, output, extra in columns
    )
