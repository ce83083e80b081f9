"""How many batches a schedule no worse than the incumbent can have: proven, never guessed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cspsched.bounds import batch_floor, quick_flow_bound_ns
from cspsched.exact.model.exact_model import Ceiling
from cspsched.problem.instance import Instance
from cspsched.problem.linear_form import LinearForm, linear_form
from cspsched.problem.objectives import AnyObjective, Objective
from cspsched.units import ceil_div


def certified_horizon(
    instance: Instance, objective: AnyObjective, upper_ns: int, ceilings: Sequence[Ceiling] = ()
) -> int:
    """Some optimal schedule has at most this many batches, given that the optimum is at most `upper_ns`.

    Two arguments, the better of which counts. By work: without chunking every request in a batch generates,
    so there are at most sum O batches; without recompute nothing is processed twice, so there are at most
    sum (I + O - 1); and what is computed, lost and never used to generate can be left out, so there are at
    most sum_i sum_k (I_i + k). By time: batch times sum up to at least alpha B + work (see `cspsched.bounds`)
    and to at most the makespan. For the sum of latencies, the request that finishes last waits at most
    `upper_ns` less what the others wait in any schedule of theirs. TTFT says nothing about the batches after
    the last first token; those can be replaced by the plainest completion. Mixtures: see `_most_by_form`.
    """
    if isinstance(objective, Objective) and not ceilings:
        return min([_most_by_time(instance, objective, upper_ns), *_most_by_work(instance)])
    known = [(objective, upper_ns), *((ceiling.objective, ceiling.most_ns) for ceiling in ceilings)]
    by_time = [
        count
        for one, most_ns in known
        for count in _most_by_form(instance, linear_form(one, instance), most_ns)
    ]
    return min([*by_time, *_most_by_work(instance)])


def _most_by_work(instance: Instance) -> list[int]:
    requests = instance.requests
    counts = [sum(r.output_tokens * (2 * r.prompt_tokens + r.output_tokens - 1) // 2 for r in requests)]
    if not instance.switches.chunked_prefill:
        counts.append(sum(request.output_tokens for request in requests))
    if not instance.switches.preemption.recomputes:
        counts.append(sum(request.peak_kv_tokens for request in requests))
    return counts


def _most_by_form(instance: Instance, form: LinearForm, upper_ns: int) -> list[int]:
    """Most batches of a schedule without waste whose form is at most `upper_ns`: one count an argument.

    Every weight bounds a time. If makespan or all latencies are bounded, so are the batches that fit. If the
    times between first and last tokens are, so are the batches in them; in every other one no request is
    between its tokens, so it processes prompts, of which no token is processed twice.
    """
    requests = instance.requests
    counts = []
    if form.makespan:
        counts.append(_most_batches(instance, upper_ns // form.makespan))
    slowest = [min(u, v) for u, v in zip(form.first, form.span, strict=True)]
    if all(slowest):
        ends = [r.arrival_ns + upper_ns // weight for r, weight in zip(requests, slowest, strict=True)]
        counts.append(_most_batches(instance, max(ends)))
    between = _most_between(instance, form, upper_ns)
    if between is not None:
        prompts = sum(request.prompt_tokens for request in requests)
        counts.append(_batches_before(instance, between) + prompts)
    return counts


def _most_between(instance: Instance, form: LinearForm, upper_ns: int) -> int | None:
    """Longest time for which some request can be between its first and last token; None if not bounded."""
    total = 0
    spans = zip(instance.requests, form.span, form.max_span, strict=True)
    for request, weight, largest in spans:
        gaps = request.output_tokens - 1
        limits = [upper_ns // w for w in (weight, largest) if w]
        if form.max_gap:
            limits.append(gaps * (upper_ns // form.max_gap))
        if gaps and not limits:
            return None
        total += min(limits) if gaps else 0
    # A sum of spans is limited as a whole, too.
    weights = [
        w for request, w in zip(instance.requests, form.span, strict=True) if request.output_tokens > 1
    ]
    return min(total, upper_ns // min(weights)) if weights and all(weights) else total


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
    return quick_flow_bound_ns(replace(instance, requests=others), objective) if others else 0


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

    All requests are evicted and run one after another, each refilled in as few chunks as possible.
    Where eviction or chunks are not allowed every batch from there on generates, and sum O are enough.
    """
    budget = instance.limits.max_batch_tokens
    refills = sum(ceil_div(request.peak_kv_tokens, budget) for request in instance.requests)
    return refills + sum(request.output_tokens for request in instance.requests)
