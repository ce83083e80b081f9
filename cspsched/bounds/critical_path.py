"""Each request as if it were alone on the machine.

Theorem (problem.md, section 5): no request finishes before its arrival plus its time alone on the machine,
and none emits its first token before its arrival plus the time of a lone prefill. The largest of these bounds
the makespan, their sum without arrivals the sums of latencies and of TTFT. What it does not see is that
requests share the machine.
"""

from __future__ import annotations

import numpy as np

from cspsched.bounds.certificate import Certificate
from cspsched.bounds.parts.batches import ExactArray
from cspsched.bounds.parts.tables import Tables
from cspsched.problem.objectives import Objective

CRITICAL_PATH = "critical-path"


def solo_times_ns(tables: Tables, objective: Objective) -> ExactArray:
    """Latency (TTFT if that is the objective) of each request alone on the machine; shape (num_requests,)."""
    solo = tables.solo
    if objective is Objective.TTFT:
        return solo.firsts_ns
    tails = solo.tail_ns(tables.prompts, tables.outputs, tables.first_tokens)
    latencies: ExactArray = solo.firsts_ns + tails
    return latencies


def critical_path(tables: Tables, objective: Objective) -> Certificate:
    """The certificate `critical-path` of any objective; `request` names the one that decides a makespan."""
    lone = tables.solo.method
    times = solo_times_ns(tables, objective)
    if objective is Objective.MAKESPAN:
        ends = tables.arrivals_ns.astype(object) + times
        last = int(np.argmax(ends))
        name = tables.instance.requests[last].request_id
        return Certificate(CRITICAL_PATH, objective, ends[last], {"prefill": lone, "request": name})
    return Certificate(CRITICAL_PATH, objective, sum(times), {"prefill": lone})
