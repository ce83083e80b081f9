"""Better schedules by annealing over plans of the parametric scheduler; proves nothing.

A move swaps two requests in the order, holds one back, lets it go again, changes the size of its chunks, or
turns a mode. Worse plans are taken over with a probability that falls with the loss and with time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cspsched.compiled.batch_time import CostTables, cost_tables
from cspsched.compiled.jit import allocating, compiled
from cspsched.exact.heuristics.list_schedule import one_at_a_time
from cspsched.exact.heuristics.plan_scheduler import NO_SCHEDULE, Plan, Trace, Workload, run_plan
from cspsched.exact.model.exact_model import Decisions
from cspsched.problem.cost import IntArray
from cspsched.problem.instance import Instance, Preemption
from cspsched.problem.linear_form import LinearForm, linear_form
from cspsched.problem.objectives import AnyObjective
from cspsched.units import ceil_div

LOCAL_SEARCH = "local search"
SLICE = 20
MOST_HALVINGS = 5
WARMTH = 0.003
"""Loss, as a share of the value, that is taken over with probability 1/e in the beginning."""
MOST_REQUESTS = 200
NO_LIMIT_NS = 2**61
MOST_VALUE = 2**60
"""Weights are made coarser until values stay below: plans are compared in 64 bits, and priced elsewhere."""
ORDERS: tuple[Callable[[Workload], npt.NDArray[Any]], ...] = (
    lambda load: load.arrivals,
    lambda load: load.outputs,
    lambda load: -load.outputs,
    lambda load: load.outputs * (2 * load.prompts + load.outputs),
    lambda load: load.prompts,
    lambda load: load.outputs * (2 * load.prompts + load.outputs) / _weights(load),
    lambda load: -_weights(load),
    lambda load: load.arrivals + load.first_limits,
)


def can_dispatch(instance: Instance) -> bool:
    """Whether the parametric scheduler keeps to the instance's switches, and the instance is small enough."""
    switches = instance.switches
    return switches.hybrid_batches and switches.holding and len(instance.requests) <= MOST_REQUESTS


def improve(
    instance: Instance, objective: AnyObjective, seed: int, time_left: Callable[[], float]
) -> Iterator[Decisions]:
    """Ever better schedules, the first from the best of some plain orders, until time is over."""
    load, prices = workload_of(instance, objective), cost_tables(instance.cost, 1)
    room = 4 * sum(request.peak_kv_tokens for request in instance.requests)
    trace = Trace(np.zeros((room, 3), np.int64), np.zeros((room, 2), np.int64), np.zeros(2, np.int64))
    allotted = time_left()
    plan, value = _first_plan(load, prices, trace)
    if value == NO_SCHEDULE:
        return
    best, current = _copy(plan), np.array([value, value], dtype=np.int64)
    yield decisions_of(load, prices, best, trace)
    compiled(_seed)(seed)
    while (left := time_left()) > 0:
        warmth = WARMTH * value * (left / allotted) ** 2
        compiled(_anneal)(load, prices, trace, PlanWalk(plan, best, current), warmth, SLICE)
        if current[1] < value:
            value = int(current[1])
            yield decisions_of(load, prices, best, trace)


def workload_of(instance: Instance, objective: AnyObjective) -> Workload:
    """What the compiled scheduler reads of an instance and an objective."""
    requests, limits, switches = instance.requests, instance.limits, instance.switches
    longest = max(request.peak_kv_tokens for request in requests)
    form = _coarse(instance, linear_form(objective, instance))
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
        makespan=form.makespan,
        first=np.array(form.first, dtype=np.int64),
        span=np.array(form.span, dtype=np.int64),
        max_gap=form.max_gap,
        max_span=np.array(form.max_span, dtype=np.int64),
        late=np.array(form.late, dtype=np.int64),
        first_limits=_limits(request.ttft_limit_ns for request in requests),
        span_limits=_limits(
            None if request.tpot_limit_ns is None else request.tpot_limit_ns * (request.output_tokens - 1)
            for request in requests
        ),
        moment=max(1, _weight_of_times(form)),
        longest=longest,
        halvings=longest.bit_length(),
        most_batches=4 * sum(request.peak_kv_tokens for request in requests),
    )


