"""Records as every run has them at its start."""

from __future__ import annotations

from typing import Any

from cspsched.simulate.kernel.each.rules import AnyRules
from cspsched.simulate.kernel.layout import ALL_SERVED, PROMPT_REFUSED
from cspsched.simulate.kernel.records import NOBODY, Now, RequestState, new_records, rules_into, set_column
from cspsched.simulate.kernel.workload import Workload


def first_state(workload: Workload, rules: AnyRules, *, plain: bool) -> Now:
    """A replica to which nothing has been submitted, under a policy's rules."""
    now: Now = new_records(Now, 1, plain=plain)[0]
    rules_into(now, rules)
    now.num_arrivals = now.num_unfinished = workload.num_requests
    now.free_blocks = rules.kv_blocks
    now.served_end = ALL_SERVED
    now.refused, now.refusal = NOBODY, PROMPT_REFUSED
    return now


def first_requests(workload: Workload, *, plain: bool) -> Any:
    """Requests that wait for their arrival."""
    requests = new_records(RequestState, workload.num_requests, plain=plain)
    set_column(requests, "prompt_tokens", workload.prompt_tokens)
    set_column(requests, "output_tokens", workload.output_tokens)
    set_column(requests, "arrival_ns", workload.arrival_ns)
    return requests
