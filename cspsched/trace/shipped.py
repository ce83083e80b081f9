"""The traces that come with cspsched."""

from __future__ import annotations

from pathlib import Path

from cspsched.errors import UsageError
from cspsched.resources import shipped_file, shipped_names

_FOLDER, _SUFFIX = "traces", ".csv"


def shipped_traces() -> list[str]:
    """Sorted names of the shipped traces."""
    return shipped_names(_FOLDER, _SUFFIX)


def shipped_trace_path(name: str) -> Path:
    """File of a shipped trace.

    Raises
    ------
    UsageError
        If there is none of that name.
    """
    path = shipped_file(_FOLDER, name, _SUFFIX)
    if path is None:
        raise UsageError(f"no shipped trace is called {name!r}; there are {', '.join(shipped_traces())}")
    return path
