"""Runs for the tests of what is written about a run: by hand, of any schedule, of a policy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cspsched.policies.base import make_policy
from cspsched.problem.instance import Instance, Preemption
from cspsched.problem.schedule import Schedule
from cspsched.referee.metrics import measure
from cspsched.referee.rules import occupied_blocks
from cspsched.referee.timing import schedule_asap
from cspsched.report.run import Run
from cspsched.simulate import simulate
from tests.support.strategies import make_instance


def run_of(instance: Instance, schedule: Schedule) -> Run:
    """A run of a schedule that no engine made."""
    metrics = measure(instance, schedule)
    none = np.zeros(schedule.num_batches, dtype=np.int64)
    blocks = occupied_blocks(metrics.history)
    return Run(policy="by-hand", metrics=metrics, held_blocks=blocks, num_waiting=none)


def simulated(instance: Instance, policy: str) -> Run:
    """A run as the command makes it."""
    simulation = simulate(instance, make_policy(policy))
    return Run(
        policy=simulation.policy,
        metrics=measure(instance, simulation.schedule),
        held_blocks=simulation.held_blocks,
        num_waiting=simulation.num_waiting,
    )


def preempted_run() -> Run:
    """r0 (3, 3) at 0 ns, r1 (2, 2) at 15 ns, in batches of 10 ns; r0 is evicted twice, once amid a refill.

    Batches start at 0, 10, 20, 40, 50, 60, 70: idle from 30 to 40.
    """
    instance = make_instance((3, 3), (2, 2), arrivals_ns=[0, 15])
    batches = [[(0, 2)], [(0, 1)], [(1, 2)], [(0, 2)], [(1, 1)], [(0, 4)], [(0, 1)]]
    evictions = [[], [], [0], [], [0], [], []]
    starts = [0, 10, 20, 40, 50, 60, 70]
    schedule = Schedule.from_batches(batches, evictions, starts, [start + 10 for start in starts])
    return run_of(instance, schedule)


def swapped_run() -> Run:
    """r0 (2, 3) is swapped out after its first token and comes back two batches later; r1 (1, 2) runs."""
    instance = make_instance((2, 3), (1, 2), preemption=Preemption.SWAP)
    batches = [[(0, 2)], [(1, 1)], [(1, 1)], [(0, 1)], [(0, 1)]]
    schedule = schedule_asap(instance, batches, [[]] * 5)
    schedule = replace(
        schedule,
        kv_tokens=np.array([2, 1, 2, 3, 4]),
        evicted_batch=np.array([1]), evicted_request=np.array([0]), evicted_to_host=np.array([1]),
        restored_batch=np.array([3]), restored_request=np.array([0]),
    )  # fmt: skip
    return run_of(instance, schedule)
