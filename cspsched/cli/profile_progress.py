"""How far measuring has come: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from cspsched.cli.console import PLAIN_LINE_SECONDS, tell

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Count:
    """A number of things that are measured one by one."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: Progress | None = None
        self._row: TaskID | None = None
        self._exit = ExitStack()
        self._last_line = time.monotonic()

    def update(self, done: int, total: int, text: str) -> None:
        """Show that so many are done, and what the last one was."""
        if self._bar is not None and self._row is not None:
            self._bar.update(self._row, completed=done, total=total, description=f"{self._what}: {text}")
        elif time.monotonic() - self._last_line >= PLAIN_LINE_SECONDS:
            self._last_line = time.monotonic()
            tell(f"{self._what}: {done}/{total}, {text}")

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self._bar = self._exit.enter_context(Progress(console=Console(stderr=True), transient=True))
            self._row = self._bar.add_task(self._what, total=None)
        return self

    def __exit__(self, *error: object) -> None:
        self._exit.close()
