"""Finds and reads the TOML files of facts that ship with cspsched: models, devices, cost models."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import MISSING, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from cspsched.errors import InputError, UsageError
from cspsched.problem.json_io import read_text, require_int, require_keys
from cspsched.resources import shipped_file, shipped_names

TOML = ".toml"


def fact_names(folder: str) -> list[str]:
    """Sorted names of the shipped facts of a folder such as `models/llms`."""
    return shipped_names(folder, TOML)


def fact_path(kind: str, folder: str, name: str) -> Path:
    """Path of a shipped fact.

    Parameters
    ----------
    kind
        What the fact is, for the message (`model`, `device`, `cost model`).

    Raises
    ------
    UsageError
        If nothing of that name ships; names the nearest and lists all.
    """
    path = shipped_file(folder, name, TOML)
    if path is None:
        raise UsageError(unknown_name(kind, name, fact_names(folder)))
    return path


def unknown_name(kind: str, name: str, names: Sequence[str]) -> str:
    """Sentence for an unknown name: the nearest known name, and all of them."""
    nearest = get_close_matches(name.lower(), names, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return f"unknown {kind} {name!r}.{hint} Known: {', '.join(names)}"


def read_toml(path: Path) -> dict[str, Any]:
    """Parsed TOML of a file.

    Raises
    ------
    InputError
        If the file cannot be read or is no TOML.
    """
    try:
        return tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: no valid TOML ({error})") from None


def checked_fields(data: Any, cls: type, where: str) -> dict[str, Any]:
    """Table with exactly the fields of a dataclass, each of the type that its annotation names."""
    optional = [field.name for field in fields(cls) if field.default is not MISSING]
    required = [field.name for field in fields(cls) if field.name not in optional]
    require_keys(data, where, required=required, optional=optional)
    for field in fields(cls):
        if field.name in data:
            _require_type(data, field.name, str(field.type), where)
    return dict(data)


def _require_type(data: dict[str, Any], key: str, annotation: str, where: str) -> None:
    value = data[key]
    if annotation.startswith("int"):
        require_int(data, key, where)
    elif annotation == "bool" and not isinstance(value, bool):
        raise InputError(f"{where}: {key} is {value!r}, expected true or false")
    elif annotation.startswith("str") and not isinstance(value, str):
        raise InputError(f"{where}: {key} is {value!r}, expected text")
    elif annotation.startswith("float") and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise InputError(f"{where}: {key} is {value!r}, expected a number")


def require_positive(record: Any, where: str, at_least_0: Sequence[str] = ()) -> None:
    """Refuse a record with a number that is not above 0, or below 0 in the fields that may be 0."""
    for field in fields(record):
        value = getattr(record, field.name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and not (value > 0 or (value == 0 and field.name in at_least_0)):
            raise InputError(f"{where}: {field.name} is {value}, expected more than 0")
