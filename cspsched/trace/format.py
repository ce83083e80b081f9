"""What a trace format is, and how a file's header tells which one it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cspsched.errors import TraceError
from cspsched.trace.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceFormat:
    """Names of the columns of a format, in any order in the file, and how it writes an arrival."""

    name: str
    arrival_column: str
    prompt_column: str
    output_column: str
    parse_arrival: Callable[[str], int]
    """Nanoseconds since any fixed moment; ValueError says what was expected."""
    id_column: str | None = None
    """Where there is none, requests are named r0, r1, ... by arrival."""
    optional_columns: tuple[str, ...] = ()
    """What a file may say beside these, by the names of `cspsched.trace.optional`."""
    may_lack_arrivals: bool = False
    """Without the column every request arrives at 0."""
    ignores_other_columns: bool = True
    derived_columns: tuple[str, ...] = ()
    """What follows from the other columns, so that nothing is lost."""
    counted_columns: Mapping[str, str] = field(default_factory=dict)
    """What is not simulated and counted by a column, such as images, by its name."""

    @property
    def required_columns(self) -> tuple[str, ...]:
        """Columns that a file of the format has at least."""
        arrival = None if self.may_lack_arrivals else self.arrival_column
        names = (self.id_column, arrival, self.prompt_column, self.output_column)
        return tuple(name for name in names if name)

    @property
    def known_columns(self) -> tuple[str, ...]:
        """Columns that are read, required or not."""
        names = (
            self.id_column,
            self.arrival_column,
            self.prompt_column,
            self.output_column,
            *self.optional_columns,
        )
        return tuple(name for name in names if name)

    def describe(self) -> str:
        """Name and columns for messages, the optional ones in brackets."""
        required = self.required_columns
        columns = (name if name in required else f"[{name}]" for name in self.known_columns)
        return f"{self.name} ({','.join(columns)})"

    def missing_columns(self, header: Sequence[str]) -> list[str]:
        """Required columns that a header lacks."""
        return [name for name in self.required_columns if name not in header]


def recognise_format(table: Table, formats: Sequence[TraceFormat]) -> TraceFormat:
    """The first format whose required columns are all in the header.

    Raises
    ------
    TraceError
        If there is none (with the columns found and the formats known), or if the format allows no other
        columns and there are some.
    """
    for candidate in formats:
        if not candidate.missing_columns(table.header):
            _refuse_other_columns(table, candidate)
            return candidate
    raise TraceError(_unrecognised(table, formats))


def _refuse_other_columns(table: Table, trace_format: TraceFormat) -> None:
    others = [name for name in table.header if name not in trace_format.known_columns]
    if others and not trace_format.ignores_other_columns:
        where = f"{table.path} line {table.header_line}"
        raise TraceError(
            f"{where}: column {others[0]!r} is unknown, expected {trace_format.describe()} "
            "(remove or rename it)"
        )


def _unrecognised(table: Table, formats: Sequence[TraceFormat]) -> str:
    where = f"{table.path} line {table.header_line}"
    known = "; ".join(candidate.describe() for candidate in formats)
    found = ", ".join(repr(name) for name in table.header)
    closest = max(formats, key=lambda candidate: _num_shared(candidate, table.header))
    if not _num_shared(closest, table.header):
        return f"{where}: no known format has the columns {found}; known are, comma-separated, {known}"
    missing = closest.missing_columns(table.header)
    lacks = f"column {missing[0]} is" if len(missing) == 1 else f"columns {', '.join(missing)} are"
    return f"{where}: {lacks} missing for format {closest.name}; found {found}; known are {known}"


def _num_shared(candidate: TraceFormat, header: Sequence[str]) -> int:
    return sum(name in header for name in candidate.known_columns)
