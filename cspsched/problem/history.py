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
    kv_lost: IntArray
    """KV entries lost at each eviction, shape (num_evictions,)."""

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
    kv_lost = np.zeros(schedule.num_preemptions, dtype=np.int64)
    evictions = _evictions_by_batch(schedule)
    request_column, token_column = schedule.request.tolist(), schedule.tokens.tolist()
    offsets = schedule.first_entry.tolist()
    for j in range(schedule.num_batches):
        for k, i in evictions.get(j, ()):
            kv_lost[k] = kv[i]
            kv[i], decoding[i] = 0, False
        for entry in range(offsets[j], offsets[j + 1]):
            i = request_column[entry]
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
        kv_lost=kv_lost,
    )


def _evictions_by_batch(schedule: Schedule) -> dict[int, list[tuple[int, int]]]:
    grouped: dict[int, list[tuple[int, int]]] = {}
    for k, (j, i) in enumerate(
        zip(schedule.evicted_batch.tolist(), schedule.evicted_request.tolist(), strict=True)
    ):
        grouped.setdefault(j, []).append((k, i))
    return grouped
