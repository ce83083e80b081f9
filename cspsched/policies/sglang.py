"""SGLang's scheduler as of 0.5.23, with the radix cache off.

Source: rules written down from the behaviour of the real scheduler. Prefill goes first and alone. Tokens are
set aside for outputs: what is left of max_new_tokens (max_tokens of the request, its output where it declares
none), at most 4096, in full for the requests of the prefill batch and times a ratio for the running ones; if
requests ignore the end of sequence (ignore_eos), their decodes are simulated to the end instead. The ratio
starts at 0.7 x schedule_conservativeness, falls linearly within 600 decode steps to 0.14 of that, starts
again when the scheduler is idle, and rises after a retraction. Retracted first: fewest generated tokens, then
longest prompt (retraction_policy=priority: the least important before that).

With enable_mixed_chunk the decodes of running requests join a prefill batch and count in its budgets. With
prefill_decode_interval so many decode batches lie between two prefills. With enable_priority_scheduling the
queue is ordered by `priority` of the trace first (smaller is more important here, as with
schedule_low_priority_values_first), and a request that does not fit, or finds max_running_requests running,
retracts running ones whose priority is larger by more than priority_scheduling_preemption_threshold = 10.

Defaults: chunked_prefill_size 8192 (a GPU of 60 to 160 GB), max_prefill_tokens 16384,
schedule_conservativeness 1, schedule_policy fcfs. Left open by the written rules and decided here:

* A retracted request goes to the end of the queue (fcfs), and reserves what it still has to generate.
* A full batch (a request did not fit) is tried again once a request finishes or is retracted.
* max_prefill_tokens counts like chunked_prefill_size, but a prompt that exceeds what is left of it waits.
* The KV blocks of a prompt in chunks are all taken with its first chunk; no other could take them anyway.
* The last running request is never aborted: the instance has rejected requests that do not fit alone.
* Without the cache no prefix is known, so that lpm and dfs-weight are fcfs. random draws a place for every
  request once, not for every batch.
* For a more important request the least important are retracted first, the last queued of equals, as few as
  make a place and room enough for it, and none if all of them do not.

Not simulated: hrrn (its service estimate is not in the rules), routing keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from random import Random
from typing import ClassVar

import numpy as np

from cspsched.compiled.jit import inner, merged
from cspsched.errors import UsageError
from cspsched.policies.batching import (
    Configured,
    decode_with,
    growing_blocks,
    num_decoding,
    prefill_with,
    rules_by_request,
    submit_to_queue,
    take_listed,
)
from cspsched.policies.expected import declared_tokens
from cspsched.policies.needs import Need, RequestData
from cspsched.policies.settings import require_at_least
from cspsched.problem.instance import Instance
from cspsched.simulate.kernel.actions import blocks_of, known_tokens, preempt
from cspsched.simulate.kernel.columns import (
    BATCHED,
    FIRST_LIST,
    HELD_TOKENS,
    IN_LOCKSTEP,
    KEY_BITS,
    LISTED,
    LOCKED,
    TO_COME,
)
from cspsched.simulate.kernel.layout import Kernel
from cspsched.simulate.kernel.lists import next_number, numbered_key, push
from cspsched.simulate.kernel.loops import make_loop
from cspsched.simulate.kernel.records import NO_REQUEST, PolicyState
from cspsched.simulate.kernel.rules import Chunk, Order, Rules
from cspsched.simulate.kernel.together import unlock_listed

NEVER = int(Chunk.NEVER)
MOST_NEW_TOKENS = 4096
"""More output than that is not set aside."""
DECAY_STEPS = 600
LEAST_SHARE = 0.14
RETRACT_STEPS = 20
"""Decode steps that a retraction expects to be enough for."""


class SchedulePolicy(StrEnum):
    """Order of the waiting queue."""

    FCFS = "fcfs"
    LOF = "lof"
    """Longest output first."""
    SHORTEST_PREFILL_FIRST = "shortest-prefill-first"
    RANDOM = "random"
    LPM = "lpm"
    """Longest cached prefix."""
    DFS_WEIGHT = "dfs-weight"


class RetractionPolicy(StrEnum):
    """Who is retracted first."""

    LENGTH = "length"
    PRIORITY = "priority"


ORDERS: dict[SchedulePolicy, Order] = {
    SchedulePolicy.FCFS: Order.ARRIVAL,
    SchedulePolicy.LOF: Order.LONGEST_OUTPUT,
    SchedulePolicy.SHORTEST_PREFILL_FIRST: Order.PROMPT,
    SchedulePolicy.RANDOM: Order.GIVEN,
    SchedulePolicy.LPM: Order.ARRIVAL,
    SchedulePolicy.DFS_WEIGHT: Order.ARRIVAL,
}


BY_PRIORITY = Need(data=RequestData.PRIORITY, without="none goes before another for it")
RETRACTED_BY_PRIORITY = Need(
    data=RequestData.PRIORITY, value=RetractionPolicy.PRIORITY, without="it retracts as by length"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SglangSettings:
    """The server's arguments that are simulated; None takes the instance's limit."""

    chunked_prefill_size: int = 8192
    """Token budget of a prefill batch, to which prompts are cut; -1 cuts none."""
    max_prefill_tokens: int = 16384
    """Token budget of a prefill batch beyond which no further prompt is taken."""
    max_running_requests: int | None = None
    """Most running requests. Default: the instance's R."""
    schedule_conservativeness: float = 1.0
    """Factor on the share of outputs that is set aside."""
    schedule_policy: SchedulePolicy = SchedulePolicy.FCFS
    """Order of the waiting queue."""
    random_seed: int = 0
    """Seed of schedule_policy=random."""
    enable_mixed_chunk: bool = False
    """Whether decodes join the batches of prefills."""
    prefill_decode_interval: int | None = None
    """Decode batches between two batches with prefills, while there are decodes. Default: none."""
    ignore_eos: bool = False
    """Whether requests are known to generate all of max_new_tokens; then admissions simulate them."""
    enable_priority_scheduling: bool = field(default=False, metadata={"need": BY_PRIORITY})
    """Whether more important requests go first and retract others."""
    priority_scheduling_preemption_threshold: int = 10
    """A running request is retracted for one whose priority value is smaller by more than that."""
    retraction_policy: RetractionPolicy = field(
        default=RetractionPolicy.LENGTH, metadata={"need": RETRACTED_BY_PRIORITY}
    )
    """Who is retracted first when a decode lacks memory."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "max_prefill_tokens", "max_running_requests", policy="sglang")
        at_least_zero = ("prefill_decode_interval", "priority_scheduling_preemption_threshold", "random_seed")
        require_at_least(self, 0, *at_least_zero, policy="sglang")
        if self.chunked_prefill_size < 1 and self.chunked_prefill_size != -1:
            raise UsageError(
                f"policy 'sglang': chunked_prefill_size is {self.chunked_prefill_size}, "
                "expected at least 1, or -1 to cut no prompt"
            )
        if not self.schedule_conservativeness >= 0:
            raise UsageError(
                f"policy 'sglang': schedule_conservativeness is {self.schedule_conservativeness}, "
                "expected at least 0"
            )


@dataclass(frozen=True, slots=True)
class Sglang(Configured):
    """SGLang (0.5.23): prefill first and alone, a decaying share of the outputs set aside."""

    settings: SglangSettings = SglangSettings()
    name: ClassVar[str] = "sglang"
    settings_type: ClassVar[type[SglangSettings]] = SglangSettings

    def kernel_rules(self, instance: Instance) -> Rules:
        """Rules under an instance's limits."""
        settings, chunk = self.settings, self.settings.chunked_prefill_size
        first = min(0.7 * settings.schedule_conservativeness, 1.0)
        cuts = chunk != -1 and instance.switches.chunked_prefill
        places = None
        if settings.schedule_policy is SchedulePolicy.RANDOM:
            rng = Random(settings.random_seed)
            drawn = [rng.random() for _ in range(len(instance.columns.arrival_ns))]
            places = np.unique(drawn, return_inverse=True)[1].astype(np.int64)
        own = PolicyState(
            most_prefill=settings.max_prefill_tokens,
            mixes_decodes=settings.enable_mixed_chunk,
            decode_steps=settings.prefill_decode_interval or 0,
            retracts_for=settings.enable_priority_scheduling,
            threshold=settings.priority_scheduling_preemption_threshold,
            ignores_eos=settings.ignore_eos,
            retracts_by_priority=settings.retraction_policy is RetractionPolicy.PRIORITY,
            first_share=float(first),
            share=float(first),
        )
        return rules_by_request(
            instance,
            run_sglang,
            max_tokens=None if chunk == -1 else chunk,
            max_requests=settings.max_running_requests,
            chunk=Chunk.ANY if cuts else Chunk.NEVER,
            order=ORDERS[settings.schedule_policy],
            places=places,
            by_priority=settings.enable_priority_scheduling,
            keeps_notes=True,
            most_new_tokens=MOST_NEW_TOKENS,
            expected_tokens=declared_tokens(instance),
            own=own,
        )


