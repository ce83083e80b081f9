"""The batch-indexed model and the referee accept the same schedules."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspsched.errors import InternalError
from cspsched.exact.model.batch_model import BatchModel
from cspsched.exact.search import InvalidModelError, complete_hint
from cspsched.problem.instance import Preemption
from cspsched.problem.objectives import Objective
from cspsched.referee.rules import find_violations
from cspsched.referee.timing import schedule_asap
from tests.oracles.exhaustive import batches_from
from tests.support.exact_cases import tiny_instances
from tests.support.instances import NO_PREEMPTION, instance_of
from tests.support.strategies import instances, make_instance, random_decisions


def accepts(instance, batches, evictions, **moves):
    """Whether the model has a solution with these decisions."""
    schedule = schedule_asap(instance, batches, evictions, **moves)
    model = BatchModel(instance, Objective.MAKESPAN, schedule.num_batches)
    try:
        return complete_hint(model, schedule, 60) is not None
    except InvalidModelError:
        raise
    except InternalError:
        return False


def is_feasible(instance, batches, evictions, **moves):
    """Whether the referee has no objection."""
    return find_violations(instance, schedule_asap(instance, batches, evictions, **moves)) == []


def random_schedule(instance, rng):
    """Batches and evictions of a random feasible walk, or None if it gets stuck or long."""
    state = tuple((0, 0, False, False) for _ in instance.requests)
    batches, evictions = [], []
    while any(g < r.output_tokens for (_, g, *_), r in zip(state, instance.requests, strict=True)):
        ways = list(batches_from(instance, state, {}))
        if not ways or len(batches) > 12:
            return None
        way = rng.choice(ways)
        moves = [choice.move for choice in way]
        batches.append([(i, c) for i, (_, c) in enumerate(moves) if c])
        evictions.append([i for i, (gone, _) in enumerate(moves) if gone])
        state = tuple(choice.following for choice in way)
    return batches, evictions


def broken(batches, evictions, rng, num_requests):
    """One change: a token more or less, a request into or out of a batch, an eviction more or less."""
    batches, evictions = [dict(batch) for batch in batches], [set(gone) for gone in evictions]
    j, i = rng.randrange(len(batches)), rng.randrange(num_requests)
    if rng.random() < 0.7:
        batches[j][i] = max(0, batches[j].get(i, 0) + rng.choice([-1, 1]))
    else:
        evictions[j] ^= {i}
    changed = [[(k, c) for k, c in batch.items() if c] for batch in batches]
    kept = [k for k, batch in enumerate(changed) if batch]
    return [changed[k] for k in kept], [sorted(evictions[k]) for k in kept]


@settings(max_examples=120, deadline=None, derandomize=True)
@given(tiny_instances(arrivals=False), st.integers(0, 10**6))
def test_model_and_referee_accept_the_same_schedules(instance, seed):
    """A random schedule, whole or with one change, is feasible for both or for neither."""
    rng = random.Random(seed)
    made = random_schedule(instance, rng)
    if made is None:
        return
    assert is_feasible(instance, *made)
    assert accepts(instance, *made)
    changed = broken(*made, rng, len(instance.requests))
    assert is_feasible(instance, *changed) == accepts(instance, *changed)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(instances(), st.integers(0, 10**6))
def test_model_and_referee_agree_on_swaps(instance, seed):
    """A random schedule with moves to host memory, whole or with one move more or less: both or neither."""
    rng = random.Random(seed)
    preemption = instance.switches.preemption
    if any(map(instance.rejection_of, instance.requests)) or not preemption.swaps:
        return
    walks = (random_decisions(instance, rng) for _ in range(40))
    steps = next((walk for walk in walks if len(walk) <= 14 and any(step.swapped for step in walk)), None)
    if steps is None:
        return
    columns = {
        name: [set(getattr(step, name)) for step in steps] for name in ("evicted", "swapped", "restored")
    }
    batches = [step.entries for step in steps]

    def judged(judge):
        evicted, swapped, restored = ([sorted(one) for one in column] for column in columns.values())
        return judge(instance, batches, evicted, swapped=swapped, restored=restored)

    assert judged(is_feasible)
    assert judged(accepts)
    which, j = rng.choice(list(columns)), rng.randrange(len(steps))
    i = rng.randrange(len(instance.requests))
    columns[which][j] ^= {i}
    if which == "swapped":
        columns["evicted"][j] |= {i}
    assert judged(is_feasible) == judged(accepts)


OUT, BACK = [[], [0], []], [[], [], [0]]
AROUND = [[(0, 2)], [(1, 2)], [(0, 1)]]


@pytest.mark.parametrize(("host", "feasible"), [(2, True), (1, False)])
def test_host_memory_holds_what_was_moved_out(host, feasible):
    """Two tokens need two blocks of host memory while another request runs; then they decode."""
    instance = make_instance((2, 2), (2, 1), kv_blocks=3, preemption=Preemption.SWAP)
    instance = replace(instance, limits=replace(instance.limits, host_kv_blocks=host))

    assert accepts(instance, AROUND, OUT, swapped=OUT, restored=BACK) == feasible
    assert is_feasible(instance, AROUND, OUT, swapped=OUT, restored=BACK) == feasible


def test_whoever_is_in_host_memory_is_not_processed():
    """A decode needs the KV cache back first."""
    instance = make_instance((2, 2), (2, 1), kv_blocks=3, preemption=Preemption.SWAP)
    instance = replace(instance, limits=replace(instance.limits, host_kv_blocks=9))

    assert not accepts(instance, AROUND, OUT, swapped=OUT, restored=[[], [], []])


@pytest.mark.parametrize(("capacity", "feasible"), [(7, True), (6, False)])
def test_capacity_counts_requests_that_are_held(capacity, feasible):
    """A held resident of 4 tokens and a prompt of 3 fit into 7 tokens of KV cache and not into 6."""
    instance = instance_of([(4, 2), (3, 1)], kv_blocks=capacity)
    batches = [[(0, 4)], [(1, 3)], [(0, 1)]]

    assert accepts(instance, batches, [[], [], []]) == feasible
    assert is_feasible(instance, batches, [[], [], []]) == feasible


@pytest.mark.parametrize(("budget", "feasible"), [(5, True), (4, False)])
def test_token_budget_sums_over_the_batch(budget, feasible):
    """A prompt of 4 and a decode share a batch of 5 tokens and not one of 4."""
    instance = instance_of([(2, 2), (4, 1)], kv_blocks=20, max_batch_tokens=budget)

    assert accepts(instance, [[(0, 2)], [(0, 1), (1, 4)]], [[], []]) == feasible


@pytest.mark.parametrize(("seats", "feasible"), [(2, True), (1, False)])
def test_seats_limit_requests_of_a_batch(seats, feasible):
    """Two requests in a batch need two seats."""
    instance = instance_of([(2, 1), (2, 1)], kv_blocks=20, max_batch_requests=seats)

    assert accepts(instance, [[(0, 2), (1, 2)]], [[]]) == feasible


def test_block_rounding_counts():
    """Two requests of 3 tokens need four blocks of 2, so three blocks hold only one of them at a time."""
    batches = [[(0, 3), (1, 3)]]

    for blocks, feasible in ((4, True), (3, False)):
        instance = instance_of([(3, 1), (3, 1)], kv_blocks=blocks, block_tokens=2)
        assert accepts(instance, batches, [[]]) == feasible


def test_the_last_token_is_never_processed():
    """A request (2, 3) generates in three batches of 2, 1 and 1 tokens; a fourth is refused."""
    instance = instance_of([(2, 3)], kv_blocks=10)
    run = [[(0, 2)], [(0, 1)], [(0, 1)]]

    assert accepts(instance, run, [[]] * 3)
    assert not accepts(instance, [*run, [(0, 1)]], [[]] * 4)
    assert not accepts(instance, run[:2], [[]] * 2)


def test_refill_yields_the_next_token():
    """After an eviction the refill of I + G tokens generates; with preemption off it is refused."""
    run, evictions = [[(0, 2)], [(0, 3)], [(0, 1)]], [[], [0], []]

    assert accepts(instance_of([(2, 3)], kv_blocks=10), run, evictions)
    assert not accepts(instance_of([(2, 3)], kv_blocks=10, switches=NO_PREEMPTION), run, evictions)
