"""Preemption by swap: rules of the referee at the edge, what a step refuses, and the engine's clock."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cspsched.errors import InputError
from cspsched.problem.instance import Instance, Limits, Preemption
from cspsched.problem.schedule import Schedule
from cspsched.referee.history import follow
from cspsched.referee.metrics import measure
from cspsched.referee.rules import find_violations
from cspsched.referee.timing import schedule_asap
from cspsched.simulate import PolicyError, Simulation, Step, simulate
from tests.oracles.naive_referee import broken_rules
from tests.support.scripted import Scripted
from tests.support.steps import Act, put, step_after
from tests.support.strategies import Batches, Evictions, check, feasible_runs, instances, make_instance
from tests.support.swap_cases import Chaotic

AROUND: Batches = [[(0, 2)], [(1, 2)], [(0, 1)]]
"""r0 of (2, 2) starts, r1 of (2, 1) runs, r0 ends; r0 may be in host memory meanwhile."""
OUT: Evictions = [[], [0], []]
BACK: Evictions = [[], [], [0]]


def swapping(
    *sizes: tuple[int, int], host: int = 2, swap_block: Fraction | int = 0, **options: Any
) -> Instance:
    """Requests that may be swapped, with so many host blocks; a batch takes 1 ns."""
    instance = make_instance(*sizes, **{"preemption": Preemption.SWAP, **options})
    return replace(
        instance,
        limits=replace(instance.limits, host_kv_blocks=host),
        cost=replace(instance.cost, swap_block=Fraction(swap_block)),
    )


def around(instance: Instance, *, swapped: Evictions = OUT, restored: Evictions = BACK) -> Schedule:
    """The batches above as early as possible."""
    return schedule_asap(instance, AROUND, OUT, swapped=swapped, restored=restored)


def said(instance: Instance, schedule: Schedule) -> list[tuple[str, int | None, str]]:
    """What the referee says; its naive twin objects to the same rules."""
    found = [(v.rule, v.batch, v.message) for v in find_violations(instance, schedule)]
    assert broken_rules(instance, schedule) == {rule for rule, *_ in found}
    return found


def test_a_swapped_request_goes_on_with_a_decode():
    """With room for 3 entries r0 leaves for r1, comes back with its 2 and needs 1 token, no refill."""
    instance = swapping((2, 2), (2, 1), kv_blocks=3)
    history = follow(instance, around(instance))

    assert said(instance, around(instance)) == []
    assert history.schedule.kv_tokens.tolist() == [2, 2, 3]
    assert history.decodes.tolist() == [False, False, True]
    assert (history.kv_evicted.tolist(), history.kv_lost.tolist(), history.kv_restored.tolist()) == (
        [2],
        [0],
        [2],
    )


def test_a_swapped_prefill_goes_on_as_prefill():
    """Half a prompt leaves and comes back; its other half is a chunk."""
    instance = swapping((4, 1), (2, 1))
    schedule = schedule_asap(instance, [[(0, 2)], [(1, 2)], [(0, 2)]], OUT, swapped=OUT, restored=BACK)

    assert said(instance, schedule) == []
    assert follow(instance, schedule).decodes.tolist() == [False] * 3


@pytest.mark.parametrize("preemption", Preemption)
def test_swap_needs_the_switch(preemption):
    """A move to host memory is fine with swap and either."""
    instance = swapping((2, 2), (2, 1), preemption=preemption)
    message = f"1 swaps, but preemption is {preemption}"
    expected = [] if preemption in ("swap", "either") else [("preemption", None, message)]

    assert said(instance, around(instance)) == expected


@pytest.mark.parametrize("preemption", Preemption)
def test_recompute_needs_the_switch(preemption):
    """A drop is fine with recompute and either, and not with swap alone."""
    instance = swapping((2, 2), (2, 1), preemption=preemption)
    schedule = schedule_asap(instance, [[(0, 2)], [(1, 2)], [(0, 3)]], OUT)
    message = f"1 evictions, but preemption is {preemption}"
    expected = [] if preemption in ("recompute", "either") else [("preemption", None, message)]

    assert said(instance, schedule) == expected


@pytest.mark.parametrize(
    ("block_tokens", "host", "in_use"), [(1, 2, None), (1, 1, 2), (2, 1, None), (2, 0, 1), (3, 1, None)]
)
def test_host_memory_counts_whole_blocks(block_tokens, host, in_use):
    """Two entries take 2 blocks of 1, and 1 block of 2 or 3."""
    instance = swapping((2, 2), (2, 1), host=host, block_tokens=block_tokens)
    message = f"{in_use} KV blocks are in host memory in batch 1, it offers {host}"

    assert said(instance, around(instance)) == ([("swap", 1, message)] if in_use else [])


@pytest.mark.parametrize(("host", "fits"), [(2, True), (1, False)])
def test_who_comes_back_makes_room_for_who_leaves_at_the_same_boundary(host, fits):
    """r0 and r1 change places: host memory for one of them is enough, and both are moved."""
    instance = swapping((2, 3), (2, 2), host=host, swap_block=1, kv_blocks=4)
    batches: Batches = [[(0, 2)], [(1, 2)], [(0, 1)], [(0, 1), (1, 1)]]
    swapped, restored = [[], [0], [1], []], [[], [], [0], [1]]
    schedule = schedule_asap(instance, batches, swapped, swapped=swapped, restored=restored)

    assert follow(instance, schedule).moved_blocks.tolist() == [0, 2, 4, 2]
    assert (set() if fits else {"swap"}) == {rule for rule, *_ in said(instance, schedule)} - {"capacity"}


def test_only_what_is_in_host_memory_comes_back():
    """r1 was never swapped."""
    instance = swapping((2, 2), (2, 1))
    expected = ("swap", 1, "request 'r1' in batch 1 is restored but not in host memory")

    assert said(instance, around(instance, restored=[[], [1], [0]])) == [expected]


def test_nobody_runs_from_host_memory():
    """r0 must come back before it goes on; as it is its KV cache starts anew, so that more is wrong."""
    instance = swapping((2, 2), (2, 1))
    found = said(instance, around(instance, restored=[[], [], []]))

    assert ("swap", 2, "request 'r0' in batch 2 is processed while its KV cache is in host memory") in found


def test_an_eviction_of_nothing_is_refused_for_swaps_too():
    """r1 holds no KV entries before its first batch."""
    instance = swapping((2, 2), (2, 1))
    schedule = schedule_asap(instance, AROUND, [[], [1], []], swapped=[[], [1], []])

    assert ("preemption", 1, "request 'r1' in batch 1 is evicted but holds no KV cache") in said(
        instance, schedule
    )


@pytest.mark.parametrize(
    ("swap_block", "starts"), [(0, [0, 1, 2]), (3, [0, 7, 14]), (Fraction(5, 3), [0, 5, 10])]
)
def test_moves_delay_the_batch_and_are_rounded_up(swap_block, starts):
    """Two blocks out before batch 1 and in before batch 2: at 5/3 ns each a move takes 4 ns; not one less."""
    instance = swapping((2, 2), (2, 1), swap_block=swap_block)
    schedule = around(instance)

    assert schedule.start_ns.tolist() == starts
    assert said(instance, schedule) == []
    if swap_block:
        early = replace(
            schedule,
            start_ns=schedule.start_ns - np.array([0, 0, 1]),
            end_ns=schedule.end_ns - np.array([0, 0, 1]),
        )
        expected = ("time", 2, f"batch 2 starts at {starts[2] - 1} ns, before {starts[2]} ns")
        assert said(instance, early) == [expected]


def test_moves_wait_for_nobody_to_arrive():
    """Blocks move while the batch waits for an arrival at 5: it starts at 5, and at 8 if the move takes 7."""
    for swap_block, start in ((2, 5), (Fraction(7, 2), 8)):
        instance = swapping((2, 2), (2, 1), swap_block=swap_block)
        requests = (instance.requests[0], replace(instance.requests[1], arrival_ns=5))
        assert around(replace(instance, requests=requests)).start_ns[1] == start


@pytest.mark.parametrize(("kv_blocks", "fits"), [(3, True), (2, False)])
def test_a_reservation_leaves_with_its_request_and_comes_back_with_it(kv_blocks, fits):
    """r0 reserves 3 blocks before and after, and none while it is in host memory, where it takes 2."""
    instance = swapping((2, 2), (2, 1), kv_blocks=kv_blocks, reservation=True)
    expected = [
        ("capacity", j, f"batch {j} occupies 3 KV blocks, the device offers {kv_blocks}") for j in (0, 2)
    ]

    assert said(instance, around(instance)) == ([] if fits else expected)


def test_without_holding_the_swapped_may_wait_and_the_restored_may_not():
    """In host memory r0 sits out batch 1; restored before batch 1 it would hold memory and be idle."""
    instance = swapping((2, 2), (2, 1), holding=False)
    at_once = schedule_asap(instance, AROUND, [[], [0], []], swapped=OUT, restored=[[], [0], []])

    assert said(instance, around(instance)) == []
    assert said(instance, at_once) == [("holding", 1, "batch 1 processes 1 of 2 resident requests")]


def test_metrics_tell_swapped_from_recomputed():
    """One request is dropped with 2 entries, and swapped with 3 in 2 blocks, which move out and in."""
    instance = swapping((2, 3), (2, 1), host=9, block_tokens=2, preemption=Preemption.EITHER)
    batches: Batches = [[(0, 2)], [(0, 3)], [(1, 2)], [(0, 1)]]
    schedule = schedule_asap(
        instance, batches, [[], [0], [0], []], swapped=[[], [], [0], []], restored=[[], [], [], [0]]
    )
    data = measure(instance, schedule).to_json()

    assert said(instance, schedule) == []
    assert (data["preemptions"], data["swaps"]) == (2, 1)
    assert (data["recomputed_tokens"], data["swapped_tokens"], data["swapped_blocks"]) == (2, 3, 4)


def test_limits_know_host_memory():
    """No host memory is fine, less is not."""
    assert Limits(kv_blocks=1, max_batch_tokens=1, max_batch_requests=1).host_kv_blocks == 0
    with pytest.raises(InputError, match="host_kv_blocks is -1, expected at least 0"):
        Limits(kv_blocks=1, max_batch_tokens=1, max_batch_requests=1, host_kv_blocks=-1)


@given(feasible_runs())
@check
def test_swap_survives_json(drawn):
    """Schedule and instance read back what they wrote, and a schedule without swap is written without it."""
    instance, schedule = drawn
    data = schedule.to_json()
    moves = bool(schedule.evicted_to_host.any())

    assert Schedule.from_json(data) == schedule
    assert Instance.from_json(instance.to_json()) == instance
    assert ("restored_batch" in data) == bool(len(schedule.restored_batch))
    assert moves <= ("evicted_to_host" in data)


# What a step refuses.


def residing(*, host: int = 2, preemption: Preemption = Preemption.EITHER) -> Step:
    """r0 holds 6 entries in 2 blocks of 4 tokens; r1 has arrived; 5 blocks on the device."""
    return step_after(swapping_blocks(host=host, preemption=preemption), put((0, 6, 2)))


def parked() -> Step:
    """The same with r0 in host memory since the step before."""
    return step_after(swapping_blocks(), put((0, 6, 2)), lambda step: step.swap_out(0))


def swapping_blocks(*, host: int = 2, preemption: Preemption = Preemption.EITHER) -> Instance:
    """Two requests on 5 blocks of 4 tokens."""
    return swapping((6, 3), (6, 3), host=host, preemption=preemption, kv_blocks=5, block_tokens=4)


def test_swap_out_frees_the_device_and_takes_the_host():
    """Six entries in two blocks move; the request holds nothing then and knows what it knew."""
    step = residing()
    taken_out = step.swap_out(0)

    assert (taken_out, step.evicted, step.swapped) == (0, [0], {0})
    assert (step.free_blocks, step.free_host_blocks) == (5, 0)
    assert (step.host_tokens[0], step.computed_tokens[0], step.held_blocks[0]) == (6, 0, 0)
    assert (step.known_tokens[0], step.decoding[0]) == (7, False)


def test_swap_in_gives_everything_back():
    """Entries, blocks and phase are as they were."""
    step = parked()
    step.swap_in(0)

    assert (step.restored, step.evicted) == ([0], [])
    assert (step.free_blocks, step.free_host_blocks) == (3, 2)
    assert (step.host_tokens[0], step.computed_tokens[0], step.held_blocks[0]) == (0, 6, 2)
    assert step.decoding[0]
    step.schedule(0, 1, 0)


def test_swap_out_takes_the_request_out_of_the_batch():
    """Its token and its place are free again; the block that it got for that token moves as well."""
    step = residing(host=3)
    step.schedule(0, 1, 1)

    assert (step.swap_out(0), dict(step.batch), step.tokens_left) == (1, {}, 100)
    assert (step.free_blocks, step.free_host_blocks) == (5, 0)


@pytest.mark.parametrize(
    ("new_step", "act", "message"),
    [
        (residing, lambda step: step.swap_out(1), "'r1' is swapped out but has no KV entries"),
        (
            lambda: residing(preemption=Preemption.RECOMPUTE),
            lambda step: step.swap_out(0),
            "the instance has no swap",
        ),
        (
            lambda: residing(host=1),
            lambda step: step.swap_out(0),
            "'r0' is swapped out with 2 KV blocks to host memory, 1 of 1 are free",
        ),
        (
            parked,
            lambda step: step.schedule(0, 1, 0),
            "'r0' is scheduled while its KV cache is in host memory",
        ),
        (parked, lambda step: step.swap_out(0), "'r0' is swapped out but has no KV entries"),
        (parked, lambda step: step.preempt(0), "'r0' is preempted but holds no KV blocks"),
        (residing, lambda step: step.swap_in(0), "'r0' is swapped in but was not in host memory"),
        (
            residing,
            lambda step: (step.swap_out(0), step.swap_in(0)),
            "'r0' is swapped in but was not in host memory before this step",
        ),
        (
            parked,
            lambda step: (step.schedule(1, 6, 4), step.swap_in(0)),
            "'r0' is swapped in without room: 2 KV blocks asked for, 1 of 5 are free",
        ),
        (
            parked,
            lambda step: (step.swap_in(0), step.preempt(0)),
            "'r0' is preempted before a batch since it came back",
        ),
        (
            parked,
            lambda step: (step.swap_in(0), step.swap_out(0)),
            "'r0' is swapped out but has no KV entries of its own to keep",
        ),
    ],
)
def test_a_step_refuses(new_step: Callable[[], Step], act: Act, message: str):
    """Nothing moves that is not there, twice in a step, or without room."""
    with pytest.raises(PolicyError, match=message):
        act(new_step())


# The engine.


def test_moves_of_steps_without_a_batch_count_for_the_next_batch():
    """Decisions 1 and 2 only swap r0 out and in: 2 blocks each at 5 ns delay the batch of decision 3."""
    instance = swapping((2, 2), swap_block=5)

    def decide(number: int, step: Step) -> None:
        if number in (1, 2):
            (step.swap_out if number == 1 else step.swap_in)(0)
        else:
            step.schedule(0, 2 if number == 0 else 1, 2 if number == 0 else 1)

    schedule = simulate(instance, Scripted(decide)).schedule

    assert (schedule.start_ns.tolist(), schedule.end_ns.tolist()) == ([0, 21], [1, 22])
    assert find_violations(instance, schedule) == []
    assert (schedule.evicted_batch.tolist(), schedule.restored_batch.tolist()) == ([1], [1])


@given(instances(), st.integers(0, 2**20))
@check
def test_whatever_a_policy_swaps_the_referee_finds_nothing(instance, seed):
    """Random moves through the engine: memory, host memory and times are as the referee derives them."""
    assume(instance.switches.chunked_prefill and instance.switches.hybrid_batches)
    switches = replace(instance.switches, preemption=Preemption.EITHER, holding=True, reservation=False)
    instance = replace(
        instance, switches=switches, limits=replace(instance.limits, host_kv_blocks=1 + seed % 9)
    )
    simulation: Simulation = simulate(instance, Chaotic(instance, random.Random(seed)))
    schedule = simulation.schedule

    assert find_violations(instance, schedule) == []
    assert broken_rules(instance, schedule) == set()
