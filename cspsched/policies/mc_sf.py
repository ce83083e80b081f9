"""MC-SF, Memory Constrained Shortest First (arXiv 2502.07115), with true output lengths: clairvoyant.

At each round the waiting requests are sorted by output length, and the next is admitted iff at every future
completion the memory of all that are then alive fits: no admitted request is ever preempted. The first that
does not fit ends the round.

The paper knows neither token budgets nor chunks. Here all running requests decode in every batch, and the
prompts share what the budgets leave, in chunks where the instance allows them. A prompt that takes several
batches ends later than the test assumes; should memory fall short by that, the last admitted is evicted and
recomputed. Without chunks nobody is evicted.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from cspsched.policies.batching import Compiled, QueueRun
from cspsched.policies.future_memory import peak_blocks
from cspsched.problem.instance import Instance
from cspsched.problem.request import Request
from cspsched.simulate import Step
from cspsched.simulate.kernel.each.rules import AnyRules
from cspsched.simulate.kernel.rules import Admit, Gate, KernelRules, Order


class McSf(Compiled):
    """MC-SF (arXiv 2502.07115): shortest output first while all can run to completion; clairvoyant."""

    name: ClassVar[str] = "mc-sf"
    label: ClassVar[str] = "mc-sf"

    def new_run(self, instance: Instance) -> RunToCompletion:
        """Empty queues under the instance's limits."""
        return RunToCompletion(instance, key=output_tokens)

    def kernel_rules(self, instance: Instance) -> AnyRules | None:
        """Rules for the compiled kernel under an instance's limits."""
        rules = super().kernel_rules(instance)
        return rules and replace(rules, order=Order.OUTPUT)


def output_tokens(request: Request) -> int:
    """Key of shortest first."""
    return request.output_tokens


class RunToCompletion(QueueRun):
    """Queues of one run; admits only what fits until everybody has finished, in the order of a key."""

    def kernel_rules(self) -> KernelRules | None:
        """All of it; the order is the policy's to say."""
        return replace(self._base_rules(), gate=Gate.NOT_AFTER_EVICTION, admit=Admit.FUTURE)

    def schedule(self, step: Step) -> None:
        """All decodes, then prompts."""
        self.decode(step)
        if not step.evicted:
            self.prefill(step)

    def fits(self, step: Step, request: int) -> bool:
        """Whether the memory of all running requests and this one fits at every future completion."""
        alive = [*self.running, request]
        profile = ((step.known_tokens[i], self.output_left(step, i) - 1) for i in alive)
        return peak_blocks(profile, self.block_tokens) <= self.kv_blocks
