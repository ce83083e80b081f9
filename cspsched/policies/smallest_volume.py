"""Smallest Volume First (SVF, arXiv 2606.22327), with true output lengths: clairvoyant.

The volume of a request is the KV memory that it occupies, summed over its batches: O I + O (O - 1) / 2.
Waiting requests are admitted by ascending volume. The paper's page names the order and that the output length
is known, not the admission test; here it is that of MC-SF, so that the two differ in nothing but the order.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from cspsched.policies.batching import Compiled
from cspsched.policies.mc_sf import RunToCompletion
from cspsched.problem.instance import Instance
from cspsched.problem.request import Request
from cspsched.simulate.kernel.each.rules import AnyRules
from cspsched.simulate.kernel.rules import Order


class SmallestVolume(Compiled):
    """Smallest Volume First (arXiv 2606.22327): least memory x time first; clairvoyant."""

    name: ClassVar[str] = "smallest-volume"
    label: ClassVar[str] = "smallest-volume"

    def new_run(self, instance: Instance) -> RunToCompletion:
        """Empty queues under the instance's limits."""
        return RunToCompletion(instance, key=volume)

    def kernel_rules(self, instance: Instance) -> AnyRules | None:
        """Rules for the compiled kernel under an instance's limits."""
        rules = super().kernel_rules(instance)
        return rules and replace(rules, order=Order.VOLUME)


def volume(request: Request) -> int:
    """KV tokens x batches that a request occupies, if it runs alone: O I + O (O - 1) / 2."""
    prompt, output = request.prompt_tokens, request.output_tokens
    return output * prompt + output * (output - 1) // 2
