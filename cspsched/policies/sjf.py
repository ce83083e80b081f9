"""Shortest job first by true output length (clairvoyant) or by a prediction.

vllm-ltr (hao-ai-lab/vllm-ltr) orders running and waiting requests anew in every step and preempts those
beyond the budgets. Here, as in the textbook, an admitted request is preempted only when a decode lacks
memory, the longest output first; `srpt` is the preemptive policy. Admission needs the blocks of all known
tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cspsched.compiled.jit import merged
from cspsched.policies.batching import (
    Configured,
    decode_with,
    last_in_order,
    prefill,
    rules_by_request,
    submit_to_queue,
)
from cspsched.policies.expected import PredictionSettings, predicted_tokens
from cspsched.problem.instance import Instance
from cspsched.simulate.kernel.layout import Kernel
from cspsched.simulate.kernel.loops import make_loop
from cspsched.simulate.kernel.rules import Order, Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class SjfSettings(PredictionSettings):
    """How output lengths are known."""

    def __post_init__(self) -> None:
        self.require_prediction("sjf")


@dataclass(frozen=True, slots=True)
class Sjf(Configured):
    """Shortest output first among the waiting (order of vllm-ltr's sjf); clairvoyant by default."""

    settings: SjfSettings = SjfSettings()
    name: ClassVar[str] = "sjf"
    settings_type: ClassVar[type[SjfSettings]] = SjfSettings

    def kernel_rules(self, instance: Instance) -> Rules:
        """Rules under an instance's limits."""
        predicted = predicted_tokens(instance, self.settings, self.name)
        return rules_by_request(instance, run_sjf, order=Order.OUTPUT, expected_tokens=predicted)


_decode = decode_with(last_in_order)


@merged
def sjf_step(k: Kernel) -> None:
    """All decodes, then prompts unless a request was evicted."""
    _decode(k)
    if not k.now.num_evictions:
        prefill(k)


run_sjf = make_loop("run_sjf", submit=submit_to_queue, step=sjf_step)
