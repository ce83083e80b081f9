"""Curves over time: below what any policy's requests have taken, and where they end."""

from __future__ import annotations

from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspsched.bounds import best_bound, latency_curve, makespan_curve
from cspsched.errors import UsageError
from cspsched.policies.base import make_policy
from cspsched.problem.cost import CostModel, PiecewiseLinear
from cspsched.problem.instance import Instance, Limits
from cspsched.problem.objectives import Objective
from cspsched.problem.request import Request
from cspsched.referee.metrics import measure
from cspsched.simulate import simulate
from tests.oracles.exhaustive import exhaustive_optimum
from tests.oracles.naive_bounds import tiny_instances

LIMITS = Limits(kv_blocks=600, block_tokens=1, max_batch_tokens=64, max_batch_requests=16)
COST = CostModel(
    name="affine",
    step=Fraction(1000),
    tokens=PiecewiseLinear.linear(20),
    decode_context=PiecewiseLinear.linear(2),
)


def crowd(seed, count=40):
    """Requests of random lengths at random moments, some together, in an order that is not theirs."""
    rng = np.random.default_rng(seed)
    arrivals = rng.integers(0, 20, count) * 5000
    return Instance(
        requests=tuple(
            Request(
                request_id=f"r{k}",
                arrival_ns=int(arrival),
                prompt_tokens=int(rng.integers(1, 60)),
                output_tokens=int(rng.integers(1, 30)),
            )
            for k, arrival in enumerate(arrivals)
        ),
        limits=LIMITS,
        cost=COST,
    )


@cache
def curves(seed):
    """Both curves of a crowd, made once for all policies."""
    return latency_curve(crowd(seed), 8), makespan_curve(crowd(seed), 8)


@pytest.mark.parametrize("policy", ["vllm", "sarathi", "smallest-volume"])
@pytest.mark.parametrize("seed", range(4))
def test_curves_are_below_every_policy_at_every_moment(policy, seed):
    """At each moment: the latencies of those that have arrived, and the end of the last of them."""
    instance = crowd(seed)
    latencies = measure(instance, simulate(instance, make_policy(policy)).schedule).latency_ns
    arrivals = [request.arrival_ns for request in instance.requests]
    latency, makespan = curves(seed)
    for time_ns, bound_ns in zip(*latency, strict=True):
        taken = [took for took, arrival in zip(latencies, arrivals, strict=True) if arrival <= time_ns]
        assert 0 < bound_ns <= sum(taken)
    for time_ns, bound_ns in zip(*makespan, strict=True):
        ends = [a + took for took, a in zip(latencies, arrivals, strict=True) if a <= time_ns]
        assert time_ns < bound_ns <= max(ends)


@settings(max_examples=25, deadline=None)
@given(instance=tiny_instances(max_requests=3, max_prompt=3, max_output=2), points=st.integers(1, 4))
def test_no_point_exceeds_the_optimum(instance, points):
    """Tiny instances, any costs: the whole optimum is above every point of the curve."""
    for objective, curve in ((Objective.LATENCY, latency_curve), (Objective.MAKESPAN, makespan_curve)):
        assert max(curve(instance, points)[1]) <= exhaustive_optimum(instance, objective)


@pytest.mark.parametrize("points", [1, 3, 500])
def test_a_curve_rises_to_the_whole_bound(points):
    """Moments rise, bounds do not fall, and the last is the bound of the whole trace."""
    instance = crowd(9)
    times_ns, bounds_ns = latency_curve(instance, points)
    assert (np.diff(times_ns) > 0).all()
    assert bounds_ns == sorted(bounds_ns)
    assert times_ns[-1] == max(request.arrival_ns for request in instance.requests)
    assert bounds_ns[-1] == best_bound(instance, Objective.LATENCY).value_ns
    assert len(times_ns) == len(bounds_ns) <= points


def test_no_points_are_refused():
    """A curve needs a point."""
    with pytest.raises(UsageError, match="expected at least 1"):
        latency_curve(crowd(1), 0)
