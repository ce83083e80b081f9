"""Instances with host memory."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from cspsched.problem.instance import Instance, Preemption
from tests.support.policy_runs import instance_of as plain_instance

SWAP = "vllm-v0:preemption_mode=swap,watermark=0"


def instance_of(
    *rows: tuple[int, ...], host: int = 100, preemption: Preemption = Preemption.EITHER, **limits: int
) -> Instance:
    """Requests (prompt, output, arrival, priority) on a device with host memory; every batch takes 1 ns."""
    return with_swap(plain_instance(*rows, **limits), host, preemption)


def with_swap(
    instance: Instance, host: int, preemption: Preemption = Preemption.EITHER, swap_block: Fraction | int = 0
) -> Instance:
    """The instance with host memory."""
    return replace(
        instance,
        limits=replace(instance.limits, host_kv_blocks=host),
        switches=replace(instance.switches, preemption=preemption),
        cost=replace(instance.cost, swap_block=Fraction(swap_block)),
    )
