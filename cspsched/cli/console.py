"""Talk to stderr: steps and the live line of a search."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cspsched.exact.search import Progress
    from cspsched.problem.metrics import Objective

PLAIN_LINE_SECONDS = 5.0


def tell(message: str) -> None:
    """One line of talk."""
    click.echo(message, err=True)


class LiveLine:
    """Best, bound and gap of a running search: one line that rewrites itself, or plain lines in a pipe."""

    def __init__(self, objective: Objective, num_requests: int) -> None:
        self._objective = objective
        self._num_requests = num_requests
        self._terminal = sys.stderr.isatty()
        self._last_line = 0.0

    def __call__(self, progress: Progress) -> None:
        """Show a state of the search."""
        now = time.monotonic()
        if not self._terminal and now - self._last_line < PLAIN_LINE_SECONDS:
            return
        self._last_line = now
        gap = (progress.best_ns - progress.bound_ns) / progress.best_ns
        text = f"{progress.elapsed_s:6.1f} s  best {self._seconds(progress.best_ns)}"
        text += f"  bound {self._seconds(progress.bound_ns)}  gap {gap:.2%}"
        click.echo(f"\r{text}" if self._terminal else text, err=True, nl=not self._terminal)

    def close(self) -> None:
        """End the line on a terminal."""
        if self._terminal and self._last_line:
            click.echo(err=True)

    def _seconds(self, value_ns: int) -> str:
        return f"{self._objective.mean_s(value_ns, self._num_requests):.6f} s"
