"""vLLM's V1 scheduler as of vllm 0.33.0, with the switches that do not need another kind of model.

Source: rules written down from the behaviour of the real scheduler (`vllm/v1/core/sched/scheduler.py`,
0.33.0 g4ba787ec9); whole recorded schedules of it are reproduced by `tests/test_conformance.py`.

The cap max_model_len - computed - 1 of the real scheduler is left out on purpose: an engine ends a request
that reaches max_model_len, whereas here a request longer than that is rejected before
(I + O - 1 > max_model_len), and at the edge the cap would hold the last decode back for ever.

Like the real one it enters blocks into the prefix cache when they are allocated. So by priority a request
that is preempted in the step that gave it a chunk leaves blocks in the cache that were never computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import ClassVar, NamedTuple

from cspsched.policies.needs import Need, RequestData
from cspsched.policies.queues import FcfsQueue, PriorityQueue, WaitingQueue
from cspsched.policies.settings import describe_settings, require_at_least, require_fraction
from cspsched.problem.instance import Instance, Limits
from cspsched.simulate import CachedPrefix, Step
from cspsched.simulate.kernel.each.rules import AnyRules, EachRules, Evict, Loop
from cspsched.simulate.kernel.rules import Batch, Chunk, KernelRules, Order, Reserve, Victim


class QueueOrder(StrEnum):
    """Order of the waiting queue."""

    FCFS = "fcfs"
    PRIORITY = "priority"


BY_PRIORITY = Need(data=RequestData.PRIORITY, value=QueueOrder.PRIORITY, without="it acts as fcfs")
CACHED_PREFIXES = Need(
    data=RequestData.SHARED_PREFIX, without="only preempted requests can find cached tokens"
)


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
    policy: QueueOrder = field(
        default=QueueOrder.FCFS, metadata={"aliases": ("scheduling_policy",), "need": BY_PRIORITY}
    )
    """Order of the queue and choice of the victim."""
    async_scheduling: bool = False
    """Decide the next batch while one runs, before its tokens are known. The engine's default is on."""
    enable_prefix_caching: bool = field(default=False, metadata={"need": CACHED_PREFIXES})
    """Start requests with full blocks that others, or they themselves, have computed before.

    The engine's default is on. Here it is off, since bounds and exact solver know no shared blocks, and a
    comparison would be none.
    """
    long_prefill_token_threshold_adaptive: bool = False
    """Let a threshold be at least the token budget over the number of requests there; none stays none."""
    prefill_schedule_interval: int = 1
    """Steps from one with prefills to the next, as long as no request had to wait and somebody decodes.

    A run begins as if the last prefills were as long ago as that.
    """
    max_num_active_seqs: int | None = None
    """Most running requests at an admission, in place of max_num_seqs."""
    num_lookahead_tokens: int = 0
    """Tokens for which a request is given KV blocks ahead of those that it processes."""

    def __post_init__(self) -> None:
        most = ("max_num_seqs", "max_num_batched_tokens", "max_num_active_seqs")
        require_at_least(self, 1, *most, "prefill_schedule_interval", policy="vllm")
        require_at_least(self, 0, "long_prefill_token_threshold", "num_lookahead_tokens", policy="vllm")
        require_fraction(self, "watermark", policy="vllm")


AGGREGATED_SETTINGS = (
    "max_num_seqs", "max_num_batched_tokens", "long_prefill_token_threshold", "enable_chunked_prefill",
    "scheduler_reserve_full_isl", "watermark", "policy", "max_num_active_seqs",
)  # fmt: skip
"""Settings that the kernel's loop over aggregated state knows; with others it goes by request."""


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

    def kernel_rules(self, instance: Instance) -> AnyRules | None:
        """Rules for the compiled kernel under an instance's limits; None if it does not know the settings."""
        settings = self.settings
        if settings.enable_prefix_caching:
            return None
        run = self.new_run(replace(instance, requests=instance.requests[:1]))
        known = {name: getattr(settings, name) for name in AGGREGATED_SETTINGS}
        rules = run.kernel_rules(instance.limits) if VllmSettings(**known) == settings else None
        return rules or run.each_rules(instance.limits)


