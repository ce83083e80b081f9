"""Which format a table has: as the user says, or as its columns tell; never guessed in silence."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from cspsched.errors import TraceError, UsageError
from cspsched.trace.format import TraceFormat
from cspsched.trace.formats import FORMATS
from cspsched.trace.formats.hashed import BAILIAN, MOONCAKE
from cspsched.trace.mapping import as_option, given_format, guessed_format
from cspsched.trace.table import Table, shown_text

_ALIASES = {"dynamo": "mooncake", "qwen-bailian": "bailian", "vllm": "vllm-bench", "sglang": "sglang-bench"}
_ROWS_LOOKED_AT = 1000


def choose_format(table: Table, name: str | None, columns: str | None) -> tuple[TraceFormat, Table]:
    """The format of a table, and the table with the columns of the format and a note of what was taken.

    Parameters
    ----------
    name
        Name of a format, None to find it by the columns.
    columns
        Text of `--columns` in the place of a format.

    Raises
    ------
    TraceError
        If no format or several fit, or the format is no trace of requests.
    UsageError
        If the name or the text makes no sense.
    """
    if columns is not None:
        if name is not None:
            raise UsageError("--format and --columns both say what the columns are, expected one of them")
        made = given_format(table, columns)
        note = None if made.arrival_column else "all requests arrive at 0: --columns names no arrival"
    elif name is not None:
        made, note = format_called(name), None
        _refuse_missing(table, made)
    else:
        made, note = _recognised(table)
    if made.refusal:
        raise TraceError(f"{table.source} ({made.title}) {made.refusal}")
    _refuse_other_columns(table, made)
    told = replace(table, notes=(*table.notes, *((note,) if note else ())))
    return made, made.prepare(told) if made.prepare else told


def format_called(name: str) -> TraceFormat:
    """The format of a name.

    Raises
    ------
    UsageError
        If there is none of that name.
    """
    for candidate in FORMATS:
        if candidate.name == _ALIASES.get(name.lower(), name.lower()):
            return candidate
    raise UsageError(f"there is no trace format {name!r}; there are {_tried()}")


def _recognised(table: Table) -> tuple[TraceFormat, str | None]:
    fitting = [candidate for candidate in FORMATS if not candidate.missing_columns(table)]
    if not fitting:
        guessed = guessed_format(table)
        if guessed is None:
            raise TraceError(_unrecognised(table))
        return guessed, f"columns are guessed by their names; the same as --columns {as_option(guessed)}"
    made = _by_blocks(table) if fitting[0] is MOONCAKE else fitting[0]
    if made is FORMATS[0]:
        return made, None
    return made, f"read as {made.name}{_reading(made, table)}"


def _by_blocks(table: Table) -> TraceFormat:
    """Mooncake or Bailian, by how many hashes the prompts have.

    Raises
    ------
    TraceError
        If both or neither fit.
    """
    rows = np.arange(min(table.num_rows, _ROWS_LOOKED_AT))
    column = MOONCAKE.prefix_hashes.column if MOONCAKE.prefix_hashes else ""
    hashes = table.columns[column].values(rows) if column in table.columns else []
    prompts = table.columns[MOONCAKE.prompt_column].texts(rows)
    fitting = [one for one in (MOONCAKE, BAILIAN) if hashes and _blocks_fit(one, hashes, prompts)]
    if len(fitting) == 1:
        return fitting[0]
    why = (
        "there are no hash_ids" if not hashes else "both fit hash_ids" if fitting else "neither fits hash_ids"
    )
    raise TraceError(
        f"{table.where_header}: timestamp is in ms with blocks of 512 tokens (mooncake) or in s with blocks "
        f"of 16 (bailian), and {why}; say which by --format mooncake or --format bailian"
    )


def _blocks_fit(candidate: TraceFormat, hashes: list[object], prompts: list[str]) -> bool:
    """Whether most prompts have as many hashes as blocks; a row that does not is refused where it is read."""
    assert candidate.prefix_hashes is not None
    block_tokens = candidate.prefix_hashes.block_tokens
    counted = [
        (len(names), int(prompt) / block_tokens)
        for names, prompt in zip(hashes, prompts, strict=True)
        if isinstance(names, list) and names and prompt.isdecimal()
    ]
    return 2 * sum(count in (math.ceil(blocks), int(blocks)) for count, blocks in counted) > len(counted)


def _reading(made: TraceFormat, table: Table) -> str:
    """What was found, and the units that were taken from it."""
    found = ", ".join(
        (*made.required_columns, *(mark for mark in made.marks if mark not in made.required_columns))
    )
    taken = []
    if made.arrival_column in table.columns:
        taken.append(f"{made.arrival_column} in {made.arrival_unit.plural}")
    if made.prefix_hashes is not None and made.prefix_hashes.column in table.columns:
        taken.append(f"{made.prefix_hashes.column} of {made.prefix_hashes.block_tokens}-token blocks")
    return f" by its columns {found}{': ' if taken else ''}{', '.join(taken)}"


def _refuse_missing(table: Table, made: TraceFormat) -> None:
    missing = [name for name in made.required_columns if name not in table.columns]
    if missing:
        raise TraceError(
            f"{table.where_header}: {_lacks(missing)} missing for format {made.name}; "
            f"{made.hints.get(missing[0], f'found {table.found()}')}"
        )


def _refuse_other_columns(table: Table, made: TraceFormat) -> None:
    others = [name for name in table.header if name not in made.known_columns]
    if others and not made.ignores_other_columns:
        raise TraceError(
            f"{table.where_header}: column {shown_text(others[0])} is unknown, expected {made.describe()} "
            "(remove or rename it)"
        )


def _unrecognised(table: Table) -> str:
    closest = max(FORMATS, key=lambda candidate: _closeness(candidate, table))
    remedy = "name the columns with --columns, as 'cspsched trace list' shows"
    if not _num_shared(closest, table):
        return (
            f"{table.where_header}: no known format has the columns {table.found()}; "
            f"tried {_tried()}; {remedy}"
        )
    missing = closest.missing_columns(table)
    hint = next((f" ({closest.hints[name]})" for name in missing if name in closest.hints), "")
    return (
        f"{table.where_header}: {_lacks(missing)} missing for format {closest.name}{hint}; "
        f"found {table.found()}; tried {_tried()}; {remedy}"
    )


def _closeness(candidate: TraceFormat, table: Table) -> tuple[bool, int]:
    """How likely a table is a broken one of a format: whether it may be one at all, and how much it has."""
    num_shared = _num_shared(candidate, table)
    has_marks = all(mark in table.columns or mark in table.facts for mark in candidate.marks)
    return num_shared > 0 and has_marks, num_shared


def _num_shared(candidate: TraceFormat, table: Table) -> int:
    names = {*candidate.required_columns, *candidate.known_columns, *candidate.marks}
    return sum(name in table.columns or name in table.facts for name in names)


def _lacks(missing: list[str]) -> str:
    return f"column {missing[0]} is" if len(missing) == 1 else f"columns {', '.join(missing)} are"


def _tried() -> str:
    return ", ".join(candidate.name for candidate in FORMATS)
