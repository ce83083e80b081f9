"""What a run with emulated bugs or cancellations has served: another instance than was asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cspsched.problem.cost import IntArray
from cspsched.problem.instance import Instance
from cspsched.problem.schedule import Schedule
from cspsched.simulate.simulation import Simulation

EVENTS = {
    "evicted_request": ("evicted_batch", "evicted_to_host"),
    "restored_request": ("restored_batch",),
}
"""Columns with the requests of what happens between batches, and those beside them, the batch first."""


def as_served(instance: Instance, simulation: Simulation) -> tuple[Instance, Schedule]:
    """The instance with the output tokens that were generated, and the schedule that serves it.

    Without emulated bugs and cancellations both are the given ones. A request that left before its first
    token is left out, so the positions of those behind it change; one that left later finishes with its last
    token, and is neither evicted nor restored after it.
    """
    if not simulation.output_changes:
        return instance, simulation.schedule
    requests, schedule = instance.requests, simulation.schedule
    generated = [
        simulation.output_changes.get(i, request.output_tokens) for i, request in enumerate(requests)
    ]
    kept = np.array([tokens > 0 for tokens in generated])
    position: IntArray = np.cumsum(kept) - 1
    served = replace(
        instance,
        requests=tuple(
            request.generating(tokens) for request, tokens in zip(requests, generated, strict=True) if tokens
        ),
    )
    columns = {name: position[getattr(schedule, name)] for name in ("request", "hit_request")}
    last_batch = np.full(len(requests), -1)
    np.maximum.at(last_batch, schedule.request, schedule.batch_of_entry)
    for name, others in EVENTS.items():
        request = getattr(schedule, name)
        counted = getattr(schedule, others[0]) <= last_batch[request]
        columns[name] = position[request][counted]
        columns |= {other: getattr(schedule, other)[counted] for other in others}
    return served, replace(schedule, **columns)
