"""MC-SF, Memory Constrained Shortest First (arXiv 2502.07115).

Output lengths are the true ones (clairvoyant), or predicted.

At each round the waiting requests are sorted by output length, and the next is admitted iff at every future
completion the memory of all that are then alive fits: no admitted request is ever preempted. The first that
does not fit ends the round.

The paper knows neither token budgets nor chunks. Here all running requests decode in every batch, and the
prompts share what the budgets leave, in chunks where the instance allows them. A prompt that takes several
batches ends later than the test assumes; should memory fall short by that, the last admitted is evicted and
recomputed. Without chunks none is evicted. A prediction that falls short has the same effect; a request that
has outlived its own counts as about to finish.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cspsched.policies.batching import Configured, queue_rules
from cspsched.policies.expected import PredictionSettings, predicted_tokens
from cspsched.problem.cost import IntArray
from cspsched.problem.instance import Instance
from cspsched.simulate.aggregated.state import Admit, Gate
from cspsched.simulate.kernel.rules import Order, Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class McSfSettings(PredictionSettings):
    """How output lengths are known."""

    def __post_init__(self) -> None:
        self.require_prediction("mc-sf")


@dataclass(frozen=True, slots=True)
class McSf(Configured):
    """MC-SF (arXiv 2502.07115): shortest output first while all can finish; clairvoyant by default."""

    settings: McSfSettings = McSfSettings()
    name: ClassVar[str] = "mc-sf"
    settings_type: ClassVar[type[McSfSettings]] = McSfSettings

    def kernel_rules(self, instance: Instance) -> Rules:
        """Rules under an instance's limits."""
        return run_to_completion(instance, Order.OUTPUT, predicted_tokens(instance, self.settings, self.name))


def run_to_completion(instance: Instance, order: Order, predicted: IntArray) -> Rules:
    """Return rules that admit, in an order, only what is expected to fit until all that run have finished."""
    return queue_rules(
        instance, order=order, gate=Gate.NOT_AFTER_EVICTION, admit=Admit.FUTURE, expected_tokens=predicted
    )
