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

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

from cspsched.compiled.jit import inner, merged
from cspsched.policies.batching import Configured
from cspsched.policies.needs import Need, RequestData
from cspsched.policies.settings import require_at_least, require_fraction
from cspsched.problem.instance import Instance
from cspsched.simulate.aggregated.loops import aggregated_rules
from cspsched.simulate.aggregated.state import Batch, Victim
from cspsched.simulate.kernel.actions import (
    blocks_of,
    decodes,
    is_finishing,
    known_tokens,
    lacking_tokens,
    preempt,
    schedule,
)
from cspsched.simulate.kernel.ahead import conclude_ahead
from cspsched.simulate.kernel.columns import BATCHED, LISTED
from cspsched.simulate.kernel.layout import Kernel
from cspsched.simulate.kernel.lists import append_listed, head, next_arrival, next_number, pop, push
from cspsched.simulate.kernel.lockstep import can_go_on, decode_all, locked_growth
from cspsched.simulate.kernel.loops import make_loop
from cspsched.simulate.kernel.prefix import CACHES, find_cached, num_free_of, reuse
from cspsched.simulate.kernel.records import NO_REQUEST, PolicyState
from cspsched.simulate.kernel.rules import Chunk, Order, Reserve, Rules
from cspsched.simulate.kernel.together import unlock_listed

