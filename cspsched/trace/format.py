"""What a trace format is: names of columns, units, what a failed row is, how a prefix is written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from cspsched.trace.cells import TimeUnit
from cspsched.trace.table import Table


class Layout(StrEnum):
    """How the rows of a format are written; any of them is read from any layout."""

    CSV = "CSV"
    LINES = "JSON lines"
    LIST = "JSON list"
    LISTS = "JSON object of lists"
    PARQUET = "Parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixHashes:
    """A column with a list of names, one for each block of the prompt, the last one maybe partial."""

    column: str
    block_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What marks the row of a request that failed, which is left out."""

    error_column: str | None = None
    """The request failed if there is something in it."""
    no_output: bool = True
    """The request failed if its output is 0 or missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceFormat:
    """Names of the columns of a format, in any order in the file, and what they mean.

    A name with dots is a field in a field: `metrics.isl.value`.
    """

    name: str
    title: str
    """Whose format it is, in a few words."""
    layout: Layout = Layout.CSV
    arrival_column: str
    arrival_unit: TimeUnit
    prompt_column: str
    output_column: str
    id_column: str | None = None
    """Where the file has none, requests are named r0, r1, ... by arrival."""
    optional_columns: tuple[str, ...] = ()
    """What a file may say beside these, by the names of `cspsched.trace.optional`."""
    may_lack_arrivals: bool = False
    """Without the column every request arrives at 0."""
    needs_id: bool = False
    ignores_other_columns: bool = True
    prefix_hashes: PrefixHashes | None = None
    failure: Failure | None = None
    marks: tuple[str, ...] = ()
    """Further columns, or facts of the whole file, that a file of the format has."""
    derived_columns: tuple[str, ...] = ()
    """What follows from the other columns, or is a result and no input: nothing is lost without it.

    May have wildcards: `metrics.*`.
    """
    counted_columns: Mapping[str, str] = field(default_factory=dict)
    """What is not simulated and counted by a column, such as images, by its name."""
    fixed_columns: Mapping[str, Any] = field(default_factory=dict)
    """Columns that say nothing if they have this value everywhere; they are written so."""
    hints: Mapping[str, str] = field(default_factory=dict)
    """What to do about a column that is missing."""
    prepare: Callable[[Table], Table] | None = None
    """Makes the columns above of those that the file has; raises TraceError where it cannot."""
    source_columns: tuple[str, ...] = ()
    """Columns that a file has instead of the ones above, where `prepare` makes these."""
    is_written: bool = True
    refusal: str = ""
    """Why a file of the format is no trace, and what to do with it."""

    @property
    def required_columns(self) -> tuple[str, ...]:
        """Columns that a file of the format has at least."""
        if self.source_columns:
            return self.source_columns
        identity = self.id_column if self.needs_id else None
        arrival = None if self.may_lack_arrivals else self.arrival_column
        names = (identity, arrival, self.prompt_column, self.output_column)
        return tuple(name for name in names if name)

    @property
    def known_columns(self) -> tuple[str, ...]:
        """Columns that are read, required or not."""
        names = (
            self.id_column,
            self.arrival_column,
            self.prompt_column,
            self.output_column,
            self.prefix_hashes.column if self.prefix_hashes else None,
            self.failure.error_column if self.failure else None,
            *self.optional_columns,
        )
        return tuple(name for name in names if name)

    def describe(self) -> str:
        """Name and columns for messages, the optional ones in brackets."""
        required = (*self.required_columns, *self.marks)
        others = (name for name in self.known_columns if name not in required)
        columns = (*required, *(f"[{name}]" for name in others))
        return f"{self.name} ({','.join(columns)})"

    def missing_columns(self, table: Table) -> list[str]:
        """Required columns that a table lacks, and marks that neither a column nor a fact has."""
        present: Collection[str] = table.columns.keys()
        missing = [name for name in self.required_columns if name not in present]
        return missing + [name for name in self.marks if name not in present and name not in table.facts]
