"""The referee on a schedule of runs: it says that all is right, or leaves the schedule to the entries.

Each rule has the same name as in `cspsched.referee.rules`, where the sentences are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cspsched.compiled.jit import compiled
from cspsched.errors import CostError
from cspsched.problem.cost import BatchFeatures, IntArray
from cspsched.problem.instance import Instance
from cspsched.problem.runs import Runs, RunSchedule
from cspsched.referee.history import History, follow
from cspsched.referee.metrics import Gaps, Metrics, Times
from cspsched.referee.run_walk import (
    BEGUN,
    BLOCKS,
    CONTEXT,
    COVERING,
    DECODE_CONTEXT,
    NUM_DECODES,
    NUM_FEATURES,
    NUM_GENERATING,
    RESIDENTS,
    TOKENS,
    Asked,
    Boundaries,
    Followed,
    Found,
    RunColumns,
    walk_runs,
)
from cspsched.referee.walk import BoolArray


@dataclass(frozen=True, kw_only=True, eq=False)
class _Walked:
    """What the walk along the runs found.

    Attributes
    ----------
    features, occupied_blocks, residents
        Of each batch.
    times
        First and last token of each request, and all gaps.
    kv_evicted
        KV entries that leave the device at each eviction.
    """

    features: BatchFeatures[IntArray]
    occupied_blocks: IntArray
    residents: IntArray
    times: Times
    kv_evicted: IntArray


class RunHistory(History):
    """A history whose columns of entries are made when asked for."""

    @cached_property
    def _entries(self) -> History:
        return follow(self.instance, self.schedule)

    @cached_property
    def kv_before(self) -> IntArray:
        """As of any history."""
        return self._entries.kv_before

    @cached_property
    def generated_before(self) -> IntArray:
        """As of any history."""
        return self._entries.generated_before

    @cached_property
    def generates(self) -> BoolArray:
        """As of any history."""
        return self._entries.generates

    @cached_property
    def decodes(self) -> BoolArray:
        """As of any history."""
        return self._entries.decodes

    @cached_property
    def on_host(self) -> BoolArray:
        """As of any history."""
        return self._entries.on_host


def measure_runs(instance: Instance, schedule: RunSchedule) -> Metrics | None:
    """Metrics of a schedule that breaks no rule; None if it breaks one, or is none that runs tell all of."""
    walked = _walk(instance, schedule)
    if walked is None or not all(_rules(instance, schedule, walked)):
        return None
    history = object.__new__(RunHistory)
    none = np.zeros(0, dtype=np.int64)
    history.__dict__.update(
        instance=instance,
        schedule=schedule,
        kv_evicted=walked.kv_evicted,
        kv_restored=none,
        hit_carries=none.astype(bool),
        features=walked.features,
    )
    return Metrics(history=history, times=walked.times)


def _rules(instance: Instance, schedule: RunSchedule, walked: _Walked) -> Iterator[bool]:
    """Whether each rule that the walk leaves is kept."""
    limits, switches, features = instance.limits, instance.switches, walked.features
    prefills, decodes = features.num_prefills, features.num_decodes
    requests = prefills + decodes
    yield bool(np.all(requests >= 1))
    yield bool(np.all(walked.occupied_blocks <= limits.kv_blocks))
    yield bool(np.all(features.tokens <= limits.max_batch_tokens))
    yield bool(np.all(requests <= limits.max_batch_requests))
    yield switches.preemption.recomputes or not schedule.num_preemptions
    yield switches.chunked_prefill or bool(np.all(features.num_generating == requests))
    yield switches.hybrid_batches or not np.any((prefills > 0) & (decodes > 0))
    yield switches.holding or bool(np.all(walked.residents <= requests))
    start_ns, end_ns = schedule.start_ns, schedule.end_ns
    yield bool(start_ns[0] >= 0 and np.all(start_ns[1:] >= end_ns[:-1]) and np.all(end_ns >= start_ns))
    try:
        yield bool(np.array_equal(end_ns - start_ns, instance.cost.batch_times_ns(features)))
    except CostError:
        yield False


def _walk(instance: Instance, schedule: RunSchedule) -> _Walked | None:
    """Follow the runs; None where something is not plainly right."""
    columns, runs = instance.columns, schedule.runs
    count, batches, steps = len(columns), schedule.num_batches, len(runs.step_batch)
    evicted = schedule.evicted_request
    order = np.lexsort((schedule.evicted_batch, evicted))
    if not batches or np.any((evicted < 0) | (evicted >= count)):
        return None
    next_eviction = np.searchsorted(evicted[order], np.arange(count))
    last_eviction = np.searchsorted(evicted[order], np.arange(count), side="right")
    block = instance.limits.block_tokens
    peaks = -(-columns.peak_kv_tokens // block) * instance.switches.reservation
    generated = np.zeros(count, dtype=np.int64)
    found = Found(
        first_token_ns=np.zeros(count, dtype=np.int64),
        last_token_ns=np.zeros(count, dtype=np.int64),
        kv_evicted=np.zeros(len(order), dtype=np.int64),
        per_batch=np.zeros((RESIDENTS + 1, batches + 1), dtype=np.int64),
        per_step=np.zeros((COVERING + 1, steps + 2), dtype=np.int64),
        lone_gaps=np.zeros(len(runs.request), dtype=np.int64),
    )
    num_gaps = compiled(walk_runs)(
        Asked(columns.prompt_tokens, columns.output_tokens, columns.arrival_ns, peaks),
        block,
        RunColumns(*(getattr(runs, name) for name in RunColumns._fields)),
        Boundaries(
            schedule.start_ns,
            schedule.end_ns,
            schedule.evicted_batch[order],
            next_eviction,
            last_eviction,
        ),
        Followed(
            np.zeros(count, dtype=np.int64),
            generated,
            np.zeros(count, dtype=bool),
            np.full(count, -1, dtype=np.int64),
        ),
        found,
    )
    if num_gaps < 0 or np.any(generated != columns.output_tokens) or np.any(next_eviction != last_eviction):
        return None
    per_batch, per_step = found.per_batch, found.per_step
    _add_runs(per_batch, per_step, runs)
    unordered = np.empty_like(found.kv_evicted)
    unordered[order] = found.kv_evicted
    gaps = np.diff(schedule.end_ns[runs.step_batch])
    return _Walked(
        features=BatchFeatures(*per_batch[:NUM_FEATURES, :-1]),
        occupied_blocks=np.cumsum(per_batch[BLOCKS, :-1]),
        residents=np.cumsum(per_batch[RESIDENTS, :-1]),
        times=Times(
            first_token_ns=found.first_token_ns,
            last_token_ns=found.last_token_ns,
            gaps=Gaps.of(
                np.concatenate((gaps, found.lone_gaps[:num_gaps])),
                np.concatenate((np.cumsum(per_step[COVERING])[1:steps], np.ones(num_gaps, dtype=np.int64))),
            ),
        ),
        kv_evicted=unordered,
    )


def _add_runs(per_batch: IntArray, per_step: IntArray, runs: Runs) -> None:
    """Add the entries of runs of decodes to the features of their batches."""
    steps = len(runs.step_batch)
    decodes = np.cumsum(per_step[BEGUN])[:steps]
    context = np.cumsum(per_step[CONTEXT])[:steps] + np.arange(steps) * decodes
    for row in (TOKENS, NUM_GENERATING, NUM_DECODES):
        per_batch[row, runs.step_batch] += decodes
    per_batch[DECODE_CONTEXT, runs.step_batch] += context
