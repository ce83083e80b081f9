"""How many batches a schedule no worse than the incumbent can have: proven, never guessed."""

from __future__ import annotations

from dataclasses import replace

from cspsched.bounds import batch_floor, best_bound
from cspsched.problem.instance import Instance, Preemption
from cspsched.problem.metrics import Objective
from cspsched.units import ceil_div


def certified_horizon(instance: Instance, objective: Objective, upper_ns: int) -> int:
    """Some optimal schedule has at most this many batches, given that the optimum is at most `upper_ns`.

    Two arguments, the better of which counts. By work: without chunking whoever is in a batch generates,
    so there are at most sum O batches; without preemption nothing is processed twice, so there are at most
    sum (I + O - 1). By time: batch times sum up to at least alpha B + work (see `cspsched.bounds`) and to at
    most the makespan. For the sum of latencies, whoever finishes last waits at most `upper_ns` less what the
    others wait in any schedule of theirs. TTFT says nothing about the batches after the last first token;
    those can be replaced by the plainest completion.
    """
    return min([_most_by_time(instance, objective, upper_ns), *_most_by_work(instance)])


def _most_by_work(instance: Instance) -> list[int]:
    counts = []
    if not instance.switches.chunked_prefill:
        counts.append(sum(request.output_tokens for request in instance.requests))
    if instance.switches.preemption is Preemption.NONE:
        counts.append(sum(request.peak_kv_tokens for request in instance.requests))
    return counts


def _most_by_time(instance: Instance, objective: Objective, upper_ns: int) -> int:
    if objective is Objective.MAKESPAN:
        return _most_batches(instance, upper_ns)
    latest = _latest_wait(instance, objective, upper_ns)
    if objective is Objective.LATENCY:
        return _most_batches(instance, latest)
    return _batches_before(instance, latest) + _plain_completion(instance)


def _latest_wait(instance: Instance, objective: Objective, upper_ns: int) -> int:
    """Latest time at which the last request of an optimal schedule gets the token that it waits for."""
    return max(
        request.arrival_ns + upper_ns - _wait_of_others(instance, objective, i)
        for i, request in enumerate(instance.requests)
    )


def _wait_of_others(instance: Instance, objective: Objective, i: int) -> int:
    """Sum of the other requests' waits: without request i, no schedule makes them wait longer."""
    others = (*instance.requests[:i], *instance.requests[i + 1 :])
    return best_bound(replace(instance, requests=others), objective).value_ns if others else 0


def _most_batches(instance: Instance, makespan_ns: int) -> int:
    return min(int((makespan_ns - work) // alpha) for alpha, work in batch_floor(instance))


def _batches_before(instance: Instance, time_ns: int) -> int:
    """Batches that can end by a time: each takes at least as long as one of a single token."""
    shortest = min(_single_token_times(instance))
    return time_ns // shortest


def _single_token_times(instance: Instance) -> list[int]:
    cost = instance.cost
    base = cost.step_ceil + cost.tokens.ceil(1)
    return [base + cost.prefill_batch_ceil, base + cost.decode_batch_ceil]


def _plain_completion(instance: Instance) -> int:
    """Batches that finish every request once all have their first token.

    Everybody is evicted and the requests run one after another, each refilled in as few chunks as possible.
    Where eviction or chunks are not allowed every batch from there on generates, and sum O are enough.
    """
    budget = instance.limits.max_batch_tokens
    refills = sum(ceil_div(request.peak_kv_tokens, budget) for request in instance.requests)
    return refills + sum(request.output_tokens for request in instance.requests)
