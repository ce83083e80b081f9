"""What preemptive policies share: running and waiting requests in one order, decided anew for every batch.

All requests are served by key; one that lacks memory evicts those of the end of the order. A request that
comes too late for the token budget or the request limit sits out the batch and keeps its memory. The first
that cannot be served ends the batch. A policy keeps the keys up to date before it serves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cspsched.compiled.jit import inner
from cspsched.policies.batching import rules_by_request
from cspsched.policies.step_runs import RankedRun as RankedRun
from cspsched.problem.instance import Instance
from cspsched.simulate.kernel.actions import evicted_now, lacking_tokens, missing_blocks, preempt, schedule
from cspsched.simulate.kernel.columns import FIRST_LIST, LISTED
from cspsched.simulate.kernel.layout import BY_RANK, Kernel
from cspsched.simulate.kernel.lists import append_listed, drop_listed, head, pop, push, sort_by_key
from cspsched.simulate.kernel.loops import Act, Loop
from cspsched.simulate.kernel.rules import Chunk, Rules

NEVER = int(Chunk.NEVER)


def ranked_rules(instance: Instance, run: Loop, **decisions: Any) -> Rules:
    """Return the rules of a policy that serves by rank; a request without a place keeps its memory."""
    common = {"lockstep": False, "keeps_notes": True, "most_holders": instance.limits.kv_blocks}
    return rules_by_request(instance, run, **(common | decisions))


@inner
def ranked_chunk(k: Kernel, request: int, lacking: int) -> int:
    """Tokens of so many lacking that go into this batch: all, or what the budget leaves if it may be cut."""
    budget = int(k.now.max_tokens - k.now.used_tokens)
    if lacking <= budget:
        return lacking
    return 0 if k.now.chunk == NEVER else max(budget, 0)


@inner
def _known_lacking(k: Kernel, request: int) -> int:
    """Known tokens without KV entries anywhere."""
    return lacking_tokens(k, request)


@inner
def _bring(k: Kernel, request: int) -> None:
    """Nothing: no KV cache is anywhere but on the device."""


@inner
def _may_start(k: Kernel, request: int) -> bool:
    """True: the head of the queue is served like all others."""
    return True


def serve_with(
    chunk: Callable[[Kernel, int, int], int],
    *,
    lacking: Callable[[Kernel, int], int] = _known_lacking,
    push_out: Callable[[Kernel, int], Any] = preempt,
    bring: Callable[[Kernel, int], None] = _bring,
    may_start: Callable[[Kernel, int], bool] = _may_start,
) -> Act:
    """Return a step's part: fill the batch in the order of the keys.

    Parameters
    ----------
    chunk
        Tokens of a request, of so many that it lacks, that go into this batch.
    lacking
        Tokens that a request lacks.
    push_out
        How a victim leaves the device.
    bring
        What a request needs before it is served, room for it being free.
    may_start
        Whether the head of the queue may be served in this step; else the next is tried.
    """

    @inner
    def serve_one(k: Kernel, request: int) -> bool:
        """Schedule one request, making room at the expense of those behind it; whether it could be served."""
        now = k.now
        if now.num_in_batch >= now.max_running or evicted_now(k, request):
            return False
        tokens = chunk(k, request, lacking(k, request))
        if not tokens:
            return False
        blocks = missing_blocks(k, request, lacking_tokens(k, request))
        # Victims stand at the end of the running ones, in their order; num_idle of them are left.
        while blocks > now.free_blocks and now.num_idle:
            victim = int(k.slots[now.num_idle - 1, LISTED])
            if k.requests[victim].key <= k.requests[request].key:
                break
            push_out(k, victim)
            now.num_idle -= 1
        if blocks > now.free_blocks:
            return False
        bring(k, request)
        schedule(k, request, tokens, missing_blocks(k, request, lacking_tokens(k, request)))
        return True

    @inner
    def serve(k: Kernel) -> None:
        """Serve by key; the first that cannot be served ends the batch."""
        now = k.now
        sort_by_key(k, LISTED, int(now.num_listed))
        num_running, num_admitted, num_aside, position = int(now.num_listed), 0, 0, 0
        now.num_idle = num_running
        while position < num_running or now.heap_size:
            is_new = position == num_running
            if not is_new and now.heap_size:
                is_new = k.requests[head(k)].key < k.requests[k.slots[position, LISTED]].key
            request = head(k) if is_new else int(k.slots[position, LISTED])
            if is_new and not may_start(k, request):
                k.orders[num_aside, BY_RANK] = pop(k)
                num_aside += 1
                continue
            if not serve_one(k, request):
                break
            if is_new:
                pop(k)
                k.slots[num_admitted, FIRST_LIST] = request
                num_admitted += 1
            else:
                position += 1
        if now.num_evictions:
            for place in range(num_running):
                if evicted_now(k, int(k.slots[place, LISTED])):
                    push(k, int(k.slots[place, LISTED]))
            drop_listed(k)
        for place in range(num_aside):
            push(k, int(k.orders[place, BY_RANK]))
        for place in range(num_admitted):
            append_listed(k, int(k.slots[place, FIRST_LIST]))

    return serve


serve = serve_with(ranked_chunk)
