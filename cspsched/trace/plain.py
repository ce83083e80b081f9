"""A large CSV file without quotes as one text and the places of its cells; numbers are read column by column.

What is not plain is left to the reader of rows, and a cell that is no plain number to the parser of cells,
which say what is wrong: here nothing is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cspsched.problem.cost import IntArray
from cspsched.trace.cells import MAX_ARRIVAL_S
from cspsched.trace.table import Table, Value, parse_cells
from cspsched.units import NS_PER_S

ByteArray = npt.NDArray[np.uint8]

LINE_END, COMMA, DOT, ZERO = b"\n,.0"
FIRST_VISIBLE, LAST_VISIBLE = b"!~"
LONGEST_CELL = 100_000
"""Bytes; the reader of rows has a limit of about so many."""
MOST_DIGITS = 18
"""Of a number that surely fits into 64 bits."""
DECIMALS = 9
"""Of a second, in a whole number of nanoseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainTable(Table):
    """A table whose rows are not made.

    Attributes
    ----------
    data, letters
        The file's bytes, lines ended by a line feed each, as they are and as numbers.
    line_starts, line_ends
        Shape (num_rows,): where the row begins, and where its line feed stands.
    commas
        Shape (num_rows, num_columns - 1): where the commas of each row stand.
    """

    data: bytes
    letters: ByteArray
    line_starts: IntArray
    line_ends: IntArray
    commas: IntArray

    @property
    def num_rows(self) -> int:
        """Rows below the header."""
        return len(self.line_starts)

    def cells(self, column: str, rows: Sequence[int] | IntArray) -> list[str]:
        """Texts of a column in the given rows."""
        starts, ends = self._places(column, rows)
        places = zip(starts.tolist(), ends.tolist(), strict=True)
        if self.data.isascii():
            text = self.data.decode("ascii")
            return [text[start:end] for start, end in places]
        return [self.data[start:end].decode("utf-8") for start, end in places]

    def parse(
        self,
        column: str,
        parse_cell: Callable[[str], Value],
        rows: Sequence[int] | IntArray,
        *,
        remedy: str,
    ) -> list[Value]:
        """As of any table; equal cells are parsed once."""
        known: dict[str, Any] = {}

        def parse_once(cell: str) -> Value:
            if cell not in known:
                known[cell] = parse_cell(cell)
            value: Value = known[cell]
            return value

        return parse_cells(self, column, self.cells(column, rows), parse_once, rows, remedy=remedy)

    def whole_numbers(self, column: str, rows: IntArray) -> IntArray | None:
        """Values of a column of nothing but digits; None if there is anything else."""
        digits = _Digits(self.letters, *self._places(column, rows))
        return digits.whole if digits.are_plain and not digits.has_dot.any() else None

    def nanoseconds(self, column: str, rows: IntArray) -> IntArray | None:
        """Values of a column of seconds with at most nine decimals; None if there is anything else."""
        digits = _Digits(self.letters, *self._places(column, rows))
        if not digits.are_plain or np.any(digits.whole > MAX_ARRIVAL_S):
            return None
        return digits.whole * NS_PER_S + digits.fraction * 10 ** (DECIMALS - digits.num_decimals)

    def names(self, column: str, rows: IntArray) -> list[str] | None:
        """Texts of a column without blanks, all visible and none empty; None if there are others."""
        starts, ends = self._places(column, rows)
        visible = (self.letters >= FIRST_VISIBLE) & (self.letters <= LAST_VISIBLE)
        if np.any(starts == ends) or not np.all(visible | (self.letters == LINE_END)):
            return None
        return self.cells(column, rows)

    def _places(self, column: str, rows: Sequence[int] | IntArray) -> tuple[IntArray, IntArray]:
        """Begin and end of the cells of a column."""
        index, taken = self.header.index(column), np.asarray(rows, dtype=np.intp)
        starts = self.commas[taken, index - 1] + 1 if index else self.line_starts[taken]
        is_last = index + 1 == len(self.header)
        return starts, self.line_ends[taken] if is_last else self.commas[taken, index]


class _Digits:
    """Cells read digit by digit, the same place of all of them at a time."""

    def __init__(self, letters: ByteArray, starts: IntArray, ends: IntArray) -> None:
        self.whole, self.fraction, self.num_decimals = np.zeros((3, len(starts)), dtype=np.int64)
        self.has_dot = np.zeros(len(starts), dtype=bool)
        width = ends - starts
        self.are_plain = bool(width.min() >= 1 and width.max() <= MOST_DIGITS)
        for place in range(int(width.max()) if self.are_plain else 0):
            here = starts + place
            inside = here < ends
            letter = letters[np.minimum(here, len(letters) - 1)]
            is_dot = inside & (letter == DOT)
            # Letters below the zero wrap around to large numbers.
            digit = letter - np.uint8(ZERO)
            if np.any(inside & (digit > 9) & ~is_dot) or np.any(is_dot & self.has_dot):
                self.are_plain = False
                return
            self._add(digit, inside & ~is_dot)
            self.has_dot |= is_dot
        alone = self.has_dot & (width == 1)
        self.are_plain &= not (alone.any() or np.any(self.num_decimals > DECIMALS))

    def _add(self, digit: ByteArray, counts: npt.NDArray[np.bool_]) -> None:
        before, behind = counts & ~self.has_dot, counts & self.has_dot
        self.whole = np.where(before, self.whole * 10 + digit, self.whole)
        self.fraction = np.where(behind, self.fraction * 10 + digit, self.fraction)
        self.num_decimals += behind


def plain_table(path: Path) -> PlainTable | None:
    """A file as a plain table; None if it is not plain, or not a table of at least one row."""
    try:
        data = path.read_bytes().removeprefix("\N{BOM}".encode()).replace(b"\r\n", b"\n")
        data.decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    if any(letter in data for letter in (b'"', b"\r", b"\0")):
        return None
    data += b"" if data.endswith(b"\n") else b"\n"
    letters = np.frombuffer(data, dtype=np.uint8)
    ends = np.flatnonzero(letters == LINE_END)
    starts = np.concatenate((np.zeros(1, dtype=np.int64), ends[:-1] + 1))
    lines = np.flatnonzero(ends > starts)
    if len(lines) < 2:
        return None
    starts, ends = starts[lines], ends[lines]
    names = [name.strip() for name in data[starts[0] : ends[0]].decode("utf-8").split(",")]
    places = np.flatnonzero(letters == COMMA)
    if len(names) < 2 or len(set(names)) < len(names) or len(places) != len(lines) * (len(names) - 1):
        return None
    commas = places.reshape(len(lines), len(names) - 1)
    cuts = np.column_stack((starts - 1, commas, ends))
    # Places rise from row to row, so that each row has its own commas exactly if these two hold.
    if np.any(commas[:, 0] < starts) or np.any(commas[:, -1] > ends) or np.diff(cuts).max() > LONGEST_CELL:
        return None
    return PlainTable(
        path=path,
        header_line=int(lines[0]) + 1,
        header=tuple(names),
        rows=[],
        lines=lines[1:] + 1,
        data=data,
        letters=letters,
        line_starts=starts[1:],
        line_ends=ends[1:],
        commas=commas[1:],
    )
