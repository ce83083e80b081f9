"""Checks a certificate by other means than those that made it.

Every price is recomputed request by request and token by token with rationals, batches are counted by plain
loops, the single machine is simulated naively, and a minorant is accepted only if it is below the cost model
at every corner of the batches that can occur. Nothing is read from the tables of the fast code. That makes it
slow: O(tokens) rational steps and O(requests squared) for the single machine. Meant for small and medium
instances; larger ones are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from cspsched.bounds.best_hits.check import PlainHits
from cspsched.bounds.certificate import Certificate
from cspsched.bounds.memory_price.check import plain_memory_price
from cspsched.bounds.memory_price.details import MEMORY_PRICE, MemoryPrices
from cspsched.bounds.pair_delay.check import plain_pair_delay
from cspsched.bounds.pair_delay.details import PAIR_DELAY
from cspsched.bounds.parts.check import (
    PlainCounts,
    PlainPrices,
    PlainSolo,
    naive_total_completion,
    point_objections,
)
from cspsched.bounds.parts.minorant import Minorant, find_objections, reachable_maxima
from cspsched.bounds.time_price.check import plain_time_price
from cspsched.bounds.time_price.details import TIME_PRICE, Prices
from cspsched.bounds.window_price.check import plain_window_price
from cspsched.bounds.window_price.details import WINDOW_PRICE, WindowPrices
from cspsched.errors import InputError, LimitError
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import Objective
from cspsched.problem.request import Request
from cspsched.units import round_up

MAX_REQUESTS = 2_000
MAX_TOKENS = 500_000


def check_certificate(
    instance: Instance,
    certificate: Certificate,
    *,
    max_requests: int = MAX_REQUESTS,
    max_tokens: int = MAX_TOKENS,
) -> list[str]:
    """What is wrong with a certificate; empty if its value was derived again, to the nanosecond.

    Parameters
    ----------
    instance
        The instance that the certificate is about.
    certificate
        Any of `cspsched.bounds.certificates`.
    max_requests, max_tokens
        Largest number of requests and of prompt and output tokens that is checked.

    Raises
    ------
    LimitError
        If the instance is larger than that.
    InputError
        If the certificate is of no known kind, or its details are incomplete.
    """
    requests = instance.requests
    tokens = sum(request.peak_kv_tokens for request in requests)
    if len(requests) > max_requests or tokens > max_tokens:
        raise LimitError(
            f"{len(requests)} requests with {tokens} tokens are too many for the slow checker, expected at "
            f"most {max_requests} and {max_tokens}; check a part of the trace or raise the limits"
        )
    derive = DERIVATIONS.get(certificate.name)
    if derive is None:
        raise InputError(f"certificate {certificate.name!r} is of no known kind, expected {[*DERIVATIONS]}")
    try:
        objections = _minorant_objections(instance, certificate)
        value_ns = derive(instance, certificate)
    except (KeyError, ValueError, ArithmeticError) as error:
        raise InputError(f"certificate {certificate.name!r}: details are incomplete: {error}") from None
    if value_ns != certificate.value_ns:
        objections.append(f"{certificate.name} states {certificate.value_ns} ns, derived are {value_ns} ns")
    return objections


def _minorant_objections(instance: Instance, certificate: Certificate) -> list[str]:
    if not any(key.startswith("minorant_") for key in certificate.details):
        return []
    minorant = Minorant.from_details(certificate.details)
    top = reachable_maxima(instance)
    return [
        *find_objections(minorant, instance.cost, top),
        *point_objections(minorant, instance.cost, top),
    ]


def _prices(instance: Instance, certificate: Certificate) -> PlainPrices:
    minorant = Minorant.from_details(certificate.details)
    return PlainPrices(minorant, instance.limits.max_batch_tokens, PlainHits(instance))


def _solo(instance: Instance, certificate: Certificate) -> PlainSolo:
    method = "search" if certificate.details["prefill"] == "exact" else "minorant"
    return PlainSolo(instance, method, PlainHits(instance))


def _batches_and_work(
    instance: Instance, certificate: Certificate, requests: list[Request], reasons: list[str]
) -> int:
    """Start, batches at alpha, prefill batches at their surcharge, and the work of every token."""
    prices = _prices(instance, certificate)
    counts = PlainCounts(instance.limits, prices.hits)
    batches = max(counts.number(reason, requests) for reason in reasons)
    prefill_batches = max(counts.number(reason, requests, 1) for reason in counts.reasons)
    time = prices.minorant.batch * batches + prices.minorant.prefill_batch * prefill_batches
    time += sum(prices.until(request, request.output_tokens) for request in requests)
    return int(certificate.details["from_ns"]) + round_up(time)


def _whole_trace(instance: Instance, certificate: Certificate) -> int:
    requests = list(instance.requests)
    _require_all_after(certificate, requests)
    return _batches_and_work(instance, certificate, requests, [certificate.name])


def _arrival_suffix(instance: Instance, certificate: Certificate) -> int:
    start_ns = int(certificate.details["from_ns"])
    requests = [request for request in instance.requests if request.arrival_ns >= start_ns]
    return _batches_and_work(instance, certificate, requests, PlainCounts.reasons)


def _require_all_after(certificate: Certificate, requests: list[Request]) -> None:
    start_ns = int(certificate.details["from_ns"])
    if any(request.arrival_ns < start_ns for request in requests):
        raise ValueError(f"a request arrives before from_ns {start_ns}")


def _critical_path(instance: Instance, certificate: Certificate) -> int:
    first_only, lone = certificate.objective is Objective.TTFT, _solo(instance, certificate)
    times = map(lone.token_times, instance.requests)
    solo = [sum(one[:1] if first_only else one) for one in times]
    if certificate.objective is not Objective.MAKESPAN:
        return sum(solo)
    return max(request.arrival_ns + time for request, time in zip(instance.requests, solo, strict=True))


def _srpt(instance: Instance, certificate: Certificate) -> int:
    share = Fraction(certificate.details["output_share"])
    if share != (1 if certificate.objective is Objective.LATENCY else 0):
        raise ValueError(f"output_share {share} leaves a tail, which srpt does not count")
    return _single_machine(instance, certificate, _heads(instance, share))


def _srpt_tail(instance: Instance, certificate: Certificate) -> int:
    heads = _heads(instance, Fraction(certificate.details["output_share"]))
    solo = map(_solo(instance, certificate).token_times, instance.requests)
    tails = sum(sum(times[head:]) for times, head in zip(solo, heads, strict=True))
    return _single_machine(instance, certificate, heads) + tails


def _time_price(instance: Instance, certificate: Certificate) -> int:
    if certificate.objective is not Objective.LATENCY:
        raise ValueError(f"time-price bounds latency, got {certificate.objective}")
    prices = Prices.from_details(certificate.details)
    return plain_time_price(instance, _prices(instance, certificate), prices)


def _window_price(instance: Instance, certificate: Certificate) -> int:
    if certificate.objective is not Objective.LATENCY:
        raise ValueError(f"window-price bounds latency, got {certificate.objective}")
    chosen = WindowPrices.from_details(certificate.details)
    return plain_window_price(instance, _prices(instance, certificate), chosen)


def _memory_price(instance: Instance, certificate: Certificate) -> int:
    if certificate.objective is not Objective.LATENCY:
        raise ValueError(f"memory-price bounds latency, got {certificate.objective}")
    chosen = MemoryPrices.from_details(certificate.details)
    return plain_memory_price(instance, _prices(instance, certificate), chosen)


def _pair_delay(instance: Instance, certificate: Certificate) -> int:
    if certificate.objective is not Objective.LATENCY:
        raise ValueError(f"pair-delay bounds latency, got {certificate.objective}")
    return plain_pair_delay(instance, certificate.details)


def _heads(instance: Instance, share: Fraction) -> list[int]:
    """Output tokens of each request that occupy the single machine."""
    return [max(1, round_up(share * request.output_tokens)) for request in instance.requests]


def _single_machine(instance: Instance, certificate: Certificate, heads: list[int]) -> int:
    limits, prices = instance.limits, _prices(instance, certificate)
    counts = PlainCounts(limits, prices.hits)
    split = [Fraction(certificate.details[f"{name}_share"]) for name in ("memory", "tokens", "slots")]
    if sum(split) != 1 or min(split) < 0:
        raise ValueError(f"the split {split} is no convex combination")
    capacities = (limits.kv_blocks, limits.max_batch_tokens, limits.max_batch_requests)

    def share_of_batches(request: Request, emitted: int) -> Fraction:
        amounts = (counts.blocks(request, emitted), *counts.tokens_and_slots(request, emitted))
        return sum(
            (
                weight * amount / capacity
                for weight, amount, capacity in zip(split, amounts, capacities, strict=True)
            ),
            Fraction(0),
        )

    processing = []
    for request, emitted in zip(instance.requests, heads, strict=True):
        time = prices.minorant.batch * share_of_batches(request, emitted)
        time += prices.minorant.prefill_batch * share_of_batches(request, 1)
        processing.append(int(time + prices.until(request, emitted)))
    arrivals = [request.arrival_ns for request in instance.requests]
    return naive_total_completion(arrivals, processing) - sum(arrivals)


DERIVATIONS: dict[str, Callable[[Instance, Certificate], int]] = {
    **dict.fromkeys(PlainCounts.reasons, _whole_trace),
    "arrival-suffix": _arrival_suffix,
    "critical-path": _critical_path,
    "srpt": _srpt,
    "srpt-tail": _srpt_tail,
    TIME_PRICE: _time_price,
    WINDOW_PRICE: _window_price,
    PAIR_DELAY: _pair_delay,
    MEMORY_PRICE: _memory_price,
}
