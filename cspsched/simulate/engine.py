"""The event engine: arrivals in, the policy decides, the cost model prices, the clock moves on.

Decisions are the policy's and bookkeeping is the engine's alone. The batch is priced from features that the
engine adds up itself, so that the referee, who derives them again from the schedule, is a real check.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import NamedTuple

from cspsched.errors import InputError, PolicyCrashError, StuckError
from cspsched.problem.cost import IntArray
from cspsched.problem.instance import Instance
from cspsched.problem.schedule import Schedule
from cspsched.simulate.checked_step import CheckedStep
from cspsched.simulate.log import ScheduleLog
from cspsched.simulate.protocol import Machine, Policy
from cspsched.simulate.state import State
from cspsched.simulate.step import Step
from cspsched.simulate.watch import Watch

MAX_FRUITLESS_EVICTIONS = 100
"""Evictions per unfinished request, without a token generated or a request arriving, that are a livelock."""
RUN_METHODS = ("submit", "schedule", "retire")


class LivelockError(StuckError):
    """A policy evicts and refills in a circle."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Simulation:
    """What a policy made of an instance.

    Attributes
    ----------
    policy
        Label of the policy.
    schedule
        Every batch in the policy's order; kv_tokens counts tokens computed.
    held_blocks
        Shape (num_batches,): KV blocks held during the batch. At least what the tokens occupy, and more
        where a policy allocates ahead (Sarathi takes a whole prompt's blocks at once).
    num_waiting
        Shape (num_batches,): requests that have arrived and hold no KV block during the batch.
    decided_ns
        Shape (num_batches,): when the policy decided; the start of the batch, or earlier if it decides ahead.
    preempted
        (batch, request) of every preemption as the policy told it. Beside the evictions of the schedule there
        are those of requests whose last token was in flight, which lose nothing.
    output_changes
        {request: tokens generated} where an emulated bug of the real engine made them more or fewer than were
        asked for. No schedule of the instance does that, and the referee says so.
    """

    policy: str
    schedule: Schedule
    held_blocks: IntArray
    num_waiting: IntArray
    decided_ns: IntArray
    preempted: tuple[tuple[int, int], ...]
    output_changes: Mapping[int, int] = field(default_factory=dict)


def simulate(instance: Instance, policy: Policy, *, machine: Machine | None = None) -> Simulation:
    """Run a policy over an instance until every request has generated its last token.

    Arrivals at or before the clock are submitted in (arrival, file) order before each decision. A decision
    without a batch waits for the next arrival; one that only evicted is asked again at once.

    Parameters
    ----------
    machine
        Runs the batches in place of the instance's cost. On its own times, and batches that overlap as in a
        pipeline, the referee has no say.

    Raises
    ------
    InputError
        If the instance has a request that can never be served (see `Instance.split_rejected`).
    PolicyError
        If the policy breaks a limit.
    StuckError
        If it schedules nothing although nothing more can arrive.
    LivelockError
        If it evicts again and again without a single token generated in between.
    """
    rejections = instance.split_rejected()[1]
    if rejections:
        raise InputError(f"{rejections[0].reason}; remove such requests first (Instance.split_rejected)")
    engine = _Engine(instance, policy, machine)
    while engine.num_unfinished:
        engine.iterate()
    return Simulation(
        policy=policy.label,
        schedule=engine.log.schedule(),
        held_blocks=engine.log.held_blocks(),
        num_waiting=engine.log.num_waiting(),
        decided_ns=engine.log.decided_ns(),
        preempted=tuple(engine.log.preempted),
        output_changes=engine.output_changes,
    )


class _InFlight(NamedTuple):
    """A batch that was decided and has not ended."""

    requests: Set[int]
    finished: list[int]
    end_ns: int
    generating: list[int]
    """Who generates in it; kept only if the policy decides ahead."""


