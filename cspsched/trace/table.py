"""A trace file as a table of named columns that still knows where each row stands."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from cspsched.errors import TraceError
from cspsched.trace.cells import MAX_ARRIVAL_S, TimeUnit
from cspsched.units import NS_PER_S

if TYPE_CHECKING:
    from cspsched.problem.cost import IntArray

Value = TypeVar("Value")

_LONGEST_SHOWN = 60
_MOST_COLUMNS_SHOWN = 12


class Column(Protocol):
    """Cells of a column. A fast reading returns None if it meets another kind of cell; it refuses nothing."""

    def texts(self, rows: IntArray) -> list[str]:
        """Return the cells as text; a missing one is empty."""

    def values(self, rows: IntArray) -> list[Any]:
        """Return the cells as they are, lists included."""

    def whole_numbers(self, rows: IntArray) -> IntArray | None:
        """Return the cells as 64-bit integers if all are plain whole numbers of at least 0."""

    def times_ns(self, rows: IntArray, unit: TimeUnit) -> IntArray | None:
        """Return the cells as nanoseconds since any moment if all are plain times of a unit."""

    def names(self, rows: IntArray) -> list[str] | None:
        """Return the cells as text if all are visible ASCII without blanks."""


@dataclass(frozen=True, slots=True)
class ListColumn:
    """Cells one by one; the fast reading is that of JSON's integers."""

    cells: Sequence[Any]

    def texts(self, rows: IntArray) -> list[str]:
        """Return the cells as text; a missing one is empty."""
        return [cell_text(self.cells[row]) for row in rows.tolist()]

    def values(self, rows: IntArray) -> list[Any]:
        """Return the cells as they are."""
        return [self.cells[row] for row in rows.tolist()]

    def whole_numbers(self, rows: IntArray) -> IntArray | None:
        """Return the cells if all are 64-bit integers of at least 0."""
        cells = self.values(rows)
        if set(map(type, cells)) != {int}:
            return None
        try:
            numbers = np.array(cells, dtype=np.int64)
        except OverflowError:
            return None
        return numbers if numbers.min() >= 0 else None

    def times_ns(self, rows: IntArray, unit: TimeUnit) -> IntArray | None:
        """Return the cells as nanoseconds if all are integers, and no moments."""
        numbers = None if unit is TimeUnit.UTC else self.whole_numbers(rows)
        if numbers is None or numbers.max() > MAX_ARRIVAL_S * NS_PER_S // 10**unit.decimals:
            return None
        times_ns: IntArray = numbers * 10**unit.decimals
        return times_ns

    def names(self, rows: IntArray) -> None:
        """Return None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Named columns of equal length, at least one row."""

    source: str
    """The file in messages."""
    stem: str
    columns: Mapping[str, Column]
    place: str
    """What a row is called in messages: `line`, `row` or `request`."""
    places: Sequence[int] | IntArray
    """Number of each row's place, shape (num_rows,)."""
    header_line: int | None = None
    """Line of the names of the columns, where there is one."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the file says of all rows together."""
    notes: tuple[str, ...] = ()
    """What is told about the reading."""

    @property
    def num_rows(self) -> int:
        """Rows below the header."""
        return len(self.places)

    @property
    def all_rows(self) -> IntArray:
        """Numbers of all rows, in order."""
        return np.arange(self.num_rows)

    @property
    def header(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self.columns)

    @property
    def where_header(self) -> str:
        """File, and line of the names of the columns, for messages."""
        return self.source if self.header_line is None else f"{self.source} line {self.header_line}"

    def where(self, row: int) -> str:
        """File and place of a row, for messages."""
        return f"{self.source} {self.place} {self.places[row]}"

    def found(self) -> str:
        """Names of the columns for messages, the first of many."""
        shown = ", ".join(map(shown_text, self.header[:_MOST_COLUMNS_SHOWN]))
        more = len(self.header) - _MOST_COLUMNS_SHOWN
        return shown if more <= 0 else f"{shown} and {more} more"

    def parse(
        self, column: str, parse_cell: Callable[[str], Value], rows: IntArray, *, remedy: str
    ) -> list[Value]:
        """Values of a column in the given rows; equal cells are parsed once.

        Parameters
        ----------
        column : str
            Name of a column of the header.
        parse_cell : Callable[[str], Value]
            Raises ValueError with what was expected.
        rows : IntArray
            Row numbers from 0, in the order of the result.
        remedy : str
            What the user can do about a cell that is wrong.

        Raises
        ------
        TraceError
            If a cell is wrong, with file, place, column, value, expectation and remedy.
        """
        known: dict[str, Value] = {}
        values: list[Value] = []
        for position, cell in enumerate(self.columns[column].texts(rows)):
            if cell not in known:
                try:
                    known[cell] = parse_cell(cell)
                except ValueError as error:
                    where = self.where(int(rows[position]))
                    raise TraceError(f"{where}: {column} is {shown_text(cell)}, {error} ({remedy})") from None
            values.append(known[cell])
        return values


def cell_text(cell: Any) -> str:
    """Return the text of a cell; a missing one is empty, what is neither number nor text stays JSON."""
    if isinstance(cell, str):
        return cell
    if type(cell) is int:
        return str(cell)
    return "" if cell is None else json.dumps(cell)


def shown_text(text: str) -> str:
    """Return a quoted text that is not too long for a sentence."""
    return repr(text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "...")
