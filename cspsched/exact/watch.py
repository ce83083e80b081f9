"""Limits, clock and live line of a solve. Loads no solver."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from cspsched.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class SearchLimits:
    """How long a solve may take, model building included, and with what CP-SAT searches."""

    time_limit_s: float = 60.0
    num_workers: int = 2
    seed: int = 0
    deterministic: bool = False
    """Count the solver's work instead of seconds, with one worker: the same bytes every time."""

    def __post_init__(self) -> None:
        if self.deterministic and self.num_workers != 1:
            raise UsageError(f"deterministic with {self.num_workers} workers, expected 1: threads race")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One live line. Values in nanoseconds."""

    elapsed_s: float
    best_ns: int
    bound_ns: int
    best_by: str = ""
    """What found the best schedule."""
    bound_by: str = ""
    """What proved the bound."""
    note: str = ""
    """What holds the search up."""
    share: float | None = None
    """How much of the limit is used up."""


def _unheard(message: str) -> None:
    """Nothing: no one listens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Who hears what a study does.

    Attributes
    ----------
    step
        Told in words what is being done.
    progress
        Told how far a search is.
    """

    step: Callable[[str], None] = _unheard
    progress: Callable[[Progress], None] | None = None


SILENT = Listener()


class Watch:
    """The clock of a solve, and the best value and bound known so far, told to all that listen."""

    def __init__(
        self,
        limits: SearchLimits,
        best_ns: int,
        bound_ns: int,
        listener: Callable[[Progress], None] | None,
        *,
        best_by: str = "",
        bound_by: str = "",
    ) -> None:
        self._started = time.monotonic()
        self._limit_s = limits.time_limit_s
        self._is_deterministic = limits.deterministic
        self._worked_s = 0.0
        self._paused_s = 0.0
        self._paused_at: float | None = None
        self._best_ns, self._best_by = best_ns, best_by
        self._bound_ns, self._bound_by = bound_ns, bound_by
        self._listener = listener
        self._lock = threading.Lock()
        self._stopped = False

    @property
    def remaining_s(self) -> float:
        """Seconds left of the time limit; of a deterministic solve, what its members' work leaves of it."""
        now = self._paused_at or time.monotonic()
        spent = self._worked_s if self._is_deterministic else now - self._started - self._paused_s
        return max(0.0, self._limit_s - spent)

    def pause(self, note: str) -> None:
        """Stop the clock for something that is no search, and say what the first time."""
        self._paused_at = time.monotonic()
        if not self._paused_s:
            self.tell(note=note)

    def resume(self) -> None:
        """Let the clock go on."""
        assert self._paused_at is not None
        self._paused_s += time.monotonic() - self._paused_at
        self._paused_at = None

    def spend(self, work_s: float) -> None:
        """Take note of work, in seconds of a typical machine: the clock of a deterministic solve."""
        self._worked_s += work_s

    @property
    def best_ns(self) -> int:
        """Value of the best schedule found so far."""
        return self._best_ns

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to do: the gap is closed, or the user asked to stop."""
        return self._stopped or self._bound_ns >= self._best_ns

    def stop(self) -> None:
        """Ask every member to stop."""
        self._stopped = True

    def tell(
        self,
        *,
        best_ns: int | None = None,
        bound_ns: int | None = None,
        best_by: str = "",
        bound_by: str = "",
        note: str = "",
    ) -> None:
        """Take note of a value or a bound and of what it comes from, and pass the state on."""
        with self._lock:
            if best_ns is not None and best_ns < self._best_ns:
                self._best_ns, self._best_by = best_ns, best_by
            if bound_ns is not None and bound_ns > self._bound_ns:
                self._bound_ns, self._bound_by = bound_ns, bound_by
            if self._listener is not None:
                self._listener(self._progress(note))

    def _progress(self, note: str) -> Progress:
        return Progress(
            elapsed_s=time.monotonic() - self._started,
            best_ns=self._best_ns,
            bound_ns=self._bound_ns,
            best_by=self._best_by,
            bound_by=self._bound_by,
            note=note,
            share=1 - self.remaining_s / self._limit_s if self._limit_s else None,
        )
