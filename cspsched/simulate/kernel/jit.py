"""How the kernel is compiled, when it is: its functions are plain Python until a run asks for machine code.

The marks `inner`, `merged` and `outer` say how a function is compiled; `compiled` makes of a marked one, and
of all that it calls, what numba compiles. Both ways of running share one text, in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dis import get_instructions
from functools import cache
from pathlib import Path
from types import CellType, FunctionType
from typing import Any, TypeVar, cast

from cspsched.problem.sources import source_version

Function = TypeVar("Function", bound=Callable[..., Any])

COMMON: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False}
"""Nothing in the kernel allocates memory, so arrays are passed without counting references to them: the
counts are atomic, and cost several times what the kernel does in an iteration."""

INNER: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}

_options: dict[Callable[..., Any], Mapping[str, Any]] = {}
"""Options of every marked function."""


def inner(function: Function) -> Function:
    """Mark a function that only compiled functions call.

    It needs no entry from Python, which would take as long to compile as the function itself.
    """
    _options[function] = INNER
    return function


def merged(function: Function) -> Function:
    """Mark a large function that is compiled as a part of the only one that calls it.

    Whatever a function calls is optimised again with it, so that each level of calls costs as much as all
    those below.
    """
    _options[function] = {**INNER, "inline": "always"}
    return function


def outer(function: Function) -> Function:
    """Mark a function that Python calls, and whose machine code is kept on disk.

    Numba renews what it keeps when the file of this one function changes. The name under which it is kept
    says which state of all our sources it was compiled from.
    """
    _options[function] = {"cache": True}
    return function


@cache
def compiled(function: Function) -> Function:
    """A marked function as machine code, made at its first call."""
    import numba as nb

    return cast(Function, nb.njit(**COMMON, **_options[function])(_linked(function)))


def _linked(function: Callable[..., Any]) -> FunctionType:
    """A copy of a function in which the names of marked functions stand for compiled ones."""
    plain = cast(FunctionType, function)
    values = plain.__globals__
    names = {step.argval for step in get_instructions(plain) if step.opname == "LOAD_GLOBAL"}
    linked = {name: _link(values[name]) for name in names if name in values}
    cells = tuple(CellType(_link(cell.cell_contents)) for cell in plain.__closure__ or ())
    copy = FunctionType(plain.__code__, {**values, **linked}, plain.__name__, plain.__defaults__, cells)
    copy.__qualname__, copy.__module__ = plain.__qualname__, plain.__module__
    if "cache" in _options[function]:
        copy.__qualname__ += f"_{_version()}"
    return copy


@cache
def _version() -> str:
    """State of the sources that compiled functions may come from."""
    package = Path(__file__).parents[2]
    return source_version(package / "simulate", package / "policies")


def _link(value: Any) -> Any:
    return compiled(value) if isinstance(value, FunctionType) and value in _options else value
