"""Tiny instances whose prompts share blocks, what schedules with hits can reach, and bounds at any prices."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import numpy as np

from cspsched.bounds.memory_price.bound import Pause, latency_ns, least_ends, pause_of, residents
from cspsched.bounds.memory_price.details import MemoryPrices, Rule
from cspsched.bounds.parts.tables import Tables
from cspsched.bounds.time_price.bound import bound_ns, columns
from cspsched.bounds.time_price.details import PRICE_UNIT, Prices
from cspsched.bounds.window_price.bound import WindowTable, window_bound_ns
from cspsched.bounds.window_price.details import WindowPrices
from cspsched.problem.cost import CostModel, PiecewiseLinear
from cspsched.problem.instance import Instance, Limits, Preemption, Switches
from cspsched.problem.objectives import Objective
from cspsched.problem.request import Request

LINE = PiecewiseLinear.linear
CURVES = (
    PiecewiseLinear((0, 2, 5), (Fraction(4), Fraction(1, 3), Fraction(2))),
    PiecewiseLinear((0, 3), (Fraction(1), Fraction(3))),
)
PREEMPTIONS = (Preemption.NONE, Preemption.RECOMPUTE)

Times = tuple[tuple[int, int], ...]


def hit_instance(rng: random.Random, num_requests: int) -> Instance:
    """Requests of few tokens, most of which start with the same text; every one fits."""
    largest = 5 if num_requests < 3 else 2
    requests = tuple(_request(rng, k, largest) for k in range(num_requests))
    block = rng.choice([1, 1, 2, 2, 3])
    least = max(-(-request.peak_kv_tokens // block) for request in requests)
    limits = Limits(
        kv_blocks=least + rng.randint(0, 3),
        block_tokens=block,
        max_batch_tokens=rng.randint(1, 8),
        max_batch_requests=rng.randint(1, 3),
    )
    fits = limits.max_batch_tokens >= largest
    switches = Switches(
        chunked_prefill=not fits or rng.random() < 0.8,
        hybrid_batches=rng.random() < 0.8,
        holding=rng.random() < 0.7,
        preemption=rng.choice(PREEMPTIONS),
        reservation=rng.random() < 0.15,
        prefix_caching=True,
    )
    return Instance(requests=requests, limits=limits, cost=_cost(rng), switches=switches)


def _request(rng: random.Random, k: int, largest: int) -> Request:
    prompt = rng.randint(1, largest)
    prefix, left = list[tuple[str, int]](), prompt
    while left and rng.random() < 0.8:
        tokens = rng.randint(1, left)
        prefix.append((rng.choice("ab") if rng.random() < 0.3 else "ab"[bool(prefix)], tokens))
        left -= tokens
    return Request(
        request_id=f"r{k}",
        arrival_ns=rng.choice([0, 0, rng.randint(0, 60)]),
        prompt_tokens=prompt,
        output_tokens=rng.choice([1, 1, 2, 2, 3] if largest > 2 else [1, 1, 2]),
        prefix=tuple(prefix),
    )


def _cost(rng: random.Random) -> CostModel:
    return CostModel(
        name="drawn",
        step=Fraction(rng.randint(1, 20)),
        prefill_batch=Fraction(rng.choice([0, 3, 12])),
        decode_batch=Fraction(rng.choice([0, 5])),
        prefill_request=Fraction(rng.choice([0, 2])),
        decode_request=Fraction(rng.choice([0, 0, 3])),
        tokens=rng.choice([LINE(rng.randint(0, 4)), *CURVES]),
        prefill_attention=LINE(rng.choice([0, 0, 1])),
        prefill_tokens=LINE(rng.choice([0, 1])),
        prefill_context=rng.choice([LINE(0), LINE(1), LINE(3), CURVES[0]]),
        decode_context=rng.choice([LINE(0), LINE(1), LINE(4), CURVES[1]]),
        head=LINE(rng.choice([0, 1])),
    )


def value_of(instance: Instance, objective: Objective, times: Times) -> int:
    """A measure of the times of the first and last tokens."""
    if objective is Objective.MAKESPAN:
        return max(last for _, last in times)
    return sum(waits(instance, objective, times))


def waits(instance: Instance, objective: Objective, times: Times) -> list[int]:
    """Latency or TTFT of every request."""
    ends = [first if objective is Objective.TTFT else last for first, last in times]
    return [end - request.arrival_ns for end, request in zip(ends, instance.requests, strict=True)]


def priced_bounds(instance: Instance, rng: random.Random) -> Iterator[tuple[str, int]]:
    """Bounds on the sum of latencies at any prices, that crowds have certificates of."""
    tables = Tables(instance)
    shares = tables.hits is not None and tables.hits.found.any()
    for work in tables.work:
        table = columns(tables, work)
        if table is None:
            continue
        yield "time-price", bound_ns(table, _time_prices(rng)) or 0
        windows = WindowTable(table, instance.limits.kv_tokens)
        yield "window-price", window_bound_ns(windows, _window_prices(rng, memory=not shares)) or 0
    if not np.ptp(tables.arrivals_ns):
        ends = least_ends(residents(tables), _memory_prices(rng, instance)) or 0
        for work in tables.work:
            yield "memory-price", latency_ns(tables, work, ends)


def _price(rng: random.Random) -> int:
    return rng.choice([0, rng.randint(1, 60), 64 * rng.randint(1, 30), PRICE_UNIT * rng.randint(1, 6)])


def _time_prices(rng: random.Random) -> Prices:
    return Prices(
        price=_price(rng),
        num_windows=rng.randint(1, 60),
        window_ns=rng.choice([1, 7, 20, 50]),
        stretch=rng.choice([0, 16, 17, 20, 32]),
        pace=rng.choice([16, 17, 20, 40]),
    )


def _window_prices(rng: random.Random, *, memory: bool) -> WindowPrices:
    return WindowPrices(
        prices=tuple(_price(rng) for _ in range(rng.randint(1, 20))),
        window_ns=rng.choice([1, 7, 20, 50]),
        height=rng.choice([0, 8, 16, 17]),
        pace=rng.choice([16, 17, 20, 40]),
        memory=rng.randint(0, 16) if memory else 0,
        slopes=tuple(rng.randint(1, 200) for _ in range(2)),
        references=tuple(_price(rng) for _ in range(2)),
    )


def _memory_prices(rng: random.Random, instance: Instance) -> MemoryPrices:
    rules = []
    if pause_of(instance) is not Pause.LEAVES:
        most = instance.limits.kv_blocks + 2
        for _ in range(rng.randint(0, 3)):
            small, large = sorted((rng.randint(1, most), rng.randint(1, most)))
            rules.append(Rule(large, small, rng.randint(2, 4)))
    rows = [tuple(128 * rng.randint(0, 40) for _ in range(rng.randint(0, 9))) for _ in range(len(rules) + 1)]
    return MemoryPrices(rules=tuple(rules), prices=tuple(rows))


def sharing_crowd(rng: random.Random, count: int, gap_ns: int) -> Instance:
    """Requests in conversations: each turn begins with the whole turn before, and all with one text."""
    requests, grown = list[Request](), [(("system", 16),) for _ in range(4)]
    for k in range(count):
        client = rng.randrange(len(grown))
        grown[client] = (*grown[client], (f"turn {k}", rng.randint(1, 24)))[-6:]
        prefix = (("system", 16), *grown[client][1:]) if rng.random() < 0.8 else ()
        request = Request(
            request_id=f"r{k}",
            arrival_ns=k * gap_ns,
            prompt_tokens=sum(tokens for _, tokens in prefix) + rng.randint(1, 8),
            output_tokens=rng.randint(1, 12),
            prefix=prefix,
        )
        requests.append(request)
    longest = max(request.peak_kv_tokens for request in requests)
    block = rng.choice([1, 4, 8])
    limits = Limits(
        kv_blocks=-(-longest // block) * rng.randint(1, 4),
        block_tokens=block,
        max_batch_tokens=rng.choice([16, 64, 256]),
        max_batch_requests=rng.choice([4, 32]),
    )
    cost = replace(_cost(rng), step=Fraction(rng.choice([20, 200])))
    switches = Switches(prefix_caching=True)
    return Instance(requests=tuple(requests), limits=limits, cost=cost, switches=switches)


def without_hits(instance: Instance) -> Instance:
    """The same where nothing is cached."""
    return replace(instance, switches=replace(instance.switches, prefix_caching=False))
