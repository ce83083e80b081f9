"""Better schedules by annealing over plans of the parametric scheduler; proves nothing.

A move swaps two requests in the order, holds one back, lets it go again, changes the size of its chunks, or
turns a mode. Worse plans are taken over with a probability that falls with the loss and with time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from cspsched.exact.dispatch import NO_SCHEDULE, Plan, Trace, Workload, run_plan
from cspsched.exact.jit import compiled
from cspsched.exact.model import Decisions
from cspsched.exact.state_space import Prices, price_tables
from cspsched.problem.cost import IntArray
from cspsched.problem.instance import Instance, Preemption
from cspsched.problem.metrics import Objective

LOCAL_SEARCH = "local search"
SLICE = 20
MOST_HALVINGS = 5
WARMTH = 0.003
"""Loss, as a share of the value, that is taken over with probability 1/e in the beginning."""
MOST_REQUESTS = 200
ORDERS: tuple[Callable[[IntArray, IntArray, IntArray], IntArray], ...] = (
    lambda arrivals, prompts, outputs: arrivals,
    lambda arrivals, prompts, outputs: outputs,
    lambda arrivals, prompts, outputs: -outputs,
    lambda arrivals, prompts, outputs: outputs * (2 * prompts + outputs),
    lambda arrivals, prompts, outputs: prompts,
)


def can_dispatch(instance: Instance) -> bool:
    """Whether the parametric scheduler keeps to the instance's switches, and the instance is small enough."""
    switches = instance.switches
    return switches.hybrid_batches and switches.holding and len(instance.requests) <= MOST_REQUESTS


def improve(
    instance: Instance, objective: Objective, seed: int, time_left: Callable[[], float]
) -> Iterator[Decisions]:
    """Ever better schedules, the first from the best of some plain orders, until time is over."""
    load, prices = _workload(instance, objective), price_tables(instance, 1)
    room = 4 * sum(request.peak_kv_tokens for request in instance.requests)
    trace = Trace(np.zeros((room, 3), np.int64), np.zeros((room, 2), np.int64), np.zeros(2, np.int64))
    allotted = time_left()
    plan, value = _first_plan(load, prices, trace)
    if value == NO_SCHEDULE:
        return
    best, current = _copy(plan), np.array([value, value], dtype=np.int64)
    yield _decisions(load, prices, best, trace)
    _seed(seed)
    while (left := time_left()) > 0:
        warmth = WARMTH * value * (left / allotted) ** 2
        _anneal(load, prices, plan, best, trace, current, warmth, SLICE)
        if current[1] < value:
            value = int(current[1])
            yield _decisions(load, prices, best, trace)


def _workload(instance: Instance, objective: Objective) -> Workload:
    requests, limits, switches = instance.requests, instance.limits, instance.switches
    longest = max(request.peak_kv_tokens for request in requests)
    return Workload(
        arrivals=np.array([request.arrival_ns for request in requests], dtype=np.int64),
        prompts=np.array([request.prompt_tokens for request in requests], dtype=np.int64),
        outputs=np.array([request.output_tokens for request in requests], dtype=np.int64),
        kv_blocks=limits.kv_blocks,
        block_tokens=limits.block_tokens,
        max_batch_tokens=limits.max_batch_tokens,
        max_batch_requests=limits.max_batch_requests,
        chunks=switches.chunked_prefill,
        preemptive=switches.preemption is not Preemption.NONE,
        reserves=switches.reservation,
        counted={Objective.MAKESPAN: -1, Objective.LATENCY: 0, Objective.TTFT: 1}[objective],
        longest=longest,
        halvings=longest.bit_length(),
        most_batches=4 * sum(request.peak_kv_tokens for request in requests),
    )


def _first_plan(load: Workload, prices: Prices, trace: Trace) -> tuple[Plan, int]:
    """Best of the plain orders, with and without admission by peak."""
    plans = [
        Plan(
            order=np.argsort(key(load.arrivals, load.prompts, load.outputs), kind="stable"),
            release=load.arrivals.copy(),
            chunk=np.full(len(load.prompts), load.max_batch_tokens, dtype=np.int64),
            modes=np.array([cautious, eager, budget], dtype=np.int64),
        )
        for key in ORDERS
        for cautious, eager in ((0, 0), (1, 0), (0, 1))
        for budget in _budgets(load)
    ]
    values = [run_plan(load, prices, plan, trace, NO_SCHEDULE) for plan in plans]
    best = min(range(len(plans)), key=values.__getitem__)
    return plans[best], int(values[best])


def _budgets(load: Workload) -> list[int]:
    """Tokens of a batch to begin with: all that is allowed, and less where prompts may be cut."""
    return [load.max_batch_tokens >> halved for halved in ((0, 2, 3) if load.chunks else (0,))]


def _copy(plan: Plan) -> Plan:
    return Plan(*(column.copy() for column in plan))


@compiled
def _seed(seed: int) -> None:
    np.random.seed(seed)


@compiled
def _anneal(
    load: Workload,
    prices: Prices,
    plan: Plan,
    best: Plan,
    trace: Trace,
    values: IntArray,
    warmth: float,
    moves: int,
) -> None:
    """Some moves; `values` holds that of the plan and of the best one."""
    n = len(plan.order)
    for _ in range(moves):
        kind, i, k = np.random.randint(0, 10), np.random.randint(0, n), np.random.randint(0, n)
        mode = np.random.randint(0, 3)
        old_order, old_release, old_chunk = plan.order[i], plan.release[i], plan.chunk[i]
        old_mode = plan.modes[mode]
        if kind < 5:
            plan.order[i], plan.order[k] = plan.order[k], plan.order[i]
        elif kind == 5:
            plan.release[i] = load.arrivals[i]
        elif kind < 8:
            # Back by up to a twentieth of an average wait; short delays let others get ahead.
            most = max(1, values[1] // (20 * (n if load.counted >= 0 else 1)))
            plan.release[i] = max(load.arrivals[i], plan.release[i] + np.random.randint(-most, most + 1))
        elif kind == 8:
            plan.chunk[i] = max(1, load.longest >> np.random.randint(0, load.halvings))
        elif mode < 2:
            plan.modes[mode] = 1 - old_mode
        elif load.chunks:
            plan.modes[2] = max(1, load.max_batch_tokens >> np.random.randint(0, MOST_HALVINGS))
        limit = values[0] + np.int64(-np.log(1.0 - np.random.random()) * warmth)
        value = run_plan(load, prices, plan, trace, limit)
        if value <= limit:
            values[0] = value
            if value < values[1]:
                values[1] = value
                for column in range(4):
                    best[column][:] = plan[column]
            continue
        if kind < 5:
            plan.order[i], plan.order[k] = old_order, plan.order[i]
        plan.release[i], plan.chunk[i] = old_release, old_chunk
        plan.modes[mode] = old_mode


def _decisions(load: Workload, prices: Prices, plan: Plan, trace: Trace) -> Decisions:
    """Batches and evictions of a plan."""
    run_plan(load, prices, plan, trace, NO_SCHEDULE)
    batches: dict[int, list[tuple[int, int]]] = {}
    evictions: dict[int, list[int]] = {}
    for batch, request, tokens in trace.entries[: trace.sizes[0]].tolist():
        batches.setdefault(batch, []).append((request, tokens))
    for batch, request in trace.evictions[: trace.sizes[1]].tolist():
        evictions.setdefault(batch, []).append(request)
    # A pass that processed nobody is no batch; nobody is evicted in it either.
    used = sorted(batches)
    return [batches[j] for j in used], [evictions.get(j, []) for j in used]
