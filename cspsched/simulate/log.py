"""The record of a run: flat columns that become a schedule."""

from __future__ import annotations

from array import array
from collections.abc import Mapping

import numpy as np

from cspsched.problem.cost import IntArray
from cspsched.problem.schedule import Schedule
from cspsched.simulate.step import Step


class ScheduleLog:
    """Columns of a schedule under construction, 8 bytes a number."""

    __slots__ = (
        "_decided_ns", "_end_ns", "_evicted_batch", "_evicted_request", "_evicted_to_host", "_first_entry",
        "_held_blocks", "_hit_batch", "_hit_request", "_hit_tokens", "_kv_tokens", "_num_waiting", "_request",
        "_restored_batch", "_restored_request", "_start_ns", "_tokens", "preempted",
    )  # fmt: skip

    def __init__(self) -> None:
        self._start_ns = array("q")
        self._end_ns = array("q")
        self._first_entry = array("q", [0])
        self._request = array("q")
        self._tokens = array("q")
        self._kv_tokens = array("q")
        self._evicted_batch = array("q")
        self._evicted_request = array("q")
        self._evicted_to_host = array("q")
        self._restored_batch = array("q")
        self._restored_request = array("q")
        self._hit_batch = array("q")
        self._hit_request = array("q")
        self._hit_tokens = array("q")
        self.preempted: list[tuple[int, int]] = []
        self._decided_ns = array("q")
        self._held_blocks = array("q")
        self._num_waiting = array("q")

    def add_boundary(self, step: Step) -> None:
        """Note what left the device, came back or was found cached at the boundary before the next batch."""
        batch = len(self._start_ns)
        for request in step.evicted:
            self.preempted.append((batch, request))
            if request not in step.finishing:
                self._evicted_batch.append(batch)
                self._evicted_request.append(request)
                self._evicted_to_host.append(request in step.swapped)
        for request in step.restored:
            self._restored_batch.append(batch)
            self._restored_request.append(request)
        for request, tokens in step.hits.items():
            self._hit_batch.append(batch)
            self._hit_request.append(request)
            self._hit_tokens.append(tokens)

    def add_batch(
        self,
        batch: Mapping[int, int],
        kv_tokens: list[int],
        *,
        decided_ns: int,
        start_ns: int,
        end_ns: int,
        held_blocks: int,
        num_waiting: int,
    ) -> None:
        """Note a batch {request: tokens} with the KV entries after it, in the scheduler's order."""
        self._request.fromlist(list(batch))
        self._tokens.fromlist(list(batch.values()))
        self._kv_tokens.fromlist(kv_tokens)
        self._first_entry.append(len(self._request))
        self._decided_ns.append(decided_ns)
        self._start_ns.append(start_ns)
        self._end_ns.append(end_ns)
        self._held_blocks.append(held_blocks)
        self._num_waiting.append(num_waiting)

    def schedule(self) -> Schedule:
        """Everything noted so far."""
        return Schedule(
            start_ns=_column(self._start_ns),
            end_ns=_column(self._end_ns),
            first_entry=_column(self._first_entry),
            request=_column(self._request),
            tokens=_column(self._tokens),
            kv_tokens=_column(self._kv_tokens),
            evicted_batch=_column(self._evicted_batch),
            evicted_request=_column(self._evicted_request),
            evicted_to_host=_column(self._evicted_to_host),
            restored_batch=_column(self._restored_batch),
            restored_request=_column(self._restored_request),
            hit_batch=_column(self._hit_batch),
            hit_request=_column(self._hit_request),
            hit_tokens=_column(self._hit_tokens),
        )

    @property
    def num_batches(self) -> int:
        """Batches so far."""
        return len(self._start_ns)

    def decided_ns(self) -> IntArray:
        """When each batch was decided, shape (num_batches,)."""
        return _column(self._decided_ns)

    def held_blocks(self) -> IntArray:
        """Blocks held during each batch, shape (num_batches,)."""
        return _column(self._held_blocks)

    def num_waiting(self) -> IntArray:
        """Requests waiting during each batch, shape (num_batches,)."""
        return _column(self._num_waiting)


def _column(values: array[int]) -> IntArray:
    return np.array(values, dtype=np.int64)
