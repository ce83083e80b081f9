"""Comparisons for the tests of what is written about them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from cspsched.problem.objectives import Objective
from cspsched.problem.request import Request
from cspsched.serving import Serving, make_instance
from cspsched.studies.compare import Comparison, compare_policies
from cspsched.studies.reference import ReferenceLimits
from cspsched.trace import Trace, read_trace
from cspsched.trace.shipped import shipped_trace_path

NO_SEARCH = ReferenceLimits(work_s=0, steps=0)


def compared(
    *shapes: tuple[int, int], objective: Objective = Objective.LATENCY, **serving: int
) -> Comparison:
    """Both policies on requests 1 us apart."""
    requests = tuple(
        Request(request_id=f"r{i}", arrival_ns=1000 * i, prompt_tokens=prompt, output_tokens=output)
        for i, (prompt, output) in enumerate(shapes)
    )
    instance = make_instance(Trace(name="made", format="native", requests=requests), Serving(**serving))
    return compare_policies(instance, ["vllm", "sarathi:chunk=16"], objective, limits=NO_SEARCH)


@cache
def tight_comparison() -> Comparison:
    """Five requests in three KV blocks: evictions, and an optimum that is not known."""
    return compared((20, 11), (7, 2), (26, 10), (40, 9), (6, 2), kv_tokens=48)


@cache
def long_comparison() -> Comparison:
    """300 chat requests that come at three times their rate, in little memory: evictions, and long waits."""
    instance = make_instance(read_trace(shipped_trace_path("chat-2000")), Serving(kv_tokens=8192))
    requests = tuple(
        replace(request, arrival_ns=request.arrival_ns // 3) for request in instance.requests[:300]
    )
    crowded = replace(instance, requests=requests)
    return compare_policies(crowded, ["vllm", "sarathi"], limits=NO_SEARCH)
