"""Comparisons with prefix caching: both ends hold with hits, and what is due to the cache is told."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from cspsched.bounds import best_bound
from cspsched.errors import InputError, UsageError
from cspsched.exact.watch import SearchLimits
from cspsched.improve import ImproveLimits, improve
from cspsched.policies.base import make_policy
from cspsched.problem.instance import Switches
from cspsched.problem.objectives import Objective
from cspsched.problem.result import StopReason
from cspsched.referee.judge import judge
from cspsched.report.table import footnotes
from cspsched.simulate import simulate
from cspsched.studies.compare import compare_policies
from cspsched.studies.reference import ReferenceLimits
from cspsched.studies.solving import solve
from tests.oracles.exhaustive_hits import HitSearch, least
from tests.support.hit_cases import hit_instance, sharing_crowd, value_of, without_hits

CACHED = "vllm:enable_prefix_caching=true"
FEW = ReferenceLimits(steps=12)


def crowd():
    """Requests in conversations; the instance does not say that prefixes are cached."""
    return without_hits(sharing_crowd(random.Random(1), 24, 200))


@pytest.mark.parametrize("objective", Objective)
def test_a_policy_with_hits_has_a_certified_excess(objective):
    """Ends in order, vLLM with its cache above both; the shares of the cache are those of both bounds."""
    comparison = compare_policies(crowd(), [CACHED, "sglang"], objective, limits=FEW)
    reference, cache = comparison.reference, comparison.cache
    assert comparison.instance.switches.prefix_caching
    assert all(reference.bound_ns <= reference.best_known_ns <= row.value_ns for row in comparison.rows)
    assert reference.bound_ns == best_bound(comparison.instance, objective).value_ns
    assert cache.bound_without_ns == best_bound(crowd(), objective).value_ns
    assert 0 < cache.findable_tokens < cache.prompt_tokens
    assert 0 <= cache.share <= 1
    assert comparison.to_json()["prefix_cache"]["share_of_interval"] == cache.share


def test_the_notes_tell_both_ends():
    """A sentence for each end, and one for what is due to the cache."""
    notes = " ".join(footnotes(compare_policies(crowd(), [CACHED], limits=FEW)))
    assert "Prefix cache hits are allowed. In the lower end" in notes
    assert "in the upper end's schedule" in notes
    assert "of the interval is due to the cache" in notes
    assert "the exact solver knows no prefix cache hits" in notes


def test_without_caching_nothing_is_told_of_it():
    """Policies without a cache are compared as before, on prompts that share as well."""
    comparison = compare_policies(crowd(), ["vllm"], limits=FEW)
    assert comparison.cache is None
    assert "prefix_cache" not in comparison.to_json()
    assert not comparison.instance.switches.prefix_caching


def test_the_bound_without_hits_would_be_wrong():
    """On a tiny instance it exceeds what vLLM with its cache reaches; the one with hits does not."""
    for seed in range(200):
        instance = hit_instance(random.Random(seed), 2)
        instance = replace(instance, switches=Switches())
        (row,) = compare_policies(instance, [CACHED], Objective.MAKESPAN, limits=FEW).rows
        if best_bound(instance, Objective.MAKESPAN).value_ns > row.value_ns:
            assert row.excess.at_most >= row.excess.at_least >= 0
            return
    raise AssertionError("no instance where hits beat the bound without them")


@pytest.mark.parametrize("seed", range(10))
def test_reference_and_bound_hold_the_optimum_with_hits(seed):
    """The exhaustive optimum with hits lies between them on tiny instances."""
    instance = replace(hit_instance(random.Random(seed), 2), switches=Switches(prefix_caching=True))
    found = HitSearch(instance).reachable()
    comparison = compare_policies(instance, [CACHED], limits=FEW)
    optimum = least(found, lambda times: value_of(instance, Objective.LATENCY, times))
    assert comparison.reference.bound_ns <= optimum <= comparison.reference.best_known_ns


def test_a_schedule_with_hits_is_compared():
    """A finished schedule that uses the cache is a row like another."""
    schedule = simulate(crowd(), make_policy(CACHED)).schedule
    assert schedule.uses_prefix_cache
    (row,) = compare_policies(crowd(), [], schedules={"real": schedule}, limits=FEW).rows
    assert row.excess.at_most >= row.excess.at_least >= 0


def test_improve_finds_schedules_with_hits():
    """Twelve orders with hits beat vLLM's with its cache, and the referee accepts the schedule."""
    found = improve(crowd(), heuristics=[CACHED], limits=ImproveLimits(time_limit_s=None, max_steps=60))
    (rival,) = found.rivals
    assert found.bound.value_ns <= found.value_ns < rival.value_ns
    assert found.schedule.uses_prefix_cache
    assert "prefix cache" in found.found_by
    assert judge(found.instance, found.schedule).violations == ()


def test_improve_repeats_with_hits():
    """Steps alone: the same schedule twice."""
    limits = ImproveLimits(time_limit_s=None, max_steps=50, seed=3)
    first, second = (improve(crowd(), heuristics=[CACHED], limits=limits) for _ in range(2))
    assert (first.value_ns, first.found_by) == (second.value_ns, second.found_by)


def test_a_search_with_hits_keeps_no_state(tmp_path):
    """A state file is refused in one line."""
    with pytest.raises(UsageError, match="keeps no state"):
        improve(crowd(), heuristics=[CACHED], state_file=tmp_path / "state.json")


def test_the_exact_solver_refuses_hits():
    """Its proofs hold without hits; a policy's schedule with hits is no incumbent of it."""
    instance = hit_instance(random.Random(3), 2)
    with pytest.raises(UsageError, match="knows no prefix cache hits"):
        solve(instance, limits=SearchLimits(time_limit_s=1))
    plain = replace(instance, switches=Switches())
    known, cached = (
        solve(plain, heuristics=[policy], limits=SearchLimits(time_limit_s=20)).result
        for policy in ("vllm", CACHED)
    )
    assert known.stop_reason is StopReason.PROVEN
    assert known.primal_ns == cached.primal_ns
    assert not cached.schedule.uses_prefix_cache


def test_a_broken_schedule_with_hits_is_refused():
    """Hits that no request has computed."""
    schedule = simulate(crowd(), make_policy(CACHED)).schedule
    early = replace(
        schedule,
        hit_batch=schedule.hit_batch[:1] * 0,
        hit_request=schedule.hit_request[:1],
        hit_tokens=schedule.hit_tokens[:1],
    )
    with pytest.raises(InputError, match="breaks a rule"):
        compare_policies(crowd(), [], schedules={"real": early}, limits=FEW)
