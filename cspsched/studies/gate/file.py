"""The gate's file: a TOML file in the user's repository, read and checked."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError

from cspsched.errors import InputError
from cspsched.policies.text import PolicyText
from cspsched.problem.json_io import read_text, validation_sentences
from cspsched.studies.gate.run import Contest
from cspsched.studies.gate.verdict import GateRules

PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")


def read_percent(text: Any) -> Fraction:
    """Exact ratio of a text such as `2.5 %`.

    Raises
    ------
    ValueError
        If it is anything else; a bare number could be a ratio or a percentage.
    """
    match = PERCENT.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"expected a percentage from 0 on, such as '2.5 %', got {text!r}")
    return Fraction(match[1]) / 100


def _read_ratios(value: Any) -> Fraction | dict[str, Fraction]:
    """A percentage for all objectives, or a table of them by objective."""
    if isinstance(value, dict):
        return {objective: read_percent(text) for objective, text in value.items()}
    return read_percent(value)


def _named(*keys: str) -> BeforeValidator:
    """A bare text stands for a table with these keys, all of that value."""
    return BeforeValidator(lambda value: dict.fromkeys(keys, value) if isinstance(value, str) else value)


Ratios = Annotated[Any, PlainValidator(_read_ratios)]
Settings = dict[str, str | int | float]
"""Options of `cspsched gate` without their dashes, such as `kv-tokens = "64k"`."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Limits(_Table):
    excess_at_most: Ratios = None
    regression_at_most: Ratios = None


class _Policy(_Limits):
    name: str = Field(min_length=1)
    head: str = Field(min_length=1)
    base: str | None = None


class _Trace(_Table):
    trace: str = Field(min_length=1)
    name: str | None = None
    serving: Settings = {}
    limit: int | str | None = None
    window: str | None = None
    scale_rate: float | None = None


class _File(_Table):
    traces: list[Annotated[_Trace, _named("trace")]] = Field(min_length=1)
    policies: list[Annotated[_Policy, _named("name", "head")]] = Field(min_length=1)
    objectives: list[str] = Field(min_length=1, default=["latency"])
    limits: _Limits = _Limits()
    serving: Settings = {}
    steps: int | None = Field(ge=0, default=None)
    seed: int = Field(ge=0, default=0)


@dataclass(frozen=True, kw_only=True)
class TraceEntry:
    """A trace as the file names it.

    Attributes
    ----------
    trace
        A file, relative to the folder of the gate's file, or the name of a bundled trace.
    options
        Values of options by name, underscores for dashes: of the whole file, overridden by the trace's own.
    """

    name: str
    trace: str
    options: Settings = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class GateFile:
    """What a gate's file asks for, with the files of policies found from its folder."""

    traces: tuple[TraceEntry, ...]
    contests: tuple[Contest, ...]
    objectives: tuple[str, ...]
    steps: int | None
    seed: int


def read_gate_file(path: Path) -> GateFile:
    """Read and check a gate's file.

    Raises
    ------
    InputError
        If it cannot be read, is no TOML, or has a key or a value that is unknown; all such are named.
    """
    try:
        found = _File.model_validate(tomllib.loads(read_text(path)))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: no valid TOML ({error})") from None
    except ValidationError as error:
        raise InputError(f"{path}: {'; '.join(validation_sentences(error))}") from None
    return GateFile(
        traces=tuple(_trace(entry, found.serving) for entry in found.traces),
        contests=tuple(_contest(entry, found.limits, path.parent) for entry in found.policies),
        objectives=tuple(found.objectives),
        steps=found.steps,
        seed=found.seed,
    )


def based_on_file(contests: tuple[Contest, ...], other: Path) -> tuple[Contest, ...]:
    """The contests with those of another checkout's gate file as base: its head of the same name.

    A policy that the other file does not have is new, and has no base.
    """
    heads = {contest.name: contest.head for contest in read_gate_file(other).contests}
    return tuple(replace(contest, base=heads.get(contest.name)) for contest in contests)


def based_on_folder(contests: tuple[Contest, ...], folder: Path, other: Path) -> tuple[Contest, ...]:
    """The contests with the same policies as base, their files those of another folder.

    A policy whose file is not there is new, and has no base.

    Raises
    ------
    InputError
        If the file of a policy does not lie in the folder.
    """
    return tuple(replace(contest, base=_moved(contest.head, folder, other)) for contest in contests)


def _moved(text: str, folder: Path, other: Path) -> str | None:
    """The text of a policy whose file lies in another folder; None if it is not there."""
    wanted = PolicyText.read(text)
    if wanted.file is None:
        return text
    if wanted.file.is_absolute() or not wanted.file.is_relative_to(folder):
        raise InputError(f"policy {text!r} lies outside of {folder}, so the base's checkout has none for it")
    file = other / wanted.file.relative_to(folder)
    return _with_file(wanted, file) if file.is_file() else None


def _with_file(wanted: PolicyText, file: Path) -> str:
    return str(replace(wanted, file=file, name=f"{file}:{wanted.attribute}"))


def _trace(entry: _Trace, serving: Settings) -> TraceEntry:
    own: dict[str, Any] = {
        name: value
        for name, value in (
            ("limit", entry.limit),
            ("window", entry.window),
            ("scale_rate", entry.scale_rate),
        )
        if value is not None
    }
    options = _underscored(serving) | _underscored(entry.serving) | own
    return TraceEntry(name=entry.name or Path(entry.trace).stem, trace=entry.trace, options=options)


def _underscored(settings: Settings) -> Settings:
    return {name.replace("-", "_"): value for name, value in settings.items()}


def _contest(entry: _Policy, common: _Limits, folder: Path) -> Contest:
    rules = {
        name: value
        for source in (common, entry)
        for name in _Limits.model_fields
        if (value := getattr(source, name)) is not None
    }
    return Contest(
        name=entry.name,
        head=_placed(entry.head, folder),
        base=None if entry.base is None else _placed(entry.base, folder),
        rules=GateRules(**rules),
    )


def _placed(text: str, folder: Path) -> str:
    """The text of a policy, its file found from the folder of the gate's file."""
    wanted = PolicyText.read(text)
    return text if wanted.file is None else _with_file(wanted, folder / wanted.file)
