"""A table of another project: recognised by its columns, refused with the file and the line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cspsched.costs.fit import FloatArray
from cspsched.costs.rows import numbers, read_frame, refuse
from cspsched.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

US_PER_MS = 1000.0


@dataclass(frozen=True)
class Source:
    """A table as it stands in its file."""

    path: Path
    frame: pd.DataFrame

    @classmethod
    def read(cls, path: Path) -> Source:
        """Read a CSV or Parquet file; errors as in `read_frame`."""
        return cls(path, read_frame(path))

    def has(self, *names: str) -> bool:
        """Whether all of these columns are there."""
        return all(name in self.frame for name in names)

    def text(self, name: str) -> npt.NDArray[np.object_]:
        """A column as it is."""
        return np.asarray(self.frame[name], dtype=object)

    def counts(self, name: str, least: int = 0) -> npt.NDArray[np.int64]:
        """A column of whole numbers.

        Raises
        ------
        InputError
            If the column is missing, or a value is no whole number or too small.
        """
        self.require(name)
        found = numbers(self.frame[name], str(self.path), name)
        bad = (found < least) | (found != np.floor(found))
        sentence = f"{name} is {{}}, expected a whole number, at least {least}"
        refuse(bad, str(self.path), sentence, found.tolist())
        return found.astype(np.int64)

    def times_us(self, name: str, us_per_unit: float) -> FloatArray:
        """A column of times, in microseconds.

        Raises
        ------
        InputError
            If the column is missing, or a value is no number above 0.
        """
        self.require(name)
        found = numbers(self.frame[name], str(self.path), name)
        refuse(found <= 0, str(self.path), f"{name} is {{}}, expected a time above 0", found.tolist())
        return found * us_per_unit

    def require(self, *names: str) -> None:
        """Refuse a table that lacks a column."""
        missing = [name for name in names if name not in self.frame]
        if missing:
            raise InputError(f"{self.path}: column {missing[0]!r} is missing; found {self._columns()}")

    def require_value(self, name: str, expected: int, what: str) -> None:
        """Refuse a table of another model: every row of a column has one value."""
        found = self.counts(name)
        refuse(found != expected, str(self.path), f"{name} is {{}}, {what} has {expected}", found.tolist())

    def foreign(self, project: str) -> InputError:
        """What to raise for a table that is none of a project's."""
        return InputError(
            f"{self.path}: no table of {project} has these columns: {self._columns()}; "
            "is the file from another project, or another version?"
        )

    def where(self, keep: npt.NDArray[np.bool_]) -> Source:
        """Only some rows."""
        return Source(self.path, self.frame[keep])

    def _columns(self) -> str:
        names: Sequence[str] = [str(name) for name in self.frame.columns]
        return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
