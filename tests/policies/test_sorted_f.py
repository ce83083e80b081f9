"""The sets that Sorted-F serves next: of least F where it searches, a greedy filling where it does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.policies.sorted_f import SortedF, SortedFSettings, place_next
from cspsched.simulate import KernelReplica
from cspsched.simulate.aggregated.queues import submit_arrivals
from cspsched.simulate.kernel.layout import HEAP
from tests.oracles.best_set import Profile, least_rank, naive_filling, naive_peak_blocks, rank_of
from tests.support.strategies import check, make_instance

profiles = st.tuples(st.integers(1, 12), st.integers(0, 11))


def placed(
    waiting: list[Profile], kv_blocks: int, block_tokens: int, *, exact_requests: int, preempted: int = 0
) -> list[int]:
    """Requests that get the next places, in their order; the first so many have lost a token's decode."""
    sizes = [
        (held - 1, to_come + 2) if i < preempted and held > 1 else (held, to_come + 1)
        for i, (held, to_come) in enumerate(waiting)
    ]
    instance = make_instance(*sizes, kv_blocks=kv_blocks, block_tokens=block_tokens)
    policy = SortedF(SortedFSettings(exact_requests=exact_requests))
    replica = KernelReplica(instance, policy, plain=True)
    for request in range(len(waiting)):
        replica.submit(request)
    k = replica.kernel
    submit_arrivals(k)
    for request, (held, _) in enumerate(waiting):
        k.requests[request].generated = held - instance.requests[request].prompt_tokens
    place_next(k)
    # Those that have places stand behind the others, next to be served last.
    places = k.orders[k.own.num_unplaced : k.own.queue_back, HEAP].tolist()
    assert sorted(k.orders[: k.own.queue_back, HEAP].tolist()) == list(range(len(waiting)))
    return places[::-1]


def smallest_device(waiting: list[Profile], block_tokens: int) -> int:
    """KV blocks that hold each of the requests alone."""
    return max(naive_peak_blocks([profile], block_tokens) for profile in waiting)


def by_output(waiting: list[Profile]) -> list[Profile]:
    return sorted(waiting, key=lambda profile: (profile[1], profile[0]))


@check
@given(st.lists(profiles, min_size=1, max_size=6), st.integers(0, 20), st.integers(1, 4), st.integers(0, 6))
def test_the_set_is_of_least_f(waiting: list[Profile], spare: int, block: int, preempted: int) -> None:
    """Exact against all subsets, of equals the larger; it fits, and is served by output."""
    kv_blocks = smallest_device(waiting, block) + spare
    chosen = placed(waiting, kv_blocks, block, exact_requests=10, preempted=preempted)
    profiles = [waiting[i] for i in chosen]

    assert naive_peak_blocks(profiles, block) <= kv_blocks
    assert rank_of(profiles) == least_rank(waiting, kv_blocks, block)
    assert chosen == sorted(chosen, key=lambda i: (waiting[i][1], waiting[i][0], i))


@check
@given(st.lists(profiles, min_size=1, max_size=6), st.integers(0, 20), st.integers(1, 4))
def test_the_greedy_set_is_feasible_and_never_better(waiting: list[Profile], spare: int, block: int) -> None:
    """Without a search."""
    kv_blocks = smallest_device(waiting, block) + spare
    profiles = [waiting[i] for i in placed(waiting, kv_blocks, block, exact_requests=0)]

    assert naive_peak_blocks(profiles, block) <= kv_blocks
    assert rank_of(profiles) >= least_rank(waiting, kv_blocks, block)


@check
@given(st.lists(profiles, min_size=1, max_size=14), st.integers(0, 40), st.integers(1, 6))
def test_the_greedy_set_takes_whom_the_whole_set_has_room_for(
    waiting: list[Profile], spare: int, block: int
) -> None:
    """An added request fits with all before, token by token, and one that is not added does not.

    That is the better of two fillings, by output and by tokens at the end, unless the shortest outputs fit.
    """
    kv_blocks = smallest_device(waiting, block) + spare
    order = by_output(waiting)
    ideal = naive_filling(order, 10_000, block)
    by_peak = sorted(order, key=lambda profile: sum(profile))
    filled = min((naive_filling(one, kv_blocks, block) for one in (order, by_peak)), key=rank_of)
    expected = ideal if naive_peak_blocks(ideal, block) <= kv_blocks else filled

    chosen = placed(waiting, kv_blocks, block, exact_requests=0)
    assert [waiting[i] for i in chosen] == by_output(expected)


@given(outputs=st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_with_room_for_all_the_set_is_the_largest_of_least_quality(outputs: list[int]) -> None:
    """Of all numbers of shortest outputs, compared as fractions, the largest of least F."""
    waiting = [(1, output - 1) for output in outputs]
    shortest = sorted(range(len(outputs)), key=lambda i: (outputs[i], i))
    counts = range(1, len(outputs) + 1)
    best = min(counts, key=lambda count: rank_of([waiting[i] for i in shortest[:count]]))

    assert placed(waiting, 10_000, 1, exact_requests=0) == shortest[:best]


@pytest.mark.parametrize("exact_requests", [0, 10])
@pytest.mark.parametrize(("kv_blocks", "num_placed"), [(5, 2), (4, 1)])
def test_memory_is_looked_at_before_every_end(kv_blocks: int, num_placed: int, exact_requests: int) -> None:
    """Held 1 to the end 3 and 2 to the end 1: 2 + 3 blocks before the first end, 4 before the last."""
    assert len(placed([(1, 3), (2, 1)], kv_blocks, 1, exact_requests=exact_requests)) == num_placed
