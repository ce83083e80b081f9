"""TensorRT-LLM's batch manager: which requests own KV blocks (capacity), then which run (micro-batch).

Source: rules written down from the behaviour of `capacityScheduler` and `microBatchScheduler` (C++ and its
Python mirror; the rules name no release). Capacity:

* guaranteed_no_evict (default): first come, first served, each reserves the blocks of prompt + max_new_tokens
  (max_tokens of the request, its output where it declares none); the first that does not fit ends the pass.
  None is ever paused.
* max_utilization: requests in order of arrival, each needs the blocks of its next step only; where they lack,
  the last started request is paused and recomputed later; without one the pass ends.
* static_batch: as the default, but no request is admitted until the whole group has finished.
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

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

from cspsched.compiled.jit import inner, merged
from cspsched.errors import UsageError
from cspsched.policies.batching import (
    Configured,
    chunk_tokens,
    decode,
    most_blocks,
    prefill_with,
    queue_rules,
    reserved_tokens,
    rules_by_request,
    submit_to_queue,
)
from cspsched.policies.expected import declared_tokens
from cspsched.policies.settings import require_at_least
from cspsched.problem.instance import Instance
from cspsched.simulate.aggregated.state import Batch
from cspsched.simulate.kernel.actions import (
    decodes,
    evicted_now,
    lacking_tokens,
    missing_blocks,
    preempt,
    schedule,
)
from cspsched.simulate.kernel.cancel import cancel_with, forget_in_heap, position_in
from cspsched.simulate.kernel.columns import FIRST_LIST, HELD_TOKENS, LISTED, TO_COME
from cspsched.simulate.kernel.layout import SUBMISSION, Kernel
from cspsched.simulate.kernel.lists import append_listed, head, pop, push
from cspsched.simulate.kernel.lockstep import can_go_on, decode_all, locked_growth
from cspsched.simulate.kernel.loops import make_loop
from cspsched.simulate.kernel.records import PolicyState
from cspsched.simulate.kernel.rules import Chunk, Reserve, Rules
from cspsched.simulate.kernel.together import unlock_listed

NEVER = int(Chunk.NEVER)


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
class TensorrtLlm(Configured):
    """TensorRT-LLM's capacity policies: guaranteed-no-evict, max-utilization or static batch."""

    settings: TensorrtLlmSettings = TensorrtLlmSettings()
    name: ClassVar[str] = "tensorrt-llm"
    settings_type: ClassVar[type[TensorrtLlmSettings]] = TensorrtLlmSettings

    def kernel_rules(self, instance: Instance) -> Rules:
        """Rules under an instance's limits.

        Capacity is asked only when the micro-batch has room: a request that would own blocks earlier without
        running is the first in the queue, and no other can take what it would reserve.
        """
        settings, capacity = self.settings, self.settings.capacity_scheduler_policy
        chunked = settings.enable_chunked_prefill
        if chunked is None:
            chunked = instance.switches.chunked_prefill
        common: dict[str, Any] = {
            "max_tokens": settings.max_num_tokens,
            "max_requests": min(settings.max_batch_size, settings.max_num_tokens),
            "chunk": Chunk.WHOLE_BLOCKS if chunked else Chunk.NEVER,
        }
        if capacity is CapacityPolicy.MAX_UTILIZATION:
            # A request without a place in the batch keeps its memory.
            most = instance.limits.kv_blocks
            return rules_by_request(instance, run_max_utilization, most_holders=most, **common)
        common |= {"reserve": Reserve.OUTPUT, "expected_tokens": declared_tokens(instance)}
        if settings.context_chunking_policy is ChunkingPolicy.EQUAL_PROGRESS:
            return rules_by_request(instance, run_equal_progress, **common)
        if capacity is CapacityPolicy.STATIC_BATCH:
            common["cancel"] = cancel_with(_forget)
            return rules_by_request(instance, run_static_batch, own=PolicyState(), **common)
        is_alone = capacity is CapacityPolicy.PREFILL_FIRST
        return queue_rules(instance, batch=Batch.PREFILL_ONLY if is_alone else Batch.MIXED, **common)


# Static batch.


@inner
def _form_group(k: Kernel) -> None:
    """When the last group has finished, the next: the first in order of arrival whose reservations fit."""
    now, own = k.now, k.own
    if now.num_running or own.group_left:
        return
    free, first = now.free_blocks, now.num_submitted - now.num_waiting
    for position in range(min(now.num_waiting, now.max_running)):
        request = int(k.orders[first + position, SUBMISSION])
        free -= most_blocks(k, reserved_tokens(k, request))
        if free < 0:
            break
        own.group_left += 1


@inner
def _is_of_group(k: Kernel, request: int) -> bool:
    """Whether the head of the queue belongs to the group, which fits together."""
    return bool(k.own.group_left)


@inner
def _take_of_group(k: Kernel, request: int) -> None:
    """Take the head out of the queue and of the group."""
    k.own.group_left -= 1
    pop(k)


def _forget(k: Kernel, request: int) -> None:
    """Take a request that waits and is cancelled out of the queue and of the group."""
    now, coming = k.now, k.orders[:, SUBMISSION]
    forget_in_heap(k, request)
    first = int(now.num_submitted - now.num_waiting)
    place = position_in(coming[first : now.num_submitted], request)
    if place is not None:
        coming[first + 1 : first + place + 1] = coming[first : first + place].copy()
        k.own.group_left -= place < k.own.group_left


_prefill_group = prefill_with(chunk_tokens, _is_of_group, take=_take_of_group)


@merged
def static_batch_step(k: Kernel) -> None:
    """Decodes, then prompts of the group."""
    decode(k)
    _form_group(k)
    _prefill_group(k)


