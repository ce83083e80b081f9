"""The event engine: arrivals in, the policy decides, the cost model prices, the clock moves on.

Decisions are the policy's and bookkeeping is the engine's alone. The batch is priced from features that the
engine adds up itself, so that the referee, who derives them again from the schedule, is a real check.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Set
from typing import NamedTuple

from cspsched.errors import InputError, PolicyCrashError, StuckError
from cspsched.problem.instance import Instance
from cspsched.simulate.checked_step import CheckedStep
from cspsched.simulate.log import ScheduleLog
from cspsched.simulate.protocol import Machine, Policy
from cspsched.simulate.replica import ReplicaView, Submissions
from cspsched.simulate.simulation import Simulation
from cspsched.simulate.state import State
from cspsched.simulate.step import Step
from cspsched.simulate.watch import Watch

MAX_FRUITLESS_EVICTIONS = 100
"""Evictions per unfinished request, without a token generated or a request arriving, that are a livelock."""
RUN_METHODS = ("submit", "schedule", "retire")


class LivelockError(StuckError):
    """A policy evicts and refills in a circle."""


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
    replica = StepReplica(instance, policy, machine=machine)
    arrivals = [request.arrival_ns for request in instance.requests]
    for request in sorted(range(len(arrivals)), key=arrivals.__getitem__):
        replica.submit(request)
    return replica.finish()


class _InFlight(NamedTuple):
    """A batch that was decided and has not ended."""

    requests: Set[int]
    finished: list[int]
    end_ns: int
    generating: list[int]
    """Who generates in it; kept only if the policy decides ahead."""


class _Decision(NamedTuple):
    """What a policy left when it last decided on a batch."""

    end_ns: int
    num_submitted: int
    num_running: int
    num_waiting: int
    free_blocks: int


class StepReplica:
    """A replica in the step engine: clock, arrivals that are known, state, log. Runs every policy.

    Parameters
    ----------
    machine
        As of `simulate`.
    """

    def __init__(self, instance: Instance, policy: Policy, *, machine: Machine | None = None) -> None:
        self._log = ScheduleLog()
        self._num_unfinished = 0
        self._is_open, self._is_idle = True, False
        self._until_ns: float = 0
        self._cost = instance.cost
        self._machine = machine
        self._label = policy.label
        self._watch = Watch(policy, instance.requests, lambda: (self._log.num_batches, self._clock_ns))
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
        self._finish_ns = [-1] * len(self._arrival_ns)
        self._to_come: deque[int] = deque()
        self._submissions = Submissions(instance.requests)
        self._decision = self._decided(0)

    def submit(self, request: int) -> None:
        """Let a request come at its arrival."""
        self._submissions.add(request)
        self._to_come.append(request)
        self._num_unfinished += 1

    def advance(self, until_ns: float) -> None:
        """Make every decision before a time; the batch of the last one may end later."""
        self._until_ns = max(self._until_ns, until_ns)
        if until_ns < math.inf:
            self._submissions.advance(int(until_ns))
        while self._goes_on():
            self._decide()

    def finish(self) -> Simulation:
        """Serve all that was submitted to its end, and tell what was done."""
        self._is_open = False
        self.advance(math.inf)
        log = self._log
        return Simulation(
            policy=self._label,
            schedule=log.schedule(),
            held_blocks=log.held_blocks(),
            num_waiting=log.num_waiting(),
            decided_ns=log.decided_ns(),
            preempted=tuple(log.preempted),
            output_changes=self._state.output_changes,
        )

    @property
    def next_event_ns(self) -> int | None:
        """When the next decision is due if nothing more is submitted; None if there is none."""
        if not self._num_unfinished:
            return None
        if not self._is_idle:
            return self._clock_ns
        return self._in_flight[0].end_ns if self._in_flight else None

    @property
    def view(self) -> ReplicaView:
        """What a router may look at."""
        seen = self._decision
        if min(self._clock_ns, seen.end_ns) <= self._until_ns:
            seen = self._decided(self._clock_ns)
        num_to_come = self._state.num_submitted + len(self._to_come) - seen.num_submitted
        return self._submissions.look(
            self._finish_ns.__getitem__,
            int(self._until_ns),
            num_running=seen.num_running,
            num_waiting=seen.num_waiting + num_to_come,
            free_blocks=seen.free_blocks,
        )

    def _decided(self, end_ns: int) -> _Decision:
        state, pool = self._state, self._state.pool
        return _Decision(end_ns, state.num_submitted, pool.num_holders, state.num_waiting, pool.free)

    def _goes_on(self) -> bool:
        """Whether there is a decision to make: somebody is unfinished, and it is time."""
        if self._is_idle and not self._wait():
            return False
        self._is_idle = False
        return self._num_unfinished > 0 and self._clock_ns < self._until_ns

    def _decide(self) -> None:
        """One decision of the policy and what follows: its batch, or waiting for one to end or to arrive."""
        self._submit_arrivals()
        step = self._new_step(self._state, self._clock_ns, self._label)
        with self._watch:
            self._run.schedule(step)
        self._log.add_boundary(step)
        self._moved_blocks += step.moved_blocks
        self._num_unfinished -= step.dropped
        self._refuse_livelock(len(step.evicted))
        if step.batch:
            self._launch(step)
            if len(self._in_flight) == self._depth:
                self._await_batch()
        else:
            self._is_idle = bool(self._in_flight) or not (step.evicted or step.restored)

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
        while self._to_come and self._arrival_ns[self._to_come[0]] <= self._clock_ns:
            request = self._to_come.popleft()
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

    def _wait(self) -> bool:
        """Let a batch end or a request arrive, whichever is awaited; False where that is not known yet."""
        arrival_ns = self._arrival_ns[self._to_come[0]] if self._to_come else None
        if self._in_flight:
            end_ns = self._in_flight[0].end_ns
            if not self._decides_on_arrival:
                self._await_batch()
            elif arrival_ns is not None and arrival_ns < end_ns:
                self._clock_ns = arrival_ns
            elif arrival_ns is None and self._is_open and end_ns > self._until_ns:
                return False
            else:
                self._await_batch()
        elif arrival_ns is not None:
            self._clock_ns = arrival_ns
        elif self._num_unfinished and not self._is_open:
            raise StuckError(
                f"policy {self._label} schedules nothing although nothing more can arrive: "
                f"{self._situation()}"
            )
        else:
            return False
        return True

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
        self._log.add_batch(
            step.batch,
            outcome.kv_tokens,
            decided_ns=self._clock_ns,
            start_ns=start_ns,
            end_ns=end_ns,
            held_blocks=self._state.pool.used,
            num_waiting=self._state.num_waiting,
        )
        self._decision = self._decided(end_ns)
        for request in outcome.finished:
            self._finish_ns[request] = end_ns
        if outcome.features.num_generating:
            self._fruitless_evictions = 0
        generating: list[int] = []
        if self._depth > 1:
            self._state.undelivered |= step.batch.keys()
            generating = self._state.launch(step.batch)
        self._in_flight.append(_InFlight(step.batch.keys(), outcome.finished, end_ns, generating))

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
            self._num_unfinished -= len(batch.finished)
