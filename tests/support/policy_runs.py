"""Small instances, policies that run on them, and what they decided."""

from __future__ import annotations

from itertools import pairwise

from cspsched.errors import CspschedError
from cspsched.policies.base import make_policy
from cspsched.problem.cost import CostModel
from cspsched.problem.instance import Instance, Limits, Switches
from cspsched.problem.request import Request
from cspsched.referee.rules import find_violations
from cspsched.simulate import Policy, Simulation, simulate
from tests.support.strategies import UNIT

Row = tuple[int, ...]
"""Prompt, output, arrival (default 0), priority (default 0)."""


def instance_of(
    *rows: Row,
    kv_blocks: int = 100,
    block_tokens: int = 1,
    max_batch_tokens: int = 100,
    max_batch_requests: int = 100,
    cost: CostModel = UNIT,
    switches: Switches | None = None,
) -> Instance:
    requests = []
    for i, row in enumerate(rows):
        prompt, output, arrival, priority = (*row, 0, 0)[:4]
        requests.append(
            Request(
                request_id=f"r{i}",
                arrival_ns=arrival,
                prompt_tokens=prompt,
                output_tokens=output,
                priority=priority,
            )
        )
    limits = Limits(
        kv_blocks=kv_blocks,
        block_tokens=block_tokens,
        max_batch_tokens=max_batch_tokens,
        max_batch_requests=max_batch_requests,
    )
    return Instance(requests=tuple(requests), limits=limits, cost=cost, switches=switches or Switches())


def run(text: str, instance: Instance) -> Simulation:
    simulation = simulate(instance, make_policy(text))
    assert find_violations(instance, simulation.schedule) == []
    return simulation


def batches(simulation: Simulation) -> list[list[tuple[int, int]]]:
    """[(request, tokens), ...] of every batch."""
    schedule = simulation.schedule
    entries = list(zip(schedule.request.tolist(), schedule.tokens.tolist(), strict=True))
    bounds = schedule.first_entry.tolist()
    return [entries[start:end] for start, end in pairwise(bounds)]


def evictions(simulation: Simulation) -> list[tuple[int, int]]:
    """[(batch, request), ...]."""
    schedule = simulation.schedule
    return list(zip(schedule.evicted_batch.tolist(), schedule.evicted_request.tolist(), strict=True))


def schedule_or_error(instance: Instance, policy: Policy) -> Simulation | CspschedError:
    try:
        return simulate(instance, policy)
    except CspschedError as error:
        return error