class StepTerms(NamedTuple):
    """What holds for all requests of a step."""

    longest_chunk: int
    defers_prefills: bool
    """No prefill work in this step."""


class VllmRun:
    """Queues of one run; `running` is in order of admission."""

    def __init__(self, instance: Instance, settings: VllmSettings) -> None:
        limits = instance.limits
        self._budget = min(
            limits.max_batch_tokens, settings.max_num_batched_tokens or limits.max_batch_tokens
        )
        most = settings.max_num_active_seqs or settings.max_num_seqs or limits.max_batch_requests
        self._max_running = min(limits.max_batch_requests, most)
        chunked = settings.enable_chunked_prefill
        self._chunked = instance.switches.chunked_prefill if chunked is None else chunked
        self._long_prefill = settings.long_prefill_token_threshold
        self._adaptive = settings.long_prefill_token_threshold_adaptive
        self._no_limit = limits.kv_tokens
        self._lookahead = settings.num_lookahead_tokens
        self._max_model_len = limits.max_model_len or limits.kv_tokens + self._lookahead
        self._interval = settings.prefill_schedule_interval
        self._num_steps, self._last_prefill_step = 0, -self._interval
        self._capacity_bound = False
        self.caches_prefixes = settings.enable_prefix_caching
        self._reserves_prompt = settings.scheduler_reserve_full_isl
        # The real pool has one block more, its null block, and takes the watermark of that number.
        self._watermark_blocks = int(settings.watermark * (limits.kv_blocks + 1))
        self._block_tokens = limits.block_tokens
        self.batches_in_flight = 2 if settings.async_scheduling else 1
        self._running: list[int] = []
        self._waiting: WaitingQueue = (
            PriorityQueue(instance) if settings.policy is QueueOrder.PRIORITY else FcfsQueue()
        )

    def kernel_rules(self, limits: Limits) -> KernelRules | None:
        """By priority only if all decodes and one whole chunk fit into a batch: else more may sit out."""
        by_priority = isinstance(self._waiting, PriorityQueue)
        if by_priority and (self._long_prefill or self._budget < self._max_running):
            return None
        return KernelRules(
            kv_blocks=limits.kv_blocks,
            block_tokens=self._block_tokens,
            max_tokens=self._budget,
            max_running=self._max_running,
            order=Order.PRIORITY if by_priority else Order.ARRIVAL,
            batch=Batch.RUNNING_FIRST,
            reserve=Reserve.CHUNK,
            chunk=Chunk.ANY if self._chunked else Chunk.NEVER,
            victim=Victim.LEAST_IMPORTANT if by_priority else Victim.NEWEST,
            long_prefill=self._long_prefill,
            watermark_blocks=self._watermark_blocks,
            test_known=self._reserves_prompt,
        )

    def each_rules(self, limits: Limits) -> EachRules:
        """Rules for the loop that visits every request: all but prefix caching."""
        by_priority = isinstance(self._waiting, PriorityQueue)
        return EachRules(
            loop=Loop.VLLM,
            kv_blocks=limits.kv_blocks,
            block_tokens=self._block_tokens,
            max_tokens=self._budget,
            batch_tokens=limits.max_batch_tokens,
            max_running=self._max_running,
            most_holders=self._max_running,
            order=Order.PRIORITY if by_priority else Order.ARRIVAL,
            chunk=Chunk.ANY if self._chunked else Chunk.NEVER,
            evict=Evict.LEAST_IMPORTANT if by_priority else Evict.NEWEST,
            watermark_blocks=self._watermark_blocks,
            test_known=self._reserves_prompt,
            long_prefill=self._long_prefill,
            adaptive=self._adaptive,
            lookahead=self._lookahead,
            max_model_len=self._max_model_len,
            interval=self._interval,
            decides_ahead=self.batches_in_flight > 1,
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
        terms = StepTerms(self._longest_chunk(), self._defers_prefills(step))
        budget = self._schedule_running(step, terms)
        has_prefill = self._interval > 1 and not all(step.decoding[request] for request in step.batch)
        if not step.evicted:
            has_prefill |= self._admit(step, terms, budget)
        if step.batch:
            self._num_steps += 1
            if has_prefill:
                self._last_prefill_step = self._num_steps

    def _longest_chunk(self) -> int:
        """Tokens that a request may be given at most, before the budget is looked at."""
        num_eligible = len(self._running) + len(self._waiting)
        threshold = self._long_prefill if num_eligible > 1 else 0
        if self._adaptive and threshold:
            threshold = max(threshold, self._budget // num_eligible)
        return threshold or self._no_limit

    def _defers_prefills(self, step: Step) -> bool:
        """Whether prefills wait: the last were not long ago, left nobody waiting, and somebody decodes."""
        return (
            self._interval > 1
            and not self._capacity_bound
            and self._num_steps + 1 - self._last_prefill_step < self._interval
            and any(step.decoding[request] for request in self._running)
        )

    def _schedule_running(self, step: Step, terms: StepTerms) -> int:
        """Give every running request what it lacks, in order of admission; return the budget left."""
        running, budget, block_tokens = self._running, self._budget, self._block_tokens
        known, computed, held = step.known_tokens, step.computed_tokens, step.held_blocks
        defers_prefills, lookahead = terms.defers_prefills, self._lookahead
        position = 0
        while budget and position < len(running):
            request = running[position]
            tokens = known[request] - computed[request]
            if not tokens or (defers_prefills and not step.decoding[request]):
                # Without tokens: its last one is in flight.
                position += 1
                continue
            if tokens > 1:
                tokens = min(tokens, terms.longest_chunk, budget)
            after = computed[request] + tokens
            if lookahead:
                after = min(after + lookahead, self._max_model_len)
            blocks = -(-after // block_tokens) - held[request]
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

    def _admit(self, step: Step, terms: StepTerms, budget: int) -> bool:
        """Admit from the head of the queue, strictly in its order, until something does not fit.

        Returns whether there is prefill work among it: more than the one token that a cached prompt lacks.
        """
        waiting, running = self._waiting, self._running
        has_prefill = False
        while budget and waiting and len(running) < self._max_running:
            request = waiting.head()
            cached = step.find_cached(request)
            lacking = step.known_tokens[request] - len(cached.blocks) * self._block_tokens
            if terms.defers_prefills and lacking > 1:
                break
            tokens = min(lacking, terms.longest_chunk)
            if tokens > budget and not self._chunked:
                break
            tokens = min(tokens, budget)
            blocks = self._new_blocks(step, request, tokens, cached)
            if blocks is None:
                break
            if cached.blocks:
                step.reuse(request, cached)
            step.schedule(request, tokens, blocks)
            running.append(waiting.pop())
            budget -= tokens
            has_prefill |= lacking > 1
        if not terms.defers_prefills:
            self._capacity_bound = len(waiting) > 0
        return has_prefill

    def _new_blocks(self, step: Step, request: int, tokens: int, cached: CachedPrefix) -> int | None:
        """Blocks that an admission takes beside the cached ones; None if there is no room for it."""
        spare = step.free_blocks - (self._watermark_blocks if self._running else 0) - cached.num_free
        num_cached = len(cached.blocks)
        known = min(step.known_tokens[request], self._max_model_len)
        if self._reserves_prompt and -(-known // self._block_tokens) - num_cached > spare:
            return None
        after = min(num_cached * self._block_tokens + tokens + self._lookahead, self._max_model_len)
        blocks = -(-after // self._block_tokens) - num_cached
        return None if blocks > spare else blocks
