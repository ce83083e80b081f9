"""Columns under names of the user's own: given by `--columns`, or guessed where only one guess fits."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from cspsched.errors import UsageError
from cspsched.trace.cells import TimeUnit
from cspsched.trace.format import PrefixHashes, TraceFormat
from cspsched.trace.optional import OPTIONAL_COLUMNS
from cspsched.trace.table import Table

UNITS = {unit.symbol: unit for unit in TimeUnit}
_UNIT_WORDS = {"sec": "s", "secs": "s", **{unit.plural: unit.symbol for unit in TimeUnit}}
_EXAMPLE = "arrival=timestamp:ms,prompt=input_tokens,output=output_tokens"
_ROLES = ("arrival", "prompt", "output", "id", "hashes")

_PROMPT_NAMES = {
    *("prompt_tokens", "num_prompt_tokens", "prompt_length", "prompt_len", "prompt_size", "context_tokens"),
    *("input_tokens", "num_input_tokens", "input_length", "input_len", "input_toks", "isl"),
    *("prefill_tokens", "num_prefill_tokens"),
}
_OUTPUT_NAMES = {
    *("output_tokens", "num_output_tokens", "output_length", "output_len", "output_toks", "osl"),
    *("completion_tokens", "generated_tokens", "generation_tokens", "response_tokens", "token_size"),
    *("decode_tokens", "num_decode_tokens"),
}
_ARRIVAL_NAMES = {
    *("arrival", "arrival_time", "arrival_timestamp", "arrived_at", "timestamp", "time"),
    *("start_time", "request_time", "request_start", "created_at"),
}
_ID_NAMES = {"request_id", "id", "req_id"}


def given_format(table: Table, text: str) -> TraceFormat:
    """The format that a text like `arrival=timestamp:ms,prompt=input_tokens,...` describes.

    Raises
    ------
    UsageError
        If the text makes no sense, or a column that it names is not there.
    """
    names: dict[str, str] = {}
    for part in text.split(","):
        role, equals, column = (piece.strip() for piece in part.partition("="))
        if role not in _ROLES or not equals or not column or role in names:
            raise UsageError(
                f"--columns has {part.strip()!r}, expected each of {', '.join(_ROLES)} once at most, "
                f"as in {_EXAMPLE}"
            )
        names[role] = column
    missing = [role for role in ("prompt", "output") if role not in names]
    if missing:
        raise UsageError(f"--columns names no {missing[0]}, expected {_EXAMPLE}")
    hashes = _hashes(names.pop("hashes", ""))
    arrival, unit = _arrival(table, names.get("arrival", ""))
    made = TraceFormat(
        name="columns",
        title="columns given by the user",
        arrival_column=arrival,
        arrival_unit=unit,
        prompt_column=names["prompt"],
        output_column=names["output"],
        id_column=names.get("id"),
        needs_id="id" in names,
        may_lack_arrivals=not arrival,
        prefix_hashes=hashes,
        optional_columns=OPTIONAL_COLUMNS,
    )
    wanted = (*made.required_columns, *((hashes.column,) if hashes else ()))
    absent = [name for name in wanted if name not in table.columns]
    if absent:
        raise UsageError(
            f"{table.where_header}: --columns names {absent[0]!r}, which is no column; found {table.found()}"
        )
    return made


def guessed_format(table: Table) -> TraceFormat | None:
    """The format whose columns have names that can mean one thing only; None if a name or a unit is open."""
    prompts = _meaning(table.header, _PROMPT_NAMES)
    outputs = _meaning(table.header, _OUTPUT_NAMES)
    arrivals = [name for name in table.header if _base_name(name)[0] in _ARRIVAL_NAMES]
    if not len(prompts) == len(outputs) == len(arrivals) == 1:
        return None
    unit = _unit_of(table, arrivals[0])
    if unit is None:
        return None
    ids = _meaning(table.header, _ID_NAMES)
    return TraceFormat(
        name="columns",
        title="columns guessed by their names",
        arrival_column=arrivals[0],
        arrival_unit=unit,
        prompt_column=prompts[0],
        output_column=outputs[0],
        id_column=ids[0] if len(ids) == 1 else None,
        optional_columns=OPTIONAL_COLUMNS,
    )


def as_option(made: TraceFormat) -> str:
    """The text of `--columns` that gives a format, for messages."""
    parts = [
        f"arrival={made.arrival_column}:{made.arrival_unit.symbol}",
        f"prompt={made.prompt_column}",
        f"output={made.output_column}",
    ]
    return ",".join([*parts, f"id={made.id_column}"] if made.id_column else parts)


def _hashes(text: str) -> PrefixHashes | None:
    if not text:
        return None
    column, _, block = text.rpartition(":")
    if not column or not re.fullmatch(r"[1-9][0-9]{0,8}", block):
        raise UsageError(
            f"--columns has hashes={text}, expected tokens of a block, as in hashes=hash_ids:512"
        )
    return PrefixHashes(column=column, block_tokens=int(block))


def _arrival(table: Table, text: str) -> tuple[str, TimeUnit]:
    column, colon, symbol = text.rpartition(":")
    if colon and text not in table.columns:
        if symbol not in UNITS:
            raise UsageError(
                f"--columns has arrival={text}, expected a unit of {', '.join(UNITS)}, as in "
                f"arrival={column}:ms"
            )
        return column, UNITS[symbol]
    if not text or text not in table.columns:
        return text, TimeUnit.S
    unit = _unit_of(table, text)
    if unit is None:
        raise UsageError(
            f"--columns has arrival={text} without a unit, expected one of {', '.join(UNITS)}, "
            f"as in arrival={text}:ms"
        )
    return text, unit


def _meaning(header: Iterable[str], names: set[str]) -> list[str]:
    return [name for name in header if _words(name) in names]


def _words(name: str) -> str:
    """A name in lower case with underscores: `Input Tokens` and `inputTokens` are `input_tokens`."""
    return re.sub(r"[^a-z0-9]+", "_", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()).strip("_")


def _base_name(name: str) -> tuple[str, str]:
    """The words of a name, and the symbol of the unit that it ends with, if any."""
    base, _, last = _words(name).rpartition("_")
    symbol = _UNIT_WORDS.get(last, last)
    return (base, symbol) if base and symbol in UNITS else (_words(name), "")


def _unit_of(table: Table, column: str) -> TimeUnit | None:
    """The unit that the name says, or moments if the first cell is one."""
    symbol = _base_name(column)[1]
    if symbol:
        return UNITS[symbol]
    try:
        TimeUnit.UTC.parse(table.columns[column].texts(np.array([0]))[0])
    except ValueError:
        return None
    return TimeUnit.UTC
