"""The decisions of a log as the columns of a schedule, for the requests that finished."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from cspsched.errors import InputError
from cspsched.problem.cost import IntArray
from cspsched.problem.schedule import Schedule
from cspsched.recording.log import Entry, Iteration


class Decisions:
    """Columns under construction: batches, evictions, swaps, prefix cache hits, and the logged times.

    Attributes
    ----------
    recorded_start_ns, recorded_end_ns
        Of each batch, as the engine logged it.
    num_wasted_tokens
        Tokens that the engine processed for requests that had finished (it decides a step ahead).
    """

    def __init__(self, positions: Mapping[str, int], where: str) -> None:
        self.recorded_start_ns: list[int] = []
        self.recorded_end_ns: list[int] = []
        self.num_wasted_tokens = 0
        self._positions = positions
        self._where = where
        self._kv = dict.fromkeys(positions, 0)
        self._host = dict.fromkeys(positions, 0)
        self._finished: set[str] = set()
        self._first_entry = [0]
        self._request: list[int] = []
        self._tokens: list[int] = []
        self._before: list[int] = []
        self._evicted: list[tuple[int, int, int]] = []
        self._restored: list[tuple[int, int]] = []
        self._hits: list[tuple[int, int, int]] = []

    def add(self, iteration: Iteration) -> None:
        """Take over an iteration; without a batch only its evictions, at the boundary before the next.

        Raises
        ------
        InputError
            If it contradicts what the log said before.
        """
        for name in iteration.preempted:
            self._evict(name, to_host=name in iteration.swapped)
        for entry in iteration.scheduled:
            self._process(entry, iteration.line)
        if len(self._request) > self._first_entry[-1]:
            self._first_entry.append(len(self._request))
            self.recorded_start_ns.append(iteration.start_ns)
            self.recorded_end_ns.append(iteration.end_ns)
        self._finished.update(iteration.finished)

    def untimed(self) -> Schedule:
        """The schedule of these decisions with all times 0."""
        batches = np.zeros(len(self._first_entry) - 1, dtype=np.int64)
        tokens = np.array(self._tokens, dtype=np.int64)
        # An eviction after the last batch of all that is kept changes nothing.
        evicted = _columns((event for event in self._evicted if event[0] < len(batches)), 3)
        restored, hits = _columns(self._restored, 2), _columns(self._hits, 3)
        columns: dict[str, Any] = {
            "start_ns": batches,
            "end_ns": batches,
            "first_entry": np.array(self._first_entry, dtype=np.int64),
            "request": np.array(self._request, dtype=np.int64),
            "tokens": tokens,
            "kv_tokens": np.array(self._before, dtype=np.int64) + tokens,
            "evicted_batch": evicted[0],
            "evicted_request": evicted[1],
            "evicted_to_host": evicted[2],
            "restored_batch": restored[0],
            "restored_request": restored[1],
            "hit_batch": hits[0],
            "hit_request": hits[1],
            "hit_tokens": hits[2],
        }
        return Schedule(**columns)

    @property
    def _batch(self) -> int:
        """Number of the batch under construction."""
        return len(self._first_entry) - 1

    def _evict(self, name: str, *, to_host: bool) -> None:
        if name in self._positions and name not in self._finished and self._kv[name]:
            self._evicted.append((self._batch, self._positions[name], int(to_host)))
            self._host[name] = self._kv[name] if to_host else 0
            self._kv[name] = 0

    def _process(self, entry: Entry, line: int) -> None:
        name, tokens, before = entry
        if name not in self._positions:
            return
        if name in self._finished:
            self.num_wasted_tokens += tokens
            return
        position, batch = self._positions[name], self._batch
        if self._host[name] and before == self._host[name]:
            self._restored.append((batch, position))
            self._host[name] = 0
        elif not self._kv[name] and before:
            self._hits.append((batch, position, before))
        elif before != self._kv[name]:
            raise InputError(
                f"{self._where} line {line}: request {name!r} has {before} tokens computed before, the lines "
                f"above leave it {self._kv[name]}; is a line missing?"
            )
        self._kv[name] = before + tokens
        self._request.append(position)
        self._tokens.append(tokens)
        self._before.append(before)


def _columns(events: Iterable[tuple[int, ...]], width: int) -> IntArray:
    """Events as int64 columns of shape (width, num_events)."""
    return np.array(list(events), dtype=np.int64).reshape(-1, width).T
