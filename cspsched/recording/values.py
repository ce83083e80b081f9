"""Values of a recorded log and of its trace, checked one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cspsched.errors import InputError
from cspsched.problem.request import Request
from cspsched.trace.cells import arrival_in_seconds, priority, request_name, token_count
from cspsched.trace.delimited import delimited_table
from cspsched.trace.source import read_source
from cspsched.trace.table import Table
from cspsched.units import seconds_to_ns

MAX_TIME_S = 4_000_000_000.0
REMEDY = "record the case again"
NEEDED = ("request_id", "prompt_tokens", "output_tokens")


def number_of(data: Mapping[str, Any], key: str, where: str, *, default: int | None = None) -> int:
    """Whole number >= 0 under a key; a default makes it optional.

    Raises
    ------
    InputError
        If it is missing or something else.
    """
    value = data.get(key, default)
    if type(value) is not int or value < 0:
        raise InputError(f"{where}: {key} is {value!r}, expected a whole number >= 0")
    return value


def time_ns_of(data: Mapping[str, Any], key: str, where: str) -> int:
    """Nanoseconds of a time in seconds under a key.

    Raises
    ------
    InputError
        If it is missing, no number, or out of range.
    """
    value = data.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_TIME_S:
        raise InputError(f"{where}: {key} is {value!r}, expected a time in seconds")
    return seconds_to_ns(value)


def request_of(data: Any, where: str) -> Request:
    """A request as a recorder notes it at its first batch: `max_tokens` stands for its output.

    Raises
    ------
    InputError
        If a value is missing or makes no sense.
    """
    if not isinstance(data, dict) or not isinstance(data.get("request_id"), str):
        raise InputError(f"{where}: new holds {data!r}, expected an object with a request_id")
    rank = data.get("priority", 0)
    return Request(
        request_id=data["request_id"],
        arrival_ns=max(0, time_ns_of(data, "arrival", where)),
        prompt_tokens=number_of(data, "prompt_tokens", where),
        output_tokens=number_of(data, "max_tokens", where),
        priority=rank if type(rank) is int else 0,
    )


def read_requests(path: Path) -> tuple[Request, ...]:
    """Requests of a recorded trace, in the order of the file, on the clock of the recording.

    Columns are `request_id`, `arrival` or `arrival_s` (seconds), `prompt_tokens`, `output_tokens`, and if
    they are there `priority`, `prefix_id`, `prefix_tokens`: the prompt begins with so many tokens of a text
    that all requests with this prefix share.

    Raises
    ------
    InputError
        If the file cannot be read, lacks a column, or holds a wrong value (`TraceError`).
    """
    columns = _Columns(delimited_table(read_source(path)))
    missing = [name for name in NEEDED if name not in columns.table.header]
    arrival = next((name for name in ("arrival", "arrival_s") if name in columns.table.header), None)
    if missing or arrival is None:
        raise InputError(f"{path}: column {(missing or ['arrival'])[0]} is missing; is it a recorded trace?")
    rows = zip(
        columns.of("request_id", request_name),
        columns.of(arrival, arrival_in_seconds),
        columns.of("prompt_tokens", token_count),
        columns.of("output_tokens", token_count),
        columns.of("priority", _priority),
        columns.of("prefix_id", str.strip),
        columns.of("prefix_tokens", _shared_tokens),
        strict=True,
    )
    return tuple(
        Request(
            request_id=name,
            arrival_ns=arrival_ns,
            prompt_tokens=prompt,
            output_tokens=output,
            priority=rank,
            prefix=((stream, shared),) if stream and shared else (),
        )
        for name, arrival_ns, prompt, output, rank, stream, shared in rows
    )


@dataclass(frozen=True)
class _Columns:
    table: Table

    def of(self, name: str, parse: Any) -> list[Any]:
        """Values of a column; what an empty cell gives if there is none."""
        if name not in self.table.header:
            return [parse("")] * self.table.num_rows
        return self.table.parse(name, parse, self.table.all_rows, remedy=REMEDY)


def _priority(text: str) -> int:
    return priority(text) if text.strip() else 0


def _shared_tokens(text: str) -> int:
    return 0 if text.strip() in ("", "0", "0.0") else token_count(text)
