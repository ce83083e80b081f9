"""Writes any format that has requests, so that reading it gives the same nanoseconds."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cspsched.errors import InputError, TraceError, UsageError
from cspsched.problem.request import Request
from cspsched.trace.cells import request_name
from cspsched.trace.format import Layout, TraceFormat
from cspsched.trace.formats.native import NATIVE
from cspsched.trace.hashes import hashes_of_prefixes, prefixes_of_hashes
from cspsched.trace.optional import OPTIONAL_COLUMNS, PREFIX_COLUMNS, optional_cells
from cspsched.trace.sharing import prefix_statistics

Columns = dict[str, Sequence[Any]]
"""Cells by the name of their column; an arrival is nanoseconds."""

PARQUET_SUFFIX = ".parquet"
COUNT_OF_A_RUN = "completed"
_NOT_HELD: tuple[tuple[str, Callable[[Request], object]], ...] = (
    ("priorities", lambda request: request.priority),
    ("clients", lambda request: request.client_id),
    ("SLO limits", lambda request: request.ttft_limit_ns or request.tpot_limit_ns),
    ("declared limits", lambda request: request.max_tokens),
    ("predicted outputs", lambda request: request.predicted_tokens),
    ("sessions", lambda request: request.session_id),
)


def write_trace(requests: Sequence[Request], path: str | Path, made: TraceFormat = NATIVE) -> tuple[str, ...]:
    """Write requests as a file of a format, as Parquet or packed if the suffix says so.

    `read_trace` gives the same requests back if they are sorted by arrival and the first arrives at 0, apart
    from what is returned.

    Parameters
    ----------
    requests : Sequence[Request]
        At least one.
    path : str or Path
        Overwritten if it exists. `.parquet`, `.gz` and `.zst` are minded.
    made : TraceFormat
        Native if not given.

    Returns
    -------
    tuple[str, ...]
        What of these requests the format cannot hold, in a few words each.

    Raises
    ------
    TraceError
        If there are no requests, or a name is one that `read_trace` would refuse or change.
    UsageError
        If the format is not written.
    InputError
        If the file cannot be written.
    """
    content, losses = trace_bytes(requests, made, Path(path).suffixes)
    try:
        Path(path).write_bytes(content)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None
    return losses


def trace_text(requests: Sequence[Request]) -> str:
    """Text of the native CSV file; an optional column is there if a request has something to put into it.

    Raises
    ------
    TraceError
        As `write_trace`, and if a prefix has several segments, for which a row has no place.
    """
    return _csv_text(_native_columns(requests), NATIVE)


def trace_bytes(
    requests: Sequence[Request], made: TraceFormat, suffixes: Sequence[str] = ()
) -> tuple[bytes, tuple[str, ...]]:
    """Content of a file of a format, and what it does not hold; see `write_trace`."""
    if made.refusal or not made.is_written:
        raise UsageError(f"format {made.name} ({made.title}) is read and not written; choose another")
    columns, losses = _lossy_columns(requests, made)
    if PARQUET_SUFFIX in suffixes:
        from cspsched.trace.arrow import parquet_bytes

        return parquet_bytes(columns, made), losses
    texts: dict[Layout, Callable[[Columns, TraceFormat], str]] = {
        Layout.CSV: _csv_text,
        Layout.LINES: _lines_text,
        Layout.LIST: _list_text,
        Layout.LISTS: _lists_text,
    }
    text = texts[made.layout](columns, made)
    return _packed(text.encode(), suffixes), losses


def _packed(data: bytes, suffixes: Sequence[str]) -> bytes:
    if ".gz" in suffixes:
        # Without the time, so that the same requests give the same bytes.
        return gzip.compress(data, mtime=0)
    if ".zst" in suffixes:
        import pyarrow as pa

        packed: bytes = pa.compress(data, codec="zstd", asbytes=True)
        return packed
    return data


def _lossy_columns(requests: Sequence[Request], made: TraceFormat) -> tuple[Columns, tuple[str, ...]]:
    if made is NATIVE:
        cut = [replace(request, prefix=request.prefix[:1]) for request in requests]
        num_cut = sum(len(request.prefix) > 1 for request in requests)
        lost = (f"prefixes of {num_cut:,} requests behind their first segment",) if num_cut else ()
        return _native_columns(cut), lost
    _require_some(requests)
    columns: Columns = {}
    losses = [what for what, held in _NOT_HELD if any(map(held, requests))]
    if made.id_column:
        columns[made.id_column] = [_checked_name(request.request_id) for request in requests]
    elif any(request.request_id != f"r{k}" for k, request in enumerate(requests)):
        losses.insert(0, "names of requests")
    columns[made.arrival_column] = [request.arrival_ns for request in requests]
    columns[made.prompt_column] = [request.prompt_tokens for request in requests]
    columns[made.output_column] = [request.output_tokens for request in requests]
    for name, value in made.fixed_columns.items():
        columns[name] = [value] * len(requests)
    if made.prefix_hashes is not None:
        block_tokens = made.prefix_hashes.block_tokens
        hashes, lost_tokens = _hashes(requests, block_tokens)
        columns[made.prefix_hashes.column] = hashes
        if lost_tokens:
            losses.append(f"{lost_tokens:,} shared tokens that fill no block of {block_tokens}")
    elif any(request.prefix for request in requests):
        losses.append("prefixes")
    return columns, tuple(losses)


def _hashes(requests: Sequence[Request], block_tokens: int) -> tuple[list[list[int]], int]:
    """Hashes of all prompts, and how many tokens fewer of them stand in an earlier prompt than before."""
    prefixes = [request.prefix for request in requests]
    prompts = [request.prompt_tokens for request in requests]
    hashes = hashes_of_prefixes(prefixes, prompts, block_tokens)
    before, after = (
        prefix_statistics([0] * len(prompts), prompts, some).shared_tokens
        for some in (prefixes, prefixes_of_hashes(hashes, prompts, block_tokens))
    )
    return hashes, before - after


def _native_columns(requests: Sequence[Request]) -> Columns:
    _require_some(requests)
    rows = [
        (
            _checked_name(request.request_id),
            request.arrival_ns,
            request.prompt_tokens,
            request.output_tokens,
            *optional_cells(request),
        )
        for request in requests
    ]
    columns = dict(zip(NATIVE.known_columns, zip(*rows, strict=True), strict=True))
    used = {name for name in OPTIONAL_COLUMNS if any(columns[name])}
    if used.intersection(PREFIX_COLUMNS):
        used |= set(PREFIX_COLUMNS)
    return {name: cells for name, cells in columns.items() if name not in OPTIONAL_COLUMNS or name in used}


def _require_some(requests: Sequence[Request]) -> None:
    if not requests:
        raise TraceError("no requests to write, expected at least one")


def _times(columns: Columns, made: TraceFormat) -> list[str]:
    return [made.arrival_unit.text(time_ns) for time_ns in columns[made.arrival_column]]


def _csv_text(columns: Columns, made: TraceFormat) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    cells = columns | {made.arrival_column: _times(columns, made)}
    writer.writerow(cells)
    writer.writerows(zip(*cells.values(), strict=True))
    return buffer.getvalue()


def _json_columns(columns: Columns, made: TraceFormat) -> dict[str, list[str]]:
    """Each cell as JSON; arrivals are numbers with all their digits, which no float has."""
    texts = {name: [json.dumps(cell) for cell in cells] for name, cells in columns.items()}
    times = _times(columns, made)
    is_moment = made.arrival_unit.decimals == 0 and not times[0].isdecimal()
    return texts | {made.arrival_column: [json.dumps(time) for time in times] if is_moment else times}


def _json_rows(columns: Columns, made: TraceFormat) -> list[str]:
    texts = _json_columns(columns, made)
    return [_object_text(dict(zip(texts, row, strict=True))) for row in zip(*texts.values(), strict=True)]


def _object_text(fields: Mapping[str, str]) -> str:
    """JSON object of fields whose values are JSON; a dot in a name goes into an object."""
    parts: dict[str, str] = {}
    inner: dict[str, dict[str, str]] = {}
    for name, text in fields.items():
        head, dot, rest = name.partition(".")
        if dot:
            inner.setdefault(head, {})[rest] = text
            parts.setdefault(head, "")
        else:
            parts[name] = text
    texts = {name: _object_text(inner[name]) if name in inner else text for name, text in parts.items()}
    return "{" + ", ".join(f"{json.dumps(name)}: {text}" for name, text in texts.items()) + "}"


def _lines_text(columns: Columns, made: TraceFormat) -> str:
    return "\n".join(_json_rows(columns, made)) + "\n"


def _list_text(columns: Columns, made: TraceFormat) -> str:
    return "[\n" + ",\n".join(_json_rows(columns, made)) + "\n]\n"


def _lists_text(columns: Columns, made: TraceFormat) -> str:
    facts = {
        mark: str(len(columns[made.prompt_column])) if mark == COUNT_OF_A_RUN else "null"
        for mark in made.marks
    }
    lists = {name: f"[{', '.join(texts)}]" for name, texts in _json_columns(columns, made).items()}
    return _object_text(facts | lists) + "\n"


def _checked_name(name: str) -> str:
    try:
        unchanged = request_name(name) == name
    except ValueError:
        unchanged = False
    if not unchanged:
        raise TraceError(f"request_id {name!r}: expected printable characters without blanks around them")
    return name
