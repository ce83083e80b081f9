"""Recorded cases of a folder: log, configuration, trace, and what the manifest says of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from cspsched.errors import InputError, UsageError
from cspsched.problem.json_io import read_json, read_text
from cspsched.problem.request import Request
from cspsched.recording.log import Recording, read_recording
from cspsched.recording.values import read_requests
from cspsched.recording.vidur_case import find_vidur_cases

MANIFEST = "manifest.json"
LOG_SUFFIXES = (".log.jsonl.gz", ".log.jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedCase:
    """Where the parts of a case are.

    Attributes
    ----------
    name
        Path of the case below its folder, without suffix.
    log
        The recorded iterations.
    config
        The engine's configuration, if there is a file of it; the log's own is preferred.
    trace
        The requests, if there is a file of them; else the log must know them.
    entry
        What the manifest says: source, schedule_sha256 and others; empty without one.
    """

    name: str
    log: Path
    config: Path | None
    trace: Path | None
    entry: dict[str, Any]

    def read_recording(self) -> Recording:
        """The log; same errors as `log.read_recording`."""
        return read_recording(self.log)

    def read_config(self, recording: Recording) -> dict[str, Any]:
        """Configuration: what the log says itself, and what only the file says.

        Raises
        ------
        InputError
            If the file cannot be read.
        """
        given = {} if self.config is None else read_config(self.config)
        return {**given, **recording.config}

    def read_requests(self, recording: Recording) -> tuple[Request, ...]:
        """Requests of the trace, or those that the log knows.

        Raises
        ------
        InputError
            If there are none, or the trace cannot be read.
        """
        if self.trace is not None:
            return read_requests(self.trace)
        if not recording.requests:
            raise InputError(
                f"{self.log}: there is no trace {self.name}.trace.csv, and the log has no requests"
            )
        return recording.requests


@dataclass(frozen=True, slots=True, kw_only=True)
class VidurRun:
    """A recorded run of Vidur: a folder of its own."""

    name: str
    folder: Path


def read_config(path: Path) -> dict[str, Any]:
    """A file of an engine's configuration: keys and values as the engine names them.

    Raises
    ------
    InputError
        If it cannot be read or is no JSON object.
    """
    data = read_json(path)
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected a table of keys and values, got {type(data).__name__}")
    return data


def find_cases(folder: Path, names: Iterable[str] = ()) -> list[RecordedCase | VidurRun]:
    """Cases of a folder: those of its `manifest.json` or else all logs in and below it, and Vidur's runs.

    Parameters
    ----------
    names
        Names or patterns such as `v0/*`; all cases if there is none.

    Raises
    ------
    InputError
        If the folder holds no case, or the manifest cannot be read or names a log that is not there.
    UsageError
        If a name matches no case.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder, expected one with {MANIFEST} or recorded logs in it")
    manifest = folder / MANIFEST
    found: list[RecordedCase | VidurRun] = []
    found += _listed(folder, manifest) if manifest.is_file() else _unlisted(folder)
    found += [VidurRun(name=path.resolve().name, folder=path) for path in find_vidur_cases(folder)]
    if not found:
        kinds = " nor ".join([MANIFEST, *(f"*{suffix}" for suffix in LOG_SUFFIXES), "a run of Vidur"])
        raise InputError(f"{folder} holds no recorded case: neither {kinds}")
    patterns = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(case.name, pattern) for case in found):
            known = ", ".join(case.name for case in found[:5])
            raise UsageError(
                f"no recorded case {pattern!r} in {folder}; there are: {known} ... ({len(found)})"
            )
    return [case for case in found if not patterns or any(fnmatchcase(case.name, one) for one in patterns)]


def _listed(folder: Path, manifest: Path) -> list[RecordedCase]:
    data = read_json(manifest)
    if not isinstance(data, dict) or not all(isinstance(entry, dict) for entry in data.values()):
        raise InputError(f"{manifest}: expected a table with a table for each case")
    return [_listed_case(folder, name, entry) for name, entry in data.items()]


def _listed_case(folder: Path, name: str, entry: dict[str, Any]) -> RecordedCase:
    log = next((path for suffix in LOG_SUFFIXES if (path := folder / f"{name}{suffix}").is_file()), None)
    if log is None:
        raise InputError(f"{folder / MANIFEST}: case {name!r} has no log {folder / name}{LOG_SUFFIXES[0]}")
    trace = entry.get("trace")
    listed = folder / trace if isinstance(trace, str) else None
    return _case(folder, name, log, entry, listed)


def _unlisted(folder: Path) -> list[RecordedCase]:
    cases = []
    for suffix in LOG_SUFFIXES:
        for log in sorted(folder.rglob(f"*{suffix}")):
            name = log.relative_to(folder).as_posix().removesuffix(suffix)
            cases.append(_case(folder, name, log, {}, None))
    return sorted(cases, key=lambda case: case.name)


def _case(folder: Path, name: str, log: Path, entry: dict[str, Any], trace: Path | None) -> RecordedCase:
    config = folder / f"{name}.config.json"
    if trace is None or not trace.is_file():
        trace = _trace_beside(folder / name)
    return RecordedCase(
        name=name, log=log, config=config if config.is_file() else None, trace=trace, entry=entry
    )


def _trace_beside(stem: Path) -> Path | None:
    """`NAME.trace.csv`, or the file that `NAME.trace.txt` names relative to itself."""
    own, pointer = Path(f"{stem}.trace.csv"), Path(f"{stem}.trace.txt")
    if own.is_file():
        return own
    return pointer.parent / read_text(pointer).strip() if pointer.is_file() else None
