"""What the referee must know of shared KV blocks: when content was computed, how many blocks there are."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import numpy as np

from cspsched.problem.cost import IntArray
from cspsched.problem.prefix import BlockContents, Content
from cspsched.referee.history import History
from cspsched.units import ceil_div


class Span(NamedTuple):
    """Batches during which a request holds a block."""

    first: int
    is_hit: bool
    """It comes out of the prefix cache."""
    last: int


def missing_hits(history: History) -> list[int | None]:
    """First block of every hit that no request has computed by then, None if there is none; one item a hit.

    Computed means that its last token is processed, in any request, in the batch of the hit or before. More
    than fits on the device is not looked at; that breaks the rule of capacity anyway.
    """
    schedule, limits = history.schedule, history.instance.limits
    block, most = limits.block_tokens, limits.kv_blocks
    contents = BlockContents.of_instance(history.instance)
    computed: dict[Content, int] = {}
    columns = (schedule.batch_of_entry, schedule.request, history.kv_before, history.kv_after)
    for j, i, before, after in zip(*(column.tolist() for column in columns), strict=True):
        for k in range(before // block, min(after // block, most)):
            computed.setdefault(contents.of(i, k), j)
    hit_blocks = np.minimum(schedule.hit_tokens // block, most).tolist()
    hits = zip(schedule.hit_batch.tolist(), schedule.hit_request.tolist(), hit_blocks, strict=True)
    return [
        next((k for k in range(blocks) if computed.get(contents.of(i, k), j + 1) > j), None)
        for j, i, blocks in hits
    ]


def shared_occupancy(history: History) -> IntArray:
    """Fewest KV blocks that hold everything during every batch, shape (num_batches,).

    Content that several requests hold is counted once. What a hit finds was there all the time since a
    request held it last, so it is counted then, too.
    """
    change = np.zeros(history.schedule.num_batches + 1, dtype=np.int64)
    for spans in _Residents(history).spans().values():
        covered = -1
        for span in sorted(spans):
            first = covered + 1 if span.is_hit and covered >= 0 else max(span.first, covered + 1)
            if span.last >= first:
                change[first] += 1
                change[span.last + 1] -= 1
                covered = span.last
    return np.cumsum(change)[:-1]


class _Residents:
    """A walk through the batches that notes which request holds which block from when to when."""

    def __init__(self, history: History) -> None:
        self._history = history
        limits, requests = history.instance.limits, history.instance.requests
        self._block_tokens = limits.block_tokens
        self._most_blocks = limits.kv_blocks + 1
        self._contents = BlockContents.of_instance(history.instance)
        self._least = [
            ceil_div(request.peak_kv_tokens, limits.block_tokens) * history.instance.switches.reservation
            for request in requests
        ]
        self._held: list[list[tuple[int, bool]]] = [[] for _ in requests]
        self._spans: defaultdict[Content, list[Span]] = defaultdict(list)

    def spans(self) -> dict[Content, list[Span]]:
        """Spans of every content."""
        history, schedule = self._history, self._history.schedule
        evictions = _by_batch(schedule.evicted_batch, schedule.evicted_request, history.kv_evicted)
        restorations = _by_batch(schedule.restored_batch, schedule.restored_request, history.kv_restored)
        hits = _by_batch(schedule.hit_batch, schedule.hit_request, schedule.hit_tokens)
        requests, after = schedule.request.tolist(), history.kv_after.tolist()
        finishes, offsets = history.finishes.tolist(), schedule.first_entry.tolist()
        for j in range(schedule.num_batches):
            for i, _ in evictions[j]:
                self._leave(i, last=j - 1)
            for i, tokens in restorations[j]:
                self._grow(i, tokens, j, is_hit=False)
            for i, tokens in hits[j]:
                self._grow(i, tokens, j, is_hit=True)
            entries = range(offsets[j], offsets[j + 1])
            for entry in entries:
                self._grow(requests[entry], after[entry], j, is_hit=False)
            for entry in entries:
                if finishes[entry]:
                    self._leave(requests[entry], last=j)
        for i in range(len(self._held)):
            self._leave(i, last=schedule.num_batches - 1)
        return self._spans

    def _grow(self, request: int, kv_tokens: int, batch: int, *, is_hit: bool) -> None:
        blocks = ceil_div(kv_tokens, self._block_tokens)
        if not is_hit:
            blocks = max(blocks, self._least[request])
        held = self._held[request]
        held.extend((batch, is_hit) for _ in range(min(blocks, self._most_blocks) - len(held)))

    def _leave(self, request: int, *, last: int) -> None:
        for position, (first, is_hit) in enumerate(self._held[request]):
            self._spans[self._contents.of(request, position)].append(Span(first, is_hit, last))
        self._held[request] = []


def _by_batch(
    batches: IntArray, requests: IntArray, tokens: IntArray
) -> defaultdict[int, list[tuple[int, int]]]:
    """(request, tokens) of the events at the boundary before each batch."""
    events: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for j, i, count in zip(batches.tolist(), requests.tolist(), tokens.tolist(), strict=True):
        events[j].append((i, count))
    return events
