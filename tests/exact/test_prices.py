"""Prices that no batch beats, and plans that always make a feasible schedule."""

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspsched.compiled.batch_time import cost_tables
from cspsched.compiled.jit import compiled
from cspsched.exact.heuristics.first_schedules import first_schedules
from cspsched.exact.heuristics.local_search import can_dispatch, decisions_of, improve, workload_of
from cspsched.exact.heuristics.plan_scheduler import NO_SCHEDULE, Plan, Trace, run_plan
from cspsched.exact.prices.batch_pattern_prices import Tokens, token_prices
from cspsched.exact.record import best_incumbent
from cspsched.exact.solver import solve_exactly
from cspsched.exact.watch import SearchLimits
from cspsched.policies.base import make_policy
from cspsched.problem.linear_form import linear_form, read_objectives
from cspsched.problem.objectives import Objective
from cspsched.referee.metrics import measure
from cspsched.referee.rules import find_violations
from cspsched.referee.timing import schedule_asap
from cspsched.simulate import simulate
from tests.support.exact_cases import tiny_instances
from tests.support.instances import instance_of, late_mixed
from tests.support.objective_cases import random_case


@st.composite
def tokens_of_requests(draw):
    """Up to three requests with growing sizes, and what their batches cost."""
    count, capacity = draw(st.integers(1, 3)), draw(st.integers(4, 12))
    outputs = draw(st.lists(st.integers(1, 3), min_size=count, max_size=count))
    prompts = [draw(st.integers(1, capacity - output + 1)) for output in outputs]
    blocks = np.zeros((count, max(outputs) + 1), dtype=np.int64)
    for i, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        blocks[i, :output] = prompt + np.arange(output)
    extra = st.integers(0, 40)
    decode, refill = np.zeros_like(blocks), np.zeros_like(blocks)
    for i, output in enumerate(outputs):
        for g in range(1, output):
            decode[i, g], refill[i, g] = draw(extra), draw(extra)
    decode_batch, prefill_batch = draw(st.integers(1, 500)), draw(st.integers(1, 500))
    return Tokens(
        blocks=blocks,
        counts=np.array(outputs),
        capacity=capacity,
        decode_batch=decode_batch,
        prefill_batch=prefill_batch,
        hybrid_batch=decode_batch + prefill_batch,
        decode_extra=decode,
        refill_extra=refill,
        refills=draw(st.booleans()),
    )


def patterns(tokens):
    """Every set of tokens that fits into a batch: at most one of each request."""
    count = len(tokens.counts)
    for size in range(1, count + 1):
        for members in combinations(range(count), size):
            for which in product(*(range(tokens.counts[i]) for i in members)):
                pattern = list(zip(members, which, strict=True))
                if sum(tokens.blocks[token] for token in pattern) <= tokens.capacity:
                    yield pattern


def cheapest_batch(tokens, pattern, *, credit):
    """Least that a batch with these tokens costs beyond their work, decoded or refilled in any way."""
    costs = []
    for refilled in product((False, True), repeat=len(pattern)):
        if any(not refill if g == 0 else refill and not tokens.refills
               for (_, g), refill in zip(pattern, refilled, strict=True)):  # fmt: skip
            continue
        batch = tokens.hybrid_batch
        if all(refilled):
            batch = tokens.prefill_batch
        elif not any(refilled):
            batch = tokens.decode_batch
        for token, refill in zip(pattern, refilled, strict=True):
            if refill and token[1]:
                batch += 0 if credit else tokens.refill_extra[token]
            elif not refill:
                batch += tokens.decode_extra[token]
        costs.append(batch)
    return min(costs)


@settings(max_examples=60)
@given(tokens_of_requests(), st.booleans(), st.lists(st.integers(1, 5), min_size=3, max_size=3))
def test_no_batch_is_cheaper_than_the_prices_in_it(tokens, credit, weights):
    """Over all patterns and all ways to make them, prices never exceed what the batch costs."""
    prices = token_prices(tokens, np.array(weights[: len(tokens.counts)]), credit=credit)

    assert (prices >= 0).all()
    for pattern in patterns(tokens):
        assert sum(prices[token] for token in pattern) <= cheapest_batch(tokens, pattern, credit=credit)


def test_prices_know_that_two_large_tokens_never_share_a_batch():
    """Two requests of 7 tokens in 12: no volume argument, yet every token is worth a whole batch."""
    blocks = np.array([[7, 8, 0], [7, 8, 0]])
    nothing = np.zeros_like(blocks)
    tokens = Tokens(blocks=blocks, counts=np.array([2, 2]), capacity=12, decode_batch=100, prefill_batch=130,
                    hybrid_batch=180, decode_extra=nothing, refill_extra=nothing, refills=True)  # fmt: skip
    prices = token_prices(tokens, np.array([1, 1]), credit=False)

    assert prices[:, :2].sum() == 2 * 130 + 2 * 100


