"""Smallest Volume First (SVF, arXiv 2606.22327), with true output lengths: clairvoyant.

The volume of a request is the KV memory that it occupies, summed over its batches: O I + O (O - 1) / 2.
Waiting requests are admitted by ascending volume. The paper's page names the order and that the output length
is known, not the admission test; here it is that of MC-SF, so that the two differ in nothing but the order.
"""

from __future__ import annotations

from typing import ClassVar

from cspsched.policies.mc_sf import run_to_completion
from cspsched.problem.instance import Instance
from cspsched.simulate.kernel.rules import Order, Rules


class SmallestVolume:
    """Smallest Volume First (arXiv 2606.22327): least memory x time first; clairvoyant."""

    name: ClassVar[str] = "smallest-volume"
    label: ClassVar[str] = "smallest-volume"

    def kernel_rules(self, instance: Instance) -> Rules:
        """Rules under an instance's limits."""
        return run_to_completion(instance, Order.VOLUME)
