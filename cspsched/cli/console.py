"""Talk to stderr: steps, the live line of a search, and a sign of life where nothing else is said."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Sequence
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Self

import click

if TYPE_CHECKING:
    from cspsched.exact.watch import Progress
    from cspsched.problem.instance import Rejection
    from cspsched.problem.objectives import AnyObjective

MOST_SILENCE_S = 1.5
"""After so long without a word what is being done is said again, with the time that it has taken."""
LOOK_S = 0.25
MOST_REJECTIONS_TOLD = 3
BAR = 20
ERASE = "\x1b[K"
"""Clears what a longer text left on the line."""


class Talk:
    """What a command says on stderr; on a terminal a state rewrites its line, in a pipe lines follow.

    Parameters
    ----------
    doing
        What is being done until something else is said to be.
    """

    def __init__(self, doing: str = "working") -> None:
        self._terminal = sys.stderr.isatty()
        self._lock = threading.Lock()
        self._doing, self._since, self._state = doing, time.monotonic(), ""
        self._heard = self._since
        self._is_open = False
        """Whether a line is on the terminal that may be rewritten."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._log, self._handler = logging.getLogger("cspsched"), _ToTalk(self)

    def tell(self, message: str) -> None:
        """One line that stays."""
        with self._lock:
            self._write(message, stays=True)

    def begin(self, what: str) -> None:
        """What is being done from here on; said where it takes long."""
        with self._lock:
            self._begin(what)

    def show(self, state: str, *, now: bool = False) -> None:
        """The state of what is being done: at once if it is the first or on a terminal, else in silence."""
        with self._lock:
            is_first, self._state = not self._state, state
            if now or is_first or self._terminal:
                self._write_state()

    def close_line(self) -> None:
        """Take away the line that may be rewritten: something else is going to be printed."""
        with self._lock:
            if self._is_open:
                click.echo(f"\r{ERASE}", err=True, nl=False)
            self._is_open, self._heard = False, time.monotonic()

    def _begin(self, what: str) -> None:
        self._doing, self._since, self._state = what, time.monotonic(), ""

    def _write_state(self) -> None:
        seconds = f"{time.monotonic() - self._since:.0f} s"
        text = f"{seconds:>6}  {self._state}" if self._state else f"{self._doing}: {seconds}"
        self._write(text, stays=not self._terminal)

    def _write(self, text: str, *, stays: bool) -> None:
        if self._terminal and not stays:
            # A line that wraps could not be rewritten.
            text = text[: get_terminal_size().columns - 1]
        start = f"\r{ERASE}" if self._is_open else ""
        click.echo(f"{start}{text}", err=True, nl=stays)
        self._is_open, self._heard = not stays, time.monotonic()

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_S):
            if time.monotonic() - self._heard > MOST_SILENCE_S:
                with self._lock:
                    self._write_state()

    def __enter__(self) -> Self:
        self._thread.start()
        self._log.setLevel(logging.INFO)
        self._log.addHandler(self._handler)
        return self

    def __exit__(self, *error: object) -> None:
        self._log.removeHandler(self._handler)
        self._ended.set()
        self._thread.join()
        self.close_line()


class _ToTalk(logging.Handler):
    """Tells what the package has to say, such as that it compiles."""

    def __init__(self, talk: Talk) -> None:
        super().__init__()
        self._talk = talk

    def emit(self, record: logging.LogRecord) -> None:
        """One line of talk."""
        self._talk.tell(record.getMessage())


def current_talk() -> Talk | None:
    """That of the command that runs in this thread."""
    context = click.get_current_context(silent=True)
    return None if context is None else context.find_object(Talk)


def tell(message: str) -> None:
    """One line of talk."""
    talk = current_talk()
    if talk is None:
        click.echo(message, err=True)
    else:
        talk.tell(message)


def step(message: str) -> None:
    """One line of talk: what is being done from here on."""
    begin(message)
    tell(message)


def show(text: str) -> None:
    """A result, on stdout."""
    talk = current_talk()
    if talk is not None:
        talk.close_line()
    click.echo(text)


def begin(what: str) -> None:
    """What is being done from here on; said if it takes long."""
    talk = current_talk()
    if talk is not None:
        talk.begin(what)


def tell_rejections(rejections: Sequence[Rejection]) -> None:
    """How many requests nobody can serve, and why, for the first few."""
    for rejection in rejections[:MOST_REJECTIONS_TOLD]:
        tell(f"rejected: {rejection.reason}")
    if len(rejections) > MOST_REJECTIONS_TOLD:
        tell(f"rejected: {counted(len(rejections), 'request')} in all, the others not shown")


def tell_warnings(warnings: Sequence[str]) -> None:
    """What the reader has to know about a run, a line each."""
    for warning in warnings:
        tell(f"warning: {warning}")


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun, in the plural where it is one."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


class LiveLine:
    """Best, bound and gap of a running search, with a bar on a terminal."""

    def __init__(self, objective: AnyObjective, num_requests: int) -> None:
        self._objective = objective
        self._num_requests = num_requests
        self._talk = current_talk() or Talk()
        self._terminal = sys.stderr.isatty()

    def __call__(self, progress: Progress) -> None:
        """Show a state of the search."""
        gap = (progress.best_ns - progress.bound_ns) / (progress.best_ns or 1)
        text = _bar(progress) if self._terminal else ""
        text += f"best {self._shown(progress.best_ns)}  bound {self._shown(progress.bound_ns)}  gap {gap:.2%}"
        if progress.note:
            text += f"  {progress.note}"
        elif progress.best_by and progress.bound_by:
            text += f"  best by {progress.best_by}, bound by {progress.bound_by}"
        self._talk.show(text, now=bool(progress.note))

    def tell(self, message: str) -> None:
        """One line of talk that does not run into the live line: what is being done from here on."""
        self._talk.begin(message)
        self._talk.tell(message)

    def turn_to(self, objective: AnyObjective) -> None:
        """Tell which of several objectives is minimised from here on."""
        self._objective = objective
        self.tell(f"minimising {objective.label}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Take the line away, also where the search was cut short."""
        self._talk.close_line()

    def _shown(self, value_ns: int) -> str:
        return self._objective.show(value_ns, self._num_requests)


class Tally:
    """A number of things that are done one by one."""

    def __init__(self, what: str) -> None:
        self._what, self._started = what, time.monotonic()
        self._talk = current_talk() or Talk()

    def update(self, done: int, total: int, text: str) -> None:
        """Show that so many are done, and what the last one was."""
        left_s = (time.monotonic() - self._started) * (total - done) / max(done, 1)
        bar = f"[{'#' * round(BAR * done / max(total, 1)):{BAR}}] {left_s:.0f} s left  "
        self._talk.show(f"{self._what}: {bar if sys.stderr.isatty() else ''}{done}/{total}, {text}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._talk.close_line()


def _bar(progress: Progress) -> str:
    """How much of the limit is used up, and the seconds that are left at that rate."""
    if not progress.share:
        return ""
    share = min(progress.share, 1.0)
    left_s = progress.elapsed_s * (1 - share) / share
    return f"[{'#' * round(BAR * share):{BAR}}] {left_s:.0f} s left  "
