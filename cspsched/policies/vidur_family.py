"""What Vidur's replica schedulers share (microsoft/vidur@7d47513), beside what they have from their family.

Source: rules written down from the behaviour of the real schedulers; recorded runs of three of them are
replayed by `tests/test_vidur.py`. A batch is formed whenever fewer are in flight than there are pipeline
stages; requests in flight are out of reach: they can be neither scheduled nor preempted. Who comes back from
a batch stands behind those that were left out of it. With `num_pipeline_stages=1` that is one batch at a
time. An instance is one machine, on which such micro-batches run one after another; pipeline stages that
work at the same time are simulated by `cspsched.recording.vidur` only.

Deviations, beside those of the family (`sarathi_family.py`): a step that evicted all is asked again at
once (Vidur waits for the next event, for ever if there is none).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cspsched.compiled.jit import inner, merged
from cspsched.policies.sarathi_family import (
    RequestAct,
    RequestTest,
    family_rules_by_request,
    forget_in_ring,
    preempt_to_front,
    submit_to_family,
)
from cspsched.policies.settings import require_at_least
from cspsched.problem.instance import Instance
from cspsched.simulate.aggregated.repeat import repeat_decodes
from cspsched.simulate.kernel.actions import decodes, missing_blocks, schedule
from cspsched.simulate.kernel.cancel import cancel_with, position_in, remove_at
from cspsched.simulate.kernel.columns import BATCHED, IDLE, IN_LOCKSTEP, LISTED, SECOND_LIST
from cspsched.simulate.kernel.flights import conclude_flight, flies_on, forget_landed
from cspsched.simulate.kernel.layout import QUEUED, Kernel
from cspsched.simulate.kernel.lockstep import can_decode_all, decode_all, lock, unlock
from cspsched.simulate.kernel.loops import Act, Loop, make_loop
from cspsched.simulate.kernel.records import NO_REQUEST, PolicyState
from cspsched.simulate.kernel.rules import Reserve, Rules
from cspsched.simulate.kernel.together import conclude_together

FIXED = int(Reserve.FIXED)


@dataclass(frozen=True, slots=True, kw_only=True)
class VidurSettings:
    """Vidur's arguments that all of its schedulers have; the instance's limits bind as well."""

    batch_size_cap: int = 128
    """Most requests that hold KV blocks; a batch takes the part of one pipeline stage."""
    num_pipeline_stages: int = 1
    """Batches in flight."""
    emulate_bugs: bool = False
    """Follow Vidur's known defects, too (docs/vidur.md)."""

    def require(self, policy: str, *names: str) -> None:
        """Refuse counts below 1; raises UsageError."""
        require_at_least(self, 1, "batch_size_cap", "num_pipeline_stages", *names, policy=policy)

    @property
    def micro_batch_requests(self) -> int:
        """Most requests that a batch takes up: an equal part of the cap for every stage."""
        return max(self.batch_size_cap // self.num_pipeline_stages, 1)


def vidur_rules(
    instance: Instance,
    run: Loop,
    settings: VidurSettings,
    *,
    own: PolicyState,
    max_num_seqs: int,
    watermark: float = 0.0,
    **decisions: Any,
) -> Rules:
    """Return the rules of a scheduler under an instance's limits; in lockstep with one pipeline stage."""
    return family_rules_by_request(
        instance,
        run,
        own=own,
        max_num_seqs=max_num_seqs,
        watermark=watermark,
        flights=settings.num_pipeline_stages,
        lockstep=settings.num_pipeline_stages == 1 and not own.emulates_bugs,
        joins_from_batch=True,
        cancel=cancel_with(_forget),
        **decisions,
    )


def make_vidur_loop(name: str, step: Act) -> Loop:
    """Return the loop of a scheduler that decides a batch by a step."""
    return make_loop(
        name,
        submit=submit_to_family,
        prepare=_take_back_or_repeat,
        step=step,
        conclude=_conclude,
        goes_on=flies_on,
    )


def _forget(k: Kernel, request: int) -> None:
    """Take a request that is cancelled out of the queue, or of those that are idle."""
    idle, own = k.slots[:, IDLE], k.own
    place = position_in(idle[: own.num_idle], request)
    if place is None:
        forget_in_ring(k, request)
    else:
        remove_at(idle, place, int(own.num_idle))
        own.num_idle -= 1


@inner
def _conclude(k: Kernel) -> int:
    """Run what was decided, in lockstep or as one of several batches in flight."""
    return conclude_together(k) if k.now.lockstep else conclude_flight(k)


# Back from a batch.


@inner
def _take_back_or_repeat(k: Kernel) -> bool:
    """Before a step: take back the last batch; whether batches of the same decodes were run."""
    if k.now.lockstep:
        _take_back(k)
    else:
        _take_landed(k)
    return _may_repeat(k) and _repeat(k)


@inner
def _take_back(k: Kernel) -> None:
    """Put those of the last batch that have not finished behind those that were left out of it.

    Decodes in lockstep are neither; they go on only if none is left out.
    """
    now, own, num_left = k.now, k.own, int(k.own.num_idle)
    for position in range(now.num_batched):
        request = k.slots[position, BATCHED]
        if request != NO_REQUEST and QUEUED < k.requests[request].phase < IN_LOCKSTEP:
            k.slots[own.num_idle, IDLE] = request
            own.num_idle += 1
    if now.is_locked:
        if now.must_unlock or num_left or (own.num_idle and own.padded_tokens):
            own.num_idle = unlock(k, IDLE, int(own.num_idle), num_left)
    elif now.may_lock and not (own.padded_tokens and list_idle_prefills(k)):
        own.num_idle = lock(k, IDLE, int(own.num_idle))


@inner
def _take_landed(k: Kernel) -> None:
    """The same where batches end later than they are processed.

    With FasterTransformer's bug the blocks of all that finish before the last of their batch are lost.
    """
    now, own, num_left = k.now, k.own, 0
    for position in range(now.num_landed):
        request = k.slots[position, LISTED]
        if k.requests[request].phase != QUEUED:
            k.slots[own.num_idle, IDLE] = request
            own.num_idle += 1
            num_left += 1
    if own.emulates_bugs and own.runs_to_end and num_left:
        own.leaked_blocks += (now.num_landed - num_left) * now.fixed_blocks
    forget_landed(k)


@inner
def _may_repeat(k: Kernel) -> bool:
    """Whether all that run decode in lockstep, and none can be admitted."""
    now, own = k.now, k.own
    if not now.is_locked or not now.num_locked or now.num_locked != now.num_running:
        return False
    return bool(now.num_locked <= own.most_in_batch and (not now.num_waiting or own.runs_to_end))


@inner
def _repeat(k: Kernel) -> bool:
    """Run batches of the same decodes; whether there was one."""
    now, count = k.now, int(k.now.num_locked)
    grows, mask = now.reserve != FIXED, int(now.calendar_mask)
    steps = repeat_decodes(k, count, int(now.locked_context), mask, grows)
    now.locked_context += count * steps
    # None of the last batch is to be taken back once more.
    now.num_batched = 0
    return steps > 0


# Parts of a step.


@inner
def may_admit(k: Kernel) -> bool:
    """Whether the batch takes more requests."""
    return bool(k.now.num_in_batch < k.own.most_in_batch and not k.own.is_full)


@inner
def keep_apart(k: Kernel, request: int) -> None:
    """Let a request run: it will be found in the batch."""


@inner
def spare_blocks(k: Kernel) -> int:
    """Free blocks that are not lost."""
    return int(k.now.free_blocks - k.own.leaked_blocks)


@inner
def list_idle_prefills(k: Kernel) -> int:
    """Put the idle requests with prefill left into SECOND_LIST, in order; how many."""
    count = 0
    for position in range(k.own.num_idle):
        request = int(k.slots[position, IDLE])
        if not decodes(k, request):
            k.slots[count, SECOND_LIST] = request
            count += 1
    return count


@inner
def keep_left_out(k: Kernel) -> None:
    """After a step: only what is left out of the batch stays idle."""
    own, kept = k.own, 0
    for position in range(own.num_idle):
        request = k.slots[position, IDLE]
        if not k.requests[request].tokens:
            k.slots[kept, IDLE] = request
            kept += 1
    own.num_idle = kept


def decode_with(
    is_prefilled: RequestTest = decodes, give_way: RequestAct = preempt_to_front
) -> Callable[[Kernel], int]:
    """Return a step's part: one token for each idle decode in turn, while the batch takes more.

    It returns how many prefills were passed by; they stand in SECOND_LIST and are idle no more. Victims are
    taken from the end of those whose turn has not come.

    Parameters
    ----------
    is_prefilled
        Whether a request takes one token a batch.
    give_way
        How a request is preempted.
    """

    @inner
    def decode(k: Kernel) -> int:
        now, own, start, num_started = k.now, k.own, 0, 0
        reserved = now.reserve == FIXED
        if now.is_locked:
            if now.num_locked <= own.most_in_batch and (reserved or can_decode_all(k)):
                decode_all(k)
            else:
                own.num_idle = unlock(k, IDLE, int(own.num_idle), 0)
        end = int(own.num_idle)
        while start < end and now.num_in_batch < own.most_in_batch:
            request = int(k.slots[start, IDLE])
            start += 1
            if not is_prefilled(k, request):
                k.slots[num_started, SECOND_LIST] = request
                num_started += 1
                continue
            while not now.free_blocks and not reserved and start < end:
                end -= 1
                give_way(k, int(k.slots[end, IDLE]))
            if now.free_blocks or reserved:
                schedule(k, request, 1, missing_blocks(k, request, 1))
            else:
                give_way(k, request)
        own.num_idle = end - start
        for position in range(end - start):
            k.slots[position, IDLE] = k.slots[start + position, IDLE]
        return num_started

    return decode


def decodes_first_with(
    decode: Callable[[Kernel], int],
    continue_prefills: Callable[[Kernel, int, int], int],
    admit: Callable[[Kernel, int, int], None],
) -> Act:
    """Return a step: decodes, then started prefills, then the queue."""

    @merged
    def decodes_first(k: Kernel) -> None:
        num_started = decode(k)
        used = continue_prefills(k, num_started, int(k.now.num_in_batch))
        _stand_in_front(k, num_started)
        admit(k, used, spare_blocks(k))

    return decodes_first


@inner
def _stand_in_front(k: Kernel, count: int) -> None:
    """Let prefills that were passed by wait in front of those whose turn has not come."""
    own, num_left = k.own, 0
    for position in range(count):
        request = k.slots[position, SECOND_LIST]
        if not k.requests[request].tokens:
            k.slots[num_left, SECOND_LIST] = request
            num_left += 1
    for position in range(own.num_idle - 1, -1, -1):
        k.slots[position + num_left, IDLE] = k.slots[position, IDLE]
    for position in range(num_left):
        k.slots[position, IDLE] = k.slots[position, SECOND_LIST]
    own.num_idle += num_left
