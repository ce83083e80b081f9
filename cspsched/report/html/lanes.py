"""Schedules in the form in which the page draws them: runs of equal entries, and columns of batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np

from cspsched.problem.cost import IntArray
from cspsched.problem.instance import Instance
from cspsched.problem.schedule import Schedule
from cspsched.referee.history import History
from cspsched.referee.judge import judge
from cspsched.referee.metrics import Metrics
from cspsched.referee.rules import occupied_blocks
from cspsched.referee.walk import BoolArray
from cspsched.report.html.template import steps
from cspsched.studies.binding import Binding, binding_limits
from cspsched.studies.compare import Comparison

MOST_POLICIES = 12
MOST_ENTRIES = 10_000_000
"""Entries of all schedules up to which they are drawn, some ten seconds of work."""
MOST_ITEMS = 1_000_000
"""Batches and runs of all schedules that one page holds, about 1.5 MB; what is later is cut off."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Runs:
    """Entries of one request in consecutive batches with equal tokens in one phase, shape (num_runs,) each.

    No eviction is within a run. They stand by request, those of a request by batch.
    """

    request: IntArray
    first: IntArray
    length: IntArray
    tokens: IntArray
    decodes: BoolArray

    @classmethod
    def of(cls, history: History) -> Runs:
        """All runs of a schedule."""
        schedule = history.schedule
        batch = schedule.batch_of_entry
        order = np.lexsort((batch, schedule.request))
        batch, decodes = batch[order], history.decodes[order]
        request, tokens = schedule.request[order], schedule.tokens[order]
        begins = np.ones(len(request), dtype=bool)
        begins[1:] = (
            (request[1:] != request[:-1])
            | (batch[1:] != batch[:-1] + 1)
            | (tokens[1:] != tokens[:-1])
            | (decodes[1:] != decodes[:-1])
        )
        evicted = schedule.evicted_request * schedule.num_batches + schedule.evicted_batch
        begins |= np.isin(request * schedule.num_batches + batch, evicted)
        first = np.flatnonzero(begins)
        return cls(
            request=request[first],
            first=batch[first],
            length=np.diff(first, append=len(request)),
            tokens=tokens[first],
            decodes=decodes[first],
        )

    def before(self, num_batches: int) -> Runs:
        """What of them lies in the first batches."""
        kept = self.first < num_batches
        return Runs(
            request=self.request[kept],
            first=self.first[kept],
            length=np.minimum(self.length, num_batches - self.first)[kept],
            tokens=self.tokens[kept],
            decodes=self.decodes[kept],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """A schedule that the page draws.

    Attributes
    ----------
    name
        Of the policy, or `best known`.
    is_best
        Whether its value is the best known.
    is_policy
        Whether it is a row of the comparison.
    """

    name: str
    is_best: bool
    is_policy: bool
    metrics: Metrics
    runs: Runs
    binding: Binding

    @property
    def history(self) -> History:
        """What its decisions imply."""
        return self.metrics.history

    @property
    def schedule(self) -> Schedule:
        """The schedule."""
        return self.history.schedule

    @cached_property
    def occupied_blocks(self) -> IntArray:
        """KV blocks of all residents during each batch."""
        return occupied_blocks(self.history)

    def to_json(self, num_batches: int) -> dict[str, Any]:
        """Columns of the first batches for the page's script; `steps` undoes differences."""
        schedule, runs = self.schedule, self.runs.before(num_batches)
        start_ns, end_ns = schedule.start_ns[:num_batches], schedule.end_ns[:num_batches]
        evicted, restored = schedule.evicted_batch < num_batches, schedule.restored_batch < num_batches
        return {
            "name": self.name,
            "is_best": self.is_best,
            "is_policy": self.is_policy,
            "idle_ns": (start_ns - np.concatenate(([0], end_ns[:-1]))).tolist(),
            "length_ns": steps(end_ns - start_ns),
            "occupied_blocks": steps(self.occupied_blocks[:num_batches]),
            "run_request": steps(runs.request),
            "run_first": steps(runs.first),
            "run_length": runs.length.tolist(),
            "run_tokens": runs.tokens.tolist(),
            "run_decodes": runs.decodes.astype(np.int64).tolist(),
            "evicted_batch": schedule.evicted_batch[evicted].tolist(),
            "evicted_request": schedule.evicted_request[evicted].tolist(),
            "evicted_to_host": schedule.evicted_to_host[evicted].tolist(),
            "restored_batch": schedule.restored_batch[restored].tolist(),
            "restored_request": schedule.restored_request[restored].tolist(),
            "binding": {
                name: np.flatnonzero(
                    np.diff(binds[:num_batches].astype(np.int8), prepend=0, append=0)
                ).tolist()
                for name, binds in self.binding.columns.items()
            },
        }


def drawn_schedules(comparison: Comparison) -> list[Drawn]:
    """The best known schedule, and those of the first policies, while they are not too long together."""
    reference = comparison.reference
    candidates = [
        (row.policy, row.value_ns == reference.best_known_ns, row.metrics)
        for row in comparison.rows[:MOST_POLICIES]
    ]
    best = reference.schedule
    own = [metrics.history.schedule for _, is_best, metrics in candidates if is_best]
    if best is not None and not any(_are_same(best, schedule) for schedule in own):
        candidates.insert(0, ("", True, judge(comparison.instance, best).metrics))
    drawn: list[Drawn] = []
    entries = 0
    for policy, is_best, metrics in candidates:
        schedule = metrics.history.schedule
        entries += int(schedule.first_entry[-1])
        if entries > MOST_ENTRIES or schedule.uses_prefix_cache:
            break
        drawn.append(
            Drawn(
                name=policy or "best known",
                is_best=is_best,
                is_policy=bool(policy),
                metrics=metrics,
                runs=Runs.of(metrics.history),
                binding=binding_limits(metrics.history),
            )
        )
    return drawn


def cut_ns(drawn: Sequence[Drawn], most: int = MOST_ITEMS) -> int | None:
    """The time before which one page holds what begins; None if it holds everything."""
    starts = [one.schedule.start_ns[places] for one in drawn for places in (slice(None), one.runs.first)]
    times = np.concatenate([np.zeros(0, dtype=np.int64), *starts])
    return int(np.partition(times, most)[most]) if len(times) > most else None


def schedules_json(
    instance: Instance,
    drawn: Sequence[Drawn],
    differs: Mapping[tuple[int, int], int | None],
    cut: int | None,
) -> dict[str, Any]:
    """Requests, limits and schedules for the page's script."""
    columns, limits = instance.columns, instance.limits
    ends = [int(one.schedule.end_ns[-1]) for one in drawn]
    lengths = [
        one.schedule.num_batches if cut is None else max(int(np.searchsorted(one.schedule.start_ns, cut)), 1)
        for one in drawn
    ]
    return {
        "requests": {
            "id": [request.request_id for request in instance.requests],
            "arrival_ns": steps(columns.arrival_ns),
            "prompt_tokens": columns.prompt_tokens.tolist(),
            "output_tokens": columns.output_tokens.tolist(),
        },
        "limits": limits.to_json(),
        "end_ns": max(ends) if cut is None else min(cut, max(ends)),
        "schedules": [one.to_json(length) for one, length in zip(drawn, lengths, strict=True)],
        "differs": [[*pair, batch] for pair, batch in differs.items()],
    }


def first_differences(drawn: Sequence[Drawn]) -> dict[tuple[int, int], int | None]:
    """First batch whose entries (which requests, how many tokens) differ, of each two schedules.

    None where all are the same.
    """
    ordered = [_ordered(one.schedule) for one in drawn]
    return {(a, b): _first_difference(ordered[a], ordered[b]) for a, b in combinations(range(len(drawn)), 2)}


def _are_same(one: Schedule, other: Schedule) -> bool:
    """Whether two schedules differ in nothing but the order of the entries of a batch."""
    return (
        np.array_equal(one.start_ns, other.start_ns)
        and np.array_equal(one.end_ns, other.end_ns)
        and _first_difference(_ordered(one), _ordered(other)) is None
    )


def _ordered(schedule: Schedule) -> IntArray:
    """Batch, request and tokens of every entry by batch and request, shape (3, num_entries)."""
    batch = schedule.batch_of_entry
    order = np.lexsort((schedule.request, batch))
    return np.stack((batch[order], schedule.request[order], schedule.tokens[order]))


def _first_difference(one: IntArray, other: IntArray) -> int | None:
    shared = min(one.shape[1], other.shape[1])
    differs = np.flatnonzero((one[:, :shared] != other[:, :shared]).any(axis=0))
    if len(differs):
        return int(min(one[0, differs[0]], other[0, differs[0]]))
    longer = max(one, other, key=lambda columns: columns.shape[1])
    return int(longer[0, shared]) if longer.shape[1] > shared else None
