"""The log of an engine's scheduler: one JSON line an iteration, plain or gzipped, its end may be cut off.

A recorder of a running engine writes an iteration in two lines with the same number `it`: one when it is
scheduled, one when its output is there. Both ways of writing are read. What is not understood is left alone.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cspsched.errors import InputError
from cspsched.problem.request import Request
from cspsched.recording.values import number_of, request_of, time_ns_of

SWAPPED = "SWAP"
"""What a log of vLLM V0 writes behind a preempted request whose KV cache goes to host memory."""


class Entry(NamedTuple):
    """A request in a batch."""

    name: str
    tokens: int
    before: int
    """KV entries that it had on the device before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration:
    """One batch as the engine logged it. Times are integer nanoseconds of the engine's clock."""

    line: int
    """Line of the log, counted from 1."""
    scheduled: tuple[Entry, ...]
    """In the order of the scheduler."""
    preempted: tuple[str, ...]
    swapped: frozenset[str]
    """Those of the preempted whose KV cache goes to host memory."""
    moved_blocks: int
    """KV blocks that move between device and host before the batch."""
    waiting: int
    """Requests without KV blocks on the device."""
    kv_used: int
    start_ns: int
    """Start as logged: before the KV blocks that move, if any do."""
    end_ns: int
    emitted: tuple[str, ...]
    finished: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A whole log.

    Attributes
    ----------
    source
        Engine and version, as far as the log says.
    config
        The engine's resolved configuration; empty if the log has none.
    watermark_blocks
        Blocks that an admission leaves free, if the log says.
    iterations
        In order of execution.
    requests
        What the log itself knows of the requests (a recorder notes each at its first batch).
    num_cut_off
        Iterations at the end whose output is missing.
    is_complete
        The log ends with a summary: what is not in it did not happen.
    """

    source: str
    config: dict[str, Any]
    watermark_blocks: int | None
    iterations: tuple[Iteration, ...]
    requests: tuple[Request, ...]
    num_cut_off: int
    is_complete: bool

    @property
    def sha256(self) -> str:
        """Hash of the canonical lines, one an iteration."""
        return hash_of((iteration.scheduled, iteration.preempted) for iteration in self.iterations)


def canonical_line(scheduled: Iterable[tuple[str, int, int]], preempted: Iterable[str]) -> str:
    """An iteration as text: `request:tokens@before;...|preempted,...` and a line end."""
    entries = ";".join(f"{name}:{tokens}@{before}" for name, tokens, before in scheduled)
    return f"{entries}|{','.join(preempted)}\n"


def hash_of(iterations: Iterable[tuple[Iterable[tuple[str, int, int]], Iterable[str]]]) -> str:
    """SHA-256 of the canonical lines of (scheduled, preempted) pairs."""
    digest = hashlib.sha256()
    for scheduled, preempted in iterations:
        digest.update(canonical_line(scheduled, preempted).encode())
    return digest.hexdigest()


def read_recording(path: Path) -> Recording:
    """Read a log; a last line that was cut off in the middle is left out.

    Raises
    ------
    InputError
        If the file cannot be read, a line other than the last is no JSON object, an iteration lacks a value
        or holds a wrong one, or there is no iteration at all.
    """
    lines = list(_objects(path))
    meta: dict[str, Any] = next((data["meta"] for _, data in lines if isinstance(data.get("meta"), dict)), {})
    config = meta.get("config", {})
    if not isinstance(config, dict):
        raise InputError(f"{path}: meta has a config that is no table of keys and values")
    merged = _merged(path, lines)
    complete = [(line, data) for line, data in merged if "t_end" in data]
    if not complete:
        raise InputError(f"{path}: holds no complete iteration (a line with 'sched' and 't_end')")
    watermark = meta.get("watermark_blocks")
    return Recording(
        source=_source(meta),
        config=config,
        watermark_blocks=watermark if type(watermark) is int else None,
        iterations=tuple(_iteration(data, line, f"{path} line {line}") for line, data in complete),
        requests=_requests(path, merged),
        num_cut_off=len(merged) - len(complete),
        is_complete=any("summary" in data for _, data in lines),
    )


def _source(meta: dict[str, Any]) -> str:
    if "source" in meta:
        return str(meta["source"])
    words = [f"vllm {meta['vllm']}"] if "vllm" in meta else []
    return " ".join([*words, *(str(meta[key]) for key in ("commit", "scheduler") if key in meta)])


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and content of every line; what cannot be parsed is refused, but for the last line."""
    lines = _text_lines(path)
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            if number == len(lines):
                return
            raise InputError(f"{path} line {number}: no valid JSON; is it a log of iterations?") from None
        if not isinstance(data, dict):
            raise InputError(f"{path} line {number}: expected a JSON object, got {type(data).__name__}")
        yield number, data


