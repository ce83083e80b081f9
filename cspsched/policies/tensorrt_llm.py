"""TensorRT-LLM's batch manager: which requests own KV blocks (capacity), then which run (micro-batch).

Source: rules written down from the behaviour of `capacityScheduler` and `microBatchScheduler` (C++ and its
Python mirror; the rules name no release). Capacity:

* guaranteed_no_evict (default): first come, first served, each reserves the blocks of prompt + max_new_tokens
  (here the request's output); the first that does not fit ends the pass. Nobody is ever paused.
* max_utilization: requests in order of arrival, each needs the blocks of its next step only; where they lack,
  the last started request is paused and recomputed later; without one the pass ends.
* static_batch: as the default, but nobody is admitted until the whole group has finished.
* prefill_first: as the default, but contexts run alone, and generation only when there is none to run.

Micro-batch: generation requests first, one token each, then contexts first come, first served within
max_num_tokens (8192) and max_batch_size (2048); chunks are whole KV blocks. With the chunking policy
equal_progress (guaranteed_no_evict only) every context that has capacity gets a block in turn until the
budget is used up. Block reuse and beams are not simulated. Left open by the written rules and decided here:

* A reservation is at most the device: prompt + output may need a block more than I + O - 1 tokens do.
* The next step of a context is its whole prompt, whose blocks it takes with the first chunk.
* A chunk that is no whole block is not made, so a context may wait for a batch with more room.
* Chunks are on where the instance allows them.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, replace
from enum import StrEnum
from heapq import merge
from typing import ClassVar

from cspsched.errors import UsageError
from cspsched.policies.batching import Compiled, Configured, QueueRun
from cspsched.policies.settings import require_at_least
from cspsched.problem.instance import Instance
from cspsched.simulate import Step
from cspsched.simulate.kernel.each.rules import AnyRules, Mode
from cspsched.simulate.kernel.rules import Batch, Chunk, KernelRules, Reserve


class CapacityPolicy(StrEnum):
    """Which requests may own KV blocks."""

    GUARANTEED_NO_EVICT = "guaranteed_no_evict"
    MAX_UTILIZATION = "max_utilization"
    STATIC_BATCH = "static_batch"
    PREFILL_FIRST = "prefill_first"


class ChunkingPolicy(StrEnum):
    """Who gets the token budget that decodes leave."""

    FIRST_COME_FIRST_SERVED = "first_come_first_served"
    EQUAL_PROGRESS = "equal_progress"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorrtLlmSettings:
    """The engine's arguments that are simulated; the instance's limits bind as well."""

    capacity_scheduler_policy: CapacityPolicy = CapacityPolicy.GUARANTEED_NO_EVICT
    """Which requests may own KV blocks."""
    max_num_tokens: int = 8192
    """Token budget of a batch."""
    max_batch_size: int = 2048
    """Most requests that own KV blocks."""
    enable_chunked_prefill: bool | None = None
    """Whether a prompt may be split over batches. Default: as the instance allows."""
    context_chunking_policy: ChunkingPolicy = ChunkingPolicy.FIRST_COME_FIRST_SERVED
    """Who gets the token budget that decodes leave."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "max_num_tokens", "max_batch_size", policy="tensorrt-llm")
        no_evict = self.capacity_scheduler_policy is CapacityPolicy.GUARANTEED_NO_EVICT
        if self.context_chunking_policy is ChunkingPolicy.EQUAL_PROGRESS and not no_evict:
            raise UsageError(
                "policy 'tensorrt-llm': context_chunking_policy=equal_progress is simulated with "
                "capacity_scheduler_policy=guaranteed_no_evict only"
            )


