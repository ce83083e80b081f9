"""How searches and kernels are compiled. Under NUMBA_DISABLE_JIT=1 the same source runs as plain Python.

Compiling is most of what a first run does, so it is kept short. Whatever a function calls is optimised again
with it: each level of calls costs as much as all those below. Entries from Python, references that are
counted, and copies of a function for constant arguments each cost as much as the function itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba as nb
from numba.core import event

from cspsched.problem.sources import source_version

Function = TypeVar("Function", bound=Callable[..., Any])

PACKAGE = Path(__file__).parents[1]

LEAN: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False}
"""For functions that allocate no memory: references to arrays need not be counted."""

INNER: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}


class _Compiling(event.Listener):
    """Tells when numba begins to compile and when it is through; it compiles in one thread at a time."""

    def __init__(self, begin: Callable[[], None], end: Callable[[], None]) -> None:
        self._begin, self._end, self._depth = begin, end, 0

    def on_start(self, event: object) -> None:
        self._depth += 1
        if self._depth == 1:
            self._begin()

    def on_end(self, event: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._end()
        self._depth = max(0, self._depth)  # it may have begun before anybody listened


@contextmanager
def told_of_compiling(begin: Callable[[], None], end: Callable[[], None]) -> Iterator[None]:
    """Call `begin` and `end` around whatever is compiled meanwhile; what is on disk is only loaded."""
    with event.install_listener("numba:compile", _Compiling(begin, end)):
        yield


def compiled(function: Function) -> Function:
    """Compile a function, keep the machine code on disk, and let other threads run beside it."""
    return _kept(function, nogil=True)


def outer(function: Function) -> Function:
    """Compile a function that Python calls and that allocates nothing, and keep the machine code on disk."""
    return _kept(function, **LEAN)


def inner(function: Function) -> Function:
    """Compile a function that allocates nothing and that only compiled functions call."""
    return _jit(function, **LEAN, **INNER)


def outer_roughly(function: Function) -> Function:
    """Do the same as `outer`, with sums of floats in any order."""
    return _kept(function, **LEAN, fastmath=True)


def merged(function: Function) -> Function:
    """Compile a large function as a part of the only one that calls it: that is one level of calls less."""
    return _jit(function, **LEAN, **INNER, inline="always")


def _kept(function: Function, **options: Any) -> Function:
    function.__qualname__ += f"_{version_of(function.__module__)}"
    return _jit(function, **options, cache=True)


def version_of(module: str) -> str:
    """Which state of the sources a function of `module` is compiled from.

    These are all of the part of the package that the module is in, such as `cspsched.exact`, and this folder:
    compiled functions call no others.
    """
    return _version_of_part(module.split(".")[1])


@cache
def _version_of_part(part: str) -> str:
    return source_version(Path(__file__).parent, PACKAGE / part)


def _jit(function: Function, **options: Any) -> Function:
    """Compile when first called, once for all integers.

    Left to itself, numba compiles a function anew for a constant argument, and for each variable that begins
    as one, as long as it has not seen what else is assigned to it; those copies are then never called.
    """
    dispatcher: Any = nb.njit(**options)(function)
    template_of = getattr(dispatcher, "get_call_template", None)
    unliteral: Callable[[Any], Any] = nb.types.unliteral

    def widened(args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
        assert template_of is not None
        wide = tuple(unliteral(kind) for kind in args)
        return template_of(wide, {name: unliteral(kind) for name, kind in kws.items()})

    if template_of is not None:  # a plain function has none
        dispatcher.get_call_template = widened
    return cast(Function, dispatcher)
