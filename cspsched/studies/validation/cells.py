"""Values of rows that people write: what is wrong is said with file, line, column and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from cspsched.errors import InputError

MOST = 1e12


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a file by column.

    Attributes
    ----------
    where
        File and line, for messages.
    """

    where: str
    cells: Mapping[str, Any]

    def has(self, column: str) -> bool:
        """Whether there is a value."""
        return self.cells.get(column) not in (None, "")

    def text(self, column: str) -> str:
        """Text of a column that has to be there."""
        if not self.has(column):
            raise InputError(f"{self.where}: {column} is missing; fill it in or take the row out")
        return str(self.cells[column]).strip()

    def number(self, column: str, *, least: float = 0.0) -> float:
        """A number from `least` on."""
        value = self.cells.get(column)
        try:
            number = float(self.text(column) if isinstance(value, str) or value is None else value)
        except (TypeError, ValueError):
            number = float("nan")
        if isinstance(value, bool) or not isfinite(number) or not least <= number < MOST:
            raise InputError(
                f"{self.where}: {column} is {value!r}, expected a number of at least {least:g}; "
                "correct it or take the row out"
            )
        return number

    def count(self, column: str, *, least: int = 1) -> int:
        """A whole number from `least` on."""
        number = self.number(column, least=least)
        if number != int(number):
            raise InputError(
                f"{self.where}: {column} is {self.cells[column]!r}, expected a whole number of at least "
                f"{least}; correct it or take the row out"
            )
        return int(number)

    def optional_count(self, column: str, *, least: int = 1) -> int | None:
        """A whole number, None where there is none."""
        return self.count(column, least=least) if self.has(column) else None
