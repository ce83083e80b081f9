"""How many batches a schedule no worse than the incumbent can have: proven, never guessed."""

from __future__ import annotations

from cspsched.bounds import batch_floor, solo_ns
from cspsched.problem.instance import Instance, Preemption
from cspsched.problem.metrics import Objective
from cspsched.units import ceil_div


def certified_horizon(instance: Instance, objective: Objective, upper_ns: int) -> int | None:
    """Some optimal schedule has at most this many batches, given that the optimum is at most `upper_ns`.

    Batch times sum up to at least alpha B + work (see `cspsched.bounds`) and to at most the makespan, so a
    bound on the makespan is one on B. For the sum of latencies, whoever finishes last waits at most
    `upper_ns` less what the others need alone. TTFT says nothing about the batches after the last first
    token; those can be replaced by the plainest completion. None if no argument applies.
    """
    if objective is Objective.MAKESPAN:
        return _most_batches(instance, upper_ns)
    latest = _latest_wait(instance, objective, upper_ns)
    most = _most_batches(instance, latest)
    if objective is Objective.LATENCY or most is None:
        return most
    tail = _plain_completion(instance)
    return None if tail is None else _batches_before(instance, latest) + tail


def _latest_wait(instance: Instance, objective: Objective, upper_ns: int) -> int:
    """Latest time at which the last request of an optimal schedule gets the token that it waits for."""
    alone = solo_ns(instance, objective)
    others = sum(alone)
    return max(
        request.arrival_ns + upper_ns - (others - own)
        for request, own in zip(instance.requests, alone, strict=True)
    )


def _most_batches(instance: Instance, makespan_ns: int) -> int | None:
    counts = [int((makespan_ns - work) // alpha) for alpha, work in batch_floor(instance) if alpha > 0]
    return min(counts) if counts else None


def _batches_before(instance: Instance, time_ns: int) -> int:
    """Batches that can end by a time: each takes at least as long as one of a single token."""
    shortest = min(_single_token_times(instance))
    return time_ns // shortest


def _single_token_times(instance: Instance) -> list[int]:
    cost = instance.cost
    base = cost.step_ceil + cost.tokens.ceil(1)
    return [base + cost.prefill_batch_ceil, base + cost.decode_batch_ceil]


def _plain_completion(instance: Instance) -> int | None:
    """Batches that finish every request from any state of a feasible schedule.

    With preemption everybody is evicted and the requests run one after another, each refilled in chunks.
    Without it nothing is processed twice, so every batch takes one of the I + O - 1 tokens of a request.
    """
    peaks = [request.peak_kv_tokens for request in instance.requests]
    if instance.switches.preemption is Preemption.NONE:
        return sum(peaks)
    if not instance.switches.chunked_prefill and max(peaks) > instance.limits.max_batch_tokens:
        return None
    refills = sum(ceil_div(peak, instance.limits.max_batch_tokens) for peak in peaks)
    return refills + sum(request.output_tokens for request in instance.requests)
