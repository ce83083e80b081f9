"""What a schedule's c_ij and evictions imply: n_ij, G_ij, g_ij, phases, batch features.

Rules 1 to 3 of the problem, followed literally, so that metrics and referee start from decisions alone and
not from what anybody claims about them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from cspsched.problem.cost import BatchFeatures, IntArray, triangle
from cspsched.problem.instance import Instance
from cspsched.problem.schedule import Schedule

BoolArray = npt.NDArray[np.bool_]


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
        outputs = np.array([request.output_tokens for request in self.instance.requests], dtype=np.int64)
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
    """Walk through a schedule entry by entry and derive what each implies.

    The schedule may break rules: the walk applies rules 1 to 3 to whatever is there. Requests and batches
    that do not exist are the referee's first check and must be refused before.
    """
    prompts = [request.prompt_tokens for request in instance.requests]
    kv = [0] * len(prompts)
    generated = [0] * len(prompts)
    decoding = [False] * len(prompts)
    before: list[int] = []
    generated_before: list[int] = []
    generates: list[bool] = []
    decodes: list[bool] = []
    on_host: list[bool] = []
    host = [0] * len(prompts)
    decoding_on_host = [False] * len(prompts)
    kv_evicted = np.zeros(schedule.num_preemptions, dtype=np.int64)
    kv_restored = np.zeros(len(schedule.restored_batch), dtype=np.int64)
    hit_carries = np.zeros(len(schedule.hit_batch), dtype=bool)
    evictions = _by_batch(schedule.evicted_batch, schedule.evicted_request)
    restorations = _by_batch(schedule.restored_batch, schedule.restored_request)
    hits = _by_batch(schedule.hit_batch, schedule.hit_request)
    to_host, hit_tokens = schedule.evicted_to_host.tolist(), schedule.hit_tokens.tolist()
    request_column, token_column = schedule.request.tolist(), schedule.tokens.tolist()
    offsets = schedule.first_entry.tolist()
    for j in range(schedule.num_batches):
        for k, i in evictions.get(j, ()):
            kv_evicted[k] = kv[i]
            if to_host[k]:
                host[i], decoding_on_host[i] = kv[i], decoding[i]
            kv[i], decoding[i] = 0, False
        for k, i in restorations.get(j, ()):
            kv_restored[k] = kv[i] = host[i]
            decoding[i], host[i] = decoding_on_host[i], 0
        for k, i in hits.get(j, ()):
            hit_carries[k] = kv[i] > 0
            kv[i] = hit_tokens[k]
        for entry in range(offsets[j], offsets[j + 1]):
            i = request_column[entry]
            on_host.append(host[i] > 0)
            before.append(kv[i])
            generated_before.append(generated[i])
            decodes.append(decoding[i])
            kv[i] += token_column[entry]
            produces = kv[i] == prompts[i] + generated[i]
            generates.append(produces)
            decoding[i] = produces
            generated[i] += produces
    return History(
        instance=instance,
        schedule=schedule,
        kv_before=np.array(before, dtype=np.int64),
        generated_before=np.array(generated_before, dtype=np.int64),
        generates=np.array(generates, dtype=bool),
        decodes=np.array(decodes, dtype=bool),
        kv_evicted=kv_evicted,
        kv_restored=kv_restored,
        hit_carries=hit_carries,
        on_host=np.array(on_host, dtype=bool),
    )


def _by_batch(batches: IntArray, requests: IntArray) -> dict[int, list[tuple[int, int]]]:
    """(position in the columns, request) of the events at the boundary before each batch."""
    grouped: dict[int, list[tuple[int, int]]] = {}
    for k, (j, i) in enumerate(zip(batches.tolist(), requests.tolist(), strict=True)):
        grouped.setdefault(j, []).append((k, i))
    return grouped
