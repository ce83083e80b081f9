"""Traces on which a policy is far from optimal: what is claimed is proven again, and the search repeats."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cspsched.errors import UsageError
from cspsched.exact.watch import SearchLimits
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import Objective
from cspsched.problem.result import Result, StopReason
from cspsched.studies import adversary
from cspsched.studies.adversary import AdversaryLimits, AdversaryTask, Bounds, find_adversary
from cspsched.studies.solving import solve
from tests.oracles.exhaustive import exhaustive_optimum
from tests.support.explain_cases import run
from tests.support.strategies import make_instance

SMALL = Bounds(num_requests=3, prompt_tokens=3, output_tokens=4, arrival_ticks=2)


def stage(**limits) -> Instance:
    """Six tokens of KV cache, three tokens of a batch; a batch takes a nanosecond."""
    values = {"kv_blocks": 6, "max_batch_tokens": 3, "max_batch_requests": 3, "max_model_len": 6} | limits
    return make_instance((1, 1), **values)


def task(policy: str = "vllm", **given) -> AdversaryTask:
    """A search of few traces, without a clock."""
    limits = AdversaryLimits(time_limit_s=None, trials=80)
    return AdversaryTask(**{"policy": policy, "stage": stage(), "bounds": SMALL, "limits": limits} | given)


@pytest.mark.parametrize("policy", ["vllm", "sarathi", "orca"])
@pytest.mark.parametrize("objective", ["latency", "makespan", "ttft"])
def test_claimed_excess_is_proven_again(policy, objective):
    """By trying everything, by the solver, and by another run of the policy."""
    search = find_adversary(task(policy, objective=objective))
    worst = search.worst

    if worst is None:
        assert (policy, objective) != ("vllm", "latency")
        return
    instance = worst.result.instance
    optimum_ns = exhaustive_optimum(instance, Objective(objective))
    solved = solve(instance, Objective(objective), limits=SearchLimits(time_limit_s=20)).result
    value_ns = run(instance, policy, Objective(objective)).value_ns

    assert worst.is_proven
    assert worst.result.violations() == []
    assert worst.result.primal_ns == solved.primal_ns == optimum_ns
    assert worst.excess.at_least == (value_ns - optimum_ns) / optimum_ns > 0


def test_policies_are_embarrassed():
    """Five requests of which a long one comes first cost first come, first served more than half."""
    bounds = replace(SMALL, num_requests=5, output_tokens=5, arrival_ticks=0, prompt_tokens=2)
    for policy in ("vllm", "sarathi", "orca"):
        worst = find_adversary(task(policy, bounds=bounds)).worst

        assert worst is not None
        assert worst.is_proven
        assert (worst.excess.at_least or 0) > 0.5


def test_search_repeats_and_its_seed_matters():
    """Without a clock the same data twice; another seed scores other traces."""
    one, again = (find_adversary(task()).to_json() for _ in range(2))
    limits = AdversaryLimits(time_limit_s=None, trials=80, seed=1)

    assert one == again
    assert one["worst"] is not None
    assert find_adversary(task(limits=limits)).to_json() != one


def test_traces_keep_to_the_bounds():
    """So many requests, none longer than asked for or than the device; the first comes at 0."""
    search = find_adversary(task())
    assert search.worst is not None
    requests = search.worst.result.instance.requests

    assert len(requests) == SMALL.num_requests
    assert requests[0].arrival_ns == 0
    assert all(request.prompt_tokens <= 3 and request.output_tokens <= 4 for request in requests)
    assert all(request.peak_kv_tokens <= 6 for request in requests)
    assert all(request.arrival_ns <= 2 * search.task.tick_ns for request in requests)


def test_interrupt_keeps_the_worst(monkeypatch):
    """Ctrl-C in the second proof: the first one stands."""
    solve_exactly, calls = adversary.solve_exactly, []

    def stop_later(*arguments, **options) -> Result:
        calls.append(arguments)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return solve_exactly(*arguments, **options)

    monkeypatch.setattr(adversary, "solve_exactly", stop_later)
    monkeypatch.setattr(adversary, "TRIALS", 20)
    search = find_adversary(task())

    assert search.stop_reason is StopReason.INTERRUPTED
    assert search.worst is not None


def test_wrong_use_is_refused():
    """A search that never ends, an objective of several stages, an unknown policy."""
    with pytest.raises(UsageError, match="never ends"):
        AdversaryLimits(time_limit_s=None)
    with pytest.raises(UsageError, match="several stages"):
        find_adversary(task(objective="latency,ttft"))
    with pytest.raises(UsageError, match="unknown policy"):
        find_adversary(task("vlm"))
