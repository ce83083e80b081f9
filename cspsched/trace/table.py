"""A CSV file as cells of text that still know their line."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cspsched.errors import TraceError
from cspsched.problem.json_io import read_text

if TYPE_CHECKING:
    from cspsched.problem.cost import IntArray

Value = TypeVar("Value")

_LONGEST_SHOWN = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Header and rows of a CSV file; every row has as many cells as the header."""

    path: Path
    header_line: int
    header: tuple[str, ...]
    rows: list[list[str]]
    lines: Sequence[int] | IntArray
    """Line of the file, counted from 1, on which each row begins."""

    @property
    def num_rows(self) -> int:
        """Rows below the header."""
        return len(self.rows)

    def cells(self, column: str, rows: Sequence[int] | IntArray) -> list[str]:
        """Texts of a column in the given rows."""
        index = self.header.index(column)
        return [self.rows[row][index] for row in rows]

    def parse(
        self,
        column: str,
        parse_cell: Callable[[str], Value],
        rows: Sequence[int] | IntArray,
        *,
        remedy: str,
    ) -> list[Value]:
        """Values of a column in the given rows.

        Parameters
        ----------
        column : str
            Name of a column of the header.
        parse_cell : Callable[[str], Value]
            Raises ValueError with what was expected.
        rows : Sequence[int]
            Row numbers from 0, in the order of the result.
        remedy : str
            What the user can do about a cell that is wrong.

        Raises
        ------
        TraceError
            If a cell is wrong, with file, line, column, value, expectation and remedy.
        """
        return parse_cells(self, column, self.cells(column, rows), parse_cell, rows, remedy=remedy)

    def where(self, row: int) -> str:
        """File and line of a row, for messages."""
        return f"{self.path} line {self.lines[row]}"


def parse_cells(
    table: Table,
    column: str,
    cells: Sequence[str],
    parse_cell: Callable[[str], Value],
    rows: Sequence[int] | IntArray,
    *,
    remedy: str,
) -> list[Value]:
    """Values of the cells of a column in the given rows; see `Table.parse`."""
    values: list[Value] = []
    for row, cell in zip(rows, cells, strict=True):
        try:
            values.append(parse_cell(cell))
        except ValueError as error:
            where = table.where(row)
            raise TraceError(f"{where}: {column} is {_shown(cell)}, {error} ({remedy})") from None
    return values


def read_table(path: Path) -> Table:
    """Read a comma-separated file with a header; blank lines are skipped.

    Raises
    ------
    InputError
        If the file is missing, a directory, unreadable or no UTF-8 text.
    TraceError
        If it is empty or only a header, a column appears twice, quotes do not match, or a row has too few or
        too many cells.
    """
    records = _records(path, read_text(path))
    header_line, names = next(records, (1, []))
    if not names:
        raise TraceError(f"{path} is empty, expected a header line and one line per request")
    header = tuple(name.strip() for name in names)
    _refuse_repeated_columns(f"{path} line {header_line}", header)
    rows: list[list[str]] = []
    lines: list[int] = []
    for line, cells in records:
        if len(cells) != len(header):
            raise TraceError(_wrong_width(f"{path} line {line}", len(cells), header))
        rows.append(cells)
        lines.append(line)
    if not rows:
        raise TraceError(f"{path} has a header and no requests, expected one line per request below it")
    return Table(path=path, header_line=header_line, header=header, rows=rows, lines=lines)


def _records(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text), strict=True)
    line = 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise TraceError(f"{path} line {line}: no valid CSV ({error}); repair or drop the line") from None


def _refuse_repeated_columns(where: str, header: tuple[str, ...]) -> None:
    for name in header:
        if header.count(name) > 1:
            raise TraceError(f"{where}: column {_shown(name)} appears twice, expected it once (rename one)")


def _wrong_width(where: str, num_cells: int, header: tuple[str, ...]) -> str:
    fields = "1 field" if num_cells == 1 else f"{num_cells} fields"
    return f"{where}: {fields}, expected {len(header)}: {', '.join(header)} (repair or drop the row)"


def _shown(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "...")
