"""What policies of continuous batching share: a queue, the two halves of a batch, and who makes room.

A policy states its limits and decisions as rules: the order of the queue, what an admission takes, how
prompts are cut, who is evicted first. Where all decodes go on in every batch the aggregated loop serves it
(`queue_rules`); else the functions of this module decide for each request, and a policy makes its step of
them (`rules_by_request`).

While nothing is running the head of the queue is admitted whatever the test of admissions says: alone it
fits the device, or the instance would have rejected it. So no policy waits for ever on a margin that it
keeps. Only the last of the running requests may have prefill left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from cspsched.compiled.jit import inner
from cspsched.policies.settings import describe_settings
from cspsched.policies.step_runs import QueueRun as QueueRun
from cspsched.problem.instance import Instance
from cspsched.simulate.aggregated.loops import aggregated_rules
from cspsched.simulate.kernel.actions import (
    blocks_of,
    decodes,
    known_tokens,
    lacking_tokens,
    missing_blocks,
    preempt,
    schedule,
)
from cspsched.simulate.kernel.columns import LISTED
from cspsched.simulate.kernel.layout import Kernel
from cspsched.simulate.kernel.lists import (
    append_listed,
    head,
    pop,
    push,
)
from cspsched.simulate.kernel.lists import (
    submit_to_queue as submit_to_queue,
)
from cspsched.simulate.kernel.lockstep import can_go_on, decode_all, locked_growth
from cspsched.simulate.kernel.loops import Act, Loop
from cspsched.simulate.kernel.rules import Chunk, Reserve, Rules
from cspsched.simulate.kernel.together import unlock_listed

NEVER, WHOLE_BLOCKS, BEYOND = int(Chunk.NEVER), int(Chunk.WHOLE_BLOCKS), int(Chunk.BEYOND_BUDGET)
PEAK, WHOLE_OUTPUT = int(Reserve.PEAK), int(Reserve.OUTPUT)

ChunkTest = Callable[[Kernel, int], int]
AdmissionTest = Callable[[Kernel, int], bool]


class Configured:
    """The label of a policy: its name with the settings that differ from the defaults."""

    __slots__ = ()
    name: ClassVar[str]
    settings: Any

    @property
    def label(self) -> str:
        """Name with the settings that differ from the defaults."""
        return ":".join(filter(None, (self.name, describe_settings(self.settings))))


def queue_rules(
    instance: Instance,
    *,
    max_tokens: int | None = None,
    max_requests: int | None = None,
    **decisions: Any,
) -> Rules:
    """Return the rules of a policy under an instance's limits, for the aggregated loop.

    Parameters
    ----------
    max_tokens, max_requests
        The policy's own token budget of a batch and most running requests; None: the instance's.
    decisions
        Fields of the rules; without `chunk` a prompt is cut as the instance allows.
    """
    limits = instance.limits
    # All running requests may decode in one batch, so the token budget bounds their number, too.
    running = min(limits.max_batch_requests, limits.max_batch_tokens)
    decisions.setdefault("chunk", Chunk.ANY if instance.switches.chunked_prefill else Chunk.NEVER)
    return aggregated_rules(
        kv_blocks=limits.kv_blocks,
        block_tokens=limits.block_tokens,
        max_tokens=min(limits.max_batch_tokens, max_tokens or limits.max_batch_tokens),
        max_running=min(running, max_requests or running),
        prefills_first=False,
        **decisions,
    )


def rules_by_request(
    instance: Instance,
    run: Loop,
    *,
    max_tokens: int | None = None,
    max_requests: int | None = None,
    **decisions: Any,
) -> Rules:
    """Return the rules of a policy that decides for each request; parameters as of `queue_rules`."""
    base = queue_rules(instance, max_tokens=max_tokens, max_requests=max_requests)
    names = ("kv_blocks", "block_tokens", "max_tokens", "max_running", "chunk")
    limits = {name: getattr(base, name) for name in names}
    most = {"most_holders": base.max_running, "batch_tokens": instance.limits.max_batch_tokens}
    return Rules(run=run, **(limits | most | decisions))


# Decodes, and room for them.


def decode_with(victim: Callable[[Kernel], int], requeue: Callable[[Kernel, int], None] = push) -> Act:
    """Return a step's part: one token for every decode, after evictions if blocks are short.

    Parameters
    ----------
    victim
        Place of the request to evict next among the running ones; never the last of them.
    requeue
        How an evicted request waits again.
    """

    @inner
    def make_room(k: Kernel) -> None:
        """Evict until all that are left can decode."""
        now, needed = k.now, growing_blocks(k)
        while needed > now.free_blocks and now.num_listed > 1:
            place = victim(k)
            request = int(k.slots[place, LISTED])
            needed -= growth(k, request)
            take_listed(k, place)
            preempt(k, request)
            requeue(k, request)

    @inner
    def decode(k: Kernel) -> None:
        """All in lockstep, or one by one."""
        now = k.now
        if now.is_locked:
            fits = now.used_tokens + now.num_locked <= now.batch_tokens and can_go_on(k)
            if fits and growing_blocks(k) <= now.free_blocks:
                decode_all(k)
                return
            unlock_listed(k)
        make_room(k)
        for position in range(now.num_listed):
            request = int(k.slots[position, LISTED])
            if decodes(k, request) and now.used_tokens < now.batch_tokens:
                schedule(k, request, 1, growth(k, request))

    return decode


@inner
def newest(k: Kernel) -> int:
    """Place of the last admitted."""
    return int(k.now.num_listed) - 1


@inner
def last_in_order(k: Kernel) -> int:
    """Place of the last in the order of the queue."""
    found = int(k.now.num_listed) - 1
    for place in range(k.now.num_listed - 2, -1, -1):
        if k.requests[k.slots[place, LISTED]].key > k.requests[k.slots[found, LISTED]].key:
            found = place
    return found


@inner
def growth(k: Kernel, request: int) -> int:
    """Blocks that a running request takes to process one more token: 1 if all its blocks are full."""
    row = k.requests[request]
    return 1 if row.kv_tokens == row.blocks * k.now.block_tokens else 0


@inner
def growing_blocks(k: Kernel) -> int:
    """KV blocks that the running requests lack to decode a token each."""
    blocks = locked_growth(k)
    for position in range(k.now.num_listed):
        blocks += growth(k, int(k.slots[position, LISTED]))
    return blocks


@inner
def take_listed(k: Kernel, position: int) -> None:
    """Take a request out of the running ones."""
    now = k.now
    now.num_listed -= 1
    for place in range(position, now.num_listed):
        k.slots[place, LISTED] = k.slots[place + 1, LISTED]


# Prefills, and what an admission takes.


@inner
def has_started(k: Kernel) -> bool:
    """Whether the last of the running requests has prefill left."""
    now = k.now
    return bool(now.num_listed and not decodes(k, int(k.slots[now.num_listed - 1, LISTED])))


@inner
def num_decoding(k: Kernel) -> int:
    """Running requests that decode."""
    count = int(k.now.num_locked)
    for position in range(k.now.num_listed):
        count += decodes(k, int(k.slots[position, LISTED]))
    return count


@inner
def most_blocks(k: Kernel, tokens: int) -> int:
    """KV blocks of a number of tokens, at most the whole device."""
    return min(blocks_of(k, tokens), int(k.now.kv_blocks))


@inner
def reserved_tokens(k: Kernel, request: int) -> int:
    """Tokens whose KV blocks a request takes at its admission."""
    row, mode = k.requests[request], k.now.reserve
    if mode == PEAK:
        return int(row.prompt_tokens) + int(row.expected_tokens) - 1
    if mode == WHOLE_OUTPUT:
        return int(row.prompt_tokens) + int(row.expected_tokens)
    return known_tokens(k, request)


@inner
def chunk_tokens(k: Kernel, lacking: int) -> int:
    """Tokens of a prefill that go into this batch: all, or what the budget leaves if it may be cut."""
    now = k.now
    budget, mode = now.max_tokens - now.used_tokens, now.chunk
    if lacking <= budget:
        return lacking
    if mode == NEVER or budget <= 0 or (mode == BEYOND and lacking <= now.max_tokens):
        return 0
    if mode == WHOLE_BLOCKS:
        return int(budget // now.block_tokens * now.block_tokens)
    return int(budget)


@inner
def fits(k: Kernel, request: int) -> bool:
    """Whether all that the head of the queue reserves is free."""
    return bool(most_blocks(k, reserved_tokens(k, request)) <= k.now.free_blocks)


@inner
def has_place(k: Kernel) -> bool:
    """Whether another request may run."""
    return bool(k.now.num_running < k.now.max_running)


@inner
def pop_head(k: Kernel, request: int) -> None:
    """Take the head out of the queue."""
    pop(k)


def prefill_with(
    chunk_tokens: ChunkTest,
    fits: AdmissionTest,
    *,
    may_admit: Callable[[Kernel], bool] = has_place,
    head: Callable[[Kernel], int] = head,
    take: Callable[[Kernel, int], None] = pop_head,
) -> Act:
    """Return a step's part: continue the started prefill, then admit from the queue while its head fits.

    Parameters
    ----------
    chunk_tokens, fits
        How many of so many lacking tokens go into the batch; whether a request may be admitted beside those
        that run.
    may_admit
        Whether an admission is tried at all.
    head, take
        Who is next in the queue, and how it leaves it.
    """

    @inner
    def admit(k: Kernel) -> bool:
        """Admit the head of the queue if it fits; whether another may follow."""
        request = head(k)
        known = known_tokens(k, request)
        tokens = chunk_tokens(k, known)
        if not tokens or (k.now.num_running and not fits(k, request)):
            return False
        take(k, request)
        schedule(k, request, tokens, most_blocks(k, reserved_tokens(k, request)))
        append_listed(k, request)
        return tokens == known

    @inner
    def prefill(k: Kernel) -> None:
        """Continue, then admit."""
        now = k.now
        if has_started(k):
            request = int(k.slots[now.num_listed - 1, LISTED])
            lacking = lacking_tokens(k, request)
            tokens = chunk_tokens(k, lacking)
            if tokens:
                schedule(k, request, tokens, missing_blocks(k, request, tokens))
            if tokens < lacking:
                return
        while now.num_waiting and may_admit(k) and admit(k):
            pass

    return prefill


decode = decode_with(newest)
prefill = prefill_with(chunk_tokens, fits)
