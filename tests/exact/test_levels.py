"""Paths of aggregated states: best sets of decodes, cycles, and bounds that no schedule beats."""

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cspsched.bounds import best_bound
from cspsched.compiled.jit import compiled
from cspsched.errors import InternalError
from cspsched.exact.prices.aggregated_bound import LEVEL_WALKS, bound_levels, can_bound_levels
from cspsched.exact.prices.aggregated_decodes import NEVER, Lines, best_patterns, trace_pattern
from cspsched.exact.prices.aggregated_path_prices import (
    CycleSearch,
    aggregated_path_prices,
    proven_by,
    token_prices,
)
from cspsched.exact.prices.aggregated_paths import AggregatedMoves, AggregatedPrices
from cspsched.exact.solver import solve_exactly
from cspsched.exact.watch import SearchLimits
from cspsched.problem.instance import Preemption, Switches
from cspsched.problem.objectives import Objective
from tests.oracles.exhaustive import exhaustive_optimum
from tests.support.exact_cases import tiny_instances
from tests.support.instances import instance_of

BETWEEN, WITHIN, BEHIND = "between", "within", "behind"


@st.composite
def level_moves(draw):
    """One to three requests, and what their batches cost."""
    count = draw(st.integers(1, 3))
    outputs = draw(st.lists(st.integers(1, 4), min_size=count, max_size=count))
    prompts = draw(st.lists(st.integers(1, 5), min_size=count, max_size=count))
    peaks = [prompt + output - 1 for prompt, output in zip(prompts, outputs, strict=True)]
    capacity = draw(st.integers(max(peaks), max(peaks) + 6))
    least, most = np.cumsum([0, *sorted(prompts)]), np.cumsum([0, *sorted(peaks, reverse=True)])
    fits = least <= capacity
    refill = np.zeros((count, max(outputs) + 1), dtype=np.int64)
    for i, output in enumerate(outputs):
        for g in range(1, output):
            refill[i, g] = draw(st.integers(0, 60))
    alone = draw(st.integers(1, 200)), draw(st.integers(1, 200))
    return AggregatedMoves(
        prompts=np.array(prompts),
        outputs=np.array(outputs),
        capacity=capacity,
        least=least[fits],
        most=np.minimum(most[fits], capacity),
        batch=np.array([*alone, max(alone) + draw(st.integers(0, 50))]),
        refill=refill,
        preemptive=draw(st.booleans()),
        holding=draw(st.booleans()),
    )


def sets_of(moves):
    """Every set of later tokens, at most one of each request, as a list of (request, tokens before it)."""
    count = len(moves.prompts)
    for size in range(count + 1):
        for who in combinations(range(count), size):
            for tokens in product(*(range(1, moves.outputs[i]) for i in who)):
                yield list(zip(who, tokens, strict=True))


def held_by(moves, chosen):
    return sum(int(moves.prompts[i]) + g for i, g in chosen)


