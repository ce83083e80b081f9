"""A scheduler that takes named decisions from a known schedule, and the rest from a policy's habits.

Its own rule is the plainest one: running requests first, in order of admission, then the queue, one token
budget for both; the last admitted is evicted where KV blocks are short. With no habit and nothing taken over
that is vLLM V1. Every habit restricts it, and every decision of a guide replaces one of its own.
"""

from __future__ import annotations

from bisect import bisect_right, insort_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from cspsched.problem.cost import IntArray
from cspsched.problem.instance import Instance
from cspsched.problem.schedule import Schedule
from cspsched.referee.history import History
from cspsched.referee.rules import occupied_blocks
from cspsched.referee.walk import BoolArray
from cspsched.simulate import Step

Residence = tuple[int, int]
"""A request, and the tokens of it that are known when it is admitted, anew after each eviction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """What a schedule never does, and the most that it does.

    Attributes
    ----------
    whole_prompts
        A prefill, once begun, is finished in one batch.
    apart
        No batch holds prefill and decode.
    reserves
        In every batch each resident request holds the KV blocks of its last batch, or more.
    batch_tokens
        Tokens of the largest batch.
    seats
        Most requests that hold KV blocks at a time.
    """

    whole_prompts: bool
    apart: bool
    reserves: bool
    batch_tokens: int
    seats: int

    @classmethod
    def of(cls, history: History, held_blocks: IntArray) -> Habits:
        """Habits of a schedule that keeps all rules.

        Parameters
        ----------
        held_blocks
            Shape (num_batches,): KV blocks held in each batch, as the simulator counts them.
        """
        prefills = ~history.decodes
        features, instance = history.features, history.instance
        reserving = replace(instance, switches=replace(instance.switches, reservation=True))
        # In blocks that hold any request, a resident occupies one.
        largest = int(instance.columns.peak_kv_tokens.max())
        one_each = replace(instance, limits=replace(instance.limits, block_tokens=largest))
        peaks, residents = (occupied_blocks(replace(history, instance=one)) for one in (reserving, one_each))
        return cls(
            whole_prompts=bool(history.generates[prefills].all()),
            apart=not np.any((features.num_prefills > 0) & (features.num_decodes > 0)),
            reserves=bool((held_blocks >= peaks).all()),
            batch_tokens=int(features.tokens.max()),
            seats=int(residents.max()),
        )


@dataclass(frozen=True, eq=False)
class Guide:
    """Decisions of a known schedule, in a form that another schedule can follow.

    Attributes
    ----------
    history
        What the known schedule implies.
    """

    history: History

    @cached_property
    def _first_entry(self) -> IntArray:
        """First entry of each request, shape (num_requests,)."""
        return np.unique(self.history.schedule.request, return_index=True)[1].astype(np.int64)

    @cached_property
    def rank(self) -> IntArray:
        """Place of each request in the order of admission, shape (num_requests,)."""
        return np.argsort(np.argsort(self._first_entry)).astype(np.int64)

    @cached_property
    def begins_ns(self) -> IntArray:
        """Start of the first batch of each request, shape (num_requests,)."""
        schedule = self.history.schedule
        begins: IntArray = schedule.start_ns[schedule.batch_of_entry[self._first_entry]]
        return begins

    @cached_property
    def in_order_ns(self) -> IntArray:
        """When each request can come earliest if none comes before those admitted earlier have arrived."""
        arrival_ns, in_order_ns = self.history.instance.columns.arrival_ns, np.empty_like(self.rank)
        in_turn = np.argsort(self.rank)
        in_order_ns[in_turn] = np.maximum.accumulate(arrival_ns[in_turn])
        return in_order_ns

    @cached_property
    def chunk_ends(self) -> Mapping[Residence, Sequence[int]]:
        """KV entries after each prefill chunk of each residence."""
        history, ends = self.history, defaultdict[Residence, list[int]](list)
        for residence, kv_tokens in zip(self._residences, history.kv_after[self._prefills], strict=True):
            ends[residence].append(int(kv_tokens))
        return dict(ends)

    @cached_property
    def resumes_ns(self) -> Mapping[Residence, int]:
        """Start of the first batch of each residence."""
        schedule = self.history.schedule
        starts_ns = schedule.start_ns[schedule.batch_of_entry[self._prefills]].tolist()
        first: dict[Residence, int] = {}
        for residence, start_ns in zip(self._residences, starts_ns, strict=True):
            first.setdefault(residence, start_ns)
        return first

    @cached_property
    def evicted_at(self) -> frozenset[Residence]:
        """Requests with the known tokens at which they are evicted amid their output."""
        history, schedule = self.history, self.history.schedule
        columns = history.instance.columns
        emitted = np.flatnonzero(history.generates)
        emitted = emitted[np.argsort(schedule.request[emitted], kind="stable")]
        # Batches in which each request generates, one request after another.
        batches = np.split(schedule.batch_of_entry[emitted], np.cumsum(columns.output_tokens)[:-1])
        return frozenset(
            (request, int(columns.prompt_tokens[request]) + generated)
            for batch, request in zip(
                schedule.evicted_batch.tolist(), schedule.evicted_request.tolist(), strict=True
            )
            if (generated := int(np.searchsorted(batches[request], batch)))
        )

    @property
    def _prefills(self) -> BoolArray:
        prefills: BoolArray = ~self.history.decodes
        return prefills

    @cached_property
    def _residences(self) -> list[Residence]:
        """Residence of every prefill entry."""
        history, prefills = self.history, self._prefills
        requests = history.schedule.request[prefills]
        known = history.instance.columns.prompt_tokens[requests] + history.generated_before[prefills]
        return list(zip(requests.tolist(), known.tolist(), strict=True))


@dataclass(frozen=True, eq=False)
class Gate:
    """Hands requests to a scheduler in a certain order, none before a certain time.

    Attributes
    ----------
    instance
        As the scheduler sees it.
    order
        Position in the whole instance of each of its requests.
    """

    instance: Instance
    order: IntArray

    @classmethod
    def of(cls, instance: Instance, release_ns: IntArray, rank: IntArray) -> Gate:
        """Release requests at times that are no earlier than their arrivals, equal ones by rank."""
        order = np.lexsort((rank, release_ns)).astype(np.int64)
        requests = tuple(replace(instance.requests[i], arrival_ns=int(release_ns[i])) for i in order.tolist())
        return cls(replace(instance, requests=requests), order)

    def outside(self, schedule: Schedule) -> Schedule:
        """A schedule of what the scheduler sees, as one of the whole instance: requests only come earlier."""
        named = ("request", "evicted_request", "restored_request", "hit_request")
        return replace(schedule, **{name: self.order[getattr(schedule, name)] for name in named})


@dataclass(frozen=True, slots=True, kw_only=True)
class Follow:
    """The plain rule with habits of a policy and decisions of a guide.

    Attributes
    ----------
    order
        Position in the guide's instance of each request (`Gate.order`).
    chunks_of
        Whose chunk sizes are taken over; None: as large as the batch allows.
    preemptions_of
        Whose preemptions are taken over: a request is evicted when it has generated as many tokens, and goes
        on no earlier. None: only as KV blocks are short.
    """

    habits: Habits
    order: IntArray
    chunks_of: Guide | None = None
    preemptions_of: Guide | None = None
    name: str = "follow"
    label: str = "follow"

    def new_run(self, instance: Instance) -> FollowRun:
        """Fresh queues."""
        return FollowRun(self, instance)


@dataclass(slots=True)
class FollowRun:
    """One run."""

    policy: Follow
    instance: Instance
    running: list[int] = field(default_factory=list)
    """In order of admission."""
    waiting: list[int] = field(default_factory=list)
    """In order of submission, the evicted in front."""
    evicted: set[Residence] = field(default_factory=set)
    """Preemptions of the guide that are done."""

    def submit(self, request: int) -> None:
        """Queue an arrival."""
        self.waiting.append(request)

    def retire(self, requests: Sequence[int]) -> None:
        """Forget finished requests."""
        self.running = [request for request in self.running if request not in set(requests)]

    def schedule(self, step: Step) -> None:
        """Evict as the guide does; then running requests, then the queue."""
        self._preempt_as_guided(step)
        num_guided = len(step.evicted)
        apart = self.policy.habits.apart
        self._serve(step, decodes=False if apart else None)
        # As in vLLM, memory that an eviction had to make is not given to a new request.
        if len(step.evicted) == num_guided:
            self._admit(step)
        if apart and not step.batch:
            self._serve(step, decodes=True)

    def _serve(self, step: Step, *, decodes: bool | None = None) -> None:
        """Running requests in order of admission, or of those only the decodes or only the prefills."""
        place = 0
        while place < len(self.running) and step.tokens_left and step.requests_left:
            request = self.running[place]
            tokens = self._chunk(step, request) if decodes in (None, step.decoding[request]) else 0
            while tokens and step.missing_blocks(request, tokens) > step.free_blocks:
                victim = self.running[-1]
                self._evict(step, victim)
                tokens = 0 if victim == request else tokens
            if tokens:
                step.schedule(request, tokens, step.missing_blocks(request, tokens))
            place += 1

    def _admit(self, step: Step) -> None:
        """The head of the queue, as long as all its known tokens fit."""
        habits = self.policy.habits
        while self.waiting and step.tokens_left and step.requests_left and len(self.running) < habits.seats:
            request = self.waiting[0]
            tokens = self._chunk(step, request)
            if not tokens or not self._fits(step, request) or self._is_held(step, request):
                break
            step.schedule(request, tokens, step.missing_blocks(request, tokens))
            self.running.append(self.waiting.pop(0))

    def _chunk(self, step: Step, request: int) -> int:
        """Tokens of a request in this batch."""
        if step.decoding[request]:
            return 1
        known, done = step.known_tokens[request], step.computed_tokens[request]
        lacking = known - done
        tokens = min(lacking, step.tokens_left)
        if self.policy.habits.whole_prompts and tokens < lacking:
            return 0
        guide = self.policy.chunks_of
        if guide is None:
            return tokens
        ends = guide.chunk_ends.get((int(self.policy.order[request]), known), ())
        place = bisect_right(ends, done)
        return min(tokens, ends[place] - done) if place < len(ends) else tokens

    def _fits(self, step: Step, request: int) -> bool:
        """Whether the known tokens fit, or, reserved, the peaks of all that run and this one."""
        if self.policy.habits.reserves:
            return sum(map(self._peak_blocks, (*self.running, request))) <= self.instance.limits.kv_blocks
        return step.missing_blocks(request, step.known_tokens[request]) <= step.free_blocks

    def _peak_blocks(self, request: int) -> int:
        return self.instance.limits.blocks_of(self.instance.requests[request].peak_kv_tokens)

    def _is_held(self, step: Step, request: int) -> bool:
        """Whether the guide lets an evicted request wait longer; none is held while nothing runs."""
        return bool(self.running) and step.clock_ns < self._resumes_ns(step, request)

    def _resumes_ns(self, step: Step, request: int) -> int:
        """When the guide lets an evicted request go on; 0 where it never evicts it there."""
        guide = self.policy.preemptions_of
        residence = int(self.policy.order[request]), step.known_tokens[request]
        return guide.resumes_ns.get(residence, 0) if guide else 0

    def _preempt_as_guided(self, step: Step) -> None:
        guide = self.policy.preemptions_of
        for request in list(self.running) if guide else ():
            residence = int(self.policy.order[request]), step.known_tokens[request]
            if guide and residence in guide.evicted_at and residence not in self.evicted:
                self.evicted.add(residence)
                self._evict(step, request)

    def _evict(self, step: Step, request: int) -> None:
        """Preempt a request, and queue it before those that go on later."""
        step.preempt(request)
        self.running.remove(request)
        insort_left(self.waiting, request, key=lambda one: self._resumes_ns(step, one))
