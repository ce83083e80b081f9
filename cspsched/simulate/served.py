"""What a run with emulated bugs has served: another instance than the one that was asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cspsched.problem.cost import IntArray
from cspsched.problem.instance import Instance
from cspsched.problem.schedule import Schedule
from cspsched.simulate.simulation import Simulation

REQUEST_COLUMNS = ("request", "evicted_request", "restored_request", "hit_request")


def as_served(instance: Instance, simulation: Simulation) -> tuple[Instance, Schedule]:
    """The instance with the output tokens that were generated, and the schedule that serves it.

    Without emulated bugs both are the given ones. A request that was dropped before its first token is left
    out, so the positions of those behind it change; one that was dropped later finishes with its last token,
    and is not evicted after it.
    """
    if not simulation.output_changes:
        return instance, simulation.schedule
    requests = instance.requests
    generated = [
        simulation.output_changes.get(i, request.output_tokens) for i, request in enumerate(requests)
    ]
    kept = np.array([tokens > 0 for tokens in generated])
    position: IntArray = np.cumsum(kept) - 1
    served = replace(
        instance,
        requests=tuple(
            replace(request, output_tokens=tokens)
            for request, tokens in zip(requests, generated, strict=True)
            if tokens
        ),
    )
    schedule = simulation.schedule
    moved = {name: position[getattr(schedule, name)] for name in REQUEST_COLUMNS}
    counted = _before_a_drop(simulation, [request.output_tokens for request in requests])
    return served, replace(
        schedule,
        **moved
        | {
            "evicted_batch": schedule.evicted_batch[counted],
            "evicted_request": moved["evicted_request"][counted],
            "evicted_to_host": schedule.evicted_to_host[counted],
        },
    )


def _before_a_drop(simulation: Simulation, asked_tokens: list[int]) -> list[int]:
    """Positions of all evictions but the last of each request that got fewer tokens than it asked for."""
    evicted = simulation.schedule.evicted_request.tolist()
    last = {request: k for k, request in enumerate(evicted)}
    dropped = {
        request for request, tokens in simulation.output_changes.items() if tokens < asked_tokens[request]
    }
    return [k for k, request in enumerate(evicted) if request not in dropped or k != last[request]]
