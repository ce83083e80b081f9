"""Talk to stderr: steps and the live line of a search."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Self

import click

if TYPE_CHECKING:
    from cspsched.exact.search import Progress
    from cspsched.problem.instance import Rejection
    from cspsched.problem.objectives import AnyObjective

PLAIN_LINE_SECONDS = 5.0
ERASE = "\x1b[K"
"""Clears what a longer text left on the line."""


MOST_REJECTIONS_TOLD = 3


def tell(message: str) -> None:
    """One line of talk."""
    click.echo(message, err=True)


def working(what: str) -> AbstractContextManager[object]:
    """Show on a terminal what is being done while it is done; nothing in a pipe."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console
    from rich.text import Text

    return Console(stderr=True).status(Text(what))


def tell_rejections(rejections: Sequence[Rejection]) -> None:
    """How many requests nobody can serve, and why, for the first few."""
    for rejection in rejections[:MOST_REJECTIONS_TOLD]:
        tell(f"rejected: {rejection.reason}")
    if len(rejections) > MOST_REJECTIONS_TOLD:
        tell(f"rejected: {counted(len(rejections), 'request')} in all, the others not shown")


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun, in the plural where it is one."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


class LiveLine:
    """Best, bound and gap of a running search: one line that rewrites itself, or plain lines in a pipe."""

    def __init__(self, objective: AnyObjective, num_requests: int) -> None:
        self._objective = objective
        self._num_requests = num_requests
        self._terminal = sys.stderr.isatty()
        self._last_line = 0.0

    def __call__(self, progress: Progress) -> None:
        """Show a state of the search."""
        now = time.monotonic()
        if not (self._terminal or progress.note) and now - self._last_line < PLAIN_LINE_SECONDS:
            return
        self._last_line = now
        gap = (progress.best_ns - progress.bound_ns) / (progress.best_ns or 1)
        text = f"{progress.elapsed_s:6.1f} s  best {self._shown(progress.best_ns)}"
        text += f"  bound {self._shown(progress.bound_ns)}  gap {gap:.2%}"
        if progress.note:
            text += f"  {progress.note}"
        elif progress.best_by and progress.bound_by:
            text += f"  best by {progress.best_by}, bound by {progress.bound_by}"
        if self._terminal:
            # A line that wraps could not be rewritten.
            text = text[: get_terminal_size().columns - 1]
        click.echo(f"\r{text}{ERASE}" if self._terminal else text, err=True, nl=not self._terminal)

    def tell(self, message: str) -> None:
        """One line of talk that does not run into the live line; a new search begins after it."""
        self.__exit__(None)
        self._last_line = 0.0
        tell(message)

    def turn_to(self, objective: AnyObjective) -> None:
        """Tell which of several objectives is minimised from here on."""
        self._objective = objective
        self.tell(f"minimising {objective.label}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """End the line on a terminal, also where the search was cut short."""
        if self._terminal and self._last_line:
            click.echo(err=True)

    def _shown(self, value_ns: int) -> str:
        return self._objective.show(value_ns, self._num_requests)
