"""How functions are compiled, when they are: they are plain Python until a run asks for machine code.

The marks say how a function is compiled; `compiled` makes of a marked one, and of all that it calls, what
numba compiles. Both ways of running share one text, in one process.

Compiling is most of what a first run does, so it is kept short. Whatever a function calls is optimised again
with it: each level of calls costs as much as all those below. Entries from Python, references that are
counted, and copies of a function for constant arguments each cost as much as the function itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dis import get_instructions
from functools import cache
from pathlib import Path
from types import CellType, CodeType, FunctionType
from typing import Any, TypeVar, cast
from zlib import crc32

import numpy as np

from cspsched.problem.sources import source_version

Function = TypeVar("Function", bound=Callable[..., Any])

PACKAGE = Path(__file__).parents[1]
MARK = "compiled_with"
"""Attribute of a marked function: the options of numba."""
NUMBERS = (int, float, str, tuple, np.generic)

LEAN: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False}
"""For functions that allocate no memory, so that arrays are passed without counting references to them: the
counts are atomic, and cost several times what the simulator does in an iteration."""

INNER: dict[str, Any] = {**LEAN, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def inner(function: Function) -> Function:
    """Mark a function that only compiled functions call, and that allocates nothing.

    It needs no entry from Python, which would take as long to compile as the function itself.
    """
    return _marked(function, INNER)


def merged(function: Function) -> Function:
    """Mark a large `inner` function that is compiled as a part of the only one that calls it."""
    return _marked(function, {**INNER, "inline": "always"})


def outer(function: Function) -> Function:
    """Mark a function that Python calls, that allocates nothing, and whose machine code is kept on disk."""
    return _marked(function, {**LEAN, "cache": True})


def outer_roughly(function: Function) -> Function:
    """Do the same as `outer`, with sums of floats in any order."""
    return _marked(function, {**LEAN, "cache": True, "fastmath": True})


def allocating(function: Function) -> Function:
    """Do the same as `outer` for a function that makes arrays, or calls one that does."""
    return _marked(function, {"nogil": True, "cache": True})


def _marked(function: Function, options: Mapping[str, Any]) -> Function:
    setattr(function, MARK, options)
    return function


def compiled(function: Function, **constants: bool) -> Function:
    """A marked function as machine code, made at its first call.

    Parameters
    ----------
    constants
        Values of global names, in the function and in all that it calls: what they rule out is not compiled.
    """
    return cast(Function, _compiled(function, **constants))


@cache
def _compiled(function: FunctionType, **constants: bool) -> Any:
    """Compile when first called, once for all integers.

    Left to itself, numba compiles a function anew for a constant argument, and for each variable that begins
    as one, as long as it has not seen what else is assigned to it; those copies are then never called.
    """
    import numba as nb

    dispatcher: Any = nb.njit(**getattr(function, MARK))(_linked(function, constants))
    template_of = getattr(dispatcher, "get_call_template", None)
    unliteral: Callable[[Any], Any] = nb.types.unliteral

    def widened(args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
        assert template_of is not None
        wide = tuple(unliteral(kind) for kind in args)
        return template_of(wide, {name: unliteral(kind) for name, kind in kws.items()})

    if template_of is not None:  # a plain function has none
        dispatcher.get_call_template = widened
    return dispatcher


def _linked(function: FunctionType, constants: Mapping[str, bool]) -> FunctionType:
    """A copy of a function in which the names of marked functions stand for compiled ones."""
    values = {**function.__globals__, **constants}
    names = _names(function.__code__) & values.keys()
    linked = {name: _link(values[name], constants) for name in names}
    cells = tuple(CellType(_link(cell.cell_contents, constants)) for cell in function.__closure__ or ())
    code, defaults = function.__code__, function.__defaults__
    copy = FunctionType(code, {**values, **linked}, function.__name__, defaults, cells)
    copy.__qualname__, copy.__module__ = function.__qualname__, function.__module__
    if "cache" in getattr(function, MARK):
        copy.__qualname__ = name_on_disk(function, **constants)
    return copy


def _link(value: Any, constants: Mapping[str, bool]) -> Any:
    return _compiled(value, **constants) if _is_marked(value) else value


def _is_marked(value: Any) -> bool:
    return isinstance(value, FunctionType) and hasattr(value, MARK)


@cache
def _names(code: CodeType) -> frozenset[str]:
    """Global names that a code uses."""
    nested = [_names(one) for one in code.co_consts if isinstance(one, CodeType)]
    own = {str(step.argval) for step in get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    return frozenset(own.union(*nested))


def name_on_disk(function: Callable[..., Any], **constants: bool) -> str:
    """Name under which the machine code of a function is kept.

    Numba renews what it keeps when the file of this one function changes. So the name says which state of all
    sources the code comes from: of this folder, of each part of the package (such as `cspsched.exact`) that
    has a function which is called, and of a user's functions. Numbers from elsewhere are in the name, too;
    named tuples must be of these parts.
    """
    told = [repr(sorted(constants.items()))]
    for one in _reached(function):
        told += [repr(value) for value in _values(one) if isinstance(value, NUMBERS)]
        told += () if _is_ours(one) else (one.__qualname__, _text(one.__code__))
    return f"{function.__qualname__}_{_version(*parts_of(function))}_{crc32(''.join(told).encode()):08x}"


def parts_of(function: Callable[..., Any]) -> list[str]:
    """Parts of the package whose sources the machine code of a function depends on."""
    ours = {one.__module__.split(".")[1] for one in _reached(function) if _is_ours(one)}
    return sorted({"compiled"} | ours)


def _is_ours(function: FunctionType) -> bool:
    return function.__module__.startswith("cspsched.")


def _reached(function: Callable[..., Any]) -> list[FunctionType]:
    """A function and all marked ones that it calls, directly or not."""
    found = {cast(FunctionType, function): None}
    queue = list(found)
    while queue:
        called = {one: None for one in _values(queue.pop()) if _is_marked(one) and one not in found}
        found |= called
        queue += called
    return list(found)


def _values(function: FunctionType) -> list[Any]:
    """Values of the global names and of the cells that a function uses."""
    names = sorted(_names(function.__code__) & function.__globals__.keys())
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return [function.__globals__[name] for name in names] + cells


def _text(code: CodeType) -> str:
    """What a code does, without the places where it stands."""
    constants = [_text(one) if isinstance(one, CodeType) else one for one in code.co_consts]
    return repr((code.co_code, constants, code.co_names, code.co_varnames))


@cache
def _version(*parts: str) -> str:
    """State of the sources of some parts of the package."""
    return source_version(*(PACKAGE / part for part in parts))


@contextmanager
def told_of_compiling(begin: Callable[[], None], end: Callable[[], None]) -> Iterator[None]:
    """Call `begin` and `end` around whatever is compiled meanwhile; what is on disk is only loaded."""
    from numba.core import event

    class Compiling(event.Listener):
        """It compiles in one thread at a time, and may have begun before anybody listened."""

        depth = 0

        def on_start(self, event: object) -> None:
            self.depth += 1
            if self.depth == 1:
                begin()

        def on_end(self, event: object) -> None:
            self.depth -= 1
            if self.depth == 0:
                end()
            self.depth = max(0, self.depth)

    with event.install_listener("numba:compile", Compiling()):
        yield
