"""How what is compiled here and in the referee is compiled. Loads numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba as nb

Function = TypeVar("Function", bound=Callable[..., Any])
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False, "cache": True}
"""Nothing allocates memory, so references to arrays are not counted."""


def compiled(function: Function) -> Function:
    """Compile a function that calls no other of ours, and keep the machine code on disk."""
    return cast(Function, nb.njit(**OPTIONS)(function))
