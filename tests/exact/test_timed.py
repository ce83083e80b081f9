"""The timed state search answers to exhaustive search, with arrivals, swap, mixtures and every switch."""

import os
import random
from dataclasses import replace
from fractions import Fraction

import pytest

from cspsched.exact.solver import solve_exactly
from cspsched.exact.timed.heuristic import earliest_ends
from cspsched.exact.timed.moves import Event, LocalStates
from cspsched.exact.timed.search import TIMED_SEARCH, TimedSearch, TimedTalk, build_timed_space
from cspsched.exact.watch import SearchLimits
from cspsched.problem.instance import Preemption, Switches
from cspsched.problem.linear_form import linear_form, read_objectives
from cspsched.problem.objectives import Objective
from cspsched.problem.result import Status, StopReason
from cspsched.referee.metrics import measure
from cspsched.referee.rules import find_violations
from tests.oracles.exhaustive import exhaustive_optimum
from tests.support.exact_cases import FLAT, STAIRS
from tests.support.instances import NO_PREEMPTION, instance_of
from tests.support.objective_cases import random_case

EXAMPLES = max(150, int(os.environ.get("CSPSCHED_ORACLE_EXAMPLES", "0")))
BEATEN_NS = 2**62
"""Value that every schedule beats."""


def timed_case(seed):
    """Two or three requests, mostly with arrivals, and one of the three objectives."""
    rng = random.Random(seed)
    count = rng.choice([2, 2, 3])
    most, latest = 4 if count == 2 else 3, rng.choice([0, 300, 300])
    shapes = [(rng.randint(1, most), rng.randint(1, most), rng.randint(0, latest)) for _ in range(count)]
    block = rng.randint(1, 2)
    peaks = [-(-(prompt + output - 1) // block) for prompt, output, _ in shapes]
    instance = instance_of(
        shapes,
        kv_blocks=rng.randint(max(peaks), sum(peaks)),
        block_tokens=block,
        max_batch_tokens=rng.randint(max(shape[0] for shape in shapes), 8),
        max_batch_requests=rng.randint(1, 3),
        cost=rng.choice([STAIRS, FLAT]),
        switches=Switches(
            chunked_prefill=rng.random() < 0.5,
            hybrid_batches=rng.random() < 0.7,
            holding=rng.random() < 0.6,
            preemption=rng.choice(list(Preemption)),
            reservation=rng.random() < 0.3,
        ),
    )
    if instance.switches.preemption.swaps:
        limits = replace(instance.limits, host_kv_blocks=rng.randint(0, 4))
        cost = replace(instance.cost, swap_block=Fraction(rng.randint(0, 40), 3))
        instance = replace(instance, limits=limits, cost=cost)
    return instance, rng.choice(list(Objective))


def searched(instance, objective, *, upper=BEATEN_NS, most_labels=10**6, patience=10**9):
    """The search after its run, why it ended, and the schedules that it told of, the last one the best."""
    schedules, looks = [], iter(range(patience))
    talk = TimedTalk(
        time_left=lambda: 1.0 if next(looks, None) is not None else 0.0,
        upper=lambda: upper,
        tell_bound=lambda _: None,
        tell_schedule=schedules.append,
    )
    search = TimedSearch(build_timed_space(instance, objective), talk, most_labels)
    return search, search.prove(), schedules


def assert_proves(instance, objective):
    """Bound and schedule are those of the exhaustive search."""
    search, reason, schedules = searched(instance, objective)

    assert reason is StopReason.PROVEN
    assert find_violations(instance, schedules[-1]) == []
    assert search.bound == measure(instance, schedules[-1]).objective_ns(objective)
    assert search.bound == exhaustive_optimum(instance, objective)


@pytest.mark.parametrize("first", range(0, EXAMPLES, 50))
def test_times_agree_with_exhaustive_search(first):
    """Makespan, latency and TTFT with arrivals and swap, in every combination of switches."""
    for seed in range(first, first + 50):
        assert_proves(*timed_case(seed))


@pytest.mark.parametrize("first", range(0, 3 * EXAMPLES, 150))
def test_regular_mixtures_agree_with_exhaustive_search(first):
    """Weighted sums, weights and misses, wherever no token that comes later can be worth something."""
    cases = 0
    for seed in range(first, first + 150):
        instance, text = random_case(seed)
        objective, *others = read_objectives(text, instance)
        if not others and linear_form(objective, instance).is_regular(instance.requests):
            assert_proves(instance, objective)
            cases += 1

    assert cases > 30


@pytest.mark.parametrize("seed", range(40))
def test_bound_of_a_stopped_search_holds(seed):
    """Out of time or out of room, the bound is at most the optimum, and schedules told are feasible."""
    instance, objective = timed_case(seed)
    optimum = exhaustive_optimum(instance, objective)
    for limit in ({"patience": 1}, {"patience": 3}, {"most_labels": 5}, {"most_labels": 40}):
        search, reason, schedules = searched(instance, objective, **limit)

        assert search.bound <= optimum
        assert reason in (StopReason.PROVEN, StopReason.TIME_LIMIT, StopReason.TOO_LARGE)
        assert (reason is StopReason.PROVEN) <= (search.bound == optimum)
        for schedule in schedules:
            assert find_violations(instance, schedule) == []
            assert measure(instance, schedule).objective_ns(objective) >= optimum


@pytest.mark.parametrize("seed", range(10))
def test_an_optimal_upper_bound_is_proven_and_not_beaten(seed):
    """With the optimum known the search tells of no schedule and proves it."""
    instance, objective = timed_case(seed)
    optimum = exhaustive_optimum(instance, objective)

    search, reason, schedules = searched(instance, objective, upper=optimum)

    assert (reason, search.bound, schedules) == (StopReason.PROVEN, optimum, [])


@pytest.mark.parametrize("num_workers", [1, 2])
def test_solve_proves_by_it_where_requests_arrive(num_workers):
    """Four requests with arrivals and whole prefills, which CP-SAT alone leaves open for long."""
    shapes = [(7, 5), (4, 8, 30_000_000), (9, 4, 40_000_000), (3, 6, 90_000_000)]
    switches = Switches(chunked_prefill=False)
    instance = instance_of(shapes, kv_blocks=22, max_batch_tokens=16, switches=switches)
    limits = SearchLimits(time_limit_s=60, num_workers=num_workers)

    result = solve_exactly(instance, Objective.LATENCY, limits)

    assert result.status is Status.OPTIMAL
    assert result.certificate == TIMED_SEARCH
    assert result.violations() == []


def test_it_is_left_out_where_it_is_not_exact_or_the_instance_too_large():
    """Gaps between tokens may pay for idle time; long prompts in chunks have too many ways."""
    small = instance_of([(2, 3), (2, 2, 5)], kv_blocks=5)
    large = instance_of([(900, 30), (700, 20, 5)], kv_blocks=2000)

    assert build_timed_space(small, read_objectives("max-itl", small)[0]) is None
    assert build_timed_space(large, Objective.LATENCY) is None
    assert build_timed_space(small, Objective.LATENCY) is not None


def test_moves_of_a_request_in_decode():
    """A decode of one token, sitting out, eviction with a refill in one piece or in two, or without."""
    instance = instance_of([(2, 3)], kv_blocks=5)
    states = LocalStates(instance, instance.requests[0])
    decoding = next(k for k, state in enumerate(states.states) if state.decodes)

    moves = {(move.event, move.tokens) for move in states.moves[decoding]}

    assert moves == {(Event.STAY, 1), (Event.STAY, 0), *((Event.DROP, tokens) for tokens in range(4))}


def test_least_way_from_each_local_state():
    """Two batches of one token less for each token that is there; a refill beats two decodes of price 5."""
    instance = instance_of([(2, 3)], kv_blocks=5, switches=NO_PREEMPTION)
    states = LocalStates(instance, instance.requests[0])

    whole = states.rest(lambda move: 1, 3)
    dear = states.rest(lambda move: 5 if move.is_decode else 1, 3)

    assert whole[0] == 3
    assert dear[0] == 1 + 5 + 5


@pytest.mark.parametrize(
    ("releases", "processing", "ends"),
    [
        ([0, 0, 0], [3, 1, 2], [1, 3, 6]),
        ([0, 2], [10, 3], [5, 13]),
        ([0, 9], [4, 1], [4, 10]),
    ],
)
def test_shortest_remaining_time_first(releases, processing, ends):
    """Ends on one machine, ascending; idle time included."""
    assert earliest_ends(releases, processing) == ends
