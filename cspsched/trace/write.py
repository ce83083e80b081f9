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
from cspsched.units import NS_PER_S


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
        If there are no requests, or a name is one that `read_trace` would refuse or change.
    InputError
        If the file cannot be written.
    """
    text = trace_text(requests)
    try:
        Path(path).write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


def trace_text(requests: Sequence[Request]) -> str:
    """Text of the native CSV file; the priority column is there if a priority is not 0.

    Raises
    ------
    TraceError
        As `write_trace`.
    """
    if not requests:
        raise TraceError("no requests to write, expected at least one")
    num_columns = 5 if any(request.priority for request in requests) else 4
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(NATIVE.known_columns[:num_columns])
    writer.writerows(_cells(request)[:num_columns] for request in requests)
    return buffer.getvalue()


def _cells(request: Request) -> tuple[str | int, ...]:
    return (
        _checked_name(request.request_id),
        _seconds_text(request.arrival_ns),
        request.prompt_tokens,
        request.output_tokens,
        request.priority,
    )


def _checked_name(name: str) -> str:
    try:
        unchanged = request_name(name) == name
    except ValueError:
        unchanged = False
    if not unchanged:
        raise TraceError(f"request_id {name!r}: expected printable characters without blanks around them")
    return name


def _seconds_text(time_ns: int) -> str:
    """Seconds with up to nine decimals, exact."""
    seconds, rest_ns = divmod(time_ns, NS_PER_S)
    return f"{seconds}.{rest_ns:09d}".rstrip("0").rstrip(".")
