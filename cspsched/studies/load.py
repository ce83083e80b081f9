"""The load of a trace on a device: what share of the device's time its requests need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from cspsched.bounds import best_bound
from cspsched.errors import TraceError
from cspsched.policies.base import make_policy
from cspsched.problem.columns import Requests
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import Objective
from cspsched.referee.metrics import measure
from cspsched.simulate import simulate
from cspsched.units import ns_to_seconds

POLICIES = ("vllm", "sarathi")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Arrival rate times the time that a request takes when all are there at 0; above 1 a queue grows."""

    at_least: float
    """By the certified bound: no scheduler needs less."""
    at_most: float
    """By the policy that serves them soonest."""
    policy: str
    busy_s: float
    """Time in which this policy serves them all."""
    span_s: float
    """Between the first arrival and the last."""
    num_rejected: int
    """Requests that never fit, which are left out."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def load_of(instance: Instance, policies: Sequence[str] = POLICIES) -> Load:
    """Load of an instance: the makespan of its requests all at 0 over the span of their arrivals.

    Raises
    ------
    TraceError
        If all requests arrive together.
    InfeasibleError
        If none of them fits.
    """
    servable, rejections = instance.split_rejected()
    columns = servable.columns
    span_ns = int(columns.arrival_ns[-1] - columns.arrival_ns[0])
    if not span_ns:
        raise TraceError("all requests of the trace arrive together: without a rate there is no load")
    together = replace(
        servable, requests=Requests(replace(columns, arrival_ns=np.zeros_like(columns.arrival_ns)))
    )
    bound_ns = best_bound(together, Objective.MAKESPAN).value_ns
    busy_ns, policy = min((_makespan_ns(together, name), name) for name in policies)
    return Load(
        at_least=bound_ns / span_ns,
        at_most=busy_ns / span_ns,
        policy=policy,
        busy_s=ns_to_seconds(busy_ns),
        span_s=ns_to_seconds(span_ns),
        num_rejected=len(rejections),
    )


def _makespan_ns(instance: Instance, policy: str) -> int:
    return measure(instance, simulate(instance, make_policy(policy)).schedule).makespan_ns
