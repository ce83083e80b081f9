"""A schedule: sparse c_ij and m_ij with the start and end of every batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cspsched.errors import InputError
from cspsched.problem.cost import IntArray
from cspsched.problem.json_io import require_keys, require_schema

SCHEDULE_SCHEMA = "cspsched/schedule/1"


@dataclass(frozen=True, kw_only=True, eq=False)
class Schedule:
    """Batches in order of execution; requests are named by their position in the instance.

    All arrays are int64. The entries of batch j are `first_entry[j]:first_entry[j + 1]`; an entry is a
    request that is processed in the batch, in the order in which the scheduler took it.

    Attributes
    ----------
    start_ns, end_ns
        Shape (num_batches,).
    first_entry
        Shape (num_batches + 1,).
    request, tokens, kv_tokens
        Shape (num_entries,): i, c_ij >= 1 and m_ij (KV entries of i once the batch has run).
    evicted_batch, evicted_request
        Shape (num_evictions,): request i loses its KV cache at the boundary before batch j.
    """

    start_ns: IntArray
    end_ns: IntArray
    first_entry: IntArray
    request: IntArray
    tokens: IntArray
    kv_tokens: IntArray
    evicted_batch: IntArray
    evicted_request: IntArray

    def __post_init__(self) -> None:
        for name in COLUMNS:
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.int64))
        batches, entries = len(self.start_ns), len(self.request)
        if len(self.end_ns) != batches or len(self.first_entry) != batches + 1:
            raise InputError(
                f"schedule: {batches} starts, {len(self.end_ns)} ends and {len(self.first_entry)} offsets, "
                "expected as many ends as starts and one offset more"
            )
        if len(self.tokens) != entries or len(self.kv_tokens) != entries:
            raise InputError("schedule: request, tokens and kv_tokens differ in length")
        if len(self.evicted_batch) != len(self.evicted_request):
            raise InputError("schedule: evicted_batch and evicted_request differ in length")
        offsets = self.first_entry
        if offsets[0] != 0 or offsets[-1] != entries or np.any(np.diff(offsets) < 0):
            raise InputError(f"schedule: first_entry must rise from 0 to {entries}, the number of entries")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in COLUMNS
        )

    __hash__ = None  # type: ignore[assignment]  # holds arrays

    @property
    def num_batches(self) -> int:
        """Batches run."""
        return len(self.start_ns)

    @property
    def num_preemptions(self) -> int:
        """Evictions of unfinished requests."""
        return len(self.evicted_batch)

    @property
    def batch_of_entry(self) -> IntArray:
        """Batch of every entry, shape (num_entries,)."""
        return np.repeat(np.arange(self.num_batches, dtype=np.int64), np.diff(self.first_entry))

    @classmethod
    def from_batches(
        cls,
        batches: Sequence[Sequence[tuple[int, int]]],
        evictions: Sequence[Sequence[int]],
        start_ns: Sequence[int],
        end_ns: Sequence[int],
    ) -> Schedule:
        """Build from [(request, tokens), ...] and [evicted request, ...] of each batch; memory follows."""
        kv: dict[int, int] = {}
        memory = []
        for entries, evicted in zip(batches, evictions, strict=True):
            kv.update(dict.fromkeys(evicted, 0))
            for request, tokens in entries:
                kv[request] = kv.get(request, 0) + tokens
                memory.append(kv[request])
        return cls(
            start_ns=np.array(start_ns),
            end_ns=np.array(end_ns),
            first_entry=np.cumsum([0, *map(len, batches)]),
            request=np.array([request for entries in batches for request, _ in entries]),
            tokens=np.array([tokens for entries in batches for _, tokens in entries]),
            kv_tokens=np.array(memory),
            evicted_batch=np.array([j for j, evicted in enumerate(evictions) for _ in evicted]),
            evicted_request=np.array([request for evicted in evictions for request in evicted]),
        )

    def to_json(self) -> dict[str, Any]:
        """Columns as lists, with a schema version."""
        return {"schema": SCHEDULE_SCHEMA} | {name: getattr(self, name).tolist() for name in COLUMNS}

    @classmethod
    def from_json(cls, data: Any, where: str = "schedule") -> Schedule:
        """Read what `to_json` wrote.

        Raises
        ------
        InputError
            If the schema is another one, or a column is missing, ragged, or holds no whole numbers.
        """
        require_schema(data, SCHEDULE_SCHEMA, where)
        require_keys(data, where, required=COLUMNS, optional=())
        for name in COLUMNS:
            column = data[name]
            if not isinstance(column, list) or any(type(value) is not int for value in column):
                raise InputError(f"{where}: {name} must be a list of whole numbers")
        try:
            return cls(**{name: np.array(data[name], dtype=np.int64) for name in COLUMNS})
        except OverflowError:
            raise InputError(f"{where}: a number is beyond 64 bits") from None


COLUMNS = (
    "start_ns", "end_ns", "first_entry", "request", "tokens", "kv_tokens", "evicted_batch", "evicted_request",
)  # fmt: skip
