"""The engine against the naive simulator and the referee, on random instances under memory pressure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from cspsched.policies.base import make_policy
from cspsched.policies.sarathi import Sarathi, SarathiSettings
from cspsched.policies.vllm_v1 import QueueOrder, VllmSettings, VllmV1
from cspsched.problem.cost import CostModel
from cspsched.problem.instance import Instance
from cspsched.referee.history import follow
from cspsched.referee.rules import find_violations, occupied_blocks
from cspsched.simulate import LivelockError, Policy, Simulation, simulate
from tests.oracles.naive_simulator import NaiveSarathi, NaiveVllm, naive_simulate
from tests.support.tight_instances import check, instances

vllm_settings = st.builds(
    VllmSettings,
    max_num_seqs=st.none() | st.integers(1, 8),
    max_num_batched_tokens=st.none() | st.integers(1, 40),
    long_prefill_token_threshold=st.sampled_from([0, 0, 1, 3, 8]),
    scheduler_reserve_full_isl=st.booleans(),
    watermark=st.sampled_from([0.0, 0.0, 0.1, 0.3]),
    policy=st.sampled_from(QueueOrder),
)
sarathi_settings = st.builds(
    SarathiSettings,
    chunk=st.integers(1, 40),
    max_num_seqs=st.integers(1, 8),
    watermark=st.sampled_from([0.0, 0.01, 0.1, 0.3]),
)
policies = st.builds(VllmV1, vllm_settings) | st.builds(Sarathi, sarathi_settings)


def tighter(limit: int, setting: int | None) -> int:
    return limit if setting is None else min(limit, setting)


def naive_vllm(instance: Instance, settings: VllmSettings) -> NaiveVllm:
    return NaiveVllm(
        max_tokens=tighter(instance.limits.max_batch_tokens, settings.max_num_batched_tokens),
        max_seqs=tighter(instance.limits.max_batch_requests, settings.max_num_seqs),
        threshold=settings.long_prefill_token_threshold,
        chunked=settings.enable_chunked_prefill is not False,
        full_isl=settings.scheduler_reserve_full_isl,
        watermark=settings.watermark,
        priority=settings.policy is QueueOrder.PRIORITY,
    )


def simulate_unless_livelock(instance: Instance, policy: Policy) -> Simulation:
    """Simulate; drop the example where the real scheduler would evict in a circle, too."""
    try:
        return simulate(instance, policy)
    except LivelockError:
        reject()


def assert_same(instance: Instance, policy: Policy, oracle: NaiveVllm | NaiveSarathi) -> None:
    try:
        ours = simulate(instance, policy)
    except LivelockError:
        with pytest.raises(TimeoutError):
            naive_simulate(instance, oracle, max_batches=2000)
        return
    naive = naive_simulate(instance, oracle)

    assert naive.schedule == ours.schedule
    assert naive.held_blocks == ours.held_blocks.tolist()


@check
@given(instances(), vllm_settings)
def test_vllm_agrees_with_the_naive_simulator(instance: Instance, settings: VllmSettings) -> None:
    """Same batches, order, evictions, times and blocks, whatever the settings."""
    assert_same(instance, VllmV1(settings), naive_vllm(instance, settings))


@check
@given(instances(), vllm_settings)
def test_vllm_without_chunking_agrees_with_the_naive_simulator(
    instance: Instance, settings: VllmSettings
) -> None:
    """Without chunks too, where the budget holds every refill."""
    longest = max(request.peak_kv_tokens for request in instance.requests)
    budget = max(longest, instance.limits.max_batch_tokens)
    settings = replace(settings, enable_chunked_prefill=False, max_num_batched_tokens=None)
    instance = replace(instance, limits=replace(instance.limits, max_batch_tokens=budget))

    assert_same(instance, VllmV1(settings), naive_vllm(instance, settings))


@check
@given(instances(), sarathi_settings)
def test_sarathi_agrees_with_the_naive_simulator(instance: Instance, settings: SarathiSettings) -> None:
    """Same batches, order, evictions, times and blocks, whatever the settings."""
    oracle = NaiveSarathi(
        chunk=min(settings.chunk, instance.limits.max_batch_tokens),
        max_seqs=min(settings.max_num_seqs, instance.limits.max_batch_requests),
        watermark=settings.watermark,
    )

    assert_same(instance, Sarathi(settings), oracle)


@check
@given(instances(), policies)
def test_the_referee_has_no_objection(instance: Instance, policy: Policy) -> None:
    """Every simulated schedule keeps every rule, with the times that the referee derives itself."""
    assert find_violations(instance, simulate_unless_livelock(instance, policy).schedule) == []


@check
@given(instances(), policies)
def test_blocks_held_cover_the_tokens_and_fit_the_device(instance: Instance, policy: Policy) -> None:
    """At least what the residents' tokens occupy, at most the capacity."""
    simulation = simulate_unless_livelock(instance, policy)
    occupied = occupied_blocks(follow(instance, simulation.schedule))

    assert np.all(occupied <= simulation.held_blocks)
    assert np.all(simulation.held_blocks <= instance.limits.kv_blocks)