def arcs_of(moves, prices):
    """(from, to, reduced cost) of everything that can be done in every aggregated state."""
    least, most, batch = moves.least.tolist(), moves.most.tolist(), moves.batch.tolist()
    tokens = token_prices(moves, prices)
    levels = [(k, u) for k in range(len(least)) for u in range(least[k], most[k] + 1)]
    for k, u in levels:
        if k + 1 < len(least):
            yield (BETWEEN, k, u), (WITHIN, k, u), batch[1]
            for i, output in enumerate(moves.outputs.tolist()):
                for g in range(output if moves.preemptive else 1):
                    size = int(moves.prompts[i]) + g
                    cost = moves.refill[i, g] - tokens[i, g]
                    cost -= prices.evictions[size - 1] if g else 0
                    if least[k + 1] <= u + size <= most[k + 1]:
                        yield (WITHIN, k, u), (BEHIND, k + 1, u + size), int(cost)
                        if k + 2 < len(least):
                            yield (WITHIN, k, u), (WITHIN, k + 1, u + size), int(cost)
        for chosen in sets_of(moves):
            d, held = len(chosen), held_by(moves, chosen)
            if d == 0 or d > k or u + d > most[k] or (d < k and not moves.holding):
                continue
            if held == u + d if d == k else held <= u + d - least[k - d]:
                cost = -int(sum(tokens[token] for token in chosen))
                yield (BETWEEN, k, u), (BEHIND, k, u + d), batch[0] + cost
                if k + 1 < len(least):
                    yield (BETWEEN, k, u), (WITHIN, k, u + d), batch[2] + cost
        yield (BEHIND, k, u), (BETWEEN, k, u), 0
        leaving = [
            (int(moves.prompts[i] + moves.outputs[i]) - 1, -int(prices.finishes[i]))
            for i in range(len(moves.prompts))
        ]
        if moves.preemptive:
            leaving += list(enumerate(prices.evictions.tolist()))[1:]
        for size, cost in leaving:
            if k and least[k - 1] <= u - size <= most[k - 1]:
                yield (BEHIND, k, u), (BEHIND, k - 1, u - size), cost


def has_negative_round(arcs):
    """Bellman and Ford from everywhere at once."""
    arcs = list(arcs)
    value = {node: 0 for arc in arcs for node in arc[:2]}
    for _ in range(len(value) + 1):
        changed = False
        for start, end, cost in arcs:
            if value[end] + cost < value[start]:
                value[start], changed = value[end] + cost, True
        if not changed:
            return False
    return True


@st.composite
def prices_of(draw, moves):
    """Prices of any kind, from far too low to far too high."""
    count, highest = len(moves.prompts), draw(st.sampled_from([20, 80, 200]))

    def column(low, high):
        return np.array(draw(st.lists(st.integers(low, high), min_size=count, max_size=count)))

    sizes = int((moves.prompts + moves.outputs).max())
    return AggregatedPrices(
        first=column(0, highest),
        later=Lines(column(0, highest), column(-20, 20)),
        finishes=column(-80, 80),
        evictions=np.array(draw(st.lists(st.integers(-20, 60), min_size=sizes, max_size=sizes))),
    )


@settings(max_examples=60, deadline=None)
@given(level_moves(), st.data())
def test_best_sets_are_those_of_trying_all(moves, data):
    """For every number of decodes and KV tokens the best sum is found, and a set that has it."""
    prices = data.draw(prices_of(moves))
    values, count = token_prices(moves, prices), len(moves.prompts)
    best = compiled(best_patterns)(moves.prompts, moves.outputs, prices.later, count, moves.capacity)
    expected = np.full((count + 1, moves.capacity + 1), NEVER)
    for chosen in sets_of(moves):
        held = held_by(moves, chosen)
        if held <= moves.capacity:
            total = sum(values[token] for token in chosen)
            expected[len(chosen), held] = max(expected[len(chosen), held], total)

    assert (best[-1] == expected).all()
    for decodes, held in np.argwhere(expected != NEVER).tolist():
        emitted = np.zeros_like(values)
        compiled(trace_pattern)(moves.prompts, moves.outputs, prices.later, best, decodes, held, emitted)
        tokens = [tuple(token) for token in np.argwhere(emitted).tolist()]
        assert emitted.sum() == len({i for i, _ in tokens}) == decodes
        assert held_by(moves, tokens) == held
        assert (emitted * values).sum() == expected[decodes, held]


@settings(max_examples=250, deadline=None)
@given(level_moves(), st.data())
def test_ways_round_that_earn_too_much_are_found_exactly_if_there_are_some(moves, data):
    """Prices hold exactly if no cycle of single steps is negative; each cycle written down earns more."""
    prices = data.draw(prices_of(moves))
    rounds = CycleSearch(moves).settle(prices)

    assert (len(rounds) > 0) == has_negative_round(arcs_of(moves, prices))
    for way, cost in rounds:
        earned = (way.emitted * token_prices(moves, prices)).sum() + (way.finished * prices.finishes).sum()
        assert cost < earned - (way.evicted * prices.evictions).sum()


