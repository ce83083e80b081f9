"""Causes add up, each is a measured difference, and nothing is replaced where nothing differs."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.errors import UsageError
from cspsched.exact.heuristics.list_schedule import list_schedules
from cspsched.improve.rivals import Run
from cspsched.policies.base import make_policy
from cspsched.problem.instance import Preemption, Switches
from cspsched.problem.objectives import Objective
from cspsched.referee.metrics import measure
from cspsched.simulate import simulate
from cspsched.studies.explain.causes import Decision, Target, find_causes
from tests.support.explain_cases import OBJECTIVES, free_instances, run
from tests.support.strategies import check_briefly, make_instance

POLICIES = ("vllm", "sarathi:chunk=4", "orca", "faster-transformer", "vllm-v0", "srpt", "sglang", "fastserve")


def causes_of(instance, policy, objective=Objective.LATENCY):
    """Causes over the best of some schedules, with both values."""
    rival = run(instance, policy, objective)
    lists = [Run(schedule=one, metrics=measure(instance, one)) for _, one in list_schedules(instance)]
    best = min([rival.run, *lists], key=lambda one: one.metrics.objective_ns(objective))
    best_ns = best.metrics.objective_ns(objective)
    target = Target(history=best.metrics.history, objective=objective, value_ns=best_ns)
    return rival.value_ns, best_ns, find_causes(make_policy(policy), rival, target, lambda _: None)


@check_briefly
@given(free_instances(), st.sampled_from(POLICIES), OBJECTIVES)
def test_causes_add_up_exactly(instance, policy, objective):
    """Their sum is the measured excess, and each is the difference of two neighbouring schedules."""
    instance = replace(instance, switches=Switches())
    value_ns, best_ns, causes = causes_of(instance, policy, objective)

    assert list(Decision) == [cause.decision for cause in causes]
    assert value_ns - best_ns == sum(cause.saved_ns for cause in causes)
    assert best_ns == causes[-1].value_ns
    assert value_ns - causes[0].value_ns == causes[0].saved_ns
    assert all(one.value_ns - other.value_ns == other.saved_ns for one, other in pairwise(causes))
    assert all(cause.saved_ns == 0 for cause in causes if not cause.differs)


@pytest.mark.parametrize("preemption", list(Preemption))
def test_every_kind_of_preemption_is_explained(preemption):
    """Where nothing may be recomputed the plain rule reserves; what it cannot follow is left over."""
    policy = "orca" if preemption in (Preemption.NONE, Preemption.SWAP) else "vllm"
    instance = make_instance((4, 4), (2, 8), (6, 3), (1, 6), kv_blocks=16, max_batch_tokens=32)
    instance = replace(instance, switches=Switches(preemption=preemption))
    instance = replace(instance, limits=replace(instance.limits, max_model_len=10))
    value_ns, best_ns, causes = causes_of(instance, policy)

    assert value_ns - best_ns == sum(cause.saved_ns for cause in causes)


def test_budget_alone_is_the_policy_under_that_limit():
    """What is told of one decision alone is a simulation of the policy itself."""
    instance = make_instance((9, 3), (9, 3), (2, 9), max_batch_tokens=20)
    rival = run(instance, "vllm")
    target_schedule = simulate(instance, make_policy("sarathi:chunk=4")).schedule
    metrics = measure(instance, target_schedule)
    target = Target(
        history=metrics.history, objective=Objective.LATENCY, value_ns=metrics.objective_ns(Objective.LATENCY)
    )
    causes = find_causes(make_policy("vllm"), rival, target, lambda _: None)
    tight = replace(instance, limits=replace(instance.limits, max_batch_tokens=4))
    (budget,) = [cause for cause in causes if cause.decision is Decision.BUDGET]

    assert rival.value_ns - run(tight, "vllm").value_ns == budget.alone_ns


def test_a_policy_that_is_the_best_has_no_causes():
    """Nothing is saved by any decision."""
    instance = make_instance((3, 2), (3, 2))
    rival = run(instance, "vllm")
    target = Target(
        history=rival.whole_run.metrics.history, objective=Objective.LATENCY, value_ns=rival.value_ns
    )

    assert {0} == {one.saved_ns for one in find_causes(make_policy("vllm"), rival, target, lambda _: None)}


def test_restricted_schedules_are_refused():
    """The plain rule knows all freedoms, so causes of a restricted optimum would be others."""
    instance = make_instance((3, 2), (3, 2), chunked_prefill=False)
    rival = run(instance, "orca")
    target = Target(
        history=rival.whole_run.metrics.history, objective=Objective.LATENCY, value_ns=rival.value_ns
    )

    with pytest.raises(UsageError, match="no chunking"):
        find_causes(make_policy("orca"), rival, target, lambda _: None)
