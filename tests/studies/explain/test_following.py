"""The plain rule with habits and decisions of others: equal to vLLM without any, and equal to its guide."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cspsched.errors import PolicyError
from cspsched.policies.base import make_policy
from cspsched.problem.instance import Preemption
from cspsched.referee.judge import judge
from cspsched.simulate import simulate
from cspsched.studies.explain.following import Follow, Gate, Guide, Habits
from tests.support.explain_cases import free_instances
from tests.support.strategies import check, check_briefly, feasible_runs, make_instance

RECOMPUTES = st.sampled_from([Preemption.RECOMPUTE, Preemption.EITHER])


def habits_of(instance, policy):
    simulation = simulate(instance, make_policy(policy))
    judged = judge(instance, simulation.schedule)
    return Habits.of(judged.history, simulation.held_blocks), simulation.schedule, judged.history


@check
@given(free_instances(), RECOMPUTES)
def test_plain_rule_is_vllm(instance, preemption):
    """With no decision of a guide the schedule is vLLM's, batch by batch, evictions included."""
    instance = replace(instance, switches=replace(instance.switches, preemption=preemption))
    habits = Habits(
        whole_prompts=False,
        apart=False,
        reserves=False,
        batch_tokens=instance.limits.max_batch_tokens,
        seats=instance.limits.max_batch_requests,
    )
    follow = Follow(habits=habits, order=np.arange(len(instance.requests)))

    assert simulate(instance, make_policy("vllm")).schedule == simulate(instance, follow).schedule


@check_briefly
@given(free_instances(), st.sampled_from(["vllm", "sarathi", "mc-sf", "srpt"]))
def test_a_guide_without_preemptions_is_met(instance, policy):
    """Order, times, chunks and limits of a schedule that holds no request back give that schedule again."""
    ample = replace(instance, limits=replace(instance.limits, kv_blocks=1000))
    habits, schedule, history = habits_of(ample, policy)
    assume(not schedule.num_preemptions)
    guide = Guide(history)
    gate = Gate.of(ample, guide.begins_ns, guide.rank)
    follow = Follow(habits=habits, order=gate.order, chunks_of=guide, preemptions_of=guide)
    limits = replace(ample.limits, max_batch_tokens=habits.batch_tokens)
    found = gate.outside(simulate(replace(gate.instance, limits=limits), follow).schedule)

    assert np.array_equal(found.start_ns, schedule.start_ns)
    assert np.array_equal(found.end_ns, schedule.end_ns)


@check
@given(feasible_runs(), free_instances())
def test_whatever_is_followed_is_feasible(run, other):
    """A guide of any kind, and any habits, lead to a schedule that the referee accepts."""
    instance, schedule = run
    free = replace(instance, switches=replace(other.switches, preemption=Preemption.EITHER))
    judged = judge(free, schedule)
    assume(not judged.violations)
    guide = Guide(judged.history)
    gate = Gate.of(free, guide.begins_ns, guide.rank)
    habits = Habits.of(judged.history, schedule.start_ns * 0)
    follow = Follow(habits=habits, order=gate.order, chunks_of=guide, preemptions_of=guide)
    limits = replace(free.limits, max_batch_tokens=habits.batch_tokens)
    try:
        found = simulate(replace(gate.instance, limits=limits), follow).schedule
    except PolicyError:
        # What never cuts prompts may be stuck where an eviction has made one longer than any batch was.
        assume(False)

    assert judge(free, gate.outside(found)).violations == ()


@check
@given(feasible_runs())
def test_guide_tells_evictions_by_tokens_generated(run):
    """As many as the schedule has evictions amid output, found again by walking along."""
    instance, schedule = run
    history = judge(instance, schedule).history
    expected = set()
    for batch, request in zip(
        schedule.evicted_batch.tolist(), schedule.evicted_request.tolist(), strict=True
    ):
        mine = (schedule.request == request) & (schedule.batch_of_entry < batch)
        generated = int(history.generates[mine].sum())
        if generated:
            expected.add((request, instance.requests[request].prompt_tokens + generated))

    assert Guide(history).evicted_at == expected


@pytest.mark.parametrize(
    ("policy", "whole_prompts", "apart", "reserves"),
    [
        ("vllm", False, False, False),
        ("orca", True, False, True),
        ("faster-transformer", True, True, True),
        ("vllm-v0", True, True, False),
    ],
)
def test_habits_are_seen_in_the_schedule(policy, whole_prompts, apart, reserves):
    """What a policy never does, from its schedule alone."""
    instance = make_instance(*[(6, 5), (6, 2)] * 3, kv_blocks=40, max_batch_tokens=15, max_model_len=12)
    habits, _, _ = habits_of(instance, policy)

    assert (whole_prompts, apart, reserves) == (habits.whole_prompts, habits.apart, habits.reserves)


def test_requests_are_handed_over_in_order():
    """No request comes before its arrival, nor before those that go first."""
    instance = make_instance((1, 1), (2, 1), (3, 1), arrivals_ns=[0, 5, 9])
    gate = Gate.of(instance, np.array([9, 9, 9]), np.array([2, 0, 1]))

    assert gate.order.tolist() == [1, 2, 0]
    assert [request.request_id for request in gate.instance.requests] == ["r1", "r2", "r0"]