@settings(max_examples=150)
@given(tiny_instances(), st.sampled_from(Objective), st.data())
def test_every_plan_makes_a_feasible_schedule_at_its_price(instance, objective, data):
    """Whatever the plan: the referee has no objection, and measures what the kernel said."""
    if not can_dispatch(instance):
        return
    count = len(instance.requests)
    load, prices = workload_of(instance, objective), cost_tables(instance.cost, 1)
    plan = Plan(
        order=np.array(data.draw(st.permutations(range(count)))),
        release=load.arrivals
        + np.array(data.draw(st.lists(st.integers(0, 200), min_size=count, max_size=count))),
        chunk=np.array(data.draw(st.lists(st.integers(1, 4), min_size=count, max_size=count))),
        modes=np.array([data.draw(st.integers(0, 1)), data.draw(st.integers(0, 1)), load.max_batch_tokens]),
    )
    trace = Trace(np.zeros((500, 3), np.int64), np.zeros((500, 2), np.int64), np.zeros(2, np.int64))
    value = compiled(run_plan)(load, prices, plan, trace, NO_SCHEDULE)
    if value == NO_SCHEDULE:
        return
    schedule = schedule_asap(instance, *decisions_of(load, prices, plan, trace))

    assert find_violations(instance, schedule) == []
    # A release may leave the machine idle where the schedule's own clock does not.
    assert measure(instance, schedule).objective_ns(objective) <= value


@settings(max_examples=150)
@given(st.integers(0, 400), st.data())
def test_every_plan_is_priced_as_the_objective_says(case, data):
    """Weights, largest gaps and missed limits: without releases the kernel's value is the referee's."""
    instance, text = random_case(case)
    if not can_dispatch(instance):
        return
    count = len(instance.requests)
    order = np.array(data.draw(st.permutations(range(count))))
    for objective in read_objectives(text, instance):
        load, prices = workload_of(instance, objective), cost_tables(instance.cost, 1)
        plan = Plan(
            order=order,
            release=load.arrivals.copy(),
            chunk=np.full(count, load.max_batch_tokens),
            modes=np.array([1, 0, load.max_batch_tokens]),
        )
        trace = Trace(np.zeros((500, 3), np.int64), np.zeros((500, 2), np.int64), np.zeros(2, np.int64))
        value = compiled(run_plan)(load, prices, plan, trace, NO_SCHEDULE)
        if value != NO_SCHEDULE:
            schedule = schedule_asap(instance, *decisions_of(load, prices, plan, trace))
            assert measure(instance, schedule).objective_ns(objective) == value


def test_the_urgent_go_first_where_the_objective_says_so():
    """Two long requests in both places, then a short one that weighs eleven times as much: it gets one.

    The first plan is at least as good as a policy that serves by priority; what latency alone would choose is
    several times worse.
    """
    plain = instance_of([(512, 400), (512, 400), (64, 20, 5 * 10**8)], kv_blocks=2000, max_batch_requests=2)
    priorities = (10, 10, 0)
    instance = replace(
        plain,
        requests=tuple(map(lambda one, level: replace(one, priority=level), plain.requests, priorities)),
    )
    (objective,) = read_objectives("weighted-latency", instance)
    policy = make_policy("vllm-v0:policy=priority")
    rival = measure(instance, simulate(instance, policy).schedule).objective_ns(objective)
    lists = best_incumbent(instance, objective, first_schedules(instance, objective))
    first = schedule_asap(instance, *next(improve(instance, objective, 0, lambda: 1.0)))

    assert measure(instance, first).objective_ns(objective) <= rival
    assert lists.value_ns > 2 * rival


def test_the_solver_improves_mixtures_in_turns_and_to_the_byte():
    """Local search has its turn with one worker, too, and a deterministic clock of its own."""
    instance = instance_of([(5 + i, 3 + i % 4, 10**7 * i) for i in range(12)], kv_blocks=40)
    (objective,) = read_objectives("weighted-ttft+1/2*max-itl", instance)
    limits = SearchLimits(time_limit_s=0.2, num_workers=1, deterministic=True)
    first, second = (solve_exactly(instance, objective, limits) for _ in range(2))

    assert first.schedule == second.schedule
    assert (
        first.primal_ns < best_incumbent(instance, objective, first_schedules(instance, objective)).value_ns
    )
    assert first.violations() == []


def test_weights_too_large_for_64_bits_are_made_coarser():
    """Plans are compared by what fits; a weight above 0 stays above it, and 0 stays 0."""
    shapes = [(3, 1 + prime, 10**6 * i) for i, prime in enumerate((101, 103, 107, 109, 113, 127, 131))]
    instance = instance_of(shapes, kv_blocks=400)
    (objective,) = read_objectives("tpot+mean-itl", instance)
    load = workload_of(instance, objective)
    form = linear_form(objective, instance)

    assert sum(form.span) * 10**9 > 2**60 > int(load.span.sum()) * 10**9
    assert (load.span > 0).all()
    assert not load.first.any()
    shares = load.span / load.span.sum()
    assert shares == pytest.approx(np.array(form.span, dtype=float) / float(sum(form.span)), rel=1e-3)


@pytest.mark.parametrize("objective", Objective)
def test_local_search_only_improves(objective):
    """Every schedule that it offers is feasible and better than the one before."""
    instance = late_mixed()
    ticks = iter([1.0] * 40 + [0.0] * 10)
    values = []
    for decisions in improve(instance, objective, 0, lambda: next(ticks)):
        schedule = schedule_asap(instance, *decisions)
        assert find_violations(instance, schedule) == []
        values.append(measure(instance, schedule).objective_ns(objective))

    assert values == sorted(values, reverse=True)
    assert values
