"""Sarathi-Serve's stall-free scheduler with a fixed chunk (microsoft/sarathi-serve@96f9911).

Source: rules written down from the behaviour of the real scheduler; whole recorded schedules of it are
reproduced by `tests/test_conformance.py`. Two deviations, both where the real program does not work:

* A preempted request generates what it still lacks (the real one forgets what it had generated and makes
  `max_tokens` more).
* While nothing is running the watermark is waived: the real scheduler waits for ever for a prompt that fits
  the device but not above the watermark.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from cspsched.policies.settings import describe_settings, require_at_least, require_fraction
from cspsched.problem.instance import Instance
from cspsched.simulate import Step
from cspsched.units import ceil_div


@dataclass(frozen=True, slots=True, kw_only=True)
class SarathiSettings:
    """The scheduler's arguments that are simulated; the instance's limits bind as well."""

    chunk: int = field(default=512, metadata={"aliases": ("chunk_size",)})
    """Token budget of a batch, decodes included."""
    max_num_seqs: int = 128
    """Most running requests; gates admission only."""
    watermark: float = 0.01
    """Share of the blocks that an admission leaves free."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "chunk", "max_num_seqs", policy="sarathi")
        require_fraction(self, "watermark", policy="sarathi")


@dataclass(frozen=True, slots=True)
class Sarathi:
    """Sarathi-Serve: every decode in every batch, and prefill chunks in what the chunk leaves."""

    settings: SarathiSettings = SarathiSettings()
    name: ClassVar[str] = "sarathi"
    settings_type: ClassVar[type[SarathiSettings]] = SarathiSettings

    @property
    def label(self) -> str:
        """Name with the settings that differ from the defaults."""
        return ":".join(filter(None, (self.name, describe_settings(self.settings))))

    def new_run(self, instance: Instance) -> SarathiRun:
        """Empty queues under the instance's limits and the settings, whichever are tighter."""
        return SarathiRun(instance, self.settings)


class SarathiRun:
    """Queues of one run."""

    def __init__(self, instance: Instance, settings: SarathiSettings) -> None:
        limits = instance.limits
        self._chunk = min(settings.chunk, limits.max_batch_tokens)
        self._max_running = min(settings.max_num_seqs, limits.max_batch_requests)
        self._watermark_blocks = int(settings.watermark * limits.kv_blocks)
        self._block_tokens = limits.block_tokens
        self._arrival_ns = [request.arrival_ns for request in instance.requests]
        self._running: list[int] = []
        self._waiting: deque[int] = deque()

    def submit(self, request: int) -> None:
        """Queue an arrival."""
        self._waiting.append(request)

    def retire(self, requests: Sequence[int]) -> None:
        """Drop finished requests from the running list."""
        finished = set(requests)
        self._running = [request for request in self._running if request not in finished]

    def schedule(self, step: Step) -> None:
        """Take decodes, then started prefills, then the queue; hand prefills over first, as the log has them.

        After a preemption the queue is blocked for this step: the victim at its head has nothing to process
        until it is reset.
        """
        decodes, partial, promised_blocks = self._keep_decodes(step)
        budget = self._chunk - len(decodes)
        budget = self._continue_prefills(step, partial, budget)
        self._running = decodes + partial
        if not step.evicted:
            self._admit(step, step.free_blocks - promised_blocks, budget)
        for request in decodes:
            step.schedule(request, 1, step.missing_blocks(request, 1))

    def _keep_decodes(self, step: Step) -> tuple[list[int], list[int], int]:
        """Decodes in order of arrival, the requests with prefill left, and the blocks that decodes need.

        Each decode wants a free block, whether it needs one or not; else the latest arrival that was not
        yet visited is preempted, or the request itself.
        """
        queue, decodes, partial = self._by_arrival(), [], []
        computed, held, decoding = step.computed_tokens, step.held_blocks, step.decoding
        block_tokens, promised = self._block_tokens, 0
        while queue:
            request = queue.popleft()
            if not decoding[request]:
                partial.append(request)
                continue
            while step.free_blocks == promised and queue:
                self._preempt(step, queue.pop())
            if step.free_blocks == promised:
                self._preempt(step, request)
            else:
                decodes.append(request)
                promised += computed[request] == held[request] * block_tokens
        return decodes, partial, promised

    def _by_arrival(self) -> deque[int]:
        """Running requests by arrival; equals keep their order."""
        return deque(sorted(self._running, key=self._arrival_ns.__getitem__))

    def _preempt(self, step: Step, request: int) -> None:
        step.preempt(request)
        self._waiting.appendleft(request)

    def _continue_prefills(self, step: Step, partial: Sequence[int], budget: int) -> int:
        """Give started prefills, whose blocks are allocated, what the budget allows; return what is left."""
        for request in partial:
            tokens = min(step.known_tokens[request] - step.computed_tokens[request], budget)
            if tokens:
                step.schedule(request, tokens, 0)
                budget -= tokens
        return budget

    def _admit(self, step: Step, spare_blocks: int, budget: int) -> None:
        """Admit from the head of the queue, each with the blocks of its whole prompt."""
        waiting, running = self._waiting, self._running
        while budget and waiting and len(running) < self._max_running:
            request = waiting[0]
            known = step.known_tokens[request]
            blocks = ceil_div(known, self._block_tokens)
            if blocks + (self._watermark_blocks if running else 0) > spare_blocks:
                break
            tokens = min(known, budget)
            step.schedule(request, tokens, blocks)
            running.append(waiting.popleft())
            spare_blocks -= blocks
            budget -= tokens
