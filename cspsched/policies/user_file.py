"""A policy from a user's own file: `my_file.py:MyPolicy`."""

from __future__ import annotations

import re
import sys
from hashlib import sha256
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from cspsched.errors import UsageError

_IN_FILE = re.compile(r"(?P<path>.+?\.py)(?::(?P<attribute>[^:]*))?(?::(?P<settings>.*))?", re.DOTALL)
_WRONG_FILE = (ImportError, SyntaxError, NameError, AttributeError, TypeError, ValueError)
"""What goes wrong in a file that cannot be imported."""


def split_file_policy(text: str) -> tuple[Path, str, str] | None:
    """File, name in it, and settings of `path.py:Name[:settings]`; None if the text names no file."""
    match = _IN_FILE.fullmatch(text)
    return match and (Path(match["path"]), match["attribute"] or "", match["settings"] or "")


def load_from_file(path: Path, attribute: str) -> Any:
    """What a file calls so; the file is run as a module with a private name, anew at each call.

    Raises
    ------
    UsageError
        If there is no such file, it cannot be imported, or has no such name.
    """
    if not attribute:
        raise UsageError(f"policy {str(path)!r} names no class, expected such as {path}:MyPolicy")
    module = _run(path)
    if not hasattr(module, attribute):
        own = [
            name
            for name, value in vars(module).items()
            if getattr(value, "__module__", "") == module.__name__
        ]
        raise UsageError(f"policy file {path} has no {attribute!r}; it has: {', '.join(own) or 'nothing'}")
    return getattr(module, attribute)


def _run(path: Path) -> ModuleType:
    """Module of a file. It is registered, for a dataclass looks its module up by name."""
    if not path.is_file():
        raise UsageError(f"policy file {path} does not exist")
    name = f"_cspsched_policy_{sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    loader, module = SourceFileLoader(name, str(path)), ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except _WRONG_FILE as error:
        del sys.modules[name]
        raise UsageError(f"policy file {path} cannot be imported: {type(error).__name__}: {error}") from error
    return module
