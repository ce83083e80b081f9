"""Finds the facts and traces that ship with cspsched, in a wheel, an editable install or a checkout."""

from __future__ import annotations

from pathlib import Path

from cspsched.errors import UsageError


def data_root() -> Path:
    """Folder that holds `models/` and `traces/`.

    Raises
    ------
    UsageError
        If the installation carries no data.
    """
    package = Path(__file__).resolve().parent
    for root in (package / "_data", package.parent):
        if (root / "models").is_dir():
            return root
    raise UsageError(f"no models folder beside {package}: the installation is broken, install cspsched again")


def shipped_names(folder: str, suffix: str) -> list[str]:
    """Sorted stems of the shipped files of a folder, such as `models/llms` and `.toml`."""
    return sorted(path.stem for path in (data_root() / folder).glob(f"*{suffix}"))


def shipped_file(folder: str, name: str, suffix: str) -> Path | None:
    """Path of a shipped file, or None if there is none of that name."""
    path = data_root() / folder / f"{name}{suffix}"
    return path if path.is_file() and path.stem in shipped_names(folder, suffix) else None