# Chunks and admissions.


@inner
def _chunk_tokens(k: Kernel, lacking: int) -> int:
    """The whole prompt, or whole blocks of it; others in the batch count in whole blocks."""
    now, own = k.now, k.own
    block, taken, num_decodes = int(now.block_tokens), 0, 0
    for position in range(now.num_batched):
        taken += blocks_of(k, int(k.requests[k.slots[position, BATCHED]].tokens)) * block
    if own.mixes_decodes:
        num_decodes = num_decoding(k)
        taken += num_decodes
    if taken and taken + lacking > own.most_prefill:
        return 0
    budget = max(min(now.max_tokens - taken, now.batch_tokens - now.used_tokens - num_decodes), 0)
    if lacking <= budget:
        return lacking
    return 0 if now.chunk == NEVER else int(budget // block * block)


@inner
def _has_room(k: Kernel, request: int) -> bool:
    """Whether there is room for a request and the outputs that are set aside, all victims gone."""
    now, own = k.now, k.own
    # Of those in lockstep none has more to generate than is looked at, and none is a victim.
    whole, shared = 0, int(now.locked_total - now.locked_context - now.num_locked)
    free = now.free_blocks - (growing_blocks(k) if own.mixes_decodes else 0)
    for position in range(now.num_listed):
        listed = int(k.slots[position, LISTED])
        row = k.requests[listed]
        left = min(int(row.expected_tokens - row.generated), MOST_NEW_TOKENS)
        if k.notes[listed].is_victim:
            free += row.blocks
        elif row.tokens:
            whole += left
        else:
            shared += left
    if own.ignores_eos:
        return _can_run_to_the_end(k, request, int(free))
    left = min(int(k.requests[request].expected_tokens - k.requests[request].generated), MOST_NEW_TOKENS)
    needed = known_tokens(k, request) + left + now.block_tokens
    return bool(needed < free * now.block_tokens - (whole + own.share * shared))


@inner
def _can_run_to_the_end(k: Kernel, request: int, free: int) -> bool:
    """Whether all can decode until each has finished, with a token to spare for each then alive."""
    now, count = k.now, 0
    for column in (LOCKED, LISTED):
        for position in range(now.locked_end if column == LOCKED else now.num_listed):
            other = int(k.slots[position, column])
            if other != NO_REQUEST and not k.notes[other].is_victim:
                _note_end(k, other, count)
                count += 1
    _note_end(k, request, count)
    count += 1
    _sort_by_end(k, count)
    free_tokens = free * now.block_tokens - known_tokens(k, request)
    for position in range(count):
        alive = count - position
        if free_tokens - int(k.slots[position, TO_COME]) * alive <= alive:
            return False
        free_tokens += int(k.slots[position, HELD_TOKENS])
    return True


@inner
def _note_end(k: Kernel, request: int, position: int) -> None:
    """Note the tokens that a request will still generate and those that are known."""
    row = k.requests[request]
    generated = int(row.generated)
    if row.phase == IN_LOCKSTEP:
        generated += int(k.now.num_decode_steps - row.joined)
    k.slots[position, TO_COME] = int(row.expected_tokens) - generated
    k.slots[position, HELD_TOKENS] = int(row.prompt_tokens) + generated


@inner
def _sort_by_end(k: Kernel, count: int) -> None:
    """Sort by tokens to come, then by known tokens."""
    for position in range(1, count):
        to_come, held = int(k.slots[position, TO_COME]), int(k.slots[position, HELD_TOKENS])
        place = position
        while place and (k.slots[place - 1, TO_COME], k.slots[place - 1, HELD_TOKENS]) > (to_come, held):
            k.slots[place, TO_COME] = k.slots[place - 1, TO_COME]
            k.slots[place, HELD_TOKENS] = k.slots[place - 1, HELD_TOKENS]
            place -= 1
        k.slots[place, TO_COME], k.slots[place, HELD_TOKENS] = to_come, held


@inner
def _fits(k: Kernel, request: int) -> bool:
    """Whether the head of the queue may be admitted; who may not makes the batch full."""
    now, own = k.now, k.own
    is_full = now.num_running >= now.max_running or not _has_room(k, request)
    if is_full and own.retracts_for:
        is_full = not _make_room(k, request)
    own.is_full = is_full
    return not is_full


@inner
def _make_room(k: Kernel, request: int) -> bool:
    """Retract the least important, as few as make a place and room; none if all of them do not."""
    now, count = k.now, 0
    most = int(k.notes[request].priority + k.own.threshold)
    if not _is_any_less_important(k, most):
        return False
    unlock_listed(k)
    while now.num_running - count >= now.max_running or not _has_room(k, request):
        victim = _least_important(k, most)
        if victim < 0:
            break
        k.notes[victim].is_victim = 1
        k.slots[count, FIRST_LIST] = victim
        count += 1
    makes_room = now.num_running - count < now.max_running and _has_room(k, request)
    for place in range(count):
        victim = int(k.slots[place, FIRST_LIST])
        k.notes[victim].is_victim = 0
        if makes_room:
            position = 0
            while k.slots[position, LISTED] != victim:
                position += 1
            take_listed(k, position)
            preempt(k, victim)
            _to_the_end(k, victim)
    return makes_room


@inner
def _is_any_less_important(k: Kernel, most: int) -> bool:
    """Whether a priority among the running requests is beyond a limit; those in lockstep stay there."""
    for position in range(k.now.num_listed):
        if k.notes[k.slots[position, LISTED]].priority > most:
            return True
    for position in range(k.now.locked_end):
        request = k.slots[position, LOCKED]
        if request != NO_REQUEST and k.notes[request].priority > most:
            return True
    return False


@inner
def _least_important(k: Kernel, most: int) -> int:
    """The running request of the largest priority beyond a limit, of equals the last queued; -1 if none."""
    found, largest, last = -1, most, 0
    for position in range(k.now.num_listed):
        request = int(k.slots[position, LISTED])
        row, priority = k.requests[request], int(k.notes[request].priority)
        number = int(k.requests[request].key & ((1 << KEY_BITS) - 1))
        may_go = priority > most and not row.tokens and not k.notes[request].is_victim
        if may_go and (priority, number) > (largest, last):
            found, largest, last = request, priority, number
    return found


@inner
def _may_admit(k: Kernel) -> bool:
    """Whether another request may run; `_fits` sees to its place if others can be made to give theirs."""
    return bool(k.now.num_running < k.now.max_running or k.own.retracts_for)


_prefill = prefill_with(_chunk_tokens, _fits, may_admit=_may_admit)


# Decodes and retractions.


@inner
def _retracted_first(k: Kernel) -> int:
    """Place of the fewest generated tokens, then the longest prompt; before that the least important."""
    found = int(k.now.num_listed) - 1
    for place in range(k.now.num_listed - 2, -1, -1):
        if _goes_before(k, int(k.slots[place, LISTED]), int(k.slots[found, LISTED])):
            found = place
    return found


@inner
def _goes_before(k: Kernel, request: int, other: int) -> bool:
    """Whether a request is retracted before another one that was admitted later."""
    row, others = k.requests[request], k.requests[other]
    if k.own.retracts_by_priority and k.notes[request].priority != k.notes[other].priority:
        return bool(k.notes[request].priority > k.notes[other].priority)
    if row.generated != others.generated:
        return bool(row.generated < others.generated)
    return bool(row.prompt_tokens > others.prompt_tokens)


@inner
def _to_the_end(k: Kernel, request: int) -> None:
    """Queue a request at the end of those of the same place."""
    k.requests[request].key = numbered_key(k.requests[request].key >> KEY_BITS, next_number(k))
    push(k, request)


_decode = decode_with(_retracted_first, _to_the_end)


@inner
def _update_share(k: Kernel) -> None:
    """Decay, or after a retraction expect a few more tokens of each than have been generated."""
    now, own, first = k.now, k.own, k.own.first_share
    if not now.num_evictions:
        least = LEAST_SHARE * first
        own.share = max(own.share - (first - least) / DECAY_STEPS, least)
        return
    own.is_full = 0
    generated = outputs = 0
    for position in range(now.num_listed):
        row = k.requests[k.slots[position, LISTED]]
        generated += row.generated
        outputs += row.expected_tokens
    own.share = min(1.0, (generated + RETRACT_STEPS * now.num_listed) / (outputs + 1))


@inner
def _may_prefill(k: Kernel) -> bool:
    """Whether there have been decodes enough, and the batch is not full."""
    if k.own.num_steps < k.own.decode_steps and num_decoding(k):
        return False
    # Somebody more important may make room.
    return bool(not k.own.is_full or k.own.retracts_for)


@merged
def sglang_step(k: Kernel) -> None:
    """Prefill whatever can be; else decode, after retractions if memory is short."""
    now, own = k.now, k.own
    _note_finished(k)
    if not now.num_running:
        own.is_full = 0
        if not now.num_waiting:
            own.share = own.first_share
    if _may_prefill(k):
        _prefill(k)
    is_prefill = now.num_in_batch > 0
    own.num_steps = 0 if is_prefill else own.num_steps + 1
    if now.num_running and (not is_prefill or own.mixes_decodes):
        _decode(k)
    if now.num_running and not is_prefill:
        _update_share(k)


@inner
def _note_finished(k: Kernel) -> None:
    """Take note of those that finished in the last batch."""
    if k.now.somebody_finished:
        k.own.is_full = k.now.somebody_finished = 0


run_sglang = make_loop("run_sglang", submit=submit_to_queue, step=sglang_step)
