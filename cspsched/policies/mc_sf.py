"""MC-SF, Memory Constrained Shortest First (arXiv 2502.07115), with true output lengths: clairvoyant.

At each round the waiting requests are sorted by output length, and the next is admitted iff at every future
completion the memory of all that are then alive fits: no admitted request is ever preempted. The first that
does not fit ends the round.

The paper knows neither token budgets nor chunks. Here all running requests decode in every batch, and the
prompts share what the budgets leave, in chunks where the instance allows them. A prompt that takes several
batches ends later than the test assumes; should memory fall short by that, the last admitted is evicted and
recomputed. Without chunks none is evicted.
"""

from __future__ import annotations

from typing import ClassVar

from cspsched.policies.batching import queue_rules
from cspsched.problem.instance import Instance
from cspsched.simulate.aggregated.state import Admit, Gate
from cspsched.simulate.kernel.rules import Order, Rules


class McSf:
    """MC-SF (arXiv 2502.07115): shortest output first while all can run to completion; clairvoyant."""

    name: ClassVar[str] = "mc-sf"
    label: ClassVar[str] = "mc-sf"

    def kernel_rules(self, instance: Instance) -> Rules:
        """Rules under an instance's limits."""
        return run_to_completion(instance, Order.OUTPUT)


def run_to_completion(instance: Instance, order: Order) -> Rules:
    """Return rules that admit, in an order, only what fits until all that run have finished."""
    return queue_rules(instance, order=order, gate=Gate.NOT_AFTER_EVICTION, admit=Admit.FUTURE)
