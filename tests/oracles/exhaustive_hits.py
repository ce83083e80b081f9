"""Exhaustive search with prefix cache hits: what schedules of a tiny instance can reach.

The rules are the referee's, read naively: a request that holds nothing may start with full blocks that were
computed before or in the same batch; blocks with equal text are one; a block that is to be found later takes
room until then. Texts are written out token by token. A schedule without any hit may share blocks here, which
the referee counts for every request then. Shares the cost model with the package, and nothing else.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations, count, product
from typing import NamedTuple

import numpy as np

from cspsched.problem.cost import BatchFeatures
from cspsched.problem.instance import Instance
from cspsched.problem.schedule import Schedule
from tests.oracles.exhaustive import NOTHING, features_of
from tests.oracles.naive_prefix import Text, texts

Own = tuple[int, int, bool]
"""KV entries, tokens generated, in decode."""
State = tuple[tuple[Own, ...], frozenset[Text]]
"""Of all requests, and the blocks that are found although no request holds them."""
Times = tuple[tuple[int, int], ...]
"""Of each request when its first and its last token came, or 0."""
Move = tuple[bool, int, int]
"""Evicted before the batch, tokens found in the cache, tokens processed."""
Trail = tuple["Trail", int, int, tuple[Move, ...]] | None
"""What came before; start, end and moves of a batch."""


class Choice(NamedTuple):
    """What a request does in a batch."""

    move: Move
    held: frozenset[Text]
    """Blocks during the batch, the last one perhaps begun only."""
    found: frozenset[Text]
    """Blocks that it starts with out of the cache."""
    computed: frozenset[Text]
    """Full blocks during the batch that it did not find."""
    features: BatchFeatures[int]
    following: Own
    generates: bool


class HitSearch:
    """All that can happen to an instance without swap."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.size = instance.limits.block_tokens
        self.written = [[tuple(text[:end]) for end in range(len(text) + 1)] for text in texts(instance)]
        self._choices: dict[tuple[int, Own], list[Choice]] = {}

    def reachable(self) -> list[tuple[Times, Trail]]:
        """Times of the first and last tokens of some schedules, and their batches from the last to the first.

        Every schedule is no better than one of them: no token of that comes later.
        """
        requests = self.instance.requests
        start: State = (tuple((0, 0, False) for _ in requests), frozenset())
        ticket, finals = count(), list[tuple[Times, Trail]]()
        queue: list[tuple[int, int, State, Times, Trail]] = [
            (0, next(ticket), start, ((0, 0),) * len(requests), None)
        ]
        settled: dict[State, list[tuple[int, Times]]] = {}
        ways: dict[State, list[tuple[int, int, State, tuple[Choice, ...]]]] = {}
        while queue:
            clock, _, state, times, trail = heapq.heappop(queue)
            known = settled.setdefault(state, [])
            if any(before <= clock and _no_later(other, times) for before, other in known):
                continue
            known.append((clock, times))
            if all(own[1] == request.output_tokens for own, request in zip(state[0], requests, strict=True)):
                finals.append((times, trail))
                continue
            if state not in ways:
                ways[state] = list(self._ways(state))
            for arrival, duration, following, batch in ways[state]:
                begin = max(clock, arrival)
                end = begin + duration
                grown = tuple(
                    ((first or end) if choice.generates else first, end if choice.generates else last)
                    for (first, last), choice in zip(times, batch, strict=True)
                )
                moves = tuple(choice.move for choice in batch)
                heapq.heappush(queue, (end, next(ticket), following, grown, (trail, begin, end, moves)))
        return finals

    def _ways(self, state: State) -> Iterator[tuple[int, int, State, tuple[Choice, ...]]]:
        """Last arrival, batch time, state after it and choices, of every batch."""
        owns, cached = state
        limits, requests = self.instance.limits, self.instance.requests
        for batch in product(*(self._choices_of(i, own) for i, own in enumerate(owns))):
            tokens = [choice.features.tokens for choice in batch]
            held = frozenset().union(*(choice.held for choice in batch))
            computed = frozenset().union(*(choice.computed for choice in batch))
            found = frozenset().union(*(choice.found for choice in batch))
            room = limits.kv_blocks - len(held)
            before = cached | self._full(owns)
            if (
                not 0 < sum(tokens) <= limits.max_batch_tokens
                or len(tokens) - tokens.count(0) > limits.max_batch_requests
                or room < 0
                or not found <= before | computed
                or not (self.instance.switches.hybrid_batches or not _is_hybrid(batch))
            ):
                continue
            features = BatchFeatures(*map(sum, zip(*(choice.features for choice in batch), strict=True)))
            duration = self.instance.cost.batch_time_ns(features)
            arrival = max(r.arrival_ns for r, c in zip(requests, tokens, strict=True) if c)
            following = tuple(choice.following for choice in batch)
            wanted = self._wanted(following)
            # What lies unheld beside the batch; and what those that end in it leave behind.
            idle = sorted((before - held) & wanted)
            left = ((held & before) | computed) - self._full(following)
            for kept in combinations(idle, min(room, len(idle))):
                yield arrival, duration, (following, (left & wanted) | frozenset(kept)), batch

    def _full(self, owns: tuple[Own, ...]) -> frozenset[Text]:
        """Full blocks that requests hold."""
        return frozenset().union(*(self._blocks(i, kv // self.size) for i, (kv, _, _) in enumerate(owns)))

    def _wanted(self, owns: tuple[Own, ...]) -> frozenset[Text]:
        """Full blocks that an unfinished request may still look for."""
        return frozenset().union(
            *(
                self._blocks(i, (r.peak_kv_tokens - 1) // self.size)
                for i, (own, r) in enumerate(zip(owns, self.instance.requests, strict=True))
                if own[1] < r.output_tokens
            )
        )

    def _blocks(self, i: int, number: int) -> frozenset[Text]:
        """Text of the first blocks of a request, each with all before it."""
        return frozenset(self.written[i][(k + 1) * self.size] for k in range(number))

    def _choices_of(self, i: int, own: Own) -> list[Choice]:
        if (i, own) not in self._choices:
            self._choices[i, own] = list(dict.fromkeys(self._try(i, own)))
        return self._choices[i, own]

    def _try(self, i: int, own: Own) -> Iterator[Choice]:
        kv, generated, decoding = own
        request, switches = self.instance.requests[i], self.instance.switches
        if generated == request.output_tokens:
            yield Choice((False, 0, 0), *(frozenset(),) * 3, NOTHING, own, generates=False)
            return
        known = request.prompt_tokens + generated
        if not kv or switches.holding:
            yield self._choice(i, own, kv, kv, 0)
        if kv:
            chunks = range(1, known - kv + 1) if switches.chunked_prefill else [known - kv]
            for c in [1] if decoding else chunks:
                yield self._choice(i, own, kv, kv, c)
        if not kv or switches.preemption.recomputes:
            # It starts anew, perhaps out of the cache.
            if kv:
                yield self._choice(i, (0, generated, False), 0, 0, 0, evicted=True)
            for found in range(0, known, self.size):
                chunks = range(1, known - found + 1) if switches.chunked_prefill else [known - found]
                for c in chunks:
                    yield self._choice(i, (0, generated, False), found, 0, c, evicted=kv > 0)

    def _choice(
        self, i: int, own: Own, before: int, carried: int, c: int, *, evicted: bool = False
    ) -> Choice:
        """It has so many tokens before the batch, of which it carried some and found the rest."""
        _, generated, decoding = own
        request, after = self.instance.requests[i], before + c
        generates = c > 0 and after == request.prompt_tokens + generated
        done = generates and generated + 1 == request.output_tokens
        reserved = request.peak_kv_tokens if after and self.instance.switches.reservation else 0
        blocks = -(-max(after, reserved) // self.size)
        padded = self.written[i]
        held = frozenset(padded[min((k + 1) * self.size, len(padded) - 1)] for k in range(blocks))
        found = self._blocks(i, (before - carried) // self.size)
        return Choice(
            move=(evicted, before - carried, c),
            held=held,
            found=found,
            computed=self._blocks(i, after // self.size) - found,
            features=features_of(before, c, is_decode=decoding, generates=generates) if c else NOTHING,
            following=(0 if done else after, generated + generates, (decoding or generates) and not done),
            generates=generates,
        )


def least(found: list[tuple[Times, Trail]], value_of: Callable[[Times], int]) -> int:
    """Smallest value of a measure that no earlier token makes larger."""
    return min(value_of(times) for times, _ in found)


def schedule_of(trail: Trail) -> Schedule:
    """The batches of a trail with evictions and hits."""
    batches = []
    while trail is not None:
        trail, *batch = trail
        batches.append(batch)
    batches.reverse()
    made = Schedule.from_batches(
        [[(i, c) for i, (_, _, c) in enumerate(moves) if c] for _, _, moves in batches],
        [[i for i, (evicted, _, _) in enumerate(moves) if evicted] for _, _, moves in batches],
        [start for start, _, _ in batches],
        [end for _, end, _ in batches],
    )
    hits = [
        (j, i, found)
        for j, (_, _, moves) in enumerate(batches)
        for i, (_, found, _) in enumerate(moves)
        if found
    ]
    columns = np.array(hits, dtype=np.int64).reshape(-1, 3).T
    return replace(
        made,
        kv_tokens=_kv_tokens([moves for _, _, moves in batches]),
        hit_batch=columns[0],
        hit_request=columns[1],
        hit_tokens=columns[2],
    )


def _kv_tokens(batches: list[tuple[Move, ...]]) -> np.ndarray:
    """KV entries after every entry."""
    kv, after = [0] * len(batches[0]), []
    for moves in batches:
        for i, (evicted, found, c) in enumerate(moves):
            kv[i] = (0 if evicted else kv[i]) + found + c
            after += [kv[i]] if c else []
    return np.array(after, dtype=np.int64)


def _no_later(times: Times, others: Times) -> bool:
    """Whether every time is at most the other; what has not come is 0 in both, as states agree."""
    return all(a <= b and c <= d for (a, c), (b, d) in zip(times, others, strict=True))


def _is_hybrid(batch: tuple[Choice, ...]) -> bool:
    prefills, decodes = (
        any(getattr(choice.features, name) for choice in batch) for name in ("num_prefills", "num_decodes")
    )
    return prefills and decodes