def _coarse(instance: Instance, form: LinearForm) -> LinearForm:
    """A form with weights so small that the value of a plan fits; those above 0 stay above it."""
    one_by_one = one_at_a_time(instance, range(len(instance.requests)))
    worst = 2 * int(one_by_one.end_ns[-1]) * _weight_of_times(form) + sum(form.late)
    divisor = worst // MOST_VALUE + 1

    def divided(weights: Iterable[int]) -> tuple[int, ...]:
        return tuple(ceil_div(weight, divisor) for weight in weights)

    return LinearForm(
        makespan=ceil_div(form.makespan, divisor),
        first=divided(form.first),
        span=divided(form.span),
        max_gap=ceil_div(form.max_gap, divisor),
        max_span=divided(form.max_span),
        late=divided(form.late),
    )


def _weight_of_times(form: LinearForm) -> int:
    return form.makespan + sum(map(max, form.first, form.span)) + form.max_gap + max(form.max_span)


def _limits(times_ns: Iterable[int | None]) -> IntArray:
    limits = [NO_LIMIT_NS if time_ns is None else min(time_ns, NO_LIMIT_NS) for time_ns in times_ns]
    return np.array(limits, dtype=np.int64)


def _weights(load: Workload) -> IntArray:
    """How much each request counts, at least 1."""
    weights: IntArray = np.maximum(np.maximum(load.first, load.span) + load.max_span + load.late, 1)
    return weights


def _first_plan(load: Workload, prices: CostTables, trace: Trace) -> tuple[Plan, int]:
    """Best of the plain orders, with and without admission by peak."""
    orders = [np.argsort(key(load), kind="stable") for key in ORDERS]
    plans = [
        Plan(
            order=order.copy(),
            release=load.arrivals.copy(),
            chunk=np.full(len(load.prompts), load.max_batch_tokens, dtype=np.int64),
            modes=np.array([cautious, eager, budget], dtype=np.int64),
        )
        for order in {order.tobytes(): order for order in orders}.values()
        for cautious, eager in ((0, 0), (1, 0), (0, 1))
        for budget in _budgets(load)
    ]
    values = [compiled(run_plan)(load, prices, plan, trace, NO_SCHEDULE) for plan in plans]
    best = min(range(len(plans)), key=values.__getitem__)
    return plans[best], int(values[best])


def _budgets(load: Workload) -> list[int]:
    """Tokens of a batch to begin with: all that is allowed, and less where prompts may be cut."""
    return [load.max_batch_tokens >> halved for halved in ((0, 2, 3) if load.chunks else (0,))]


def _copy(plan: Plan) -> Plan:
    return Plan(*(column.copy() for column in plan))


class PlanWalk(NamedTuple):
    """Where a walk from plan to plan is."""

    plan: Plan
    best: Plan
    values: IntArray
    """Of both."""


@allocating
def _seed(seed: int) -> None:
    np.random.seed(seed)


@allocating
def _anneal(
    load: Workload, prices: CostTables, trace: Trace, walk: PlanWalk, warmth: float, moves: int
) -> None:
    """Some moves."""
    plan, best, values = walk.plan, walk.best, walk.values
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
            most = max(1, values[1] // (20 * load.moment))
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


def decisions_of(load: Workload, prices: CostTables, plan: Plan, trace: Trace) -> Decisions:
    """Batches and evictions of a plan."""
    compiled(run_plan)(load, prices, plan, trace, NO_SCHEDULE)
    batches: dict[int, list[tuple[int, int]]] = {}
    evictions: dict[int, list[int]] = {}
    for batch, request, tokens in trace.entries[: trace.sizes[0]].tolist():
        batches.setdefault(batch, []).append((request, tokens))
    for batch, request in trace.evictions[: trace.sizes[1]].tolist():
        evictions.setdefault(batch, []).append(request)
    # A pass that processed no request is no batch; no request is evicted in it either.
    used = sorted(batches)
    return [batches[j] for j in used], [evictions.get(j, []) for j in used]
