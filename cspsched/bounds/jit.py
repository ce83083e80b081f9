"""How the kernels of the bounds are compiled. Loads numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba as nb

Function = TypeVar("Function", bound=Callable[..., Any])
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False, "cache": True}
"""Nothing allocates memory, so references to arrays are not counted: that would cost more than the rest."""


def compiled(function: Function) -> Function:
    """Compile a function, and keep the machine code on disk."""
    return cast(Function, nb.njit(**OPTIONS)(function))


def compiled_roughly(function: Function) -> Function:
    """The same with sums of floats in any order."""
    return cast(Function, nb.njit(fastmath=True, **OPTIONS)(function))
