"""Timed state search: best first over the clock and what every request has, with arrivals and swap.

It is exact for every regular objective (no token that comes later can make it smaller), every cost form and
all switches, and it looks at every chunk, eviction and move to host memory; so it is for small instances,
which `build_timed_space` decides. Nothing but two things is left out: dropping a KV cache that could stay,
which can be done later at no price, and idle time that no arrival asks for.

A label is a clock and what is paid already: the weights of the tokens that are out. Of two labels of a state
the one with the earlier clock that has not paid more is enough. From the last arrival on both can do the same
at the same pace, so what they will have paid when the clocks are equal decides.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cspsched.exact.timed.heuristic import rests_until
from cspsched.exact.timed.moves import Event, LocalStates, Move
from cspsched.exact.timed.values import Stand, State, Values
from cspsched.problem.cost import BatchFeatures
from cspsched.problem.instance import Instance
from cspsched.problem.linear_form import linear_form
from cspsched.problem.objectives import AnyObjective
from cspsched.problem.result import StopReason
from cspsched.problem.schedule import Schedule
from cspsched.referee.timing import schedule_asap

TIMED_SEARCH = "timed state search"
MOST_CHOICES = 100_000
"""Batches out of a state that may be tried, at most."""
MOST_MOVES = 30_000
"""Out of all local states of all requests; their tables are built before the search."""
MOST_LABELS = 1_000_000
"""About 600 bytes each."""
SLICE = 2_000
"""Batches that are tried between two looks at the clock."""
DESCENT = 20_000
"""Batches that are tried in a descent to a good schedule, before the search that proves."""
LABEL_S, CHOICE_S = 5e-5, 5e-6
"""What a deterministic clock counts for an expansion, and for each batch that it tries."""


class Label(NamedTuple):
    """One way to a state."""

    stand: Stand
    state: State
    trail: Trail | None
    """The batches that lead here, the last one first."""


class Trail(NamedTuple):
    """A batch and those before it."""

    before: Trail | None
    moves: tuple[Move | None, ...]


@dataclass(frozen=True, kw_only=True)
class TimedSpace:
    """Tables of an instance: local states and what they are worth."""

    instance: Instance
    locals_: tuple[LocalStates, ...]
    values: Values


@dataclass(frozen=True, kw_only=True)
class TimedTalk:
    """How the search hears of the rest of the world, and the world of it."""

    time_left: Callable[[], float]
    upper: Callable[[], int]
    """Value of the best schedule known."""
    tell_bound: Callable[[int], None]
    tell_schedule: Callable[[Schedule], None]
    spend: Callable[[float], None] = lambda _: None


def build_timed_space(instance: Instance, objective: AnyObjective) -> TimedSpace | None:
    """The tables of the search; None where it is not exact or the instance is too large for it."""
    form = linear_form(objective, instance)
    if not form.is_regular(instance.requests) or not _is_small(instance):
        return None
    locals_ = tuple(LocalStates(instance, request) for request in instance.requests)
    outputs = [request.output_tokens for request in instance.requests]
    first = rests_until(instance, locals_, [1] * len(outputs))
    last = rests_until(instance, locals_, outputs)
    values = Values(instance.requests, form, locals_, first, last)
    return TimedSpace(instance=instance, locals_=locals_, values=values)


def _is_small(instance: Instance) -> bool:
    """Whether moves and the choices out of a state can be listed; both are estimated from above."""
    preemption = instance.switches.preemption
    # Besides going on: sit out, be dropped with or without a refill, go to host memory.
    others = 1 + preemption.recomputes + preemption.swaps
    refills = 2 if preemption.recomputes else 1
    num_moves, choices = 0, 1
    for request in instance.requests:
        most = min(request.peak_kv_tokens, instance.limits.max_batch_tokens)
        chunks = most if instance.switches.chunked_prefill else 1
        # A chunk of any size from any number of entries; whole prefills leave few states.
        num_moves += request.output_tokens * (chunks + 1) * (refills * chunks + others)
        choices *= refills * chunks + others
    return num_moves <= MOST_MOVES and choices <= MOST_CHOICES


class TimedSearch:
    """One search; `bound` is a lower bound on the objective whenever it is read."""

    def __init__(self, space: TimedSpace, talk: TimedTalk, most_labels: int = MOST_LABELS) -> None:
        self._space, self._talk, self._most_labels = space, talk, most_labels
        self._settled: dict[State, list[Stand]] = {}
        self._durations: dict[tuple[int, ...], int] = {}
        self._upper = talk.upper()
        self.bound = self._told = 0
        self.num_states = self._tried = self._next_look = 0

    def prove(self) -> StopReason:
        """Search until the optimum is proven, or time or room runs out."""
        self._descend()
        heuristic, start = self._space.values.heuristic, self._start()
        ticket = 0
        queue = [(heuristic(start.stand, start.state), 0, ticket, start)]
        while queue:
            value, _, _, label = queue[0]
            self.bound = max(self.bound, min(value, self._upper))
            if value >= self._upper:
                break
            if self._tried >= self._next_look and self._is_over():
                return StopReason.TIME_LIMIT
            heapq.heappop(queue)
            if self._is_dominated(label, self._settled):
                continue
            self.num_states += 1
            before = self._tried
            for following in self._following(label):
                least = max(value, heuristic(following.stand, following.state))
                if least < self._upper:
                    ticket += 1
                    heapq.heappush(queue, (least, -ticket, ticket, following))
            self._talk.spend(LABEL_S + (self._tried - before) * CHOICE_S)
            if ticket > self._most_labels:
                return StopReason.TOO_LARGE
        self.bound = self._upper
        self._tell()
        return StopReason.PROVEN

    def _descend(self) -> None:
        """Look for a schedule: a label counts for more the more tokens are missing."""
        settled: dict[State, list[Stand]] = {}
        total = sum(request.output_tokens for request in self._space.instance.requests)
        queue, ticket = [(0, 0, self._start())], 0
        while queue and self._tried < DESCENT:
            if self._tried >= self._next_look and self._is_over():
                return
            _, _, label = heapq.heappop(queue)
            if self._is_dominated(label, settled):
                continue
            for following in self._following(label):
                least = self._space.values.heuristic(following.stand, following.state)
                if least < self._upper:
                    out = sum(
                        states.generated(k)
                        for states, k in zip(self._space.locals_, following.state, strict=True)
                    )
                    ticket -= 1
                    heapq.heappush(queue, (least * (2 * total - out), ticket, following))
        self._talk.spend(self._tried * CHOICE_S)

    def _start(self) -> Label:
        """The label before anything has happened."""
        return Label(Stand(0, 0), (0,) * len(self._space.locals_), None)

    def _is_over(self) -> bool:
        self._next_look = self._tried + SLICE
        self._upper = min(self._upper, self._talk.upper())
        self._tell()
        return self._talk.time_left() <= 0

    def _tell(self) -> None:
        if self.bound > self._told:
            self._told = self.bound
            self._talk.tell_bound(self.bound)

    def _is_dominated(self, label: Label, settled: dict[State, list[Stand]]) -> bool:
        """Whether a settled label does as well; else it is settled."""
        known = settled.setdefault(label.state, [])
        dominates = self._space.values.dominates
        if any(dominates(other, label.stand, label.state) for other in known):
            return True
        known.append(label.stand)
        return False

    def _following(self, label: Label) -> Iterator[Label]:
        """Labels one batch later; a finished one becomes the upper bound."""
        requests, values = self._space.instance.requests, self._space.values
        for moves, duration, moved in self._batches(label.state):
            begin = label.stand.clock_ns + moved
            for move, request in zip(moves, requests, strict=True):
                if move is not None and move.tokens and request.arrival_ns > begin:
                    begin = request.arrival_ns
            end, paid = begin + duration, label.stand.paid
            state = tuple(
                position if move is None else move.following
                for position, move in zip(label.state, moves, strict=True)
            )
            for i, move in enumerate(moves):
                if move is not None and move.generates:
                    paid += values.of_token(i, self._space.locals_[i].generated(state[i]), end)
            found = Label(Stand(end, paid), state, Trail(label.trail, moves))
            if all(states.is_done(k) for states, k in zip(self._space.locals_, state, strict=True)):
                self._finish(found, values.at_end(found.stand))
            else:
                yield found

    def _finish(self, label: Label, value: int) -> None:
        if value < self._upper:
            self._upper = value
            self._talk.tell_schedule(self._schedule(label))

    def _batches(self, state: State) -> Iterator[tuple[tuple[Move | None, ...], int, int]]:
        """Moves of all requests in a batch that may follow, its duration, and the time of moving caches."""
        instance, locals_ = self._space.instance, self._space.locals_
        limits, hybrid = instance.limits, instance.switches.hybrid_batches
        options: list[Sequence[Move | None]] = [
            states.moves[k] or [None] for states, k in zip(locals_, state, strict=True)
        ]
        chosen: list[Move | None] = [None] * len(options)

        def extend(i: int, tokens: int, seats: int, blocks: int, host: int) -> Iterator[None]:
            if i == len(options):
                if tokens:
                    yield
                return
            for move in options[i]:
                chosen[i] = move
                if move is None:
                    yield from extend(i + 1, tokens, seats, blocks, host)
                elif (
                    tokens + move.tokens <= limits.max_batch_tokens
                    and seats + (move.tokens > 0) <= limits.max_batch_requests
                    and blocks + move.blocks <= limits.kv_blocks
                    and host + move.host_blocks <= limits.host_kv_blocks
                ):
                    yield from extend(
                        i + 1,
                        tokens + move.tokens,
                        seats + (move.tokens > 0),
                        blocks + move.blocks,
                        host + move.host_blocks,
                    )

        for _ in extend(0, 0, 0, 0, 0):
            self._tried += 1
            moves = tuple(chosen)
            features = _features(moves)
            is_hybrid = features.num_prefills > 0 and features.num_decodes > 0
            if (is_hybrid and not hybrid) or self._drops_needlessly(moves):
                continue
            moved = sum(move.moved_blocks for move in moves if move is not None)
            yield moves, self._duration(features), instance.cost.swap_time_ns(moved) if moved else 0

    def _drops_needlessly(self, moves: tuple[Move | None, ...]) -> bool:
        """Whether a request that is dropped and not processed could stay; then it can be dropped later."""
        if not self._space.instance.switches.holding:
            return False
        free = self._space.instance.limits.kv_blocks - sum(move.blocks for move in moves if move is not None)
        return any(move is not None and 0 < move.kept_blocks <= free for move in moves)

    def _duration(self, features: BatchFeatures[int]) -> int:
        known = self._durations.get(features)
        if known is None:
            known = self._durations[features] = self._space.instance.cost.batch_time_ns(features)
        return known

    def _schedule(self, label: Label) -> Schedule:
        """The schedule of a finished label."""
        trail, steps = label.trail, list[tuple[Move | None, ...]]()
        while trail is not None:
            steps.append(trail.moves)
            trail = trail.before

        def those(step: tuple[Move | None, ...], *events: Event) -> list[int]:
            return [i for i, move in enumerate(step) if move is not None and move.event in events]

        steps.reverse()
        return schedule_asap(
            self._space.instance,
            [
                [(i, move.tokens) for i, move in enumerate(step) if move is not None and move.tokens]
                for step in steps
            ],
            [those(step, Event.DROP, Event.SWAP) for step in steps],
            swapped=[those(step, Event.SWAP) for step in steps],
            restored=[those(step, Event.RESTORE) for step in steps],
        )


def _features(moves: tuple[Move | None, ...]) -> BatchFeatures[int]:
    tokens = attention = prefilled = prefill_context = decode_context = generating = prefills = decodes = 0
    for move in moves:
        if move is not None and move.tokens:
            tokens += move.tokens
            generating += move.generates
            if move.is_prefill:
                attention += move.attention
                prefilled += move.tokens
                prefill_context += move.context
                prefills += 1
            else:
                decode_context += move.context
                decodes += 1
    return BatchFeatures(
        tokens, attention, prefilled, prefill_context, decode_context, generating, prefills, decodes
    )
