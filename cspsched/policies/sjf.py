"""Shortest job first by true output length: clairvoyant.

vllm-ltr (hao-ai-lab/vllm-ltr) orders running and waiting requests anew in every step and preempts those
beyond the budgets. Here, as in the textbook, an admitted request is preempted only when a decode lacks
memory, the longest output first; `srpt` is the preemptive policy. Admission needs the blocks of all known
tokens.
"""

from __future__ import annotations

from typing import ClassVar

from cspsched.compiled.jit import merged
from cspsched.policies.batching import decode_with, last_in_order, prefill, rules_by_request, submit_to_queue
from cspsched.problem.instance import Instance
from cspsched.simulate.kernel.layout import Kernel
from cspsched.simulate.kernel.loops import make_loop
from cspsched.simulate.kernel.rules import Order, Rules


class Sjf:
    """Shortest output first among the waiting (order of vllm-ltr's sjf); clairvoyant."""

    name: ClassVar[str] = "sjf"
    label: ClassVar[str] = "sjf"

    def kernel_rules(self, instance: Instance) -> Rules:
        """Rules under an instance's limits."""
        return rules_by_request(instance, run_sjf, order=Order.OUTPUT)


_decode = decode_with(last_in_order)


@merged
def sjf_step(k: Kernel) -> None:
    """All decodes, then prompts unless a request was evicted."""
    _decode(k)
    if not k.now.num_evictions:
        prefill(k)


run_sjf = make_loop("run_sjf", submit=submit_to_queue, step=sjf_step)
