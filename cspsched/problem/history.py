"""What a schedule's c_ij and evictions imply: n_ij, G_ij, g_ij, phases, batch features.

Rules 1 to 3 of the problem, followed literally, so that metrics and referee start from decisions alone and
not from what anybody claims about them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cspsched.problem.cost import BatchFeatures, IntArray, triangle
from cspsched.problem.instance import Instance
from cspsched.problem.schedule import Schedule
from cspsched.problem.walk import BoolArray, Carried, walk_columns, walk_entries


@dataclass(frozen=True, kw_only=True, eq=False)
class History:
    """Columns aligned with the entries of a schedule, shape (num_entries,) each unless said otherwise."""

    instance: Instance
    schedule: Schedule
    kv_before: IntArray
    """n_ij: KV entries carried into the batch."""
    generated_before: IntArray
    """G_ij: output tokens generated before the batch."""
    generates: BoolArray
    """g_ij: the batch generates an output token of the request."""
    decodes: BoolArray
    """The request is in its decode phase (it generated when last processed, and was not evicted since)."""
    kv_evicted: IntArray
    """KV entries that leave the device at each eviction, shape (num_evictions,)."""
    kv_restored: IntArray
    """KV entries that come back from host memory at each restoration, shape (num_restored,)."""
    hit_carries: BoolArray
    """The request holds KV entries already where the prefix cache is said to help, shape (num_hits,)."""
    on_host: BoolArray
    """The request is processed although its KV cache is in host memory."""
    start: Carried
    """What was there before the first batch."""
    is_last: bool = True
    """Nothing follows, so that every request must be finished."""

    @property
    def kv_lost(self) -> IntArray:
        """KV entries lost at each eviction, shape (num_evictions,); 0 where they are swapped."""
        lost: IntArray = self.kv_evicted * (self.schedule.evicted_to_host == 0)
        return lost

    @cached_property
    def moved_blocks(self) -> IntArray:
        """KV blocks that move between device and host at the boundary before each batch."""
        moved = np.zeros(self.schedule.num_batches, dtype=np.int64)
        np.add.at(moved, self.schedule.evicted_batch, self._blocks(self.kv_evicted - self.kv_lost))
        np.add.at(moved, self.schedule.restored_batch, self._blocks(self.kv_restored))
        return moved

    @cached_property
    def host_blocks(self) -> IntArray:
        """KV blocks in host memory during each batch."""
        change = np.zeros(self.schedule.num_batches, dtype=np.int64)
        np.add.at(change, self.schedule.evicted_batch, self._blocks(self.kv_evicted - self.kv_lost))
        np.add.at(change, self.schedule.restored_batch, -self._blocks(self.kv_restored))
        return np.cumsum(change)

    def _blocks(self, kv_tokens: IntArray) -> IntArray:
        return -(-kv_tokens // self.instance.limits.block_tokens)

    @cached_property
    def kv_after(self) -> IntArray:
        """n_ij + c_ij."""
        return self.kv_before + self.schedule.tokens

    @cached_property
    def finishes(self) -> BoolArray:
        """The batch generates the last output token of the request."""
        outputs = np.array([request.output_tokens for request in self.instance.requests], dtype=np.int64)
        last: BoolArray = self.generated_before + 1 == outputs[self.schedule.request]
        return self.generates & last

    def carried(self) -> Carried:
        """What the batches leave behind for those that follow; without swap."""
        schedule, start = self.schedule, self.start
        kv, generated = start.kv.copy(), start.generated.copy()
        decoding = start.decoding.copy()
        last = np.full(len(kv), -1, dtype=np.int64)
        # Of equal indices the last one is written.
        last[schedule.request] = schedule.batch_of_entry
        kv[schedule.request], decoding[schedule.request] = self.kv_after, self.generates
        generated += np.bincount(schedule.request[self.generates], minlength=len(kv))
        gone = schedule.evicted_request[schedule.evicted_batch > last[schedule.evicted_request]]
        gone = np.concatenate((gone, schedule.request[self.finishes]))
        kv[gone], decoding[gone] = 0, False
        return Carried(kv=kv, generated=generated, decoding=decoding, clock_ns=int(schedule.end_ns[-1]))

    @cached_property
    def features(self) -> BatchFeatures[IntArray]:
        """Features of every batch, shape (num_batches,) each."""
        schedule, prefills = self.schedule, ~self.decodes
        before, after = self.kv_before, self.kv_after
        return BatchFeatures(
            tokens=self.per_batch(schedule.tokens),
            prefill_attention=self.per_batch((triangle(after) - triangle(before)) * prefills),
            prefill_tokens=self.per_batch(schedule.tokens * prefills),
            prefill_context=self.per_batch(before * prefills),
            decode_context=self.per_batch(before * self.decodes),
            num_generating=self.per_batch(self.generates.astype(np.int64)),
            num_prefills=self.per_batch(prefills.astype(np.int64)),
            num_decodes=self.per_batch(self.decodes.astype(np.int64)),
        )

    def per_batch(self, column: IntArray) -> IntArray:
        """Sum of a column of entries over each batch, exact in int64."""
        total = np.concatenate(([0], np.cumsum(column, dtype=np.int64)))
        return total[self.schedule.first_entry[1:]] - total[self.schedule.first_entry[:-1]]


def follow(instance: Instance, schedule: Schedule, start: Carried | None = None) -> History:
    """Walk through a schedule and derive what each entry implies.

    The schedule may break rules: the walk applies rules 1 to 3 to whatever is there. Requests and batches
    that do not exist are the referee's first check and must be refused before.

    Parameters
    ----------
    start
        What earlier batches left behind, if the schedule is a later part of one; without swap and prefix
        cache.
    """
    start = start or Carried.nothing(len(instance.requests))
    walk = walk_columns(instance, schedule, start) or walk_entries(instance, schedule, start)
    return History(instance=instance, schedule=schedule, start=start, **walk._asdict())