@dataclass(frozen=True, slots=True)
class TensorrtLlm(Compiled, Configured):
    """TensorRT-LLM's capacity policies: guaranteed-no-evict, max-utilization or static batch."""

    settings: TensorrtLlmSettings = TensorrtLlmSettings()
    name: ClassVar[str] = "tensorrt-llm"
    settings_type: ClassVar[type[TensorrtLlmSettings]] = TensorrtLlmSettings

    def new_run(self, instance: Instance) -> MicroBatch:
        """Empty queues under the instance's limits and the settings, whichever are tighter."""
        run = RUNS[self.settings.capacity_scheduler_policy]
        if self.settings.context_chunking_policy is ChunkingPolicy.EQUAL_PROGRESS:
            run = EqualProgressRun
        return run(
            instance,
            max_tokens=self.settings.max_num_tokens,
            max_requests=min(self.settings.max_batch_size, self.settings.max_num_tokens),
            chunked=self.settings.enable_chunked_prefill,
        )


class MicroBatch(QueueRun):
    """The second stage: generation, then contexts, in chunks of whole blocks."""

    def schedule(self, step: Step) -> None:
        """All decodes, then prompts."""
        self.decode(step)
        self.prefill(step)

    def chunk(self, step: Step, request: int) -> int:
        """The whole context, or whole blocks of it."""
        tokens = super().chunk(step, request)
        is_rest = tokens == self.lacking(step, request)
        return tokens if is_rest else tokens // self.block_tokens * self.block_tokens


class ReservingRun(MicroBatch):
    """Guaranteed no evict: admitted requests hold their blocks to completion.

    Capacity is asked only when the micro-batch has room: a request that would own blocks earlier without
    running is the first in the queue, and nobody else can take what it would reserve.
    """

    def kernel_rules(self) -> AnyRules | None:
        """All of it."""
        chunk = Chunk.WHOLE_BLOCKS if self.chunked else Chunk.NEVER
        return replace(self._base_rules(), reserve=Reserve.OUTPUT, chunk=chunk)

    def reserved_tokens(self, step: Step, request: int) -> int:
        """Prompt and all of the output."""
        return self.peak_tokens(request) + 1


class StaticRun(ReservingRun):
    """Static batch: a group of the first in the queue that fit together, until all have finished."""

    _group: frozenset[int] = frozenset()

    def kernel_rules(self) -> AnyRules | None:
        """All of it."""
        chunk = Chunk.WHOLE_BLOCKS if self.chunked else Chunk.NEVER
        return self._each_rules(reserve=Reserve.OUTPUT, chunk=chunk, groups=True)

    def schedule(self, step: Step) -> None:
        """Form a group when the last has finished, then run it."""
        if not self.running and not self._group.intersection(self.waiting[:1]):
            self._group = self._next_group(step)
        super().schedule(step)

    def _next_group(self, step: Step) -> frozenset[int]:
        group, free_blocks = set(), step.free_blocks
        for request in self.waiting[: self.max_running]:
            free_blocks -= self.blocks_of(self.reserved_tokens(step, request))
            if free_blocks < 0:
                break
            group.add(request)
        return frozenset(group)

    def fits(self, step: Step, request: int) -> bool:
        """Whether it belongs to the group, which fits together."""
        return request in self._group


class PrefillFirstRun(ReservingRun):
    """Prefill first: contexts alone as long as there is one with room to run, and reservations."""

    def kernel_rules(self) -> AnyRules | None:
        """All of it."""
        rules = super().kernel_rules()
        return replace(rules, batch=Batch.PREFILL_ONLY) if isinstance(rules, KernelRules) else None

    def schedule(self, step: Step) -> None:
        """Contexts, else all decodes."""
        self.prefill(step)
        if not step.batch:
            self.decode(step)


