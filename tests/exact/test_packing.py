"""The packing search answers to a plain search over all batches, and so does all of its heuristic."""

import os
from dataclasses import replace
from fractions import Fraction
from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspsched.compiled.jit import compiled
from cspsched.costs.presets import load_cost
from cspsched.exact.heuristics.list_schedule import list_schedules
from cspsched.exact.packing.heuristic import least_rest
from cspsched.exact.packing.search import PACKING_SEARCH, search_packing
from cspsched.exact.packing.space import build_packing_space
from cspsched.exact.record import best_incumbent
from cspsched.exact.solver import solve_exactly
from cspsched.exact.states.search import Talk
from cspsched.exact.states.space import build_state_space
from cspsched.exact.watch import SearchLimits
from cspsched.problem.cost import BatchFeatures, CostModel, PiecewiseLinear, triangle
from cspsched.problem.instance import Preemption
from cspsched.problem.objectives import Objective
from cspsched.problem.result import Status, StopReason
from cspsched.referee.metrics import measure
from cspsched.referee.rules import find_violations
from cspsched.referee.timing import schedule_asap
from tests.oracles.exhaustive import exhaustive_optimum
from tests.support.exact_cases import FLAT, STAIRS, run_to_completion, tiny_instances
from tests.support.instances import RUN_TO_COMPLETION, hindsight, instance_of

EXAMPLES = max(100, int(os.environ.get("CSPSCHED_ORACLE_EXAMPLES", "0")))
NEVER = 10**30
TWELVE = [
    *[(4, 25), (6, 4), (4, 10), (6, 25), (2, 4), (4, 17)],
    *[(4, 3), (2, 11), (4, 12), (2, 16), (2, 6), (6, 13)],
]
"""`packing-n12-s2002` of the benchmark, in 30 blocks."""
HUGE = CostModel(name="huge", step=Fraction(10**12 + 7), prefill_batch=Fraction(3 * 10**11))
"""Sums of these do not fit into 16 bits, and have no common divisor."""
DEAR_PREFILLS = CostModel(
    name="dear prefills",
    step=Fraction(100),
    prefill_batch=Fraction(70),
    decode_batch=Fraction(20),
    prefill_request=Fraction(5),
    tokens=PiecewiseLinear.linear(3),
    decode_context=PiecewiseLinear.linear(Fraction(5, 3)),
)


