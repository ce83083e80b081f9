"""FastServe's skip-join multi-level feedback queue (LLMServe/FastServe).

Queue p has the quantum q 2^p, q = 10 ms; there is no last queue. A request joins the first queue whose
quantum covers the time that the cost model gives its prompt alone. Batches are filled from the highest queue
down; who has used more than the quantum of its queue goes to the front of the next. Every 1000 batches
whoever was idle for 3 s goes to the front of queue 0. Whoever lacks memory evicts from the end of the lowest
queue up.

Where the instance allows swap (preemption swap or either) an evicted request moves to host memory. No
prompt starts while less than 10 % of the host blocks are free, and after a batch before which nobody was
evicted the first of those in host memory, as many as a batch may have, come back ahead of their turn as
long as the blocks that the running requests need next stay free. (FastServe keeps one block in reserve for
each request of its small batches instead, which an R of hundreds would not bear.) A victim that host memory
has no room for is recomputed; if the instance allows swap alone, that is an error.

Where the instance has no swap an evicted request is recomputed (and looks for starving requests that come
more often than a refill takes may evict in a circle, which is an error). If memory is short that is not
FastServe's performance: it changes over requests at every quantum, and each change costs a refill. Left
open by the written rules and decided here: prefills and decodes share batches; prompts are cut where the
instance allows it; the requests of a batch keep their order when they are pushed to the front; idle counts
from the last batch or, before the first, from the arrival; time in a queue is that of the batches it was
in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from cspsched.compiled.jit import inner, merged
from cspsched.errors import UsageError
from cspsched.policies.batching import Configured, growing_blocks
from cspsched.policies.ranking import ranked_chunk, ranked_rules, serve_with
from cspsched.policies.settings import require_at_least
from cspsched.problem.instance import Instance
from cspsched.simulate.kernel.actions import lacking_tokens, missing_blocks, preempt
from cspsched.simulate.kernel.cancel import cancel_with, forget_in_heap
from cspsched.simulate.kernel.columns import BATCHED, LEVEL_BITS, LISTED
from cspsched.simulate.kernel.layout import BY_RANK, NO_HOST_ROOM, Kernel
from cspsched.simulate.kernel.lists import (
    append_listed,
    next_arrival,
    next_number,
    pop,
    push,
    sort_by_key,
)
from cspsched.simulate.kernel.loops import make_loop
from cspsched.simulate.kernel.pricing import batch_time_ns
from cspsched.simulate.kernel.records import NO_REQUEST, PolicyState
from cspsched.simulate.kernel.rules import Rules
from cspsched.simulate.kernel.swap import swap_in, swap_out

HALF_KEYS = 2 ** (LEVEL_BITS - 1)
NS_PER_MS = 1_000_000
LEAST_HOST_SHARE = 0.1
"""Share of the host blocks that must be free for a prompt to start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FastserveSettings:
    """The scheduler's parameters that are simulated; None takes the instance's limit."""

    quantum_ms: float = 10.0
    """Quantum of the highest queue."""
    starvation_threshold_ms: float = 3000.0
    """Idle time after which a request starves."""
    starvation_period: int = 1000
    """Batches between two looks for requests that starve."""
    max_batch_size: int | None = None
    """Most requests in a batch. Default: the instance's R."""
    max_tokens_per_batch: int | None = None
    """Token budget of a batch. Default: the instance's C."""

    def __post_init__(self) -> None:
        names = ("starvation_period", "max_batch_size", "max_tokens_per_batch")
        require_at_least(self, 1, *names, policy="fastserve")
        require_at_least(self, 0, "starvation_threshold_ms", policy="fastserve")
        if not self.quantum_ms * NS_PER_MS >= 1:
            raise UsageError(f"policy 'fastserve': quantum_ms is {self.quantum_ms}, expected at least 1e-6")


@dataclass(frozen=True, slots=True)
class Fastserve(Configured):
    """FastServe's skip-join MLFQ: long runs wait behind short ones; swap if the instance has it."""

    settings: FastserveSettings = FastserveSettings()
    name: ClassVar[str] = "fastserve"
    settings_type: ClassVar[type[FastserveSettings]] = FastserveSettings

    def kernel_rules(self, instance: Instance) -> Rules:
        """Rules under an instance's limits and the settings, whichever are tighter."""
        settings, host_blocks = self.settings, instance.limits.host_kv_blocks
        preemption = instance.switches.preemption
        own = PolicyState(
            quantum_ns=float(settings.quantum_ms * NS_PER_MS),
            starvation_ns=float(settings.starvation_threshold_ms * NS_PER_MS),
            starvation_period=settings.starvation_period,
            swaps=preemption.swaps,
            recomputes=preemption.recomputes,
            least_host_blocks=LEAST_HOST_SHARE * host_blocks,
        )
        return ranked_rules(
            instance,
            run_fastserve,
            own=own,
            cancel=cancel_with(_forget),
            max_tokens=settings.max_tokens_per_batch,
            max_requests=settings.max_batch_size,
            host_blocks=host_blocks if preemption.swaps else 0,
        )


# Queues and their quanta.


@inner
def _quantum_ns(k: Kernel, level: int) -> float:
    """Time that a request may spend in a queue."""
    return math.ldexp(k.own.quantum_ns, level)


@inner
def _level_key(level: int, number: int) -> int:
    """Key of a place in a queue; numbers below 0 stand at its front."""
    return int((level << LEVEL_BITS) + HALF_KEYS + number)


