"""The same instance with a limit or a switch lifted: whatever was feasible stays feasible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from fractions import Fraction

from cspsched.errors import UsageError
from cspsched.problem.instance import Instance, Limits, Preemption, Switches


class Restriction(StrEnum):
    """What can be lifted, one at a time."""

    CHUNKING = "chunking"
    """Chunked prefill is off."""
    MEMORY = "memory"
    """M, the KV capacity."""
    BUDGET = "budget"
    """C, the token budget of a batch."""
    REQUESTS = "requests"
    """R, most requests in a batch."""
    HYBRID = "hybrid"
    """Hybrid batches are off."""
    HOLDING = "holding"
    """A resident request may not sit out a batch."""
    PREEMPTION = "preemption"
    """No request may be evicted."""
    RESERVATION = "reservation"
    """A request occupies its peak memory from its admission on."""


def lift(instance: Instance, restriction: Restriction) -> Instance:
    """The instance without a restriction; the instance itself where that binds no request.

    A limit is lifted by raising it to what all requests together can use: all at their peaks for M, all of
    their tokens for C, all of them for R. `max_model_len` stays, for it says whom the engine takes at all.
    """
    limits, switches = instance.limits, instance.switches
    if restriction in (Restriction.MEMORY, Restriction.BUDGET, Restriction.REQUESTS):
        lifted = replace(instance, limits=_without_limit(instance, limits, restriction))
    else:
        lifted = replace(instance, switches=_without_switch(switches, restriction))
    return instance if lifted == instance else lifted


def lift_all(instance: Instance, restrictions: Sequence[Restriction]) -> Instance:
    """The instance without several restrictions.

    Raises
    ------
    UsageError
        If one of them binds no request: what it costs needs no solver.
    """
    for restriction in restrictions:
        lifted = lift(instance, restriction)
        if lifted is instance:
            raise UsageError(
                f"there is no limit on {restriction} to lift: {_why_free(restriction)}; "
                "leave it out of --relax"
            )
        instance = lifted
    return instance


def is_swap_idle(instance: Instance) -> bool:
    """Whether moving to host memory never helps: none is there, or all requests fit and may hold on."""
    limits = instance.limits
    peaks = sum(limits.blocks_of(request.peak_kv_tokens) for request in instance.requests)
    return limits.host_kv_blocks == 0 or (instance.switches.holding and peaks <= limits.kv_blocks)


def without_swap(instance: Instance) -> Instance:
    """The instance without host memory and without a price of moving there; swap becomes none of it."""
    preemption = instance.switches.preemption
    kept = Preemption.RECOMPUTE if preemption.recomputes else Preemption.NONE
    return replace(
        instance,
        limits=replace(instance.limits, host_kv_blocks=0),
        cost=replace(instance.cost, swap_block=Fraction(0)),
        switches=replace(instance.switches, preemption=kept),
    )


def _without_limit(instance: Instance, limits: Limits, restriction: Restriction) -> Limits:
    peaks = [request.peak_kv_tokens for request in instance.requests]
    if restriction is Restriction.MEMORY:
        return replace(limits, kv_blocks=max(limits.kv_blocks, sum(map(limits.blocks_of, peaks))))
    if restriction is Restriction.BUDGET:
        return replace(limits, max_batch_tokens=max(limits.max_batch_tokens, sum(peaks)))
    return replace(limits, max_batch_requests=max(limits.max_batch_requests, len(peaks)))


def _without_switch(switches: Switches, restriction: Restriction) -> Switches:
    if restriction is Restriction.CHUNKING:
        return replace(switches, chunked_prefill=True)
    if restriction is Restriction.HYBRID:
        return replace(switches, hybrid_batches=True)
    if restriction is Restriction.HOLDING:
        return replace(switches, holding=True)
    if restriction is Restriction.RESERVATION:
        return replace(switches, reservation=False)
    if switches.preemption is Preemption.NONE:
        return replace(switches, preemption=Preemption.RECOMPUTE)
    return switches


def _why_free(restriction: Restriction) -> str:
    if restriction in (Restriction.MEMORY, Restriction.BUDGET, Restriction.REQUESTS):
        return "all requests together stay below it"
    return "the instance allows it" if restriction is not Restriction.RESERVATION else "no request reserves"
