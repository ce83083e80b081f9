"""What Vidur's replica schedulers share (microsoft/vidur@7d47513), beside what they have from their family.

Source: rules written down from the behaviour of the real schedulers; recorded runs of three of them are
replayed by `tests/test_vidur.py`. A batch is formed whenever fewer are in flight than there are pipeline
stages; requests in flight are out of reach: they can be neither scheduled nor preempted. Who comes back from
a batch stands behind those that were left out of it. With `num_pipeline_stages=1` that is one batch at a
time. An instance is one machine, on which such micro-batches run one after another; pipeline stages that
work at the same time are simulated by `cspsched.recording.vidur` only.

Deviations, beside those of the family (`sarathi_family.py`): a step that evicted everybody is asked again at
once (Vidur waits for the next event, for ever if there is none).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

from cspsched.policies.sarathi_family import FamilyRun, OwnLimits
from cspsched.policies.settings import require_at_least
from cspsched.problem.instance import Instance
from cspsched.simulate import Step
from cspsched.simulate.kernel.each.family_parts import submit_to_family
from cspsched.simulate.kernel.each.flights import flies_on
from cspsched.simulate.kernel.each.loops import make_loop
from cspsched.simulate.kernel.each.rules import AnyRules
from cspsched.simulate.kernel.each.vidur import conclude_vidur, take_back_or_repeat, vidur_step


@dataclass(frozen=True, slots=True, kw_only=True)
class VidurSettings:
    """Vidur's arguments that all of its schedulers have; the instance's limits bind as well."""

    batch_size_cap: int = 128
    """Most requests that hold KV blocks; a batch takes the part of one pipeline stage."""
    num_pipeline_stages: int = 1
    """Batches in flight."""
    emulate_bugs: bool = False
    """Follow Vidur's known defects, too (docs/vidur.md)."""

    def require(self, policy: str, *names: str) -> None:
        """Refuse counts below 1; raises UsageError."""
        require_at_least(self, 1, "batch_size_cap", "num_pipeline_stages", *names, policy=policy)

    @property
    def micro_batch_requests(self) -> int:
        """Most requests that a batch takes up: an equal part of the cap for every stage."""
        return max(self.batch_size_cap // self.num_pipeline_stages, 1)


run_vidur = make_loop(
    "run_vidur",
    submit=submit_to_family,
    prepare=take_back_or_repeat,
    step=vidur_step,
    conclude=conclude_vidur,
    goes_on=flies_on,
)


class VidurRun(FamilyRun):
    """Queues of one run; by default decodes, then started prefills, then the queue, in one batch.

    Attributes
    ----------
    running
        Requests that hold KV blocks, in flight or not.
    idle
        Those of them that are not in flight, in the order in which they came back.
    batches_in_flight
        Batches that may run at a time.
    max_in_batch
        Most requests with which decodes and admissions may fill a batch.
    """

    decides_on_arrival = True

    def __init__(
        self,
        instance: Instance,
        own: OwnLimits,
        *,
        batches_in_flight: int,
        max_in_batch: int,
        emulates_bugs: bool = False,
    ) -> None:
        super().__init__(instance, own)
        self.batches_in_flight = batches_in_flight
        self.max_in_batch = max_in_batch
        self.emulates_bugs = emulates_bugs
        self.idle: deque[int] = deque()
        self._in_flight: deque[list[int]] = deque()

    def kernel_rules(self) -> AnyRules | None:
        """In lockstep with one pipeline stage."""
        return self._each_rules(
            run=run_vidur,
            most_in_batch=self.max_in_batch,
            flights=self.batches_in_flight,
            emulates_bugs=self.emulates_bugs,
            lockstep=self.batches_in_flight == 1 and not self.emulates_bugs,
            **self._own_rules(),
        )

    def _own_rules(self) -> dict[str, Any]:
        """What a scheduler decides for itself."""
        return {}

    def schedule(self, step: Step) -> None:
        """Take back who has come back, and form a batch of them and of the queue."""
        self._take_back(step.undelivered)
        self.decide(step)
        if step.batch:
            self._in_flight.append(list(step.batch))
            self.idle = deque(request for request in self.idle if request not in step.batch)

    def retire(self, requests: Sequence[int]) -> None:
        """Drop finished requests, who are in the oldest batch in flight."""
        super().retire(requests)
        ended = self._in_flight[0]
        self._in_flight[0] = [request for request in ended if request not in requests]

    def decide(self, step: Step) -> None:
        """Decodes, then started prefills, then the queue."""
        started = self.decode(step)
        used = self.continue_prefills(step, started, len(step.batch))
        self.idle.extendleft(request for request in reversed(started) if request not in step.batch)
        self.admit(step, used, step.free_blocks)

    def decode(self, step: Step) -> list[int]:
        """One token for each idle decode in turn, while the batch takes more; return the prefills passed by.

        Victims are taken from the end of those whose turn has not come.
        """
        started = []
        while self.idle and len(step.batch) < self.max_in_batch:
            request = self.idle.popleft()
            if not self.is_prefilled(step, request):
                started.append(request)
            elif step.free_blocks or self.make_room(step, request, self.idle, 0):
                step.schedule(request, 1, step.missing_blocks(request, 1))
        return started

    def is_prefilled(self, step: Step, request: int) -> bool:
        """Whether a request takes one token a batch."""
        return step.decoding[request]

    def may_admit(self, step: Step) -> bool:
        """Whether the batch takes more requests."""
        return len(step.batch) < self.max_in_batch

    def preempt(self, step: Step, request: int) -> None:
        """Evict a request to the front of the queue."""
        super().preempt(step, request)
        self.running.remove(request)

    def _take_back(self, undelivered: Set[int]) -> None:
        """Make the requests of batches that have ended available, in the order of their batch."""
        while self._in_flight and undelivered.isdisjoint(self._in_flight[0]):
            self.idle.extend(self._in_flight.popleft())
