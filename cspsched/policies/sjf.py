"""Shortest job first by true output length: clairvoyant.

vllm-ltr (hao-ai-lab/vllm-ltr) orders running and waiting requests anew in every step and preempts those
beyond the budgets. Here, as in the textbook, an admitted request is preempted only when a decode lacks
memory, the longest output first; `srpt` is the preemptive policy. Admission needs the blocks of all known
tokens.
"""

from __future__ import annotations

from typing import ClassVar

from cspsched.policies.batching import Compiled, QueueRun
from cspsched.policies.mc_sf import output_tokens
from cspsched.problem.instance import Instance
from cspsched.simulate import Step
from cspsched.simulate.kernel.each.rules import AnyRules, Evict
from cspsched.simulate.kernel.rules import Order


class Sjf(Compiled):
    """Shortest output first among the waiting (order of vllm-ltr's sjf); clairvoyant."""

    name: ClassVar[str] = "sjf"
    label: ClassVar[str] = "sjf"

    def new_run(self, instance: Instance) -> SjfRun:
        """Empty queues under the instance's limits."""
        return SjfRun(instance, key=output_tokens)


class SjfRun(QueueRun):
    """Queues of one run."""

    def kernel_rules(self) -> AnyRules | None:
        """All of it."""
        return self._each_rules(order=Order.OUTPUT, evict=Evict.LAST_IN_ORDER, queue_after_eviction=False)

    def schedule(self, step: Step) -> None:
        """All decodes, then prompts unless somebody was evicted."""
        self.decode(step)
        if not step.evicted:
            self.prefill(step)

    def keep_first(self, step: Step) -> list[int]:
        """Shortest output first."""
        return sorted(self.running, key=self.rank.__getitem__)
