"""A trace: requests in the order of their arrival."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from cspsched.errors import TraceError
from cspsched.problem.request import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class UnusedColumn:
    """A column of the file that says something which is not simulated."""

    name: str
    amount: str = ""
    """How much of it there is, such as `2 images in 1 of 2 requests`; empty where unknown."""

    @property
    def text(self) -> str:
        """Name, and how much there is."""
        return f"{self.name} ({self.amount})" if self.amount else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """At least one request, sorted by arrival, and where they come from."""

    name: str
    """The file's name without its suffix, or the generator's profile."""
    format: str
    """Name of the format that it was read from, `columns`, or `generated`."""
    requests: Sequence[Request]
    """A tuple, or of a large file `cspsched.problem.columns.Requests`, which are equal to the tuple."""
    unused_columns: tuple[UnusedColumn, ...] = ()
    notes: tuple[str, ...] = ()
    """What the reader took for what, and what it left out; one sentence each."""

    @property
    def has_sessions(self) -> bool:
        """Whether some requests are turns of sessions."""
        columns = getattr(self.requests, "columns", None)
        if columns is not None:
            return columns.session_id is not None
        return any(request.session_id for request in self.requests)

    @property
    def unused_sentences(self) -> tuple[str, ...]:
        """One sentence that names all columns that are not used; none if all are."""
        shown = ", ".join(column.text for column in self.unused_columns)
        match len(self.unused_columns):
            case 0:
                return ()
            case 1:
                return (f"column {shown} is not simulated",)
            case _:
                return (f"columns {shown} are not simulated",)

    def __post_init__(self) -> None:
        if not self.requests:
            raise TraceError(f"trace {self.name!r} has no requests, expected at least one")
        columns = getattr(self.requests, "columns", None)
        if columns is not None and (columns.arrival_ns[1:] >= columns.arrival_ns[:-1]).all():
            return
        for before, after in pairwise(self.requests):
            if after.arrival_ns < before.arrival_ns:
                raise TraceError(
                    f"trace {self.name!r}: request {after.request_id!r} stands behind {before.request_id!r} "
                    "and arrives before it, expected requests sorted by arrival"
                )