@settings(max_examples=60, deadline=None)
@given(level_moves(), st.integers(0, 60))
def test_prices_found_hold_whenever_the_search_is_stopped(moves, tries):
    """No cycle of single steps is negative under them, and they prove no less than those of the start."""
    proven = []

    def go_on(total, _steps):
        proven.append(total)
        return len(proven) <= tries

    prices = aggregated_path_prices(moves, go_on)

    assert not has_negative_round(arcs_of(moves, prices))
    assert proven == sorted(proven)
    assert (token_prices(moves, prices) >= 0).all()
    assert proven_by(moves, prices) == proven[-1]


switches_with_levels = st.builds(
    Switches,
    chunked_prefill=st.booleans(),
    hybrid_batches=st.booleans(),
    holding=st.booleans(),
    preemption=st.sampled_from([Preemption.NONE, Preemption.RECOMPUTE]),
)


@settings(max_examples=120, deadline=None)
@given(tiny_instances(switches=switches_with_levels, arrivals=False), st.integers(0, 40))
def test_bound_is_never_above_the_optimum(instance, tries):
    """Every term of the cost form, every switch, blocks of one and two tokens, wherever it is stopped."""
    assume(can_bound_levels(instance))
    left = iter(range(tries))

    assert bound_levels(instance, lambda *_: next(left, None) is not None) <= exhaustive_optimum(instance)


def long_ones(**switches):
    """Six requests of which two or three fit, in the full class."""
    shapes = [(26, 46), (36, 66), (81, 52), (87, 34), (72, 59), (50, 40)]
    return instance_of(shapes, kv_blocks=230, switches=Switches(**switches))


def test_growth_and_surcharges_of_prefills_are_seen_together():
    """The KV volume proves a twelfth less: memory is full in all of its batches."""
    bound = bound_levels(long_ones(), lambda *_: True)

    assert bound > 1.08 * best_bound(long_ones(), Objective.MAKESPAN).value_ns


@pytest.mark.parametrize(
    ("change", "known"),
    [
        ({}, True),
        ({"preemption": Preemption.NONE}, True),
        ({"chunked_prefill": False}, True),
        ({"reservation": True}, False),
    ],
)
def test_levels_are_left_where_sizes_are_others(change, known):
    """A reserved peak does not grow."""
    assert can_bound_levels(long_ones(**change)) == known


def test_levels_know_neither_chunks_that_pay_nor_arrivals():
    """A budget below the capacity may cut prompts; who comes later makes chunks pay."""
    assert not can_bound_levels(instance_of([(26, 46), (36, 66)], kv_blocks=120, max_batch_tokens=100))
    assert not can_bound_levels(instance_of([(26, 46), (36, 66, 5)], kv_blocks=120))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_solver_names_the_certificate(num_workers):
    """Beyond the state search the bound is that of aggregated states, in turns or side by side."""
    instance = instance_of([(4 + i % 5, 6 + i % 7) for i in range(21)], kv_blocks=60)
    bound_levels(instance, lambda *_: False)
    limits = SearchLimits(time_limit_s=2.0, num_workers=num_workers, deterministic=num_workers == 1)
    result = solve_exactly(instance, Objective.MAKESPAN, limits)

    assert result.certificate == result.provenance["model"]["name"] == LEVEL_WALKS
    assert result.dual_ns < result.primal_ns
    assert result.violations() == []


def test_prices_that_do_not_hold_at_the_start_are_refused(monkeypatch):
    """No cycle beats the KV volume; if one does that is a mistake of ours, and said to be."""
    monkeypatch.setattr(CycleSearch, "settle", lambda *_: [(None, 0)])
    with pytest.raises(InternalError, match="aggregated states beats the KV volume"):
        bound_levels(long_ones(), lambda *_: True)
