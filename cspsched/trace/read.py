"""Reads a trace file of any known format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cspsched.problem.request import Request
from cspsched.trace.azure import AZURE
from cspsched.trace.cells import token_count
from cspsched.trace.format import TraceFormat, recognise_format
from cspsched.trace.naming import DROP, DROP_OR_SKIP, read_names, unused_columns
from cspsched.trace.native import NATIVE
from cspsched.trace.optional import read_optional
from cspsched.trace.selection import Selection
from cspsched.trace.table import Table, read_table
from cspsched.trace.trace import Trace
from cspsched.trace.vidur import VIDUR

FORMATS: tuple[TraceFormat, ...] = (NATIVE, AZURE, VIDUR)

LARGE_BYTES = 150_000
"""Size of a file from which on it is read in columns, if it is plain; the trace is the same."""


def read_trace(
    path: str | Path,
    *,
    limit: int | None = None,
    window: tuple[float, float] | None = None,
    scale_rate: float | None = None,
) -> Trace:
    """Read a trace file; its header tells the format.

    The window is taken first, then the limit, then the rate is scaled. Only the rows that are kept must have
    sensible token counts and names; the arrivals of all rows are needed to know which those are.

    Parameters
    ----------
    path : str or Path
        Comma-separated file in the native, Azure or Vidur format. Rows in any order.
    limit : int, optional
        Keep the first so many requests by arrival; rows that arrive together keep the order of the file.
    window : tuple[float, float], optional
        Keep arrivals in [start, end), in seconds since the file's first arrival. The end may be `math.inf`.
    scale_rate : float, optional
        Multiply the arrival rate by this factor.

    Returns
    -------
    Trace
        Sorted by arrival; times are integer nanoseconds since the first request that was kept.

    Raises
    ------
    InputError
        If the file cannot be read as text.
    TraceError
        If its header, a row or a cell makes no sense, or if no request arrives in the window.
    UsageError
        If an argument makes no sense.
    """
    selection = Selection(window=window, limit=limit, scale_rate=scale_rate)
    if _is_large(Path(path)):
        # Loads numpy, which a short trace does not need.
        from cspsched.trace.columnar import read_columns
        from cspsched.trace.plain import plain_table

        plain = plain_table(Path(path))
        if plain is not None:
            return read_columns(plain, recognise_format(plain, FORMATS), selection)
    return _read_rows(read_table(Path(path)), selection)


def _is_large(path: Path) -> bool:
    try:
        return path.stat().st_size >= LARGE_BYTES
    except OSError:
        return False


def _read_rows(table: Table, selection: Selection) -> Trace:
    trace_format = recognise_format(table, FORMATS)
    arrivals_ns = _arrivals(table, trace_format)
    # Stable: requests that arrive together stay in the order of the file.
    order = sorted(range(len(arrivals_ns)), key=arrivals_ns.__getitem__)
    elapsed_ns = [arrivals_ns[row] - arrivals_ns[order[0]] for row in order]
    kept = selection.kept(elapsed_ns)
    rows = order[kept.start : kept.stop]
    prompts = table.parse(trace_format.prompt_column, token_count, rows, remedy=DROP_OR_SKIP)
    outputs = table.parse(trace_format.output_column, token_count, rows, remedy=DROP_OR_SKIP)
    optional = trace_format.optional_columns
    requests = _requests(
        arrivals_ns=selection.rebased(elapsed_ns[kept.start : kept.stop]),
        names=read_names(table, trace_format, rows, kept),
        prompts=prompts,
        outputs=outputs,
        extras=read_optional(table, rows, optional, prompts, outputs, remedy=DROP_OR_SKIP),
    )
    return Trace(
        name=table.path.stem,
        format=trace_format.name,
        requests=requests,
        unused_columns=tuple(unused_columns(table, trace_format, rows)),
    )


def _arrivals(table: Table, trace_format: TraceFormat) -> list[int]:
    if trace_format.arrival_column not in table.header:
        return [0] * table.num_rows
    rows = range(table.num_rows)
    return table.parse(trace_format.arrival_column, trace_format.parse_arrival, rows, remedy=DROP)


def _requests(
    *,
    arrivals_ns: Sequence[int],
    names: Sequence[str],
    prompts: Sequence[int],
    outputs: Sequence[int],
    extras: Sequence[dict[str, Any]],
) -> tuple[Request, ...]:
    columns = zip(names, arrivals_ns, prompts, outputs, extras, strict=True)
    return tuple(
        Request(request_id=name, arrival_ns=time, prompt_tokens=prompt, output_tokens=output, **extra)
        for name, time, prompt, output, extra in columns
    )
