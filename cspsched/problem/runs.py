"""Schedules whose decodes are kept as runs: as long as the requests and the batches, not as the tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cspsched.errors import InputError
from cspsched.problem.cost import IntArray
from cspsched.problem.schedule import Schedule

COLUMNS_OF_OTHER_EVENTS = ("restored_batch", "restored_request", "hit_batch", "hit_request", "hit_tokens")
Column = npt.NDArray[np.signedinteger[Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Runs:
    """Entries of a schedule: chunks, one entry each, and runs of decodes, one entry a step.

    A step is a batch that holds runs; runs cover consecutive steps, and a batch between two steps holds
    chunks only.

    Attributes
    ----------
    request
        Shape (num_runs,), like the others but the last.
    is_decode_run
        Whether `first` counts steps; else it is a batch, and the length 1.
    first, length
        First step or batch, and how many.
    tokens
        c_ij of each entry; 1 in a run of decodes.
    kv_tokens
        m_ij of the first entry; one more with each step.
    rank
        Within a batch the entries stand in the order of their ranks, equal ones as they stand here.
    step_batch
        Shape (num_steps,): batch of each step, rising.
    """

    request: Column
    is_decode_run: npt.NDArray[np.bool_]
    first: Column
    length: Column
    tokens: Column
    kv_tokens: Column
    rank: Column
    step_batch: npt.NDArray[np.intp]

    @property
    def num_entries(self) -> int:
        """Entries of all runs."""
        return int(self.length.sum(dtype=np.int64))

    def refuse_unless_within(self, num_batches: int) -> None:
        """Refuse runs of no steps, and steps and batches that do not exist."""
        steps = self.step_batch
        rising = len(steps) == 0 or (steps[0] >= 0 and steps[-1] < num_batches and np.all(np.diff(steps) > 0))
        most = np.where(self.is_decode_run, len(steps), num_batches)
        inside = (self.first >= 0) & (self.length >= 1) & (self.first.astype(np.int64) + self.length <= most)
        if not rising or not np.all(inside & (self.is_decode_run | (self.length == 1))):
            raise InputError("schedule: a run covers steps or batches that do not exist")

    def sizes(self, num_batches: int) -> IntArray:
        """Entries of each batch, shape (num_batches,)."""
        is_run, num_steps = self.is_decode_run, len(self.step_batch)
        first, end = self.first[is_run], self.first[is_run] + self.length[is_run]
        change = np.bincount(first, minlength=num_steps + 1) - np.bincount(end, minlength=num_steps + 1)
        sizes = np.bincount(self.first[~is_run], minlength=num_batches)
        sizes[self.step_batch] += np.cumsum(change)[:num_steps]
        return sizes.astype(np.int64)

    def entries(self) -> tuple[IntArray, IntArray, IntArray]:
        """Columns `request`, `tokens` and `kv_tokens` of the entries of a schedule."""
        order = np.argsort(self.rank, kind="stable")
        length = self.length[order]
        run = np.repeat(order, length)
        step = np.arange(len(run)) - np.repeat(np.cumsum(length) - length, length)
        batch = self.first[run] + step
        decodes = self.is_decode_run[run]
        batch[decodes] = self.step_batch[batch[decodes]]
        # Stable: within a batch the order is that of the ranks.
        in_order = np.argsort(batch, kind="stable")
        run, step = run[in_order], step[in_order]
        return (
            self.request[run].astype(np.int64),
            self.tokens[run].astype(np.int64),
            self.kv_tokens[run] + step,
        )


class RunSchedule(Schedule):
    """A schedule of runs, equal to the schedule of its entries, which are made when asked for."""

    runs: Runs

    @classmethod
    def of(
        cls,
        runs: Runs,
        *,
        start_ns: IntArray,
        end_ns: IntArray,
        evicted_batch: IntArray,
        evicted_request: IntArray,
    ) -> RunSchedule:
        """Build from runs.

        Raises
        ------
        InputError
            If a run is of no steps, or of batches that there are not.
        """
        runs.refuse_unless_within(len(start_ns))
        none = np.zeros(0, dtype=np.int64)
        return _with(
            {
                "runs": runs,
                "start_ns": start_ns,
                "end_ns": end_ns,
                "first_entry": np.concatenate((none[:0], [0], np.cumsum(runs.sizes(len(start_ns))))),
                "evicted_batch": evicted_batch,
                "evicted_request": evicted_request,
                "evicted_to_host": np.zeros(len(evicted_batch), dtype=np.int64),
                **dict.fromkeys(COLUMNS_OF_OTHER_EVENTS, none),
            }
        )

    def __new__(cls, **columns: Any) -> Schedule:  # type: ignore[misc]  # what changes an entry ends the runs
        """Return a schedule of entries: `replace` has no place for runs."""
        return Schedule(**columns)

    @cached_property
    def _entries(self) -> tuple[IntArray, IntArray, IntArray]:
        return self.runs.entries()

    @cached_property
    def request(self) -> IntArray:
        """As of any schedule."""
        return self._entries[0]

    @cached_property
    def tokens(self) -> IntArray:
        """As of any schedule."""
        return self._entries[1]

    @cached_property
    def kv_tokens(self) -> IntArray:
        """As of any schedule."""
        return self._entries[2]

    def __reduce__(self) -> tuple[Any, ...]:
        entries = ("_entries", "request", "tokens", "kv_tokens")
        kept = {name: value for name, value in self.__dict__.items() if name not in entries}
        return _with, (kept,)


def _with(kept: dict[str, Any]) -> RunSchedule:
    made = object.__new__(RunSchedule)
    made.__dict__.update(kept)
    return made