NEVER = int(Chunk.NEVER)


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

    The engine's default is on. Here it is off, since the exact solver knows no shared blocks. With it on,
    `compare`, `improve` and `bracket` measure every policy against the best schedule with hits.
    """
    long_prefill_token_threshold_adaptive: bool = False
    """Let a threshold be at least the token budget over the number of requests there; none stays none."""
    prefill_schedule_interval: int = 1
    """Steps from one with prefills to the next, as long as no request had to wait and a request decodes.

    A run begins as if the last prefills were as long ago as that.
    """
    max_num_active_seqs: int | None = None
    """Most running requests at an admission, in place of max_num_seqs."""
    num_lookahead_tokens: int = 0
    """Tokens for which a request is given KV blocks ahead of those that it processes."""

    @property
    def goes_by_request(self) -> bool:
        """Whether the loop over aggregated state does not know the settings."""
        return bool(
            self.async_scheduling
            or self.enable_prefix_caching
            or self.long_prefill_token_threshold_adaptive
            or self.prefill_schedule_interval > 1
            or self.num_lookahead_tokens
        )

    def __post_init__(self) -> None:
        most = ("max_num_seqs", "max_num_batched_tokens", "max_num_active_seqs")
        require_at_least(self, 1, *most, "prefill_schedule_interval", policy="vllm")
        require_at_least(self, 0, "long_prefill_token_threshold", "num_lookahead_tokens", policy="vllm")
        require_fraction(self, "watermark", policy="vllm")


@dataclass(frozen=True, slots=True)
class VllmV1(Configured):
    """vLLM V1 (0.33.0): running requests first, then the waiting queue, one token budget for both."""

    settings: VllmSettings = VllmSettings()
    name: ClassVar[str] = "vllm"
    settings_type: ClassVar[type[VllmSettings]] = VllmSettings

    def kernel_rules(self, instance: Instance) -> Rules:
        """Rules under an instance's limits and the settings, whichever are tighter.

        The aggregated loop knows most settings; by priority only if all decodes and one whole chunk fit into
        a batch: else more may sit out.
        """
        settings, limits = self.settings, instance.limits
        most = settings.max_num_active_seqs or settings.max_num_seqs or limits.max_batch_requests
        chunked = settings.enable_chunked_prefill
        if chunked is None:
            chunked = instance.switches.chunked_prefill
        by_priority = settings.policy is QueueOrder.PRIORITY
        common: dict[str, Any] = {
            "kv_blocks": limits.kv_blocks,
            "block_tokens": limits.block_tokens,
            "max_tokens": min(
                limits.max_batch_tokens, settings.max_num_batched_tokens or limits.max_batch_tokens
            ),
            "max_running": min(limits.max_batch_requests, most),
            "order": Order.PRIORITY if by_priority else Order.ARRIVAL,
            "chunk": Chunk.ANY if chunked else Chunk.NEVER,
            # The real pool has one block more, its null block, and takes the watermark of that number.
            "watermark_blocks": int(settings.watermark * (limits.kv_blocks + 1)),
        }
        needs_order = by_priority and (
            settings.long_prefill_token_threshold > 0 or common["max_tokens"] < common["max_running"]
        )
        if settings.goes_by_request or needs_order:
            return self._rules_by_request(instance, common)
        return aggregated_rules(
            batch=Batch.RUNNING_FIRST,
            reserve=Reserve.CHUNK,
            victim=Victim.LEAST_IMPORTANT if by_priority else Victim.NEWEST,
            long_prefill=settings.long_prefill_token_threshold,
            test_known=settings.scheduler_reserve_full_isl,
            **common,
        )

    def _rules_by_request(self, instance: Instance, common: dict[str, Any]) -> Rules:
        settings, limits = self.settings, instance.limits
        longest = limits.max_model_len or limits.kv_tokens + settings.num_lookahead_tokens
        own = PolicyState(
            by_priority=settings.policy is QueueOrder.PRIORITY,
            test_known=settings.scheduler_reserve_full_isl,
            long_prefill=settings.long_prefill_token_threshold,
            adaptive=settings.long_prefill_token_threshold_adaptive,
            interval=settings.prefill_schedule_interval,
            last_prefill_step=-settings.prefill_schedule_interval,
        )
        return Rules(
            run=run_vllm_ahead if settings.async_scheduling else run_vllm,
            own=own,
            stands_by_admission=True,
            batch_tokens=limits.max_batch_tokens,
            most_holders=common["max_running"],
            lockstep=not settings.enable_prefix_caching,
            caches_prefixes=settings.enable_prefix_caching,
            lookahead=settings.num_lookahead_tokens,
            max_model_len=longest,
            decides_ahead=settings.async_scheduling,
            **common,
        )


@inner
def _submit(k: Kernel) -> None:
    """Queue all arrivals: at the end, or at their rank."""
    request = next_arrival(k)
    while request >= 0:
        k.requests[request].key = k.requests[request].rank if k.own.by_priority else next_number(k)
        push(k, request)
        request = next_arrival(k)


@merged
def vllm_step(k: Kernel) -> None:
    """Running requests first; the waiting queue only if none had to be preempted."""
    now, own = k.now, k.own
    longest, defers = _longest_chunk(k), _defers_prefills(k)
    budget = _serve_running(k, longest, defers)
    has_prefill = own.interval > 1 and _has_prefill(k)
    if not now.num_evictions and _admit_waiting(k, longest, defers, budget):
        has_prefill = True
    if now.num_in_batch:
        own.num_steps += 1
        if has_prefill:
            own.last_prefill_step = own.num_steps


@inner
def _longest_chunk(k: Kernel) -> int:
    """Tokens that a request may be given at most, before the budget is looked at."""
    now, own = k.now, k.own
    num_eligible = now.num_running + now.heap_size
    threshold = own.long_prefill if num_eligible > 1 else 0
    if own.adaptive and threshold:
        threshold = max(threshold, now.max_tokens // num_eligible)
    return int(threshold) if threshold else int(now.kv_blocks * now.block_tokens)


@inner
def _defers_prefills(k: Kernel) -> bool:
    """Whether prefills wait: the last were not long ago, left none waiting, and a request decodes."""
    now, own = k.now, k.own
    if own.interval <= 1 or own.capacity_bound:
        return False
    if own.num_steps + 1 - own.last_prefill_step >= own.interval:
        return False
    some = now.num_locked > 0
    for position in range(now.num_listed):
        some = some or decodes(k, int(k.slots[position, LISTED]))
    return bool(some)


@inner
def _has_prefill(k: Kernel) -> bool:
    """Whether there is a prefill in the batch."""
    for position in range(k.now.num_batched):
        request = k.slots[position, BATCHED]
        if request != NO_REQUEST and not decodes(k, int(request)):
            return True
    return False


@inner
def _serve_running(k: Kernel, longest: int, defers: bool) -> int:  # noqa: FBT001
    """Give every running request what it lacks, in order of admission; return the budget left."""
    now, own, position = k.now, k.own, 0
    if now.is_locked:
        if _can_serve_all(k, longest, defers):
            decode_all(k)
        else:
            unlock_listed(k)
    budget = int(now.max_tokens - now.num_locked)
    while budget and position < now.num_listed:
        request = int(k.slots[position, LISTED])
        if is_finishing(k, request) or (defers and not decodes(k, request)):
            position += 1
            continue
        tokens = lacking_tokens(k, request)
        if tokens > 1:
            tokens = min(tokens, longest, budget)
        row = k.requests[request]
        blocks = _blocks_for(k, request, tokens)
        while blocks > now.free_blocks and row.blocks:
            place = _victim(k)
            budget += _evict_listed(k, place)
            position -= place < position
        if not row.blocks:
            if own.by_priority:
                continue
            break
        schedule(k, request, tokens, blocks)
        budget -= tokens
        position += 1
    return budget


@inner
def _blocks_for(k: Kernel, request: int, tokens: int) -> int:
    """KV blocks that a running request lacks for so many more tokens."""
    now, row = k.now, k.requests[request]
    after = int(row.kv_tokens) + tokens
    if now.lookahead:
        after = min(after + int(now.lookahead), int(now.max_model_len))
    return blocks_of(k, after) - int(row.blocks)


@inner
def _can_serve_all(k: Kernel, longest: int, defers: bool) -> bool:  # noqa: FBT001
    """Whether tokens and blocks are enough for all that run, so that their order does not matter.

    The last admitted may be cut: it is given what the others leave in any order.
    """
    now, left, blocks = k.now, int(k.now.max_tokens - k.now.num_locked), locked_growth(k)
    for position in range(now.num_listed):
        request = int(k.slots[position, LISTED])
        if is_finishing(k, request) or (defers and not decodes(k, request)):
            continue
        tokens = lacking_tokens(k, request)
        if tokens > 1:
            tokens = min(tokens, longest)
        if k.requests[request].place == now.last_number and left > 0:
            tokens = min(tokens, left)
        left -= tokens
        blocks += _blocks_for(k, request, tokens)
    return bool(left >= 0 and blocks <= now.free_blocks and can_go_on(k))


@inner
def _victim(k: Kernel) -> int:
    """Place of the request to preempt: the last admitted, or the first of the least important."""
    now, own = k.now, k.own
    found = int(now.num_listed) - 1
    if own.by_priority:
        for place in range(now.num_listed - 2, -1, -1):
            importance = k.requests[k.slots[place, LISTED]].importance
            if importance >= k.requests[k.slots[found, LISTED]].importance:
                found = place
    return found


@inner
def _evict_listed(k: Kernel, position: int) -> int:
    """Preempt a running request and queue it again, unless it ends soon; the tokens that it gives back."""
    now, own, request = k.now, k.own, int(k.slots[position, LISTED])
    finishing = is_finishing(k, request)
    returned = preempt(k, request)
    now.num_listed -= 1
    for place in range(position, now.num_listed):
        k.slots[place, LISTED] = k.slots[place + 1, LISTED]
    if finishing:
        return returned
    if not own.by_priority:
        now.front -= 1
        k.requests[request].key = now.front
    push(k, request)
    return returned


@inner
def _admit_waiting(k: Kernel, longest: int, defers: bool, budget: int) -> bool:  # noqa: FBT001
    """Admit in the order of the queue until something does not fit; whether there is prefill work."""
    now, own, has_prefill = k.now, k.own, False
    while budget and now.heap_size and now.num_running < now.max_running:
        request = head(k)
        num_cached = find_cached(k, request) if CACHES and now.caches_prefixes else 0
        cached, known = num_cached * int(now.block_tokens), known_tokens(k, request)
        if defers and known - cached > 1:
            break
        tokens = min(known - cached, longest)
        if tokens > budget and now.chunk == NEVER:
            break
        tokens = min(tokens, budget)
        spare = now.free_blocks - (now.watermark_blocks if now.num_running else 0)
        if CACHES and num_cached:
            spare -= num_free_of(k, request, num_cached)
        if own.test_known and blocks_of(k, min(known, int(now.max_model_len))) - num_cached > spare:
            break
        after = min(cached + tokens + int(now.lookahead), int(now.max_model_len))
        blocks = blocks_of(k, after) - num_cached
        if blocks > spare:
            break
        pop(k)
        if CACHES and num_cached:
            reuse(k, request, num_cached)
        schedule(k, request, tokens, blocks)
        append_listed(k, request)
        budget -= tokens
        has_prefill = has_prefill or known - cached > 1
    if not defers:
        own.capacity_bound = now.heap_size > 0
    return has_prefill


run_vllm = make_loop("run_vllm_by_request", submit=_submit, step=vllm_step)
run_vllm_ahead = make_loop("run_vllm_ahead", submit=_submit, step=vllm_step, conclude=conclude_ahead)
