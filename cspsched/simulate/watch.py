"""The border to policies that are not ours: what their code raises is told in a sentence, with its place."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from traceback import walk_tb
from types import FrameType, TracebackType
from typing import Any, NamedTuple

from cspsched.errors import CspschedError, PolicyCrashError, PolicyError
from cspsched.problem.request import Request
from cspsched.simulate.protocol import Policy

PACKAGE = Path(__file__).parents[1]
LIBRARIES = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))
"""Folders of the standard library and of installed packages."""


class Place(NamedTuple):
    """Where code that is not ours failed."""

    method: str
    """What we called: the decision that was asked for."""
    line: str
    """File and line, the innermost that are neither ours nor a library's."""
    request: object
    """What our call names `request`: a position, or the request itself; None if there is none."""


class Watch:
    """A context in which the code of a policy is called.

    An exception of a policy that is not ours, and what the engine refuses of it, become a `PolicyCrashError`,
    with that exception as its cause. What a policy of ours raises is our bug, and left alone.

    Parameters
    ----------
    when
        Number of batches so far, and the clock in nanoseconds; None before a run.
    """

    __slots__ = ("_label", "_policy_file", "_requests", "_when", "is_foreign")

    def __init__(
        self,
        policy: Policy,
        requests: Sequence[Request],
        when: Callable[[], tuple[int, int]] | None = None,
    ) -> None:
        self.is_foreign = not is_ours(type(policy))
        self._policy_file = getattr(sys.modules.get(type(policy).__module__), "__file__", None)
        self._label = policy.label
        self._requests = requests
        self._when = when

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell what was raised as an error of the policy."""
        if error is None or not self.is_foreign:
            return
        place = find_place(error, self._policy_file)
        when = [] if self._when is None else ["batch {} at {} ns".format(*self._when())]
        if isinstance(error, PolicyError):
            told = ", ".join([str(error), *([f"in {place.method}"] if place else []), *when])
            raise PolicyCrashError(told + _behind(place)) from error
        if isinstance(error, Exception | SystemExit) and not isinstance(error, CspschedError):
            what = f"policy {self._label}: {place.method} fails" if place else f"policy {self._label} fails"
            told = ", ".join([what, *self._request(place), *when])
            raise PolicyCrashError(f"{told}: {described(error, self._policy_file)}") from error

    def _request(self, place: Place | None) -> list[str]:
        request = place and place.request
        if isinstance(request, int) and 0 <= request < len(self._requests):
            request = self._requests[request]
        return [f"request {request.request_id!r}"] if isinstance(request, Request) else []


def is_ours(factory: Any) -> bool:
    """Whether a class or function is part of cspsched."""
    module: str = getattr(factory, "__module__", "")
    return module.partition(".")[0] == __name__.partition(".")[0]


def described(error: BaseException, file: str | None = None) -> str:
    """Type, message and place of an exception, in one line; `file` as of `find_place`."""
    told = ": ".join(filter(None, (type(error).__name__, " ".join(str(error).split()))))
    return told + _behind(find_place(error, file))


def find_place(error: BaseException, file: str | None = None) -> Place | None:
    """Where code that is not ours raised an exception; None if only ours and libraries were running.

    Parameters
    ----------
    file
        A file of theirs, which may lie among the installed packages.
    """
    caller: FrameType | None = None
    called: FrameType | None = None
    place = None
    for frame, line in walk_tb(error.__traceback__):
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            caller, called = frame, None
        elif _is_theirs(path, file):
            called = called or frame
            place = Place(
                method=called.f_code.co_name,
                line=f"{path}:{line}",
                request=caller and caller.f_locals.get("request"),
            )
    return place


def _is_theirs(path: Path, file: str | None) -> bool:
    """Whether a file that is not ours is no library, or lies beside a file of theirs."""
    if path.name.startswith("<frozen"):
        return False
    lies_beside = file is not None and path.parent == Path(file).parent
    return lies_beside or not any(path.is_relative_to(folder) for folder in LIBRARIES)


def _behind(place: Place | None) -> str:
    return f" ({place.line})" if place else ""
