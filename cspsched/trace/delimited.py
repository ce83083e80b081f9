"""Delimited text: comma-separated, or separated by tabs or semicolons, which is told."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence

from cspsched.errors import TraceError
from cspsched.trace.source import Source
from cspsched.trace.table import Column, ListColumn, Table, shown_text

LARGE_BYTES = 150_000
"""Size from which on plain text is read in columns; the trace is the same."""
_OTHER_SEPARATORS = {"\t": "tabs", ";": "semicolons", "|": "bars"}


def delimited_table(source: Source) -> Table:
    """Return the table of a text with a header line; blank lines are skipped.

    Raises
    ------
    InputError
        If it is no UTF-8 text.
    TraceError
        If it is empty or only a header, a column appears twice, quotes do not match, or a row has too few or
        too many cells.
    """
    text = source.text
    separator = _separator(text)
    notes = () if separator == "," else (f"columns are separated by {_OTHER_SEPARATORS[separator]}",)
    if len(source.data) >= LARGE_BYTES:
        # Loads pyarrow, which a short trace does not need.
        from cspsched.trace.arrow import plain_columns

        columns = plain_columns(text, separator)
        if columns is not None:
            places = range(2, text.rstrip("\n").count("\n") + 2)
            return _table(source, columns, places, header_line=1, notes=notes)
    records = _records(source.name, text, separator)
    header_line, names = next(records, (1, []))
    if not names:
        raise TraceError(f"{source.name} is empty, expected a header line and one line per request")
    header = tuple(name.strip() for name in names)
    _refuse_repeated_columns(f"{source.name} line {header_line}", header)
    rows: list[list[str]] = []
    lines: list[int] = []
    for line, cells in records:
        if len(cells) != len(header):
            raise TraceError(_wrong_width(f"{source.name} line {line}", len(cells), header))
        rows.append(cells)
        lines.append(line)
    if not rows:
        raise TraceError(
            f"{source.name} has a header and no requests, expected one line per request below it"
        )
    columns = {name: ListColumn(cells) for name, cells in zip(header, zip(*rows, strict=True), strict=True)}
    return _table(source, columns, lines, header_line=header_line, notes=notes)


def _separator(text: str) -> str:
    """Return the comma, or what stands in a first line that has none."""
    header = text.lstrip("\n").partition("\n")[0]
    return next((one for one in _OTHER_SEPARATORS if one in header and "," not in header), ",")


def _table(
    source: Source,
    columns: Mapping[str, Column],
    lines: Sequence[int],
    *,
    header_line: int,
    notes: tuple[str, ...],
) -> Table:
    return Table(
        source=source.name,
        stem=source.stem,
        columns=columns,
        place="line",
        places=lines,
        header_line=header_line,
        notes=notes,
    )


def _records(name: str, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text), strict=True, delimiter=separator)
    line = 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise TraceError(f"{name} line {line}: no valid CSV ({error}); repair or drop the line") from None


def _refuse_repeated_columns(where: str, header: tuple[str, ...]) -> None:
    for name in header:
        if header.count(name) > 1:
            raise TraceError(
                f"{where}: column {shown_text(name)} appears twice, expected it once (rename one)"
            )


def _wrong_width(where: str, num_cells: int, header: tuple[str, ...]) -> str:
    fields = "1 field" if num_cells == 1 else f"{num_cells} fields"
    return f"{where}: {fields}, expected {len(header)}: {', '.join(header)} (repair or drop the row)"
