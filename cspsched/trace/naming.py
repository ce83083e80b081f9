"""Names of the requests of a file, what it has beside what is read, and remedies for a wrong row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cspsched.errors import TraceError
from cspsched.trace.cells import request_name
from cspsched.trace.format import TraceFormat
from cspsched.trace.table import Table
from cspsched.trace.trace import UnusedColumn

if TYPE_CHECKING:
    from cspsched.problem.cost import IntArray

DROP = "drop the row"
DROP_OR_SKIP = "drop the row, or use --limit/--window to leave it out"


def unused_columns(
    table: Table, trace_format: TraceFormat, rows: Sequence[int] | IntArray
) -> Iterator[UnusedColumn]:
    """Columns that are not read, but for those that follow from others or count nothing."""
    known = {*trace_format.known_columns, *trace_format.derived_columns}
    for name in table.header:
        if name in known or not name:
            continue
        noun = trace_format.counted_columns.get(name)
        if noun is None:
            yield UnusedColumn(name=name)
            continue
        cells = [cell.strip() for cell in table.cells(name, rows)]
        amounts = [int(cell) for cell in cells if cell.isdecimal() and int(cell)]
        if amounts:
            amount = f"{sum(amounts):,} {noun} in {len(amounts):,} of {len(rows):,} requests"
            yield UnusedColumn(name=name, amount=amount)


def read_names(
    table: Table, trace_format: TraceFormat, rows: Sequence[int] | IntArray, positions: Sequence[int]
) -> list[str]:
    """Names from the file, or r0, r1, ... by position in the whole trace, the same whatever is left out."""
    if trace_format.id_column is None:
        return [f"r{position}" for position in positions]
    names = table.parse(trace_format.id_column, request_name, rows, remedy=DROP_OR_SKIP)
    if len(set(names)) < len(names):
        raise TraceError(_repeated_name(table, trace_format.id_column, sorted(zip(rows, names, strict=True))))
    return names


def _repeated_name(table: Table, column: str, named_rows: Sequence[tuple[int, str]]) -> str:
    first_row: dict[str, int] = {}
    row, name = next(pair for pair in named_rows if first_row.setdefault(pair[1], pair[0]) != pair[0])
    return (
        f"{table.where(row)}: {column} is {name!r}, which line {table.lines[first_row[name]]} already has, "
        f"expected unique names (rename one, or {DROP_OR_SKIP})"
    )