class _Engine:
    """One run: clock, arrivals still to come, state, log."""

    def __init__(self, instance: Instance, policy: Policy, machine: Machine | None) -> None:
        self.log = ScheduleLog()
        self.num_unfinished = len(instance.requests)
        self._cost = instance.cost
        self._machine = machine
        self._label = policy.label
        self._watch = Watch(policy, instance.requests, lambda: (self.log.num_batches, self._clock_ns))
        with Watch(policy, instance.requests):
            self._run = policy.new_run(instance)
            caches_prefixes: bool = getattr(self._run, "caches_prefixes", False)
            self._depth: int = getattr(self._run, "batches_in_flight", 1)
            self._decides_on_arrival: bool = getattr(self._run, "decides_on_arrival", False)
        self._require_run()
        self._new_step = CheckedStep if self._watch.is_foreign else Step
        self._state = State(instance, caches_prefixes=caches_prefixes)
        self._in_flight: deque[_InFlight] = deque()
        self._busy_until_ns = 0
        self._moved_blocks = 0
        self._clock_ns = 0
        self._fruitless_evictions = 0
        self._arrival_ns = [request.arrival_ns for request in instance.requests]
        # Latest first, so that the next arrival is popped from the end; among equals the file's order.
        order = sorted(range(len(self._arrival_ns)), key=self._arrival_ns.__getitem__)
        self._to_come = order[::-1]

    @property
    def output_changes(self) -> Mapping[int, int]:
        """Requests that an emulated bug gave more or fewer tokens, and how many they have."""
        return self._state.output_changes

    def iterate(self) -> None:
        """One decision of the policy and what follows: its batch, or waiting for one to end or to arrive."""
        self._submit_arrivals()
        step = self._new_step(self._state, self._clock_ns, self._label)
        with self._watch:
            self._run.schedule(step)
        self.log.add_boundary(step)
        self._moved_blocks += step.moved_blocks
        self.num_unfinished -= step.dropped
        self._refuse_livelock(len(step.evicted))
        if step.batch:
            self._launch(step)
            if len(self._in_flight) == self._depth:
                self._await_batch()
        elif self._in_flight:
            self._await_batch_or_arrival()
        elif not step.evicted and not step.restored and self.num_unfinished:
            self._wait_for_arrival()

    def _require_run(self) -> None:
        """Refuse a run that cannot be asked."""
        missing = [name for name in RUN_METHODS if not callable(getattr(self._run, name, None))]
        if missing:
            raise PolicyCrashError(
                f"policy {self._label}: new_run returns {self._run!r} without {', '.join(missing)}, expected "
                f"an object with {', '.join(RUN_METHODS)}"
            )
        if not isinstance(self._depth, int) or self._depth < 1:
            raise PolicyCrashError(
                f"policy {self._label}: batches_in_flight is {self._depth!r}, expected at least 1"
            )

    def _submit_arrivals(self) -> None:
        while self._to_come and self._arrival_ns[self._to_come[-1]] <= self._clock_ns:
            request = self._to_come.pop()
            self._state.submit(request)
            with self._watch:
                self._run.submit(request)
            self._fruitless_evictions = 0

    def _refuse_livelock(self, evictions: int) -> None:
        self._fruitless_evictions += evictions
        if self._fruitless_evictions > MAX_FRUITLESS_EVICTIONS * self._state.num_active:
            raise LivelockError(
                f"policy {self._label} evicts in a circle: {self._fruitless_evictions} evictions since the "
                f"last generated token or arrival; {self._situation()}"
            )

    def _situation(self) -> str:
        state = self._state
        return (
            f"{state.num_waiting} requests wait, {state.pool.num_holders} are running "
            f"with {state.pool.used} of {state.pool.capacity} KV blocks"
        )

    def _wait_for_arrival(self) -> None:
        if not self._to_come:
            raise StuckError(
                f"policy {self._label} schedules nothing although nothing more can arrive: "
                f"{self._situation()}"
            )
        self._clock_ns = self._arrival_ns[self._to_come[-1]]

    def _launch(self, step: Step) -> None:
        """Queue the batch behind those in flight; its start waits for what is swapped."""
        if self._machine is None:
            outcome = self._state.process(step.batch)
            start_ns = max(self._clock_ns, self._busy_until_ns) + self._cost.swap_time_ns(self._moved_blocks)
            self._busy_until_ns = end_ns = start_ns + self._cost.batch_time_ns(outcome.features)
        else:
            start_ns, end_ns = self._machine.run(step.batch, step.computed_tokens, ready_ns=self._clock_ns)
            outcome = self._state.process(step.batch)
        self._moved_blocks = 0
        self.log.add_batch(
            step.batch,
            outcome.kv_tokens,
            decided_ns=self._clock_ns,
            start_ns=start_ns,
            end_ns=end_ns,
            held_blocks=self._state.pool.used,
            num_waiting=self._state.num_waiting,
        )
        if outcome.features.num_generating:
            self._fruitless_evictions = 0
        generating: list[int] = []
        if self._depth > 1:
            self._state.undelivered |= step.batch.keys()
            generating = self._state.launch(step.batch)
        self._in_flight.append(_InFlight(step.batch.keys(), outcome.finished, end_ns, generating))

    def _await_batch_or_arrival(self) -> None:
        """Let a batch end, or before that a request arrive for a policy that decides then, too."""
        if self._decides_on_arrival and self._to_come:
            arrival_ns = self._arrival_ns[self._to_come[-1]]
            if arrival_ns < self._in_flight[0].end_ns:
                self._clock_ns = arrival_ns
                return
        self._await_batch()

    def _await_batch(self) -> None:
        """Let the oldest batch in flight end: its tokens are known, who is finished leaves."""
        batch = self._in_flight.popleft()
        self._clock_ns = batch.end_ns
        if self._depth > 1:
            self._state.undelivered -= batch.requests
            self._state.undelivered.update(*(later.requests for later in self._in_flight))
            self._state.deliver(batch.generating)
        if batch.finished:
            self._state.retire(batch.finished)
            with self._watch:
                self._run.retire(batch.finished)
            self.num_unfinished -= len(batch.finished)
