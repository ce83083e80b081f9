"""Published statements on real traces, with our policies and our referee."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from cspsched.costs.presets import load_cost
from cspsched.improve import ImproveLimits
from cspsched.improve.improvement import find_better
from cspsched.improve.rivals import run_reference, run_rivals
from cspsched.problem.instance import Instance, Limits
from cspsched.problem.objectives import Objective
from cspsched.referee.metrics import measure
from cspsched.referee.rules import find_violations
from cspsched.trace import read_trace
from tests.support.instances import RUN_TO_COMPLETION, instance_of
from tests.support.places import DATA

CONVERSATIONS = DATA / "traces" / "azure2023_conv.csv"


@pytest.mark.skipif(not CONVERSATIONS.exists(), reason="needs the Azure trace in shared/data")
def test_evicting_the_shortest_first_beats_the_newest_first():
    """InferMax: 3 to 6 % less time on conversations at M = 30,000 (first 1,500 requests, all at 0)."""
    requests = read_trace(CONVERSATIONS, limit=1500).requests
    instance = Instance(
        requests=tuple(replace(request, arrival_ns=0) for request in requests),
        limits=Limits(kv_blocks=30_000, block_tokens=1, max_batch_tokens=16_384, max_batch_requests=1024),
        cost=load_cost("infermax-70b"),
    )
    policies = ["infermax", "infermax:eviction=shortest"]
    newest, shortest = run_rivals(instance, Objective.MAKESPAN, policies, lambda _: None)

    assert 0.03 <= 1 - shortest.value_ns / newest.value_ns <= 0.06


def packing(seed: int) -> Instance:
    """The generator of E8 with 40 to 60 requests."""
    rng = random.Random(seed)
    kv_tokens, count = rng.randint(30, 50), rng.randint(40, 60)
    starts = [(start := rng.randint(1, 5), rng.randint(1, kv_tokens - start)) for _ in range(count)]
    shapes = [(start + 1, output) for start, output in starts]
    return instance_of(shapes, kv_blocks=kv_tokens, cost=load_cost("unit"), switches=RUN_TO_COMPLETION)


def test_mc_sf_is_more_than_one_percent_above_the_best_known_on_packing_instances():
    """MC-SF: published within 1.005 of the optimum on average; here 1.02 and more, which is a disagreement.

    The best known schedules run to completion, too, and the referee accepts them; the optimum is no worse
    than they are. So with these instances and rules the published mean cannot be met.
    """
    limits, ratios = ImproveLimits(time_limit_s=None, max_steps=400), []
    for instance in map(packing, range(8)):
        policies = run_rivals(instance, Objective.LATENCY, ["mc-sf"], lambda _: None)
        policies += run_reference(instance, Objective.LATENCY, policies, lambda _: None)
        known_ns = min(policy.value_ns for policy in policies)
        # Not `improve`, which would bound the optimum for most of the time.
        found, _ = find_better(instance, Objective.LATENCY, known_ns, 0, limits)
        assert found is not None
        assert find_violations(instance, found.schedule) == []
        assert measure(instance, found.schedule).objective_ns(Objective.LATENCY) == found.value_ns
        ratios.append(known_ns / found.value_ns)

    assert 1.02 < sum(ratios) / len(ratios) < 1.1
