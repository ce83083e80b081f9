"""A schedule: sparse c_ij and m_ij with the start and end of every batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cspsched.errors import InputError
from cspsched.problem.cost import IntArray
from cspsched.problem.json_io import require_keys, require_schema

SCHEDULE_SCHEMA = "cspsched/schedule/1"


def _no_entries() -> IntArray:
    return np.zeros(0, dtype=np.int64)


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
        Shape (num_evictions,): the KV cache of request i leaves the device at the boundary before batch j.
    evicted_to_host
        Shape (num_evictions,): 1 if it is swapped to host memory, 0 (all, if left out) if it is lost.
    restored_batch, restored_request
        Shape (num_restored,): the KV cache of i comes back from host memory at the boundary before batch j.
    hit_batch, hit_request, hit_tokens
        Shape (num_hits,): request i, with no KV cache of its own, starts in batch j with so many tokens that
        the prefix cache holds.
    """

    start_ns: IntArray
    end_ns: IntArray
    first_entry: IntArray
    request: IntArray
    tokens: IntArray
    kv_tokens: IntArray
    evicted_batch: IntArray
    evicted_request: IntArray
    evicted_to_host: IntArray = field(default_factory=_no_entries)
    restored_batch: IntArray = field(default_factory=_no_entries)
    restored_request: IntArray = field(default_factory=_no_entries)
    hit_batch: IntArray = field(default_factory=_no_entries)
    hit_request: IntArray = field(default_factory=_no_entries)
    hit_tokens: IntArray = field(default_factory=_no_entries)

    def __post_init__(self) -> None:
        for name in COLUMNS:
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.int64))
        if not len(self.evicted_to_host):
            object.__setattr__(self, "evicted_to_host", np.zeros(len(self.evicted_batch), dtype=np.int64))
        batches, entries = len(self.start_ns), len(self.request)
        if len(self.end_ns) != batches or len(self.first_entry) != batches + 1:
            raise InputError(
                f"schedule: {batches} starts, {len(self.end_ns)} ends and {len(self.first_entry)} offsets, "
                "expected as many ends as starts and one offset more"
            )
        if len(self.tokens) != entries or len(self.kv_tokens) != entries:
            raise InputError("schedule: request, tokens and kv_tokens differ in length")
        for names in EVENT_COLUMNS:
            if len({len(getattr(self, name)) for name in names}) > 1:
                raise InputError(f"schedule: {', '.join(names)} differ in length")
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
        """Evictions of unfinished requests, recomputed or swapped."""
        return len(self.evicted_batch)

    @property
    def uses_prefix_cache(self) -> bool:
        """Whether some request starts with tokens that another, or it itself before, has computed."""
        return len(self.hit_batch) > 0

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
        *,
        swapped: Sequence[Sequence[int]] = (),
        restored: Sequence[Sequence[int]] = (),
    ) -> Schedule:
        """Build from [(request, tokens), ...] and [evicted request, ...] of each batch; memory follows.

        `swapped` names for each batch those of the evicted whose KV cache moves to host memory, `restored`
        whose comes back; no batch has any if they are left out.
        """
        swapped, restored = (events or [()] * len(batches) for events in (swapped, restored))
        kv: dict[int, int] = {}
        host: dict[int, int] = {}
        memory = []
        for entries, evicted, moved, back in zip(batches, evictions, swapped, restored, strict=True):
            host.update({request: kv.get(request, 0) for request in moved})
            kv.update(dict.fromkeys(evicted, 0))
            kv.update({request: host.pop(request, 0) for request in back})
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
            evicted_to_host=np.array(
                [
                    request in moved
                    for evicted, moved in zip(evictions, swapped, strict=True)
                    for request in evicted
                ]
            ),
            restored_batch=np.array([j for j, back in enumerate(restored) for _ in back]),
            restored_request=np.array([request for back in restored for request in back]),
        )

    def to_json(self) -> dict[str, Any]:
        """Columns as lists with a schema version; those of swap and prefix cache only where there is any."""
        columns = {name: getattr(self, name).tolist() for name in COLUMNS}
        told = {name: column for name, column in columns.items() if name in REQUIRED_COLUMNS or any(column)}
        for names in EVENT_COLUMNS:
            if any(name in told for name in names):
                told |= {name: columns[name] for name in names}
        return {"schema": SCHEDULE_SCHEMA} | told

    @classmethod
    def from_json(cls, data: Any, where: str = "schedule") -> Schedule:
        """Read what `to_json` wrote.

        Raises
        ------
        InputError
            If the schema is another one, or a column is missing, ragged, or holds no whole numbers.
        """
        require_schema(data, SCHEDULE_SCHEMA, where)
        optional = [name for name in COLUMNS if name not in REQUIRED_COLUMNS]
        require_keys(data, where, required=REQUIRED_COLUMNS, optional=optional)
        given = [name for name in COLUMNS if name in data]
        for name in given:
            column = data[name]
            if not isinstance(column, list) or any(type(value) is not int for value in column):
                raise InputError(f"{where}: {name} must be a list of whole numbers")
        try:
            return cls(**{name: np.array(data[name], dtype=np.int64) for name in given})
        except OverflowError:
            raise InputError(f"{where}: a number is beyond 64 bits") from None


REQUIRED_COLUMNS = (
    "start_ns", "end_ns", "first_entry", "request", "tokens", "kv_tokens", "evicted_batch", "evicted_request",
)  # fmt: skip
EVENT_COLUMNS = (
    ("evicted_batch", "evicted_request", "evicted_to_host"),
    ("restored_batch", "restored_request"),
    ("hit_batch", "hit_request", "hit_tokens"),
)
COLUMNS = (*dict.fromkeys((*REQUIRED_COLUMNS, *(name for names in EVENT_COLUMNS for name in names))),)
