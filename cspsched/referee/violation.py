"""What a broken rule looks like, and how rules that are broken often are reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cspsched.referee.history import History

SHOWN_PER_RULE = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One broken rule, with where and by how much."""

    rule: str
    message: str
    batch: int | None = None
    request_id: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "rule": self.rule,
            "batch": self.batch,
            "request_id": self.request_id,
            "message": self.message,
        }


def first(mask: npt.NDArray[np.bool_]) -> list[int]:
    """Positions of the first true values, at most as many as are shown."""
    return [int(k) for k in np.flatnonzero(mask)[:SHOWN_PER_RULE]]


def about(history: History, rule: str, message: str, *, request: int, batch: int | None = None) -> Violation:
    """A violation by one request."""
    name = history.instance.requests[request].request_id
    where = "" if batch is None else f" in batch {batch}"
    return Violation(rule=rule, batch=batch, request_id=name, message=f"request {name!r}{where} {message}")


def report(
    rule: str, history: History, broken: npt.NDArray[np.bool_], describe: Callable[[int], str]
) -> Iterator[Violation]:
    """One violation for each of the first broken entries, and one that counts the rest."""
    schedule = history.schedule
    for entry in first(broken):
        j = int(np.searchsorted(schedule.first_entry, entry, side="right")) - 1
        yield about(history, rule, describe(entry), request=int(schedule.request[entry]), batch=j)
    yield from count_rest(rule, broken, "entries break this rule")


def report_batches(
    rule: str, broken: npt.NDArray[np.bool_], describe: Callable[[int], str]
) -> Iterator[Violation]:
    """One violation for each of the first broken batches, and one that counts the rest."""
    for j in first(broken):
        yield Violation(rule=rule, batch=j, message=describe(j))
    yield from count_rest(rule, broken, "batches break this rule")


def count_rest(rule: str, broken: npt.NDArray[np.bool_], what: str) -> Iterator[Violation]:
    """How many more there are than were shown, if there are more."""
    more = int(broken.sum()) - SHOWN_PER_RULE
    if more > 0:
        yield Violation(rule=rule, message=f"{more} more {what}")
