"""Names of the requests of a file, what it has beside what is read, and remedies for a wrong row."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from cspsched.errors import TraceError
from cspsched.trace.cells import request_name
from cspsched.trace.format import TraceFormat
from cspsched.trace.table import Table, cell_text
from cspsched.trace.trace import UnusedColumn

if TYPE_CHECKING:
    from cspsched.problem.cost import IntArray

_AMOUNT = re.compile(r"0*[1-9][0-9]{0,17}(?:\.0*)?")
DROP = "drop the row"
DROP_OR_SKIP = "drop the row, or use --limit/--window to leave it out"


def unused_columns(table: Table, trace_format: TraceFormat, rows: IntArray) -> Iterator[UnusedColumn]:
    """Columns that are not read, but for those that follow from others or count nothing."""
    known = (*trace_format.known_columns, *trace_format.source_columns, *trace_format.marks)
    for name in table.header:
        if not name or name in known or any(fnmatchcase(name, one) for one in trace_format.derived_columns):
            continue
        cells = None
        if name in trace_format.fixed_columns or name in trace_format.counted_columns:
            cells = [cell.strip() for cell in table.columns[name].texts(rows)]
        if cells is None:
            yield UnusedColumn(name=name)
        elif name in trace_format.fixed_columns:
            fixed = cell_text(trace_format.fixed_columns[name])
            others = sum(cell != fixed for cell in cells)
            if others:
                yield UnusedColumn(name=name, amount=f"not {fixed} in {others:,} of {len(rows):,} requests")
        else:
            amounts = [int(cell.partition(".")[0]) for cell in cells if _AMOUNT.fullmatch(cell)]
            if amounts:
                noun = trace_format.counted_columns[name]
                amount = f"{sum(amounts):,} {noun} in {len(amounts):,} of {len(rows):,} requests"
                yield UnusedColumn(name=name, amount=amount)


def read_names(
    table: Table, trace_format: TraceFormat, rows: IntArray, positions: Sequence[int]
) -> list[str]:
    """Names from the file, or r0, r1, ... by position in the whole trace, the same whatever is left out."""
    column = trace_format.id_column
    if column is None or column not in table.columns:
        return [f"r{position}" for position in positions]
    plain = table.columns[column].names(rows)
    names = table.parse(column, request_name, rows, remedy=DROP_OR_SKIP) if plain is None else plain
    if len(set(names)) < len(names):
        named_rows = sorted(zip(rows.tolist(), names, strict=True))
        raise TraceError(_repeated_name(table, column, named_rows))
    return names


def _repeated_name(table: Table, column: str, named_rows: Sequence[tuple[int, str]]) -> str:
    first_row: dict[str, int] = {}
    row, name = next(pair for pair in named_rows if first_row.setdefault(pair[1], pair[0]) != pair[0])
    return (
        f"{table.where(row)}: {column} is {name!r}, which {table.place} {table.places[first_row[name]]} "
        f"already has, expected unique names (rename one, or {DROP_OR_SKIP})"
    )
