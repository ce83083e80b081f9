"""Reading JSON that people may have edited: what is wrong is said in one sentence."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cspsched.errors import InputError

if TYPE_CHECKING:
    from pydantic import ValidationError


def read_bytes(path: Path) -> bytes:
    """Content of a file.

    Raises
    ------
    InputError
        If it is missing, a directory, or unreadable.
    """
    if path.is_dir():
        raise InputError(f"{path} is a directory, expected a file")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def decoded(data: bytes, name: str | Path) -> str:
    """Text of UTF-8 bytes without a byte-order mark; `name` is the file in messages.

    Raises
    ------
    InputError
        If the bytes are no UTF-8 text.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise InputError(f"{name} is no UTF-8 text but UTF-16; save it as UTF-8") from None
        raise InputError(f"{name} is no UTF-8 text (byte {error.start}); is it the right file?") from None


def read_text(path: Path) -> str:
    """Text of a file, its line ends as line feeds.

    Raises
    ------
    InputError
        If it is missing, a directory, unreadable, or no UTF-8 text.
    """
    return decoded(read_bytes(path), path).replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path) -> Any:
    """Parsed JSON of a file.

    Raises
    ------
    InputError
        If the file cannot be read or is no JSON.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} line {error.lineno}: no valid JSON ({error.msg})") from None
    except ValueError:
        raise InputError(f"{path}: no valid JSON (a number of thousands of digits)") from None
    except RecursionError:
        raise InputError(f"{path}: no valid JSON (nested too deeply)") from None


def require_schema(data: Any, schema: str, where: str) -> None:
    """Refuse data of another schema with a sentence."""
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected a JSON object with schema {schema!r}, got {type(data).__name__}")
    if data.get("schema") != schema:
        raise InputError(
            f"{where}: schema is {data.get('schema')!r}, this version of cspsched reads {schema!r}; "
            "write the file again with this version"
        )


def require_keys(
    data: Any, where: str, *, required: Iterable[str], optional: Iterable[str] | None = None
) -> None:
    """Refuse a mapping that lacks a key, or (if `optional` is given) has an unknown one."""
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected a table of keys and values, got {type(data).__name__}")
    missing = [key for key in required if key not in data]
    if missing:
        raise InputError(f"{where}: {', '.join(missing)} missing")
    if optional is not None:
        unknown = sorted(set(data) - {*required, *optional, "schema"})
        if unknown:
            raise InputError(f"{where}: unknown key {unknown[0]!r}")


def require_text(data: dict[str, Any], key: str, where: str) -> str:
    """Text under a key, refused with a sentence if it is anything else."""
    value = data.get(key)
    if not isinstance(value, str):
        raise InputError(f"{where}: {key} is {value!r}, expected text")
    return value


def require_int(data: dict[str, Any], key: str, where: str) -> int:
    """Whole number under a key, refused with a sentence if it is anything else."""
    value = data.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{where}: {key} is {value!r}, expected a whole number")
    return value


def validation_sentences(error: ValidationError) -> list[str]:
    """What pydantic found wrong, with the place in the file."""
    told = {"extra_forbidden": "unknown key", "missing": "missing"}
    found = []
    for one in error.errors():
        said = told.get(one["type"], one["msg"].removeprefix("Value error, "))
        place = ".".join(map(str, one["loc"])) or "the file"
        found.append(f"{place}: {said[:1].lower()}{said[1:]}")
    return found