class EqualProgressRun(ReservingRun):
    """Equal progress: the contexts that have capacity share the budget, a block each in turn."""

    def kernel_rules(self) -> AnyRules | None:
        """All of it."""
        chunk = Chunk.WHOLE_BLOCKS if self.chunked else Chunk.NEVER
        return self._each_rules(mode=Mode.EQUAL_PROGRESS, reserve=Reserve.OUTPUT, chunk=chunk)

    def schedule(self, step: Step) -> None:
        """All decodes, then a share for every context, in order of admission."""
        self.decode(step)
        shares = self._shares(step, self._with_capacity(step))
        for request, tokens in shares.items():
            if tokens and step.requests_left:
                blocks = 0
                if not step.held_blocks[request]:
                    blocks = self.blocks_of(self.reserved_tokens(step, request))
                    self.waiting.remove(request)
                    self.running.append(request)
                step.schedule(request, tokens, blocks)

    def _with_capacity(self, step: Step) -> list[int]:
        """Started contexts, then the first of the queue whose reservations fit together."""
        contexts = [request for request in self.running if not step.decoding[request]]
        free_blocks = step.free_blocks
        for request in self.waiting[: self.max_running - len(self.running)]:
            free_blocks -= self.blocks_of(self.reserved_tokens(step, request))
            if free_blocks < 0:
                break
            contexts.append(request)
        return contexts

    def _shares(self, step: Step, contexts: list[int]) -> dict[int, int]:
        """Tokens of every context: whole blocks, but for the rest of a prompt."""
        shares, budget, was_given = dict.fromkeys(contexts, 0), max(self.budget(step), 0), True
        if not self.chunked:
            return self._whole_contexts(step, contexts, budget)
        while was_given:
            was_given = False
            for request in contexts:
                unit = min(self.block_tokens, self.lacking(step, request) - shares[request])
                if 0 < unit <= budget:
                    shares[request] += unit
                    budget -= unit
                    was_given = True
        return shares

    def _whole_contexts(self, step: Step, contexts: list[int], budget: int) -> dict[int, int]:
        shares: dict[int, int] = {}
        for request in contexts:
            shares[request] = self.lacking(step, request)
            budget -= shares[request]
            if budget < 0:
                del shares[request]
                break
        return shares


class MaxUtilizationRun(MicroBatch):
    """Max utilization: blocks for the next step only, at the expense of the last started."""

    def kernel_rules(self) -> AnyRules | None:
        """All of it; whoever has no place in the batch keeps its memory."""
        chunk = Chunk.WHOLE_BLOCKS if self.chunked else Chunk.NEVER
        return self._each_rules(mode=Mode.MAX_UTILIZATION, chunk=chunk, most_holders=self.kv_blocks)

    def schedule(self, step: Step) -> None:
        """Capacity in order of arrival, then the micro-batch of those that have it."""
        selected = self._with_capacity(step)
        contexts = [request for request in selected if not step.decoding[request]]
        for request in selected:
            if step.decoding[request]:
                step.schedule(request, 1, step.missing_blocks(request, 1))
        for request in contexts:
            lacking, tokens = self.lacking(step, request), self.chunk(step, request)
            if tokens:
                if not step.held_blocks[request]:
                    self.waiting.remove(request)
                    insort(self.running, request, key=self.rank.__getitem__)
                step.schedule(request, tokens, step.missing_blocks(request, lacking))
            if tokens < lacking:
                break

    def _with_capacity(self, step: Step) -> list[int]:
        """Requests whose next step fits, after pauses of the last started."""
        selected: list[int] = []
        promised, started = 0, list(self.running)
        for request in merge(list(started), list(self.waiting), key=self.rank.__getitem__):
            if len(selected) == self.max_running or request in step.evicted:
                break
            blocks = step.missing_blocks(request, self.lacking(step, request))
            while blocks > step.free_blocks - promised and started and started[-1] not in selected:
                self.evict(step, started.pop())
                if request in step.evicted:
                    return selected
            if blocks > step.free_blocks - promised:
                break
            promised += blocks
            selected.append(request)
        return selected


RUNS: dict[CapacityPolicy, type[MicroBatch]] = {
    CapacityPolicy.GUARANTEED_NO_EVICT: ReservingRun,
    CapacityPolicy.STATIC_BATCH: StaticRun,
    CapacityPolicy.PREFILL_FIRST: PrefillFirstRun,
    CapacityPolicy.MAX_UTILIZATION: MaxUtilizationRun,
}
