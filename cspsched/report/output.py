"""Writes files where the user wants them, and finds out early whether that works."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile

from cspsched.errors import InputError


def require_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written or made, before a long run whose result it is to take.

    Raises
    ------
    InputError
        If files cannot be written there.
    """
    try:
        nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        with TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}; choose another place") from None


def write_files(folder: Path, files: Mapping[str, str | bytes]) -> list[Path]:
    """Write files into a folder, made if it is missing; returns their paths.

    Raises
    ------
    InputError
        If one of them cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise InputError(f"{error.filename or folder} cannot be written: {error.strerror}") from None
    return [folder / name for name in files]
