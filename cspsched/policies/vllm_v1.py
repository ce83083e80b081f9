"""vLLM's V1 scheduler as of vllm 0.33.0: prefix caching off, synchronous scheduling.

Source: rules written down from the behaviour of the real scheduler (`vllm/v1/core/sched/scheduler.py`,
0.33.0 g4ba787ec9); whole recorded schedules of it are reproduced by `tests/test_conformance.py`.

The cap max_model_len - computed - 1 of the real scheduler is left out on purpose: an engine ends a request
that reaches max_model_len, whereas here a request longer than that is rejected before
(I + O - 1 > max_model_len), and at the edge the cap would hold the last decode back for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from cspsched.policies.queues import FcfsQueue, PriorityQueue, WaitingQueue
from cspsched.policies.settings import describe_settings, require_at_least, require_fraction
from cspsched.problem.instance import Instance
from cspsched.simulate import Step


class QueueOrder(StrEnum):
    """Order of the waiting queue."""

    FCFS = "fcfs"
    PRIORITY = "priority"


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSettings:
    """The engine's arguments that are simulated; None takes the instance's limit or switch."""

    max_num_seqs: int | None = None
    """Most running requests; gates admission only. Default: the instance's R."""
    max_num_batched_tokens: int | None = None
    """Token budget of a batch. Default: the instance's C."""
    long_prefill_token_threshold: int = 0
    """Longest chunk while more than one request is there; 0 means no limit."""
    enable_chunked_prefill: bool | None = None
    """Whether a prompt may be split over batches. Default: as the instance allows."""
    scheduler_reserve_full_isl: bool = True
    """Admit a request only if all its known tokens fit, not just its first chunk."""
    watermark: float = 0.0
    """Share of the blocks that an admission leaves free while others are running."""
    policy: QueueOrder = QueueOrder.FCFS
    """Order of the queue and choice of the victim."""
    async_scheduling: bool = False
    """Decide the next batch while one runs, before its tokens are known."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "max_num_seqs", "max_num_batched_tokens", policy="vllm")
        require_at_least(self, 0, "long_prefill_token_threshold", policy="vllm")
        require_fraction(self, "watermark", policy="vllm")


@dataclass(frozen=True, slots=True)
class VllmV1:
    """vLLM V1 (0.33.0): running requests first, then the waiting queue, one token budget for both."""

    settings: VllmSettings = VllmSettings()
    name: ClassVar[str] = "vllm"
    settings_type: ClassVar[type[VllmSettings]] = VllmSettings

    @property
    def label(self) -> str:
        """Name with the settings that differ from the defaults."""
        return ":".join(filter(None, (self.name, describe_settings(self.settings))))

    def new_run(self, instance: Instance) -> VllmRun:
        """Empty queues under the instance's limits and the settings, whichever are tighter."""
        return VllmRun(instance, self.settings)


class VllmRun:
    """Queues of one run; `running` is in order of admission."""

    def __init__(self, instance: Instance, settings: VllmSettings) -> None:
        limits = instance.limits
        self._budget = min(
            limits.max_batch_tokens, settings.max_num_batched_tokens or limits.max_batch_tokens
        )
        self._max_running = min(limits.max_batch_requests, settings.max_num_seqs or limits.max_batch_requests)
        chunked = settings.enable_chunked_prefill
        self._chunked = instance.switches.chunked_prefill if chunked is None else chunked
        self._long_prefill = settings.long_prefill_token_threshold
        self._no_limit = limits.kv_tokens
        self._reserves_prompt = settings.scheduler_reserve_full_isl
        # The real pool has one block more, its null block, and takes the watermark of that number.
        self._watermark_blocks = int(settings.watermark * (limits.kv_blocks + 1))
        self._block_tokens = limits.block_tokens
        self.batches_in_flight = 2 if settings.async_scheduling else 1
        self._running: list[int] = []
        self._waiting: WaitingQueue = (
            PriorityQueue(instance) if settings.policy is QueueOrder.PRIORITY else FcfsQueue()
        )

    def submit(self, request: int) -> None:
        """Queue an arrival."""
        self._waiting.push(request)

    def retire(self, requests: Sequence[int]) -> None:
        """Drop finished requests; those preempted with their last token in flight are in the queue."""
        finished = set(requests)
        for request in finished.difference(self._running):
            self._waiting.remove(request)
        self._running = [request for request in self._running if request not in finished]

    def schedule(self, step: Step) -> None:
        """Running requests first; the waiting queue only if nobody had to be preempted."""
        num_eligible = len(self._running) + len(self._waiting)
        longest_chunk = self._long_prefill if num_eligible > 1 and self._long_prefill else self._no_limit
        budget = self._schedule_running(step, longest_chunk)
        if not step.evicted:
            self._admit(step, longest_chunk, budget)

    def _schedule_running(self, step: Step, longest_chunk: int) -> int:
        """Give every running request what it lacks, in order of admission; return the budget left."""
        running, budget, block_tokens = self._running, self._budget, self._block_tokens
        known, computed, held = step.known_tokens, step.computed_tokens, step.held_blocks
        position = 0
        while budget and position < len(running):
            request = running[position]
            tokens = known[request] - computed[request]
            if not tokens:
                # Its last token is in flight.
                position += 1
                continue
            if tokens > 1:
                tokens = min(tokens, longest_chunk, budget)
            blocks = -(-(computed[request] + tokens) // block_tokens) - held[request]
            if blocks > step.free_blocks:
                position, returned = self._make_room(step, position, blocks)
                budget += returned
                if not held[request]:
                    if self._waiting.victim_may_continue:
                        continue
                    break
            step.schedule(request, tokens, blocks)
            budget -= tokens
            position += 1
        return budget

    def _make_room(self, step: Step, position: int, blocks: int) -> tuple[int, int]:
        """Preempt until blocks are free for the request at a position, or it was preempted itself.

        Returns its new position (or that of its successor, once it is gone) and the tokens that victims
        scheduled in this step give back.
        """
        request, returned = self._running[position], 0
        while blocks > step.free_blocks and step.held_blocks[request]:
            victim_position = self._waiting.victim(self._running)
            victim = self._running.pop(victim_position)
            returned += step.preempt(victim)
            self._waiting.push_back(victim)
            if victim_position < position:
                position -= 1
        return position, returned

    def _admit(self, step: Step, longest_chunk: int, budget: int) -> None:
        """Admit from the head of the queue, strictly in its order, until something does not fit."""
        waiting, running = self._waiting, self._running
        skipped: list[int] = []
        while budget and waiting and len(running) < self._max_running:
            request = waiting.head()
            if request in step.undelivered:
                skipped.append(waiting.pop())
                continue
            known = step.known_tokens[request]
            tokens = min(known, longest_chunk)
            if tokens > budget and not self._chunked:
                break
            tokens = min(tokens, budget)
            spare_blocks = step.free_blocks - (self._watermark_blocks if running else 0)
            reserved_tokens = known if self._reserves_prompt else tokens
            if step.missing_blocks(request, reserved_tokens) > spare_blocks:
                break
            step.schedule(request, tokens, step.missing_blocks(request, tokens))
            running.append(waiting.pop())
            budget -= tokens
        for request in reversed(skipped):
            waiting.push_back(request)