def _text_lines(path: Path) -> Sequence[str]:
    if path.is_dir():
        raise InputError(f"{path} is a directory, expected a log")
    chunks: list[bytes] = []
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            # Read piece by piece: of a stream that is cut off, all that came before counts.
            while chunk := file.read1(1 << 16):
                chunks.append(chunk)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (EOFError, zlib.error):
        # A log whose writer was stopped: what was read before the end of the stream is used.
        if not chunks:
            raise InputError(f"{path} is cut off before its first line") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    return b"".join(chunks).decode("utf-8", errors="replace").splitlines()


def _merged(path: Path, lines: Iterable[tuple[int, dict[str, Any]]]) -> list[tuple[int, dict[str, Any]]]:
    """Iterations, each with the line on which it begins; the second line of one is laid over the first."""
    found: list[tuple[int, dict[str, Any]]] = []
    by_number: dict[int, dict[str, Any]] = {}
    for line, data in lines:
        if "sched" in data:
            number = data.get("it", len(found))
            if type(number) is not int or number in by_number:
                raise InputError(f"{path} line {line}: it is {number!r}, expected a whole number of its own")
            by_number[number] = data
            found.append((line, data))
        elif "t_end" in data:
            number = data.get("it")
            if number not in by_number:
                raise InputError(
                    f"{path} line {line}: output of iteration {number!r}, which was not scheduled"
                )
            by_number[number].update(data)
    return found


def _iteration(data: dict[str, Any], line: int, where: str) -> Iteration:
    scheduled = tuple(_entry(item, where) for item in _list(data, "sched", where))
    preempted = [item if isinstance(item, list) else [item] for item in _list(data, "preempted", where)]
    if any(not item for item in preempted):
        raise InputError(f"{where}: preempted holds an empty list, expected a request first")
    moved = [number_of(data, key, where, default=0) for key in ("swapped_in_blocks", "swapped_out_blocks")]
    return Iteration(
        line=line,
        scheduled=scheduled,
        preempted=tuple(_name(item[0], where) for item in preempted),
        swapped=frozenset(str(item[0]) for item in preempted if SWAPPED in item[1:]),
        moved_blocks=sum(moved),
        waiting=number_of(data, "waiting", where) + number_of(data, "swapped", where, default=0),
        kv_used=number_of(data, "kv_used", where),
        start_ns=time_ns_of(data, "t_start", where),
        end_ns=time_ns_of(data, "t_end", where),
        emitted=tuple(_name(item, where) for item in _list(data, "emitted", where)),
        finished=tuple(_name(item, where) for item in _list(data, "finished", where)),
    )


def _list(data: dict[str, Any], key: str, where: str) -> list[Any]:
    value = data.get(key, [])
    if not isinstance(value, list):
        raise InputError(f"{where}: {key} is {value!r}, expected a list")
    return value


def _name(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: {value!r} is no name of a request")
    return value


def _entry(item: Any, where: str) -> Entry:
    if isinstance(item, list) and len(item) == 3:
        name, tokens, before = item
        if isinstance(name, str) and _at_least(tokens, 1) and _at_least(before, 0):
            return Entry(name, tokens, before)
    raise InputError(f"{where}: sched holds {item!r}, expected [request, tokens >= 1, computed before >= 0]")


def _at_least(value: Any, least: int) -> bool:
    return type(value) is int and value >= least


def _requests(path: Path, iterations: Iterable[tuple[int, dict[str, Any]]]) -> tuple[Request, ...]:
    return tuple(
        request_of(item, f"{path} line {line}")
        for line, data in iterations
        for item in _list(data, "new", f"{path} line {line}")
    )
