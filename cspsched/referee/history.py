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
from cspsched.referee.walk import BoolArray, walk_columns, walk_entries


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
        outputs = self.instance.columns.output_tokens
        last: BoolArray = self.generated_before + 1 == outputs[self.schedule.request]
        return self.generates & last

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


def follow(instance: Instance, schedule: Schedule) -> History:
    """Walk through a schedule and derive what each entry implies.

    The schedule may break rules: the walk applies rules 1 to 3 to whatever is there. Requests and batches
    that do not exist are the referee's first check and must be refused before.
    """
    walk = walk_columns(instance, schedule) or walk_entries(instance, schedule)
    return History(instance=instance, schedule=schedule, **walk._asdict())
