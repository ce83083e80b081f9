"""How the searches are compiled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba as nb

from cspsched.problem.sources import source_version

Function = TypeVar("Function", bound=Callable[..., Any])

VERSION = source_version(Path(__file__).parent)


def compiled(function: Function) -> Function:
    """Compile a function, keep the machine code on disk, and let other threads run beside it."""
    function.__qualname__ += f"_{VERSION}"
    return cast(Function, nb.njit(cache=True, nogil=True)(function))
