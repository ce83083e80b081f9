"""Public traces by name: where they are, what they hash to, under which licence; downloaded on demand."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cspsched.errors import InputError, UsageError
from cspsched.resources import shipped_file


@dataclass(frozen=True, kw_only=True)
class PublicTrace:
    """A file that others publish, at a fixed version."""

    title: str
    url: str
    sha256: str
    """Of the file, measured."""
    size_bytes: int
    licence: str
    cite: str

    @property
    def suffix(self) -> str:
        """Of the file, such as `.csv`."""
        return PurePosixPath(self.url).suffix


def public_traces() -> dict[str, PublicTrace]:
    """The traces of the shipped registry by name."""
    path = shipped_file("traces", "registry", ".toml")
    assert path is not None
    return {name: PublicTrace(**row) for name, row in tomllib.loads(path.read_text(encoding="utf-8")).items()}


def fetch_trace(
    name: str, path: Path | None = None, *, registry: Mapping[str, PublicTrace] | None = None
) -> Path:
    """Download a trace unless it is there; returns its path.

    Parameters
    ----------
    name
        In the registry.
    path
        File to write; default: the name in the current folder.
    registry
        Default: `public_traces()`.

    Raises
    ------
    UsageError
        If the name is unknown, another file is in the way, or pooch is not installed.
    InputError
        If the download fails, or what came is not the file of the registry; then nothing is left.
    """
    known = public_traces() if registry is None else registry
    if name not in known:
        raise UsageError(f"no public trace is called {name!r}; there are {', '.join(known)}")
    wanted = known[name]
    path = path or Path(f"{name}{wanted.suffix}")
    if path.exists():
        _require_same(path, name, wanted)
        return path
    try:
        import pooch
        import requests
    except ImportError:
        raise UsageError(
            "trace fetch needs pooch, which is not installed: pip install 'cspsched[fetch]'"
        ) from None
    pooch.get_logger().setLevel("WARNING")
    try:
        pooch.retrieve(
            wanted.url,
            f"sha256:{wanted.sha256}",
            fname=path.name,
            path=path.absolute().parent,
            progressbar=False,
        )
    except requests.RequestException as error:
        raise InputError(
            f"{wanted.url} cannot be fetched: {_first_line(error)} (is there a network?)"
        ) from None
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror}; choose another place (--output)"
        ) from None
    except ValueError:
        raise InputError(
            f"{wanted.url} is not the file of the registry: its SHA-256 is not {wanted.sha256}; nothing "
            "was kept (it was changed or damaged on the way)"
        ) from None
    return path


def _require_same(path: Path, name: str, wanted: PublicTrace) -> None:
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != wanted.sha256:
        raise UsageError(f"{path} exists and is not {name}; move it, or choose another place (--output)")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
