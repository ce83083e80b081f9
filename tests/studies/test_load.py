"""The load of a trace: what share of a device's time its requests need."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cspsched.errors import TraceError
from cspsched.exact.solver import solve_exactly
from cspsched.exact.watch import SearchLimits
from cspsched.policies.base import make_policy
from cspsched.problem.objectives import Objective
from cspsched.problem.result import Status
from cspsched.referee.metrics import measure
from cspsched.serving import Serving, make_instance
from cspsched.simulate import simulate
from cspsched.studies.load import load_of
from cspsched.trace.generators import generate_trace, load_profile
from tests.support.instances import four_mixed, late_mixed, three_equal

SECOND = 1_000_000_000


def chat(rate_per_s, num_requests=400):
    trace = generate_trace(load_profile("chat"), num_requests=num_requests, rate_per_s=rate_per_s, seed=2)
    return make_instance(trace, Serving(model="llama-3.1-8b", device="h100"))


def test_load_is_the_rate_times_the_time_of_a_request():
    """The naive way: all requests at 0 under each policy, the sooner one over the span."""
    instance = chat(5.0)
    together = replace(instance, requests=tuple(replace(one, arrival_ns=0) for one in instance.requests))
    busy_ns = {
        name: measure(together, simulate(together, make_policy(name)).schedule).makespan_ns
        for name in ("vllm", "sarathi")
    }
    load = load_of(instance)

    assert busy_ns[load.policy] == min(busy_ns.values())
    assert load.at_most == min(busy_ns.values()) / instance.requests[-1].arrival_ns
    assert pytest.approx(load.busy_s / load.span_s) == load.at_most
    assert 0 < load.at_least < load.at_most < 1


def test_twice_the_rate_is_twice_the_load():
    """The same requests in half the time."""
    slow, fast = load_of(chat(2.0)), load_of(chat(4.0))

    assert pytest.approx(2 * slow.at_most, rel=1e-6) == fast.at_most
    assert pytest.approx(2 * slow.at_least, rel=1e-6) == fast.at_least


def test_the_optimum_is_between_the_ends():
    """The proven makespan of all requests at 0, over the span."""
    instance = late_mixed()
    requests = tuple(replace(one, arrival_ns=0) for one in instance.requests)
    best = solve_exactly(
        replace(instance, requests=requests), Objective.MAKESPAN, SearchLimits(time_limit_s=20)
    )
    load = load_of(instance)
    span_ns = instance.requests[-1].arrival_ns - instance.requests[0].arrival_ns

    assert best.status is Status.OPTIMAL
    assert load.at_least <= best.primal_ns / span_ns <= load.at_most


def test_requests_that_never_fit_are_left_out_and_counted():
    """A prompt longer than the memory."""
    instance = late_mixed()
    giant = replace(instance.requests[-1], request_id="giant", prompt_tokens=10**6)
    load = load_of(replace(instance, requests=(*instance.requests, giant)))

    assert load.num_rejected == 1
    assert load.at_most == load_of(instance).at_most


@pytest.mark.parametrize("instance", [three_equal(), four_mixed()])
def test_requests_that_arrive_together_have_no_load(instance):
    """One sentence."""
    with pytest.raises(
        TraceError, match="all requests of the trace arrive together: without a rate there is no load"
    ):
        load_of(instance)
