"""Policies that are asked for every batch: a loop in Python over the kernel's records.

Decisions are the policy's and bookkeeping is the kernel's alone. A batch is priced from features that the
kernel adds up itself, so that the referee, which derives them again from the schedule, is a real check.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from cspsched.errors import PolicyCrashError, UsageError
from cspsched.problem.instance import Instance
from cspsched.simulate.checked_step import CheckedStep
from cspsched.simulate.kernel.actions import begin, execute, leave
from cspsched.simulate.kernel.cancel import ends_later, leave_device, leave_queue
from cspsched.simulate.kernel.columns import ENDING
from cspsched.simulate.kernel.layout import DECIDED_NS, DECODES, FINISHED, LOG_FULL, QUEUED, Kernel
from cspsched.simulate.kernel.lists import next_arrival
from cspsched.simulate.kernel.prefix import enter
from cspsched.simulate.kernel.progress import has_room, next_arrival_ns, refusal
from cspsched.simulate.kernel.rules import Rules
from cspsched.simulate.kernel.runs import close_run
from cspsched.simulate.protocol import StepPolicy
from cspsched.simulate.step import Columns, Step
from cspsched.simulate.watch import Watch

RUN_METHODS = ("submit", "schedule", "retire")


def step_rules(instance: Instance, policy: StepPolicy) -> Rules:
    """Return the rules of a policy that decides step by step, for one run as plain Python.

    Raises
    ------
    PolicyCrashError
        If the policy makes no run, or one that cannot be asked.
    """
    steps, limits = Steps(instance, policy), instance.limits
    return Rules(
        run=steps.run,
        cancel=steps.cancel,
        kv_blocks=limits.kv_blocks,
        block_tokens=limits.block_tokens,
        max_tokens=limits.max_batch_tokens,
        batch_tokens=limits.max_batch_tokens,
        max_running=limits.max_batch_requests,
        most_holders=limits.kv_blocks,
        lockstep=False,
        keeps_notes=True,
        lookahead=limits.kv_tokens if steps.caches_prefixes else 0,
        swaps=instance.switches.preemption.swaps,
        host_blocks=limits.host_kv_blocks,
        caches_prefixes=steps.caches_prefixes,
        decides_ahead=True,
        restarts_output=True,
    )


class _InFlight(NamedTuple):
    """A batch that was decided and has not ended."""

    requests: list[int]
    finished: list[int]
    generating: list[int]
    end_ns: int


class Steps:
    """One run of a policy, asked whenever the replica can decide.

    Attributes
    ----------
    depth
        Batches that may be in flight at a time.
    caches_prefixes
        Whether it finds what others have left on the device.
    """

    def __init__(self, instance: Instance, policy: StepPolicy) -> None:
        self._label = policy.label
        self._clock = (0, 0)
        self._watch = Watch(policy, instance.requests, lambda: self._clock)
        with Watch(policy, instance.requests):
            self._run = policy.new_run(instance)
            self.caches_prefixes: bool = getattr(self._run, "caches_prefixes", False)
            self.depth: int = getattr(self._run, "batches_in_flight", 1)
            self._decides_on_arrival: bool = getattr(self._run, "decides_on_arrival", False)
        self._require_run()
        self._new_step = CheckedStep if self._watch.is_foreign else Step
        self._names = instance.columns.request_id
        self._columns = Columns(len(self._names))
        self._in_flight: deque[_InFlight] = deque()

    def run(self, k: Kernel) -> int:
        """Make every decision there is (see `make_loop`)."""
        while self._goes_on(k):
            if not has_room(k):
                return LOG_FULL
            self._submit(k)
            begin(k)
            step = self._new_step(k, self._columns, self._label, self._names)
            with self._watch:
                self._run.schedule(step)
            answer = refusal(k)
            if answer == FINISHED and step.batch:
                answer = self._launch(k, list(step.batch))
                if len(self._in_flight) == self.depth:
                    self._await_batch(k)
            elif answer == FINISHED:
                k.now.is_idle = bool(self._in_flight) or not (step.evicted or step.restored)
            if answer != FINISHED:
                return answer
        return FINISHED

    def cancel(self, k: Kernel, request: int, at_ns: int) -> None:
        """Cancel a request that has arrived and is not finished, at a time (see `Replica.cancel`).

        The policy is told by `cancel`, or, of one in a batch that has not ended, by `retire` when that ends.

        Raises
        ------
        UsageError
            If the policy's run has no `cancel`.
        """
        forget = getattr(self._run, "cancel", None)
        if not callable(forget):
            raise UsageError(
                f"policy {self._label}: its run has no method cancel(request), which forgets a request that "
                "waits or runs, so none can be cancelled"
            )
        row, columns = k.requests[request], self._columns
        if ends_later(k, request):
            return
        carrying = [batch for batch in self._in_flight if request in batch.requests]
        if row.phase != QUEUED and carrying:
            close_run(k, request)
            row.output_tokens, row.finish_ns = row.generated, carrying[-1].end_ns
            carrying[-1].finished.append(request)
            columns.update(k, request)
            return
        if row.phase != QUEUED:
            leave_device(k, request, at_ns)
        else:
            leave_queue(k, request, at_ns)
        columns.forget(request)
        with self._watch:
            forget(request)

    def _require_run(self) -> None:
        """Refuse a run that cannot be asked."""
        missing = [name for name in RUN_METHODS if not callable(getattr(self._run, name, None))]
        if missing:
            raise PolicyCrashError(
                f"policy {self._label}: new_run returns {self._run!r} without {', '.join(missing)}, expected "
                f"an object with {', '.join(RUN_METHODS)}"
            )
        if not isinstance(self.depth, int) or self.depth < 1:
            raise PolicyCrashError(
                f"policy {self._label}: batches_in_flight is {self.depth!r}, expected at least 1"
            )

    def _goes_on(self, k: Kernel) -> bool:
        """Whether there is a decision to make: a request is unfinished, and it is time."""
        now = k.now
        if now.is_idle and not self._wait(k):
            return False
        now.is_idle = 0
        self._clock = (now.num_batches, now.clock_ns)
        return now.num_unfinished > 0 and now.clock_ns < now.until_ns

    def _wait(self, k: Kernel) -> bool:
        """Let a batch end or a request arrive, whichever is awaited; False where that is not known yet."""
        now = k.now
        is_known = now.num_submitted < now.num_arrivals
        if self._in_flight:
            end_ns = self._in_flight[0].end_ns
            if self._decides_on_arrival and is_known and next_arrival_ns(k) < end_ns:
                now.clock_ns = next_arrival_ns(k)
            elif self._decides_on_arrival and not is_known and now.is_open and end_ns > now.until_ns:
                return False
            else:
                self._await_batch(k)
        elif is_known:
            now.clock_ns = next_arrival_ns(k)
        else:
            return False
        return True

    def _submit(self, k: Kernel) -> None:
        """Tell the policy of all arrivals."""
        while (request := next_arrival(k)) >= 0:
            self._columns.update(k, request)
            with self._watch:
                self._run.submit(request)

    def _launch(self, k: Kernel, batch: list[int]) -> int:
        """Queue the batch behind those in flight; the clock stays."""
        now, columns = k.now, self._columns
        decided_ns, row = now.clock_ns, now.batch_row
        now.clock_ns = max(decided_ns, now.busy_until_ns)
        answer = execute(k)
        k.batch_ns[row, DECIDED_NS] = decided_ns
        now.busy_until_ns, now.clock_ns = now.clock_ns, decided_ns
        finished = [int(k.slots[place, ENDING]) for place in range(now.num_ending)]
        now.num_ending = 0
        columns.restored.clear()
        columns.update_all(k, batch)
        generating: list[int] = []
        if self.depth > 1:
            columns.undelivered.update(batch)
        if self.caches_prefixes:
            generating = [request for request in batch if k.requests[request].phase == DECODES]
        for request in generating:
            k.notes[request].num_unseen += 1
        self._in_flight.append(_InFlight(batch, finished, generating, now.busy_until_ns))
        self._note_in_flight(k)
        return answer

    def _await_batch(self, k: Kernel) -> None:
        """Let the oldest batch in flight end: its tokens are known, what is finished leaves."""
        now, columns, batch = k.now, self._columns, self._in_flight.popleft()
        now.clock_ns = batch.end_ns
        self._note_in_flight(k)
        self._clock = (now.num_batches, now.clock_ns)
        if self.depth > 1:
            columns.undelivered.difference_update(batch.requests)
            columns.undelivered.update(*(later.requests for later in self._in_flight))
        for request in batch.generating:
            row, notes = k.requests[request], k.notes[request]
            notes.num_unseen -= 1
            if row.blocks:
                enter(k, request, row.kv_tokens - notes.num_unseen)
        for request in batch.finished:
            if k.requests[request].blocks:
                leave(k, request)
            else:
                now.num_waiting -= 1
                now.num_unfinished -= 1
            columns.forget(request)
        if batch.finished:
            self._retire(batch.finished)

    def _note_in_flight(self, k: Kernel) -> None:
        """Let the replica know how many batches have not ended, and when the next does."""
        k.now.num_flying = len(self._in_flight)
        if self._in_flight:
            k.now.landing_ns = self._in_flight[0].end_ns

    def _retire(self, finished: list[int]) -> None:
        """Tell the policy who is finished; an error names no request, as a local `request` would make it."""
        with self._watch:
            self._run.retire(finished)
