"""Instances that several tests use: the settings of the problem's section 7, and small builders."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from cspsched.costs.presets import load_cost
from cspsched.problem.cost import CostModel
from cspsched.problem.instance import Instance, Limits, Preemption, Switches
from cspsched.problem.request import Request
from cspsched.problem.schedule import Schedule
from cspsched.simulate import LivelockError, Policy, PolicyError, simulate

NO_PREEMPTION = Switches(preemption=Preemption.NONE)
RUN_TO_COMPLETION = Switches(chunked_prefill=False, holding=False, preemption=Preemption.NONE)
RESERVATION = Switches(reservation=True, preemption=Preemption.NONE)


def instance_of(
    shapes: Sequence[tuple[int, ...]],
    *,
    kv_blocks: int,
    max_batch_tokens: int = 1000,
    max_batch_requests: int = 1000,
    block_tokens: int = 1,
    cost: CostModel | None = None,
    switches: Switches | None = None,
) -> Instance:
    """Requests r0, r1, ... from (prompt, output) or (prompt, output, arrival) shapes."""
    return Instance(
        requests=tuple(
            Request(
                request_id=f"r{i}",
                prompt_tokens=shape[0],
                output_tokens=shape[1],
                arrival_ns=shape[2] if len(shape) > 2 else 0,
            )
            for i, shape in enumerate(shapes)
        ),
        limits=Limits(
            kv_blocks=kv_blocks,
            block_tokens=block_tokens,
            max_batch_tokens=max_batch_tokens,
            max_batch_requests=max_batch_requests,
        ),
        cost=cost or load_cost("infermax-70b-linear"),
        switches=switches or Switches(),
    )


def three_equal(switches: Switches | None = None) -> Instance:
    """E2, E3, E5: three requests (2, 4), M = 9, C = 16."""
    return instance_of([(2, 4)] * 3, kv_blocks=9, max_batch_tokens=16, switches=switches)


def four_mixed(switches: Switches | None = None) -> Instance:
    """E4: (4, 4) (2, 8) (6, 3) (1, 6), M = 16, C = 32."""
    shapes = [(4, 4), (2, 8), (6, 3), (1, 6)]
    return instance_of(shapes, kv_blocks=16, max_batch_tokens=32, switches=switches)


def late_mixed() -> Instance:
    """E4 with the last request a nanosecond late: small, but not for the state search."""
    shapes = [(4, 4), (2, 8), (6, 3), (1, 6, 1)]
    return instance_of(shapes, kv_blocks=16, max_batch_tokens=32)


def waves(kv_tokens: int) -> Instance:
    """E6: 1024 requests (32, 1024) at 0 under reservation, C = 4096, R = 1024."""
    return instance_of(
        [(32, 1024)] * 1024,
        kv_blocks=kv_tokens,
        max_batch_tokens=4096,
        max_batch_requests=1024,
        switches=RESERVATION,
    )


def hindsight(seed: int) -> Instance:
    """E8: the random instances of MC-SF (arXiv 2502.07115), cost `unit`, run to completion."""
    rng = random.Random(seed)
    kv_tokens, count = rng.randint(30, 50), rng.randint(8, 12)
    shapes = []
    for _ in range(count):
        start = rng.randint(1, 5)
        shapes.append((start + 1, rng.randint(1, kv_tokens - start)))
    return instance_of(shapes, kv_blocks=kv_tokens, cost=load_cost("unit"), switches=RUN_TO_COMPLETION)


def schedule_unless_stuck(instance: Instance, policy: Policy) -> Schedule | None:
    """Schedule of a policy, or None if it cannot serve the instance by its own rules, and says so."""
    try:
        return simulate(instance, policy).schedule
    except LivelockError:
        raise
    except PolicyError as error:
        if "schedules nothing although nothing more can arrive" in str(error):
            return None
        raise


def mixed(*, arrivals: bool, count: int = 40, seed: int = 3, **limits: int) -> Instance:
    """Requests of mixed lengths that fill the device several times."""
    rng = np.random.default_rng(seed)
    shapes = [
        (int(rng.integers(1, 60)), int(rng.integers(1, 40)), int(rng.integers(0, 10**10)) if arrivals else 0)
        for _ in range(count)
    ]
    return instance_of(shapes, **({"kv_blocks": 300, "max_batch_tokens": 64} | limits))
