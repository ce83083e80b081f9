"""A policy from a user's own file: `my_file.py:MyPolicy`."""

from __future__ import annotations

import sys
from importlib import invalidate_caches
from importlib.machinery import SourceFileLoader
from itertools import count
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from cspsched.errors import UsageError
from cspsched.policies.settings import nearest
from cspsched.simulate.watch import described


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
        raise UsageError(
            f"policy file {path} has no {attribute!r}{nearest(attribute, own)}; "
            f"it has: {', '.join(own) or 'nothing'}"
        )
    return getattr(module, attribute)


class _AsItIs(SourceFileLoader):
    """Reads the source each time: a cached translation would be that of another text of the same second."""

    def get_code(self, fullname: str) -> CodeType:
        """The translated file."""
        return self.source_to_code(self.get_data(self.path), self.path)


def _run(path: Path) -> ModuleType:
    """Module of a file, in a package of its own, whose other modules are the files beside it.

    So `from . import helper` works, and no two policies share a module, their own or a helper. Both are
    registered, for a dataclass looks its module up by name.
    """
    if not path.is_file():
        files = [file.name for file in sorted(path.parent.glob("*.py")) if file.is_file()]
        what = "is a directory" if path.is_dir() else "does not exist"
        raise UsageError(f"policy file {path} {what}{nearest(path.name, files)}")
    names = map("_cspsched_policy_{}".format, count())
    package = ModuleType(next(name for name in names if name not in sys.modules))
    package.__path__ = [str(path.parent)]
    loader = _AsItIs(f"{package.__name__}.{path.stem}", str(path))
    module = ModuleType(loader.name)
    module.__file__, module.__package__ = str(path), package.__name__
    sys.modules |= {package.__name__: package, module.__name__: module}
    # A helper that was written just now is not in the finder's listing of the folder.
    invalidate_caches()
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        for name in [name for name in sys.modules if name.partition(".")[0] == package.__name__]:
            del sys.modules[name]
        raise UsageError(
            f"policy file {path} cannot be imported: {described(error, str(path))}{_advice(error, path)}"
        ) from error
    return module


def _advice(error: BaseException, path: Path) -> str:
    """What to write instead where a file beside the policy was imported as if it were installed."""
    name = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
    lies_beside = name and ((path.parent / f"{name}.py").is_file() or (path.parent / name).is_dir())
    return f"; it lies beside the policy: 'from . import {name}'" if lies_beside else ""
