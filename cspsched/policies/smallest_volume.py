"""Smallest Volume First (SVF, arXiv 2606.22327), with true output lengths (clairvoyant) or predicted ones.

The volume of a request is the KV memory that it occupies, summed over its batches: O I + O (O - 1) / 2.
Waiting requests are admitted by ascending volume. The paper's page names the order and that the output length
is known, not the admission test; here it is that of MC-SF, so that the two differ in nothing but the order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cspsched.policies.batching import Configured
from cspsched.policies.expected import PredictionSettings, predicted_tokens
from cspsched.policies.mc_sf import run_to_completion
from cspsched.problem.instance import Instance
from cspsched.simulate.kernel.rules import Order, Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallestVolumeSettings(PredictionSettings):
    """How output lengths are known."""

    def __post_init__(self) -> None:
        self.require_prediction("smallest-volume")


@dataclass(frozen=True, slots=True)
class SmallestVolume(Configured):
    """Smallest Volume First (arXiv 2606.22327): least memory x time first; clairvoyant by default."""

    settings: SmallestVolumeSettings = SmallestVolumeSettings()
    name: ClassVar[str] = "smallest-volume"
    settings_type: ClassVar[type[SmallestVolumeSettings]] = SmallestVolumeSettings

    def kernel_rules(self, instance: Instance) -> Rules:
        """Rules under an instance's limits."""
        return run_to_completion(instance, Order.VOLUME, predicted_tokens(instance, self.settings, self.name))