@inner
def _first_level(k: Kernel, request: int) -> int:
    """The first queue whose quantum covers the prompt alone."""
    now, tokens, level = k.now, int(k.requests[request].prompt_tokens), 0
    now.attention = tokens * (tokens + 1) // 2
    now.prefill_tokens, now.prefill_context, now.num_prefills, now.num_generating = tokens, 0, 1, 1
    prefill_ns = batch_time_ns(k, 0)
    while _quantum_ns(k, level) < prefill_ns:
        level += 1
    return level


@inner
def charge(k: Kernel) -> bool:
    """Demote those of the last batch that have used up the quantum of their queue; false."""
    now = k.now
    elapsed_ns = now.clock_ns - k.own.batch_start_ns
    # The last is pushed to the front first, so that the order stays.
    for position in range(now.num_batched - 1, -1, -1):
        request = int(k.slots[position, BATCHED])
        if request == NO_REQUEST:
            continue
        k.notes[request].spent += elapsed_ns
        k.notes[request].idle_since_ns = now.clock_ns
        level = int(k.notes[request].level)
        if k.notes[request].spent > _quantum_ns(k, level):
            _push_front(k, request, level + 1)
    return False


@inner
def _push_front(k: Kernel, request: int, level: int) -> None:
    """Move a request to the front of a queue."""
    k.own.front -= 1
    k.notes[request].level = level
    k.requests[request].key = _level_key(level, int(k.own.front))
    k.notes[request].spent = 0


@inner
def _rescue(k: Kernel) -> None:
    """Move starving requests to the front of the highest queue, the last in order first."""
    now, scratch = k.now, k.orders[:, BY_RANK]
    sort_by_key(k, LISTED, int(now.num_listed))
    num_waiting, position = int(now.heap_size), int(now.num_listed) - 1
    for place in range(num_waiting):
        scratch[place] = pop(k)
    place = num_waiting - 1
    while place >= 0 or position >= 0:
        is_waiting = position < 0
        if place >= 0 and not is_waiting:
            is_waiting = k.requests[scratch[place]].key > k.requests[k.slots[position, LISTED]].key
        request = int(scratch[place]) if is_waiting else int(k.slots[position, LISTED])
        place, position = (place - 1, position) if is_waiting else (place, position - 1)
        if now.clock_ns - k.notes[request].idle_since_ns >= k.own.starvation_ns:
            _push_front(k, request, 0)
    for place in range(num_waiting):
        push(k, int(scratch[place]))


@inner
def _submit(k: Kernel) -> None:
    """Queue all arrivals, each in the first queue whose quantum covers its prefill."""
    request = next_arrival(k)
    while request >= 0:
        level = _first_level(k, request)
        k.notes[request].level = level
        k.requests[request].key = _level_key(level, next_number(k))
        k.notes[request].idle_since_ns = k.requests[request].arrival_ns
        push(k, request)
        request = next_arrival(k)


# Host memory.


@inner
def _lacking(k: Kernel, request: int) -> int:
    """Known tokens without KV entries, on the device or in host memory."""
    return lacking_tokens(k, request) - int(k.notes[request].host_tokens)


@inner
def _may_start(k: Kernel, request: int) -> bool:
    """Whether host memory has room for those that would have to make room for a prompt."""
    has_room = not k.own.swaps or k.own.starts
    return bool(has_room or k.notes[request].host_tokens)


@inner
def _push_out(k: Kernel, victim: int) -> None:
    """Evict a running request; one that may not be dropped needs room in host memory."""
    now, own = k.now, k.own
    has_room = k.requests[victim].blocks <= now.free_host_blocks
    if own.swaps and (has_room or not own.recomputes):
        if not has_room and now.refused == NO_REQUEST:
            now.refused, now.refusal, now.room_left = victim, NO_HOST_ROOM, now.free_host_blocks
        swap_out(k, victim)
        own.num_swapped += 1
    else:
        preempt(k, victim)


@inner
def _bring(k: Kernel, request: int) -> None:
    """Swap in a request that is in host memory."""
    if k.notes[request].host_tokens:
        swap_in(k, request)
        k.own.num_swapped -= 1


@inner
def _bring_back(k: Kernel) -> None:
    """Swap in ahead of their turn the first of those in host memory, while the blocks are to spare."""
    now, scratch, num_aside, num_seen = k.now, k.orders[:, BY_RANK], 0, 0
    while k.own.num_swapped and num_seen < now.max_running:
        request = pop(k)
        if k.notes[request].host_tokens:
            num_seen += 1
            blocks = missing_blocks(k, request, lacking_tokens(k, request))
            if blocks + growing_blocks(k) > now.free_blocks:
                push(k, request)
                break
            _bring(k, request)
            append_listed(k, request)
        else:
            scratch[num_aside] = request
            num_aside += 1
    for place in range(num_aside):
        push(k, int(scratch[place]))


def _forget(k: Kernel, request: int) -> None:
    """Take a request that is cancelled out of the queue."""
    forget_in_heap(k, request)
    k.own.num_swapped -= k.notes[request].host_tokens > 0


_serve = serve_with(ranked_chunk, lacking=_lacking, push_out=_push_out, bring=_bring, may_start=_may_start)


@merged
def fastserve_step(k: Kernel) -> None:
    """Look for starving requests, serve from the highest queue down, bring back what there is room for."""
    now, own = k.now, k.own
    if own.num_batches and own.num_batches % own.starvation_period == 0:
        _rescue(k)
    own.starts = now.free_host_blocks >= own.least_host_blocks
    _serve(k)
    if own.num_swapped and now.num_in_batch and not now.num_evictions:
        _bring_back(k)
    own.batch_start_ns = now.clock_ns
    own.num_batches += now.num_in_batch > 0


run_fastserve = make_loop("run_fastserve", submit=_submit, prepare=charge, step=fastserve_step)