@check
@given(instances(), vllm_settings)
def test_vllm_holds_exactly_what_the_tokens_occupy(instance: Instance, settings: VllmSettings) -> None:
    """No block is allocated ahead."""
    simulation = simulate_unless_livelock(instance, VllmV1(settings))

    occupied = occupied_blocks(follow(instance, simulation.schedule))
    assert occupied.tolist() == simulation.held_blocks.tolist()


@check
@given(instances(), policies)
def test_a_policy_object_serves_many_runs(instance: Instance, policy: Policy) -> None:
    """Runs share no state: the second is the first again."""
    first, second = (simulate_unless_livelock(instance, policy) for _ in range(2))

    assert first.schedule == second.schedule


@check
@given(instances(), policies)
def test_tokens_are_conserved(instance: Instance, policy: Policy) -> None:
    """Tokens processed = I + O - 1 of every request + KV entries lost to evictions."""
    schedule = simulate_unless_livelock(instance, policy).schedule

    needed = sum(request.peak_kv_tokens for request in instance.requests)
    lost = int(follow(instance, schedule).kv_lost.sum())
    assert needed + lost == int(schedule.tokens.sum())


@pytest.mark.parametrize("text", ["vllm", "sarathi"])
@check
@given(instance=instances(), scale=st.integers(2, 5))
def test_time_scales_with_the_cost_model(text: str, instance: Instance, scale: int) -> None:
    """With all at 0 a step that is k times as long makes the schedule k times as long, and nothing else."""
    requests = tuple(replace(request, arrival_ns=0) for request in instance.requests)
    slow, fast = (
        simulate_unless_livelock(
            replace(instance, requests=requests, cost=step_only(step_ns)), make_policy(text)
        ).schedule
        for step_ns in (scale * 10, 10)
    )

    assert (fast.end_ns * scale).tolist() == slow.end_ns.tolist()
    assert fast.request.tolist() == slow.request.tolist()


def step_only(step_ns: int) -> CostModel:
    return CostModel(name="step-only", step=Fraction(step_ns))


@pytest.mark.parametrize("make", [VllmV1, Sarathi])
@check
@given(instance=instances())
def test_file_order_matters_only_among_equal_arrivals(make: Callable[[], Policy], instance: Instance) -> None:
    """With distinct arrivals the order of the rows changes no time."""
    spread = tuple(
        replace(request, arrival_ns=20 * request.arrival_ns + index)
        for index, request in enumerate(instance.requests)
    )
    forwards = simulate_unless_livelock(replace(instance, requests=spread), make()).schedule
    backwards = simulate_unless_livelock(replace(instance, requests=spread[::-1]), make()).schedule

    assert forwards.end_ns.tolist() == backwards.end_ns.tolist()
    assert (len(spread) - 1 - forwards.request).tolist() == backwards.request.tolist()
