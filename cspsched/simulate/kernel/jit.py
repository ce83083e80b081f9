"""How the kernel is compiled. Under NUMBA_DISABLE_JIT=1 the same source runs as plain Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba as nb

from cspsched.problem.sources import source_version

Function = TypeVar("Function", bound=Callable[..., Any])

COMMON: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False}
"""Nothing in the kernel allocates memory, so arrays are passed without counting references to them: the
counts are atomic, and cost several times what the kernel does in an iteration."""

INNER: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def inner(function: Function) -> Function:
    """Compile a function that only compiled functions call.

    It needs no entry from Python, which would take as long to compile as the function itself.
    """
    return cast(Function, nb.njit(**COMMON, **INNER)(function))


def merged(function: Function) -> Function:
    """Compile a large function as a part of the only one that calls it.

    Whatever a function calls is optimised again with it, so that each level of calls costs as much as all
    those below.
    """
    return cast(Function, nb.njit(**COMMON, **INNER, inline="always")(function))


def outer(function: Function) -> Function:
    """Compile a function that Python calls, and keep the machine code on disk.

    Numba renews what it keeps when the file of this one function changes. The name under which it is kept
    says which state of all the sources it was compiled from.
    """
    function.__qualname__ += f"_{source_version(Path(__file__).parent)}"
    return cast(Function, nb.njit(**COMMON, cache=True)(function))
