"""Columns read by Apache Arrow: Parquet files, and large text without quotes.

What is not plain is left to the reading cell by cell, which says what is wrong: here no cell is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from cspsched.errors import TraceError
from cspsched.problem.cost import IntArray
from cspsched.trace.cells import MAX_ARRIVAL_S, PLAIN_UTC_TIME, TimeUnit
from cspsched.trace.format import TraceFormat
from cspsched.trace.source import Source
from cspsched.trace.table import Column, Table
from cspsched.units import NS_PER_S

_MOST_DIGITS = 18
"""Of a number that surely fits into 64 bits."""
_LARGEST_EXACT_FLOAT = 2**53
_BLOCK_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class ArrowColumn:
    """Cells of an Arrow array, of text or of any other type."""

    cells: pa.Array

    def __len__(self) -> int:
        return len(self.cells)

    def texts(self, rows: IntArray) -> list[str]:
        """Return the cells as text; a missing one is empty."""
        texts: list[str] = pc.fill_null(pc.cast(self._taken(rows), pa.string()), "").to_pylist()
        return texts

    def values(self, rows: IntArray) -> list[Any]:
        """Return the cells as they are, lists included."""
        values: list[Any] = self._taken(rows).to_pylist()
        return values

    def whole_numbers(self, rows: IntArray) -> IntArray | None:
        """Return the cells as 64-bit integers if all are plain whole numbers of at least 0."""
        cells = self._taken(rows)
        if cells.null_count:
            return None
        if pa.types.is_string(cells.type):
            if not _all(pc.ascii_is_decimal(cells)) or pc.max(pc.binary_length(cells)).as_py() > _MOST_DIGITS:
                return None
        elif pa.types.is_floating(cells.type):
            numbers = cells.to_numpy(zero_copy_only=False).astype(np.float64)
            if not np.all((numbers == np.floor(numbers)) & (numbers < _LARGEST_EXACT_FLOAT)):
                return None
        elif not pa.types.is_integer(cells.type):
            return None
        try:
            whole = pc.cast(cells, pa.int64()).to_numpy()
        except pa.ArrowInvalid:
            return None
        return whole if whole.min() >= 0 else None

    def times_ns(self, rows: IntArray, unit: TimeUnit) -> IntArray | None:
        """Return the cells as nanoseconds since any moment if all are plain times of a unit."""
        cells = self._taken(rows)
        if cells.null_count:
            return None
        try:
            if unit is TimeUnit.UTC:
                return _moments_ns(cells)
            if pa.types.is_floating(cells.type):
                return _floats_ns(cells.to_numpy(zero_copy_only=False).astype(np.float64), unit.decimals)
            return _decimals_ns(cells, unit.decimals)
        except pa.ArrowInvalid:
            return None

    def names(self, rows: IntArray) -> list[str] | None:
        """Return the cells as text if all are visible ASCII without blanks."""
        cells = self._taken(rows)
        if not pa.types.is_string(cells.type) or cells.null_count:
            return None
        if not _all(pc.ascii_is_printable(cells)) or _any(pc.match_substring(cells, " ")):
            return None
        names: list[str] = cells.to_pylist()
        return names if pc.min(pc.binary_length(cells)).as_py() > 0 else None

    def _taken(self, rows: IntArray) -> pa.Array:
        if len(rows) and rows[-1] - rows[0] + 1 == len(rows) and np.all(np.diff(rows) == 1):
            return self.cells.slice(int(rows[0]), len(rows))
        return self.cells.take(pa.array(rows))


def _all(flags: pa.Array) -> bool:
    return bool(pc.all(flags).as_py())


def _any(flags: pa.Array) -> bool:
    return bool(pc.any(flags).as_py())


def _decimals_ns(cells: pa.Array, decimals: int) -> IntArray | None:
    """Decimal numbers with so many decimals, or integers, times 10 to their power: exact."""
    if pa.types.is_string(cells.type) and not _all(
        pc.ascii_is_decimal(pc.replace_substring(cells, ".", "", max_replacements=1))
    ):
        return None
    exact = pc.cast(cells, pa.decimal128(38, decimals))
    least, most = pc.min(exact).as_py(), pc.max(exact).as_py()
    if least < 0 or most > Decimal(MAX_ARRIVAL_S * NS_PER_S).scaleb(-decimals):
        return None
    words = np.frombuffer(exact.buffers()[1], dtype=np.int64)
    # Two words a number, the lower one first; what fits into 63 bits is in the lower one.
    lower_words: IntArray = words[2 * exact.offset : 2 * (exact.offset + len(exact)) : 2]
    return lower_words


def _floats_ns(numbers: np.ndarray[Any, np.dtype[np.float64]], decimals: int) -> IntArray | None:
    """Nanoseconds nearest to the exact value of each float."""
    scale = 10**decimals
    if not np.all((numbers >= 0) & (numbers <= MAX_ARRIVAL_S * NS_PER_S / scale)):
        return None
    whole = np.floor(numbers)
    rest = np.rint((numbers - whole) * scale)
    times_ns: IntArray = whole.astype(np.int64) * scale + rest.astype(np.int64)
    return times_ns


def _moments_ns(cells: pa.Array) -> IntArray | None:
    """Moments as nanoseconds since 1970; of text, those that `parse_moment` reads, in these centuries."""
    if pa.types.is_string(cells.type):
        if not _all(pc.match_substring_regex(cells, f"^{PLAIN_UTC_TIME.pattern}$")):
            return None
        cells = pc.replace_substring_regex(cells, r"(Z|\+00:00)$", "")
    elif not pa.types.is_timestamp(cells.type):
        return None
    moments: IntArray = pc.cast(pc.cast(cells, pa.timestamp("ns")), pa.int64()).to_numpy()
    return moments


def plain_columns(text: str, separator: str) -> dict[str, Column] | None:
    """Return the columns of a text without quotes and blank lines; None if it is not plain."""
    data = text.encode()
    if any(mark in data for mark in (b'"', b"\0", b"\n\n")) or data.startswith(b"\n"):
        return None
    names = [name.strip() for name in text.partition("\n")[0].split(separator)]
    if len(names) < 2 or len(set(names)) < len(names):
        return None
    options = {
        "read_options": pyarrow.csv.ReadOptions(
            use_threads=False, block_size=_BLOCK_BYTES, skip_rows=1, column_names=names
        ),
        "parse_options": pyarrow.csv.ParseOptions(delimiter=separator, quote_char=False),
        "convert_options": pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
    }
    try:
        table = pyarrow.csv.read_csv(pa.BufferReader(data), **options)
    except pa.ArrowInvalid:
        return None
    num_lines = data.count(b"\n") + (not data.endswith(b"\n"))
    if not table.num_rows or table.num_rows != num_lines - 1:
        return None
    return _columns(table)


def parquet_table(source: Source) -> Table:
    """Return the table of a Parquet file.

    Raises
    ------
    TraceError
        If it is damaged, has no rows, or a column appears twice.
    """
    try:
        table = pyarrow.parquet.read_table(pa.BufferReader(source.data), use_threads=False)
        # Reads the text of all cells and names once: what is no UTF-8 is found here.
        table.validate(full=True)
        names = table.column_names
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise TraceError(f"{source.name} is no whole Parquet file ({reason}); fetch it again") from None
    if not table.num_rows:
        raise TraceError(f"{source.name} has columns and no rows, expected one row per request")
    if len(set(names)) < len(names):
        raise TraceError(f"{source.name}: a column appears twice, expected each once (rename one)")
    return Table(
        source=source.name,
        stem=source.stem,
        columns=_columns(table),
        place="row",
        places=range(1, table.num_rows + 1),
    )


def _columns(table: pa.Table) -> dict[str, Column]:
    return {name: ArrowColumn(_one_array(table[name])) for name in table.column_names}


def _one_array(cells: pa.ChunkedArray) -> pa.Array:
    """One array of a column, whose text and categories are plain text."""
    whole = cells.combine_chunks()
    kind = whole.type.value_type if pa.types.is_dictionary(whole.type) else whole.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return pc.cast(whole, pa.string()) if is_text else whole


def parquet_bytes(columns: Mapping[str, Sequence[Any]], made: TraceFormat) -> bytes:
    """Return a Parquet file of columns, the arrivals in the unit of the format.

    Arrivals are floats if all of them come back to the nanosecond, else decimal numbers.
    """
    cells = {name: pa.array(list(values)) for name, values in columns.items()}
    arrivals = columns[made.arrival_column]
    cells[made.arrival_column] = _arrival_array(np.array(arrivals, dtype=np.int64), made.arrival_unit)
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(pa.table(cells), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _arrival_array(times_ns: IntArray, unit: TimeUnit) -> pa.Array:
    if unit is TimeUnit.UTC:
        return pc.cast(pa.array(times_ns), pa.timestamp("ns"))
    if not unit.decimals or not np.any(times_ns % 10**unit.decimals):
        return pa.array(times_ns // 10**unit.decimals)
    floats = times_ns / 10**unit.decimals
    read_again = _floats_ns(floats, unit.decimals)
    if read_again is not None and np.array_equal(read_again, times_ns):
        return pa.array(floats)
    return pa.array(
        [Decimal(unit.text(time_ns)) for time_ns in times_ns.tolist()], pa.decimal128(38, unit.decimals)
    )
