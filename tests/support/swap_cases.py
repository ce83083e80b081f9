"""Instances with host memory, and a policy that uses it at random."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction

from cspsched.problem.instance import Instance, Preemption
from cspsched.simulate import Step
from tests.support.policy_runs import instance_of as plain_instance
from tests.support.scripted import Scripted

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


class Chaotic(Scripted):
    """Preempts, swaps, restores and schedules at random; later it serves one request after another."""

    def __init__(self, instance: Instance, rng: random.Random) -> None:
        super().__init__(self.step)
        self.rng = rng
        self.count = len(instance.requests)
        self.block_tokens = instance.limits.block_tokens
        self.blocks_on_host = [0] * self.count
        self.back: set[int] = set()
        """Who came back from host memory since the last batch."""

    def step(self, number: int, step: Step) -> None:
        """One decision."""
        for i in self.rng.sample(range(self.count), self.count if number < 40 else 0):
            luck = self.rng.random() if self.may_leave(step, i) else 1
            if luck < 0.15:
                step.preempt(i)
            elif luck < 0.4 and step.held_blocks[i] <= step.free_host_blocks:
                self.blocks_on_host[i] = step.held_blocks[i]
                step.swap_out(i)
            else:
                self.serve(step, i)
        if not step.batch and not step.evicted and not step.restored:
            self.serve_one(step)
        if step.batch:
            self.back.clear()

    def may_leave(self, step: Step, request: int) -> bool:
        """Whether a request holds something and has not just come back."""
        return step.held_blocks[request] > 0 and request not in self.back

    def serve(self, step: Step, request: int) -> None:
        """Bring a request back if the blocks are there, or process whatever fits of it."""
        if step.host_tokens[request]:
            # With room for one more entry a request that comes back goes on at once.
            needed = -(-(step.host_tokens[request] + 1) // self.block_tokens)
            room = step.free_blocks >= max(self.blocks_on_host[request], needed)
            if not room or request in step.swapped:
                return
            step.swap_in(request)
            self.back.add(request)
        tokens = min(step.known_tokens[request] - step.computed_tokens[request], step.tokens_left)
        if tokens > 0 and step.requests_left and step.missing_blocks(request, tokens) <= step.free_blocks:
            step.schedule(request, tokens, step.missing_blocks(request, tokens))

    def serve_one(self, step: Step) -> None:
        """Drop requests that may be dropped, then serve those that can be; those just back go first."""
        left = [i for i in range(self.count) if step.known_tokens[i]]
        left.sort(key=lambda i: (i in self.back, step.host_tokens[i] > 0, step.computed_tokens[i]))
        for i in left[:-1]:
            if self.may_leave(step, i):
                step.preempt(i)
        for i in reversed(left):
            self.serve(step, i)
