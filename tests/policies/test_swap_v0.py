"""vLLM V0 with preemption by swap: each rule at its edge, and both modes against their slow twins."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.errors import CspschedError, UsageError
from cspsched.policies.base import make_policy
from cspsched.policies.vllm_v0 import PreemptionMode, VllmV0, VllmV0Settings
from cspsched.policies.vllm_v1 import QueueOrder
from cspsched.problem.instance import Instance, Preemption
from cspsched.referee.rules import find_violations
from cspsched.simulate import PolicyError, simulate
from tests.oracles.naive_family import NaiveV0, NaiveV0Chunked, RefusedError
from tests.oracles.naive_simulator import NaivePolicy, naive_simulate
from tests.support.policy_runs import batches, evictions, run, schedule_or_error
from tests.support.policy_runs import instance_of as plain_instance
from tests.support.swap_cases import SWAP, instance_of, with_swap
from tests.support.tight_instances import check, instances
from tests.support.v0_cases import limits_of, v0_chunked_settings, v0_settings

CHUNKED = f"{SWAP},enable_chunked_prefill=true"


def restorations(instance: Instance, text: str) -> list[tuple[int, int]]:
    """[(batch, request), ...] of who comes back from host memory."""
    schedule = run(text, instance).schedule
    return list(zip(schedule.restored_batch.tolist(), schedule.restored_request.tolist(), strict=True))


def test_a_victim_comes_back_and_decodes_at_the_end_of_the_batch() -> None:
    """r1 leaves for the sake of r0, and goes on with one token, nothing processed twice."""
    instance = instance_of((3, 3), (3, 3), (1, 1, 2), kv_blocks=7)
    simulation = run(SWAP, instance)

    assert evictions(simulation) == [(1, 1)]
    assert simulation.schedule.evicted_to_host.tolist() == [1]
    assert batches(simulation)[1:4] == [[(0, 1)], [(0, 1)], [(1, 1)]]
    assert restorations(instance, SWAP) == [(3, 1)]
    assert sum(simulation.schedule.tokens.tolist()) == 5 + 5 + 1


def test_nobody_is_admitted_while_somebody_is_swapped() -> None:
    """r2 fits from its arrival on, and waits for r1 to come back."""
    simulation = run(SWAP, instance_of((3, 3), (3, 3), (1, 1, 2), kv_blocks=7))
    recompute = run("vllm-v0:watermark=0", instance_of((3, 3), (3, 3), (1, 1, 2), kv_blocks=7))

    assert [j for j, batch in enumerate(batches(simulation)) if (2, 1) in batch] == [4]
    assert (2, 1) in batches(recompute)[3]


def test_nobody_comes_back_in_a_step_with_a_preemption() -> None:
    """A request that came back would be the next victim: the swapped return in a step without preemption."""
    instance = instance_of((2, 6), (2, 6), (2, 6), kv_blocks=9)
    simulation = run(SWAP, instance)
    schedule = simulation.schedule

    assert schedule.num_preemptions > 1
    assert not set(schedule.evicted_batch.tolist()) & set(schedule.restored_batch.tolist())


@pytest.mark.parametrize("host", [4, 3])
def test_a_full_host_memory_is_an_error_as_in_vllm(host: int) -> None:
    """r1 holds 3 entries and is about to have 4: vLLM asks for 4 blocks in host memory."""
    instance = instance_of((3, 3), (3, 3), kv_blocks=7, host=host)
    if host == 4:
        run(SWAP, instance)
        return
    message = r"'r1' needs 4 KV blocks in host memory .* 3 are free .*give more host"
    with pytest.raises(PolicyError, match=message):
        simulate(instance, make_policy(SWAP))


@pytest.mark.parametrize("preemption", [Preemption.NONE, Preemption.RECOMPUTE])
def test_swap_needs_an_instance_that_allows_it(preemption: Preemption) -> None:
    """The sentence names the option."""
    with pytest.raises(UsageError, match=f"allows preemption {preemption}; give it swap or either"):
        simulate(instance_of((1, 1), preemption=preemption), make_policy(SWAP))


def test_priority_with_swap_recomputes_whom_a_more_important_request_displaces() -> None:
    """r0 goes to the queue, not to host memory, so that r1 is admitted next; swap alone cannot do that."""
    rows = [(4, 4, 0, 1), (5, 1, 1, 0)]
    simulation = run(f"{SWAP},policy=priority", instance_of(*rows, kv_blocks=8))

    assert (evictions(simulation), simulation.schedule.evicted_to_host.tolist()) == ([(1, 0)], [0])
    assert batches(simulation)[1] == [(1, 5)]
    swap_only = instance_of(*rows, kv_blocks=8, preemption=Preemption.SWAP)
    with pytest.raises(UsageError, match=r"allows swap only; give it either \(--preemption either\)"):
        simulate(swap_only, make_policy(f"{SWAP},policy=priority"))


def test_chunked_hands_over_returned_decodes_last_and_visits_them_first() -> None:
    """r1 comes back beside r0: it decodes after r0 in that batch, and before it in the next."""
    instance = instance_of((3, 9), (3, 9), (3, 3), kv_blocks=11, max_batch_tokens=12)
    simulation = run(CHUNKED, instance)
    (batch, request), *_ = restorations(instance, CHUNKED)
    of_batch = [i for i, _ in batches(simulation)[batch]]
    of_next = [i for i, _ in batches(simulation)[batch + 1]]

    assert of_batch[-1] == request
    assert of_next[0] == request


def test_a_swapped_prefill_moves_all_blocks_that_it_holds() -> None:
    """r1 has 2 of 4 prompt tokens when it leaves: its 4 blocks move, out and in, at 1 ns each."""
    rows = [(2, 4), (4, 2)]
    instance = with_swap(plain_instance(*rows, kv_blocks=6, max_batch_tokens=4), 9, swap_block=1)
    simulation = run(CHUNKED, instance)
    schedule = simulation.schedule

    assert evictions(simulation) == [(1, 1)]
    assert schedule.kv_tokens.tolist()[1] == 2
    assert schedule.start_ns[1] - schedule.end_ns[0] == 4
    back = int(schedule.restored_batch[0])
    assert schedule.start_ns[back] - schedule.end_ns[back - 1] == 4


swap_instances = st.builds(
    with_swap, instances(), st.integers(0, 60), swap_block=st.sampled_from([0, Fraction(5, 3)])
)


def assert_same(instance: Instance, policy: VllmV0, twin: NaivePolicy) -> None:
    """Same schedule and blocks, without violation; refused where the twin refuses."""
    ours = schedule_or_error(instance, policy)
    if isinstance(ours, CspschedError):
        assert "to prefill in one batch" in str(ours) or "to be swapped out" in str(ours)
        with pytest.raises(RefusedError):
            naive_simulate(instance, twin, max_batches=2000)
        return
    naive = naive_simulate(instance, twin, max_batches=2000)

    assert naive.schedule == ours.schedule
    assert naive.held_blocks == ours.held_blocks.tolist()
    assert find_violations(instance, ours.schedule) == []


@check
@given(swap_instances, v0_settings)
def test_v0_with_swap_agrees_with_its_twin(instance: Instance, settings: VllmV0Settings) -> None:
    """Same batches, order, moves to and from host memory, times and blocks."""
    budget = settings.max_num_batched_tokens
    twin = NaiveV0(
        **limits_of(instance, min(settings.max_num_seqs, budget or 10**9), budget),
        watermark=settings.watermark,
        delay_factor=settings.delay_factor,
        priority=settings.policy is QueueOrder.PRIORITY,
        swap=True,
    )

    assert_same(instance, VllmV0(replace(settings, preemption_mode=PreemptionMode.SWAP)), twin)


@check
@given(swap_instances, v0_chunked_settings)
def test_v0_chunked_with_swap_agrees_with_its_twin(instance: Instance, settings: VllmV0Settings) -> None:
    """Same batches, order, moves to and from host memory, times and blocks."""
    budget = settings.max_num_batched_tokens
    assert budget is not None
    twin = NaiveV0Chunked(
        **limits_of(instance, min(settings.max_num_seqs, budget), budget),
        watermark=settings.watermark,
        max_partial=settings.max_num_partial_prefills,
        max_long=settings.max_long_partial_prefills,
        long_tokens=settings.long_prefill_token_threshold,
        swap=True,
    )

    assert_same(instance, VllmV0(replace(settings, preemption_mode=PreemptionMode.SWAP)), twin)
