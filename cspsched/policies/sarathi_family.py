"""What the schedulers of sarathi-serve share with each other and with vLLM V0, from which they descend.

A request is admitted with all the blocks of its known tokens, above a watermark; every decode wants to see a
free block, whether it needs one or not; who is preempted goes to the front of the queue and is recomputed.
Three deviations, each where the real programs stop, crash or drop a request:

* While nothing is running the watermark is waived: the real schedulers wait for ever for a prompt that fits
  the device but not above the watermark (vLLM V0 drops it).
* A prompt within the scheduler's own limit but beyond the instance's C is processed in pieces of C, if the
  instance allows chunks. Beyond the own limit it is an error (the real ones drop it: FINISHED_IGNORED).
* A preempted request generates what it still lacks (sarathi-serve forgets what it had generated and makes
  `max_tokens` more).

The setting `emulate_bugs` of a policy brings the last of sarathi-serve, and of vLLM V0 the drop and the
watermark that is never waived. What a request then generates is no longer what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cspsched.compiled.jit import inner
from cspsched.problem.instance import Instance
from cspsched.simulate.aggregated.loops import aggregated_rules
from cspsched.simulate.aggregated.state import Need
from cspsched.simulate.kernel.actions import (
    blocks_of,
    decodes,
    known_tokens,
    lacking_tokens,
    missing_blocks,
    preempt,
    restart_output,
    schedule,
)
from cspsched.simulate.kernel.cancel import cancel_with
from cspsched.simulate.kernel.columns import FIRST_LIST, LISTED, SECOND_LIST, SORTED_LIST
from cspsched.simulate.kernel.layout import HEAP, Kernel
from cspsched.simulate.kernel.lists import append_listed, next_arrival
from cspsched.simulate.kernel.lockstep import can_decode_all, decode_all, locked_growth
from cspsched.simulate.kernel.loops import Loop
from cspsched.simulate.kernel.rules import Chunk, Rules
from cspsched.simulate.kernel.together import unlock_listed

TokensTest = Callable[[Kernel, int, int], int]
RequestAct = Callable[[Kernel, int], None]
RequestTest = Callable[[Kernel, int], bool]


def family_rules(
    instance: Instance,
    *,
    max_num_seqs: int,
    max_tokens: int | None = None,
    watermark: float = 0.0,
    **decisions: Any,
) -> Rules:
    """Return the rules of a scheduler under an instance's limits, for the aggregated loop.

    Parameters
    ----------
    max_num_seqs, max_tokens, watermark
        The scheduler's own most running requests, token budget of a batch with prefills (None: it has none)
        and share of the blocks that an admission leaves free.
    decisions
        Fields of the rules.
    """
    limits = instance.limits
    own_tokens = max_tokens or limits.kv_tokens
    budget = min(own_tokens, limits.max_batch_tokens)
    common: dict[str, Any] = {
        "longest_prompt": own_tokens if instance.switches.chunked_prefill else budget,
        "chunk": Chunk.TOO_LONG,
    }
    return aggregated_rules(
        kv_blocks=limits.kv_blocks,
        block_tokens=limits.block_tokens,
        max_tokens=budget,
        # All that run may decode in one batch.
        max_running=min(max_num_seqs, limits.max_batch_requests, limits.max_batch_tokens),
        watermark_blocks=int(watermark * limits.kv_blocks),
        need=Need.ONE_SPARE,
        **common | decisions,
    )


def family_rules_by_request(
    instance: Instance,
    run: Loop,
    *,
    max_num_seqs: int,
    max_tokens: int | None = None,
    watermark: float = 0.0,
    **decisions: Any,
) -> Rules:
    """Return the rules of a scheduler that decides for each request; parameters as of `family_rules`."""
    base = family_rules(instance, max_num_seqs=max_num_seqs, max_tokens=max_tokens, watermark=watermark)
    names = "kv_blocks", "block_tokens", "max_tokens", "max_running", "watermark_blocks", "longest_prompt"
    limits = {name: getattr(base, name) for name in names}
    most = {"most_holders": base.max_running, "batch_tokens": base.max_tokens, "keeps_order": True}
    return Rules(run=run, **limits | most | {"cancel": cancel_with(forget_in_ring)} | decisions)


# The queue, a ring.


@inner
def submit_to_family(k: Kernel) -> None:
    """Queue all arrivals at the end."""
    request = next_arrival(k)
    while request >= 0:
        k.requests[request].key = k.requests[request].arrival_ns
        enqueue(k, request)
        request = next_arrival(k)


@inner
def enqueue(k: Kernel, request: int) -> None:
    """Enter a request at the end of the queue."""
    k.orders[(k.now.queue_start + k.now.heap_size) % len(k.orders), HEAP] = request
    k.now.heap_size += 1


@inner
def queued(k: Kernel, position: int) -> int:
    """The request at a position of the queue."""
    return int(k.orders[(k.now.queue_start + position) % len(k.orders), HEAP])


@inner
def push_front(k: Kernel, request: int) -> None:
    """Enter a request at the front of the queue."""
    now = k.now
    now.queue_start = (now.queue_start + len(k.orders) - 1) % len(k.orders)
    k.orders[now.queue_start, HEAP] = request
    now.heap_size += 1


@inner
def _take_queued(k: Kernel, position: int) -> None:
    """Take a request out of the queue; those in front of it move up."""
    queue, size, start = k.orders[:, HEAP], len(k.orders), int(k.now.queue_start)
    for place in range(position, 0, -1):
        queue[(start + place) % size] = queue[(start + place - 1) % size]
    k.now.queue_start = (start + 1) % size
    k.now.heap_size -= 1


def forget_in_ring(k: Kernel, request: int) -> None:
    """Take a request that waits and is cancelled out of the queue."""
    for position in range(k.now.heap_size):
        if queued(k, position) == request:
            _take_queued(k, position)
            return


@inner
def preempt_to_front(k: Kernel, request: int) -> None:
    """Evict a request to the front of the queue."""
    preempt(k, request)
    if k.now.restarts_output:
        restart_output(k, request)
    push_front(k, request)


# Prefills and admissions.


@inner
def whole_prompt(k: Kernel, request: int, used: int) -> int:
    """Tokens of a prefill beside so many used in the batch: all of them, or the next piece of C."""
    now, lacking, is_new = k.now, lacking_tokens(k, request), not k.requests[request].kv_tokens
    if is_new and now.longest_prompt and lacking > now.longest_prompt:
        now.refused = request
        return 0
    tokens, left = min(lacking, int(now.max_tokens)), int(now.max_tokens) - used
    if is_new:
        return tokens if tokens <= left else 0
    return min(tokens, left)


def continue_with(tokens_of: TokensTest) -> Callable[[Kernel, int, int], int]:
    """Return a step's part: next tokens for the first so many of SECOND_LIST, whose blocks are allocated.

    It gets the tokens used in the batch, and returns those used then.

    Parameters
    ----------
    tokens_of
        Tokens of a prefill beside so many used in the batch.
    """

    @inner
    def continue_prefills(k: Kernel, count: int, used: int) -> int:
        for position in range(count):
            request = int(k.slots[position, SECOND_LIST])
            tokens = tokens_of(k, request, used)
            if tokens:
                schedule(k, request, tokens, 0)
                used += tokens
        return used

    return continue_prefills


@inner
def always(k: Kernel) -> bool:
    """Whether the head of the queue may be tried: it may."""
    return True


@inner
def never(k: Kernel, request: int) -> bool:
    """Whether a request is passed over: it is not."""
    return False


@inner
def known_blocks(k: Kernel, request: int) -> int:
    """Blocks of all known tokens."""
    return blocks_of(k, known_tokens(k, request))


def admit_with(
    tokens_of: TokensTest,
    *,
    may_admit: Callable[[Kernel], bool] = always,
    blocks_to_admit: Callable[[Kernel, int], int] = known_blocks,
    is_passed_over: RequestTest = never,
    enter: RequestAct = append_listed,
) -> Callable[[Kernel, int, int], None]:
    """Return a step's part: admissions in the order of the queue, until something does not fit.

    It gets the tokens used in the batch, and the blocks that are to spare.

    Parameters
    ----------
    tokens_of
        Tokens of a prefill beside so many used in the batch.
    may_admit
        Whether the queue may be tried.
    blocks_to_admit
        Blocks that an admission takes.
    is_passed_over
        Whether a request lets others go first.
    enter
        How a request joins those that run.
    """

    @inner
    def admit(k: Kernel, used: int, spare: int) -> None:
        now, passed = k.now, 0
        while may_admit(k) and passed < now.heap_size and now.num_running < now.max_running:
            request = queued(k, passed)
            if is_passed_over(k, request):
                passed += 1
                continue
            blocks = blocks_to_admit(k, request)
            if now.drops_above and _is_dropped(k, request, blocks):
                _take_queued(k, passed)
                now.num_waiting -= 1
                now.num_unfinished -= 1
                continue
            tokens = tokens_of(k, request, used)
            kept_free = int(now.watermark_blocks) if now.num_running else 0
            if not tokens or blocks + kept_free > spare:
                break
            _take_queued(k, passed)
            schedule(k, request, tokens, blocks)
            enter(k, request)
            spare -= blocks
            used += tokens

    return admit


@inner
def _is_dropped(k: Kernel, request: int, blocks: int) -> bool:
    """Whether a request is longer than those that are served, or has no room above the watermark."""
    now = k.now
    return bool(known_tokens(k, request) > now.drops_above or blocks + now.watermark_blocks > now.kv_blocks)


# Decodes.


@inner
def list_started(k: Kernel) -> int:
    """Put the running requests with prefill left into SECOND_LIST, in order; how many."""
    count = 0
    for position in range(k.now.num_listed):
        request = int(k.slots[position, LISTED])
        if not decodes(k, request):
            k.slots[count, SECOND_LIST] = request
            count += 1
    return count


def keep_with(give_way: RequestAct, sort: Callable[[Kernel, int, int], None]) -> Callable[..., Any]:
    """Return a step's part that splits the running requests into decodes that can be kept and prefills.

    It returns the decodes, those outside lockstep in FIRST_LIST, the prefills, in SECOND_LIST, and the blocks
    that the decodes will take. Both are listed anew in this order.

    Parameters
    ----------
    give_way
        How a request is preempted.
    sort
        Sorts a column of so many, the last to be preempted first.
    """

    @inner
    def keep_decodes(k: Kernel) -> tuple[int, int, int]:
        now, num_decodes, num_started = k.now, 0, 0
        if now.is_locked and not can_decode_all(k):
            unlock_listed(k)
        promised = locked_growth(k)
        start, end = 0, int(now.num_listed)
        for position in range(end):
            k.slots[position, SORTED_LIST] = k.slots[position, LISTED]
        sort(k, SORTED_LIST, end)
        while start < end:
            request = int(k.slots[start, SORTED_LIST])
            start += 1
            if not decodes(k, request):
                k.slots[num_started, SECOND_LIST] = request
                num_started += 1
                continue
            while now.free_blocks == promised and start < end:
                end -= 1
                give_way(k, int(k.slots[end, SORTED_LIST]))
            if now.free_blocks == promised:
                give_way(k, request)
                continue
            k.slots[num_decodes, FIRST_LIST] = request
            num_decodes += 1
            promised += missing_blocks(k, request, 1)
        now.num_listed = 0
        for position in range(num_decodes):
            append_listed(k, int(k.slots[position, FIRST_LIST]))
        for position in range(num_started):
            append_listed(k, int(k.slots[position, SECOND_LIST]))
        return num_decodes + int(now.num_locked), num_started, promised

    return keep_decodes


@inner
def schedule_decodes(k: Kernel, count: int) -> None:
    """One token each."""
    if k.now.is_locked:
        decode_all(k)
        return
    for position in range(count):
        request = int(k.slots[position, FIRST_LIST])
        schedule(k, request, 1, missing_blocks(k, request, 1))
