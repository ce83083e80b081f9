"""How the kernel is compiled, when it is: its functions are plain Python until a run asks for machine code.

The marks `inner`, `merged` and `outer` say how a function is compiled; `compiled` makes of a marked one, and
of all that it calls, what numba compiles. Both ways of running share one text, in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dis import get_instructions
from functools import cache
from pathlib import Path
from types import CellType, FunctionType
from typing import Any, TypeVar, cast
from zlib import crc32

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

    Numba renews what it keeps when the file of this one function changes. So the name under which it is kept
    says which state of all sources it was compiled from: of ours, and of a user's functions that it calls.
    """
    _options[function] = {"cache": True}
    return function


@cache
def compiled(function: Function, **constants: bool) -> Function:
    """A marked function as machine code, made at its first call.

    Parameters
    ----------
    constants
        Values of global names, in the function and in all that it calls: what they rule out is not compiled.
    """
    import numba as nb

    return cast(Function, nb.njit(**COMMON, **_options[function])(_linked(function, constants)))


def _linked(function: Callable[..., Any], constants: Mapping[str, bool]) -> FunctionType:
    """A copy of a function in which the names of marked functions stand for compiled ones."""
    plain = cast(FunctionType, function)
    values = {**plain.__globals__, **constants}
    names = {step.argval for step in get_instructions(plain) if step.opname == "LOAD_GLOBAL"}
    linked = {name: _link(values[name], constants) for name in names if name in values}
    cells = tuple(CellType(_link(cell.cell_contents, constants)) for cell in plain.__closure__ or ())
    copy = FunctionType(plain.__code__, {**values, **linked}, plain.__name__, plain.__defaults__, cells)
    copy.__qualname__, copy.__module__ = plain.__qualname__, plain.__module__
    if "cache" in _options[function]:
        copy.__qualname__ = name_on_disk(plain)
    return copy


def name_on_disk(function: Callable[..., Any]) -> str:
    """Name under which the machine code of an outer function is kept."""
    foreign = crc32("".join(sorted(_foreign(function, set()))).encode())
    return f"{function.__qualname__}_{_version()}_{foreign:08x}"


def _foreign(function: Callable[..., Any], seen: set[Callable[..., Any]]) -> Iterator[str]:
    """What compiled code takes from the users' functions among those that a function calls."""
    plain = cast(FunctionType, function)
    if plain in seen:
        return
    seen.add(plain)
    is_ours = plain.__module__.startswith("cspsched.")
    for value in _values_of(plain):
        if isinstance(value, FunctionType) and value in _options:
            yield from _foreign(value, seen)
        elif not is_ours and isinstance(value, int | float | str | tuple):
            yield repr(value)
    if not is_ours:
        code = plain.__code__
        yield repr((plain.__qualname__, code.co_code, code.co_consts, code.co_names, code.co_varnames))


def _values_of(function: FunctionType) -> Iterator[Any]:
    """Values of the global names and of the cells that a function uses."""
    for step in get_instructions(function):
        if step.opname == "LOAD_GLOBAL" and step.argval in function.__globals__:
            yield function.__globals__[step.argval]
    for cell in function.__closure__ or ():
        yield cell.cell_contents


@cache
def _version() -> str:
    """State of the sources that compiled functions may come from."""
    package = Path(__file__).parents[2]
    return source_version(package / "simulate", package / "policies")


def _link(value: Any, constants: Mapping[str, bool]) -> Any:
    if isinstance(value, FunctionType) and value in _options:
        return compiled(value, **constants)
    return value