@st.composite
def packings(draw):
    """Two to five requests, tight in blocks; sometimes in tokens and seats of a batch too."""
    count = draw(st.integers(2, 5))
    longest = 6 if count < 5 else 4
    shapes = [(draw(st.integers(1, 4)), draw(st.integers(1, longest))) for _ in range(count)]
    block = draw(st.sampled_from([1, 1, 2]))
    peaks = [-(-(prompt + output - 1) // block) for prompt, output in shapes]
    return instance_of(
        shapes,
        kv_blocks=draw(st.integers(max(peaks), max(max(peaks), sum(peaks) * 2 // 3))),
        block_tokens=block,
        max_batch_tokens=draw(st.sampled_from([1000, 1000, 6])),
        max_batch_requests=draw(st.sampled_from([1000, 1000, 2])),
        cost=draw(st.sampled_from([FLAT, STAIRS, HUGE, DEAR_PREFILLS])),
        switches=replace(RUN_TO_COMPLETION, reservation=draw(st.booleans())),
    )


def plain_rests(instance, objective):
    """What the objective still grows by from a state at least: a function of the tokens generated.

    A request that has started and not finished is in every batch; every set of the others is tried. No table,
    no heuristic, nothing of the package but the cost model.
    """
    requests, limits = instance.requests, instance.limits
    done = tuple(request.output_tokens for request in requests)

    def blocks(i, g):
        held = requests[i].peak_kv_tokens if instance.switches.reservation else requests[i].prompt_tokens + g
        return -(-held // limits.block_tokens)

    def batch_time(state, batch):
        prompts = [requests[i].prompt_tokens for i in batch if state[i] == 0]
        decodes = [requests[i].prompt_tokens + state[i] - 1 for i in batch if state[i]]
        return instance.cost.batch_time_ns(
            BatchFeatures(
                tokens=sum(prompts) + len(decodes),
                prefill_attention=sum(map(triangle, prompts)),
                prefill_tokens=sum(prompts),
                prefill_context=0,
                decode_context=sum(decodes),
                num_generating=len(batch),
                num_prefills=len(prompts),
                num_decodes=len(decodes),
            )
        )

    def waiting(state):
        if objective is Objective.MAKESPAN:
            return 1
        first = objective is Objective.TTFT
        return sum(g == 0 if first else g < o for g, o in zip(state, done, strict=True))

    @cache
    def rest(state):
        if state == done:
            return 0
        running = [i for i, g in enumerate(state) if 0 < g < done[i]]
        absent = [i for i, g in enumerate(state) if g == 0]
        best = NEVER
        for starts in product((False, True), repeat=len(absent)):
            batch = running + [i for i, starting in zip(absent, starts, strict=True) if starting]
            tokens = sum(requests[i].prompt_tokens if state[i] == 0 else 1 for i in batch)
            used = sum(blocks(i, state[i]) for i in batch)
            if (
                batch
                and used <= limits.kv_blocks
                and tokens <= limits.max_batch_tokens
                and len(batch) <= limits.max_batch_requests
            ):
                following = tuple(g + (i in batch) for i, g in enumerate(state))
                best = min(best, batch_time(state, batch) * waiting(state) + rest(following))
        return best

    return rest


def tables(instance, objective, upper_ns=None):
    """The packing space with its values; the upper bound is that of a list schedule if not given."""
    if upper_ns is None:
        upper_ns = best_incumbent(instance, objective, list_schedules(instance)).value_ns
    packing = build_packing_space(build_state_space(instance, objective, upper_ns), upper_ns)
    assert packing.fill(lambda _: True)
    return packing


def talk(value_ns, *, time_left=lambda: 60.0):
    """A talk without other members."""
    return Talk(
        time_left=time_left,
        upper_ns=lambda: value_ns,
        tell_bound=lambda _: None,
        tell_schedule=lambda _: None,
    )


def searched(instance, objective, times=1):
    """Best value and bound of the search alone, told so many times the value of a list schedule.

    Told more than that value it has to find a schedule by itself.
    """
    start = best_incumbent(instance, objective, list_schedules(instance)).value_ns
    space = build_state_space(instance, objective, times * start)
    outcome = search_packing(build_packing_space(space, times * start), talk(times * start))
    assert outcome.stop_reason is StopReason.ROUNDING
    if outcome.decisions is None:
        return times * start, outcome.bound_ns
    schedule = schedule_asap(instance, *outcome.decisions)
    assert find_violations(instance, schedule) == []
    return measure(instance, schedule).objective_ns(objective), outcome.bound_ns


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(packings(), st.sampled_from(Objective), st.sampled_from([1, 2]))
def test_search_agrees_with_plain_search(instance, objective, times):
    """Value and bound are the least that any order of starts leads to, to the nanosecond."""
    optimum = plain_rests(instance, objective)((0,) * len(instance.requests))

    assert searched(instance, objective, times) == (optimum, optimum)


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(tiny_instances(switches=run_to_completion, arrivals=False), st.sampled_from(Objective))
def test_search_agrees_with_exhaustive_search(instance, objective):
    """So it does with the search that tries every move of the whole problem."""
    optimum = exhaustive_optimum(instance, objective)

    assert searched(instance, objective, 2) == (optimum, optimum)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(packings(), st.sampled_from(Objective), st.booleans())
def test_floor_holds_in_every_state(instance, objective, tight):
    """No state's heuristic is above what is really left, whether the tables are capped or not.

    A cap may only hide what no schedule below the upper bound comes to.
    """
    upper_ns = None if tight else 10**16
    packing = tables(instance, objective, upper_ns)
    rest, outputs = plain_rests(instance, objective), packing.rests.outputs
    scratch = np.zeros_like(outputs)
    for state in product(*(range(count + 1) for count in outputs)):
        heuristic = compiled(least_rest)(packing.rests, np.array(state), scratch)
        assert 0 <= heuristic <= rest(state)


@pytest.mark.parametrize("cost", [FLAT, STAIRS, DEAR_PREFILLS])
@pytest.mark.parametrize("objective", [Objective.LATENCY, Objective.TTFT])
def test_floor_of_two_requests_is_all_there_is(cost, objective):
    """With two requests nothing is forgotten, and waits are priced exactly: the heuristic is what is left."""
    instance = instance_of([(2, 5), (3, 4)], kv_blocks=9, cost=cost, switches=RUN_TO_COMPLETION)
    packing = tables(instance, objective, 10**4)
    rest = plain_rests(instance, objective)
    for state in [(0, 0), (0, 4), (1, 0), (4, 0), (5, 2)]:
        heuristic = compiled(least_rest)(packing.rests, np.array(state), np.zeros(2, dtype=np.int64))
        assert heuristic == rest(state)


def test_a_third_request_counts():
    """Three that fit two by two and not all at once: the heuristic knows that one of them waits."""
    instance = instance_of([(2, 4)] * 3, kv_blocks=10, cost=FLAT, switches=RUN_TO_COMPLETION)
    packing = tables(instance, Objective.LATENCY, 10**4)
    nothing = np.zeros(3, dtype=np.int64)
    optimum = plain_rests(instance, Objective.LATENCY)((0, 0, 0))

    assert optimum > 3 * 4 * 10
    assert compiled(least_rest)(packing.rests, nothing, nothing.copy()) == optimum


@pytest.mark.parametrize(("seed", "optimum"), [(1000, 426), (1001, 395)])
def test_expected_values_of_the_specification(seed, optimum):
    """E8: both seeds are proven by the packing search, with what the specification says."""
    result = solve_exactly(hindsight(seed), Objective.LATENCY, SearchLimits(time_limit_s=60))

    assert (result.primal_ns, result.dual_ns, result.violations()) == (optimum, optimum, [])
    assert searched(hindsight(seed), Objective.LATENCY) == (optimum, optimum)


def twelve():
    return instance_of(TWELVE, kv_blocks=30, cost=load_cost("unit"), switches=RUN_TO_COMPLETION)


def test_twelve_requests_are_proven():
    """Twelve requests, with the proof of the packing search: one below the best schedule known before."""
    result = solve_exactly(twelve(), Objective.LATENCY, SearchLimits(time_limit_s=60))

    assert result.status is Status.OPTIMAL
    assert result.certificate == PACKING_SEARCH
    assert (result.primal_ns, result.violations()) == (293, [])


def test_same_search_twice():
    """One worker and a clock that counts work: the same schedule, and as many states."""
    limits = SearchLimits(time_limit_s=60, num_workers=1, deterministic=True)
    first, second = (solve_exactly(twelve(), Objective.LATENCY, limits) for _ in range(2))

    assert first.schedule == second.schedule
    assert first.provenance["model"] == second.provenance["model"]
    assert first.provenance["model"]["name"] == PACKING_SEARCH


@pytest.mark.parametrize(
    "change",
    [
        {"chunked_prefill": True},
        {"holding": True},
        {"hybrid_batches": False},
        {"preemption": Preemption.RECOMPUTE},
    ],
)
def test_only_where_requests_run_to_completion(change):
    """A request that may sit out, go, come in pieces or wait for its kind of batch: another class."""
    instance = instance_of([(2, 3), (3, 2)], kv_blocks=6, switches=replace(RUN_TO_COMPLETION, **change))
    upper = best_incumbent(instance, Objective.LATENCY, list_schedules(instance)).value_ns
    space = build_state_space(instance, Objective.LATENCY, upper)

    assert space is None or build_packing_space(space, upper) is None


@pytest.mark.parametrize("shapes", [[(1, 2)], [(1, 2)] * 17, [(1, 13)] * 16])
def test_not_where_tables_would_be_too_large(shapes):
    """A single request needs none; too many, or too long ones, are left to other members."""
    instance = instance_of(shapes, kv_blocks=60, cost=load_cost("unit"), switches=RUN_TO_COMPLETION)
    space = build_state_space(instance, Objective.LATENCY, 10**6)

    assert space is not None
    assert build_packing_space(space, 10**6) is None


def test_out_of_room_or_time_the_bound_holds():
    """Stopped early: at least what the heuristic says of the start, never more than the optimum, 293."""
    packing = tables(twelve(), Objective.LATENCY)
    nothing = np.zeros(12, dtype=np.int64)
    start = compiled(least_rest)(packing.rests, nothing, nothing.copy())
    full = search_packing(packing, talk(300), most_labels=200)
    ticks = iter([1.0] * (len(packing.rests.none) // 64 + 6))
    late = search_packing(packing, talk(300, time_left=lambda: next(ticks, 0.0)))

    assert (full.stop_reason, late.stop_reason) == (StopReason.TOO_LARGE, StopReason.TIME_LIMIT)
    assert start <= late.bound_ns <= full.bound_ns < 293


def test_no_time_for_the_tables():
    """Where not even the tables can be filled nothing is proven, and nothing is claimed."""
    instance = twelve()
    space = build_state_space(instance, Objective.LATENCY, 300)
    outcome = search_packing(build_packing_space(space, 300), talk(300, time_left=lambda: 0.0))

    assert (outcome.stop_reason, outcome.bound_ns, outcome.decisions) == (StopReason.TIME_LIMIT, 0, None)


def test_interruption_keeps_what_is_proven():
    """Ctrl-C in the middle of the search: the bound so far, and the reason."""
    packing, calls = tables(twelve(), Objective.LATENCY), []

    def interrupted():
        calls.append(1)
        if len(calls) > len(packing.rests.none) // 64 + 8:
            raise KeyboardInterrupt
        return 60.0

    outcome = search_packing(packing, talk(300, time_left=interrupted))

    assert outcome.stop_reason is StopReason.INTERRUPTED
    assert 0 < outcome.bound_ns < 293
