"""Writes the native format, so that reading it gives the same nanoseconds."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from cspsched.errors import InputError, TraceError
from cspsched.problem.request import Request
from cspsched.trace.cells import request_name
from cspsched.trace.native import NATIVE
from cspsched.trace.optional import PREFIX_COLUMNS, optional_cells, seconds_text


def write_trace(requests: Sequence[Request], path: str | Path) -> None:
    """Write requests as a native CSV file.

    `read_trace` gives the same requests back if they are sorted by arrival and the first arrives at 0.

    Parameters
    ----------
    requests : Sequence[Request]
        At least one.
    path : str or Path
        Overwritten if it exists.

    Raises
    ------
    TraceError
        If there are no requests, a name is one that `read_trace` would refuse or change, or a prefix has
        several segments.
    InputError
        If the file cannot be written.
    """
    text = trace_text(requests)
    try:
        Path(path).write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


def trace_text(requests: Sequence[Request]) -> str:
    """Text of the native CSV file; an optional column is there if a request has something to put into it.

    Raises
    ------
    TraceError
        As `write_trace`.
    """
    if not requests:
        raise TraceError("no requests to write, expected at least one")
    rows = [_cells(request) for request in requests]
    names = NATIVE.known_columns
    used = {name for name, *column in zip(names, *rows, strict=True) if any(column)}
    if used.intersection(PREFIX_COLUMNS):
        used |= set(PREFIX_COLUMNS)
    kept = [k for k, name in enumerate(names) if name in NATIVE.required_columns or name in used]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([cells[k] for k in kept] for cells in (names, *rows))
    return buffer.getvalue()


def _cells(request: Request) -> tuple[str | int, ...]:
    return (
        _checked_name(request.request_id),
        seconds_text(request.arrival_ns),
        request.prompt_tokens,
        request.output_tokens,
        *optional_cells(request),
    )


def _checked_name(name: str) -> str:
    try:
        unchanged = request_name(name) == name
    except ValueError:
        unchanged = False
    if not unchanged:
        raise TraceError(f"request_id {name!r}: expected printable characters without blanks around them")
    return name
