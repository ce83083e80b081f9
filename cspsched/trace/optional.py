"""Optional columns of a trace: priority, client, limits, predicted output, sessions, and shared prefixes.

A file may have any of them; `prefix_id` and `prefix_tokens` go together and make one segment, and
`think_time_s` needs a `session_id`. An empty cell is none of what the column has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cspsched.errors import TraceError
from cspsched.problem.request import Request
from cspsched.trace.cells import (
    TimeUnit,
    limit_in_seconds,
    name_or_none,
    pause_in_seconds,
    priority,
    shared_tokens,
    token_count_or_none,
)
from cspsched.trace.table import Table

if TYPE_CHECKING:
    from cspsched.problem.cost import IntArray

_CELLS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "priority": ("priority", priority),
    "client_id": ("client_id", name_or_none),
    "ttft_limit_s": ("ttft_limit_ns", limit_in_seconds),
    "tpot_limit_s": ("tpot_limit_ns", limit_in_seconds),
    "max_tokens": ("max_tokens", token_count_or_none),
    "predicted_tokens": ("predicted_tokens", token_count_or_none),
    "session_id": ("session_id", name_or_none),
    "think_time_s": ("think_time_ns", pause_in_seconds),
}
"""Field of a request and reader of a cell for every column that stands by itself."""
PREFIX_COLUMNS = ("prefix_id", "prefix_tokens")
OPTIONAL_COLUMNS = (*_CELLS, *PREFIX_COLUMNS)


def read_optional_fields(
    table: Table,
    rows: IntArray,
    columns: Sequence[str],
    prompts: Sequence[int],
    outputs: Sequence[int],
    *,
    remedy: str,
) -> dict[str, Sequence[Any]]:
    """Values of the optional columns that a table has, by field of a request.

    Parameters
    ----------
    table, rows
        The file, and the rows to read.
    columns
        Optional columns that the format has.
    prompts, outputs
        Prompt and output tokens of these rows: the most that a prefix may have, and the least that may be
        declared.
    remedy
        What the user can do about a row that is wrong.

    Raises
    ------
    TraceError
        If a cell is wrong, a prefix has only one of its two columns or cells, or is longer than the prompt,
        or a declared limit is less than the output.
    """
    present = [name for name in columns if name in table.header]
    values: dict[str, Sequence[Any]] = {}
    for name in present:
        if name in _CELLS:
            field, parse = _CELLS[name]
            values[field] = table.parse(name, parse, rows, remedy=remedy)
    for row, limit, output in zip(rows, values.get("max_tokens", ()), outputs, strict=False):
        if limit is not None and limit < output:
            raise TraceError(
                f"{table.where(row)}: max_tokens is {limit}, expected at least the output, {output} "
                f"({remedy})"
            )
    if any(values.get("think_time_ns", ())):
        _require_sessions(table, rows, values, remedy)
    if any(name in present for name in PREFIX_COLUMNS):
        values["prefix"] = _prefixes(table, rows, prompts, remedy)
    return values


def _require_sessions(table: Table, rows: IntArray, values: dict[str, Sequence[Any]], remedy: str) -> None:
    """Refuse a think time of a request that is a turn of no session."""
    names = values.get("session_id", [""] * len(rows))
    for row, name, think_ns in zip(rows, names, values["think_time_ns"], strict=True):
        if think_ns and not name:
            raise TraceError(
                f"{table.where(row)}: think_time_s is {TimeUnit.S.text(think_ns)} without a session_id, "
                f"expected 0 or an empty cell ({remedy})"
            )


def _prefixes(
    table: Table, rows: IntArray, prompts: Sequence[int], remedy: str
) -> list[tuple[tuple[str, int], ...]]:
    for name, other in (PREFIX_COLUMNS, PREFIX_COLUMNS[::-1]):
        if name not in table.header:
            raise TraceError(
                f"{table.where_header}: column {other!r} needs {name!r} beside it (add or remove one)"
            )
    names = table.parse("prefix_id", name_or_none, rows, remedy=remedy)
    counts = table.parse("prefix_tokens", shared_tokens, rows, remedy=remedy)
    prefixes: list[tuple[tuple[str, int], ...]] = []
    for row, name, tokens, prompt in zip(rows, names, counts, prompts, strict=True):
        if bool(name) != bool(tokens):
            raise TraceError(
                f"{table.where(row)}: prefix_id is {name!r} and prefix_tokens is {tokens}, expected both or "
                f"neither ({remedy})"
            )
        if tokens > prompt:
            raise TraceError(
                f"{table.where(row)}: prefix_tokens is {tokens}, expected at most the prompt, {prompt} "
                f"({remedy})"
            )
        prefixes.append(((name, tokens),) if name else ())
    return prefixes


def optional_cells(request: Request) -> tuple[str | int, ...]:
    """Cells of all optional columns of a request, in their order; what it has none of is empty or 0.

    Raises
    ------
    TraceError
        If the prefix has several segments, for which a row has no place, or a name would not survive.
    """
    if len(request.prefix) > 1:
        raise TraceError(
            f"request {request.request_id!r}: its prefix has {len(request.prefix)} segments, and a CSV file "
            "holds one (prefix_id, prefix_tokens); save the instance as JSON instead"
        )
    prefix_id, prefix_tokens = request.prefix[0] if request.prefix else ("", 0)
    return (
        request.priority,
        _checked("client_id", request.client_id, request),
        "" if request.ttft_limit_ns is None else TimeUnit.S.text(request.ttft_limit_ns),
        "" if request.tpot_limit_ns is None else TimeUnit.S.text(request.tpot_limit_ns),
        str(request.max_tokens or ""),
        str(request.predicted_tokens or ""),
        _checked("session_id", request.session_id, request),
        TimeUnit.S.text(request.think_time_ns) if request.think_time_ns else "",
        _checked("prefix_id", prefix_id, request, may_be_empty=not prefix_tokens),
        prefix_tokens,
    )


def _checked(column: str, name: str, request: Request, *, may_be_empty: bool = True) -> str:
    try:
        unchanged = name_or_none(name) == name and (may_be_empty or name != "")
    except ValueError:
        unchanged = False
    if not unchanged:
        raise TraceError(
            f"request {request.request_id!r}: {column} {name!r}: expected printable characters without "
            "blanks around them"
        )
    return name