# Max utilization, and equal progress.


@merged
def max_utilization_step(k: Kernel) -> None:
    """Capacity in order of arrival, then decodes, then contexts as far as the tokens go.

    FIRST_LIST holds who has capacity; below HELD_TOKENS holds what each context gets, TO_COME what it lacks.
    """
    count, is_open = _select(k), True
    if k.now.is_locked:
        decode_all(k)
    for position in range(count):
        request = int(k.slots[position, FIRST_LIST])
        if decodes(k, request):
            schedule(k, request, 1, missing_blocks(k, request, 1))
    for position in range(count):
        request = int(k.slots[position, FIRST_LIST])
        if decodes(k, request):
            continue
        is_new, tokens = not k.requests[request].blocks, 0
        if is_open:
            lacking = lacking_tokens(k, request)
            tokens = chunk_tokens(k, lacking)
            is_open = tokens == lacking
            if tokens:
                schedule(k, request, tokens, missing_blocks(k, request, lacking))
        if is_new:
            _settle(k, request, tokens)


@inner
def _settle(k: Kernel, request: int, tokens: int) -> None:
    """A request from the queue runs now if it has tokens, else it goes back."""
    if tokens:
        append_listed(k, request)
    else:
        push(k, request)


@inner
def _select(k: Kernel) -> int:
    """Find those whose next step fits, after pauses of the last started; how many there are.

    What runs has arrived before all that wait: the first of these are admitted, the last started paused.
    """
    now, count, position = k.now, 0, 0
    promised, num_together = _promise(k)
    while count + num_together < now.max_running and (position < now.num_listed or now.heap_size):
        is_new = position == now.num_listed
        request = head(k) if is_new else int(k.slots[position, LISTED])
        if evicted_now(k, request):
            break
        blocks = missing_blocks(k, request, lacking_tokens(k, request))
        while blocks > now.free_blocks - promised and position < now.num_listed:
            now.num_listed -= 1
            victim = int(k.slots[now.num_listed, LISTED])
            preempt(k, victim)
            push(k, victim)
            if victim == request:
                return count
        if blocks > now.free_blocks - promised:
            break
        promised += blocks
        k.slots[count, FIRST_LIST] = request
        count += 1
        if is_new:
            pop(k)
        else:
            position += 1
    return count


@inner
def _promise(k: Kernel) -> tuple[int, int]:
    """Blocks for the decodes in lockstep, and their number, if all that run can go on; else all part."""
    now = k.now
    if not now.is_locked:
        return 0, 0
    promised, needed = locked_growth(k), 0
    for position in range(now.num_listed):
        request = int(k.slots[position, LISTED])
        needed += missing_blocks(k, request, lacking_tokens(k, request))
    if promised + needed > now.free_blocks or not can_go_on(k):
        unlock_listed(k)
        return 0, 0
    return promised, int(now.num_locked)


@merged
def equal_progress_step(k: Kernel) -> None:
    """All decodes, then a share of the tokens for every context that has capacity, in order of admission."""
    decode(k)
    count = _contexts(k)
    budget = max(int(k.now.max_tokens - k.now.used_tokens), 0)
    if k.now.chunk == NEVER:
        _share_whole(k, count, budget)
    else:
        _share_blocks(k, count, budget)
    for position in range(count):
        request, tokens = int(k.slots[position, FIRST_LIST]), int(k.slots[position, HELD_TOKENS])
        is_new = not k.requests[request].blocks
        if tokens:
            schedule(k, request, tokens, most_blocks(k, reserved_tokens(k, request)) if is_new else 0)
        if is_new:
            _settle(k, request, tokens)


@inner
def _contexts(k: Kernel) -> int:
    """Started contexts, then the first of the queue whose reservations fit together; how many."""
    now, count, num_new, free = k.now, 0, 0, int(k.now.free_blocks)
    for position in range(now.num_listed):
        request = int(k.slots[position, LISTED])
        if not decodes(k, request):
            _enter(k, request, count)
            count += 1
    while now.heap_size and num_new < now.max_running - now.num_running:
        free -= most_blocks(k, reserved_tokens(k, head(k)))
        if free < 0:
            break
        _enter(k, pop(k), count)
        count += 1
        num_new += 1
    return count


@inner
def _enter(k: Kernel, request: int, position: int) -> None:
    """Note a context that has capacity."""
    k.slots[position, FIRST_LIST], k.slots[position, HELD_TOKENS] = request, 0
    k.slots[position, TO_COME] = lacking_tokens(k, request)


@inner
def _share_blocks(k: Kernel, count: int, budget: int) -> None:
    """A block each in turn, or the rest of a prompt, until none can be given any more."""
    was_given = True
    while was_given:
        was_given = False
        for position in range(count):
            slot = k.slots[position]
            unit = min(int(k.now.block_tokens), int(slot[TO_COME] - slot[HELD_TOKENS]))
            if 0 < unit <= budget:
                slot[HELD_TOKENS] += unit
                budget -= unit
                was_given = True


@inner
def _share_whole(k: Kernel, count: int, budget: int) -> None:
    """Whole prompts, up to the first that is too long."""
    for position in range(count):
        slot = k.slots[position]
        budget -= slot[TO_COME]
        if budget < 0:
            break
        slot[HELD_TOKENS] = slot[TO_COME]


run_static_batch = make_loop("run_static_batch", submit=submit_to_queue, step=static_batch_step)
run_max_utilization = make_loop("run_max_utilization", submit=submit_to_queue, step=max_utilization_step)
run_equal_progress = make_loop("run_equal_progress", submit=submit_to_queue, step=equal_progress_step)
