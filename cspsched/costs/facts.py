"""Finds and reads the TOML files of facts that ship with cspsched: models, devices, cost models."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from cspsched.errors import InputError, UsageError
from cspsched.problem.json_io import read_text
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
