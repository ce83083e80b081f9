"""InferMax's unified scheduler (arXiv 2411.07447): one scheduler whose switches span the usual ones.

* priority: decodes or prefills first; hybrid: both may share a batch; chunked prefill on or off.
* reservation: an admission takes the blocks of I + O - 1 tokens, and nobody is ever evicted. The length is
  the true one, so with reservation it is clairvoyant.
* eviction, when a decode lacks memory: `newest`, the latest arrival (NRF), or `shortest`, the request with
  the fewest known tokens (SRF), whose refill is the cheapest.

The defaults are those of the published comparison of preemption with reservation: decodes first, hybrid,
chunks where the instance allows them, newest first. Left open by the written rules and decided here: an
admission needs the blocks of all known tokens, and takes them with the first chunk; evicted requests go back
to their place in order of arrival; nobody is admitted in a batch before which somebody was evicted; prefills
that go first leave the blocks that the decodes of the same batch need. Histogram eviction is not simulated.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from cspsched.policies.batching import Configured, QueueRun
from cspsched.problem.instance import Instance
from cspsched.simulate import Step


class Phase(StrEnum):
    """Which half of a batch comes first."""

    DECODE = "decode"
    PREFILL = "prefill"


class Eviction(StrEnum):
    """Who is evicted first."""

    NEWEST = "newest"
    SHORTEST = "shortest"


@dataclass(frozen=True, slots=True, kw_only=True)
class InfermaxSettings:
    """The scheduler's switches."""

    priority: Phase = Phase.DECODE
    """Which half of a batch comes first."""
    hybrid: bool = True
    """Whether the other half may share the batch."""
    chunked_prefill: bool | None = None
    """Whether a prompt may be split over batches. Default: as the instance allows."""
    reservation: bool = False
    """Whether an admission takes the blocks of prompt and output."""
    eviction: Eviction = Eviction.NEWEST
    """Who is evicted first."""


@dataclass(frozen=True, slots=True)
class Infermax(Configured):
    """InferMax's unified scheduler (arXiv 2411.07447): phase order, hybrid batches, reservation, eviction."""

    settings: InfermaxSettings = InfermaxSettings()
    name: ClassVar[str] = "infermax"
    settings_type: ClassVar[type[InfermaxSettings]] = InfermaxSettings

    def new_run(self, instance: Instance) -> InfermaxRun:
        """Empty queues under the instance's limits."""
        return InfermaxRun(instance, self.settings)


class InfermaxRun(QueueRun):
    """Queues of one run."""

    def __init__(self, instance: Instance, settings: InfermaxSettings) -> None:
        super().__init__(instance, chunked=settings.chunked_prefill)
        self._settings = settings
        self._phases = [self.decode, self._prefill_unless_evicted]
        if settings.priority is Phase.PREFILL:
            self._phases.reverse()

    def schedule(self, step: Step) -> None:
        """One phase, then the other if the batch may have both or is still empty."""
        for phase in self._phases:
            if self._settings.hybrid or not step.batch:
                phase(step)

    def _prefill_unless_evicted(self, step: Step) -> None:
        if not step.evicted:
            self.prefill(step)

    def fits(self, step: Step, request: int) -> bool:
        """Whether its blocks are free beside those that decodes of this batch are still to take."""
        decodes_follow = self._settings.hybrid and self._settings.priority is Phase.PREFILL
        spare_blocks = step.free_blocks - (self.growing_blocks(step) if decodes_follow else 0)
        return self.blocks_of(self.reserved_tokens(step, request)) <= spare_blocks

    def reserved_tokens(self, step: Step, request: int) -> int:
        """Known tokens, or with reservation those of the end."""
        return self.peak_tokens(request) if self._settings.reservation else step.known_tokens[request]

    def keep_first(self, step: Step) -> list[int]:
        """First arrivals, or most known tokens, first."""
        by_arrival = sorted(self.running, key=self.rank.__getitem__)
        if self._settings.eviction is Eviction.SHORTEST:
            by_arrival.sort(key=step.known_tokens.__getitem__, reverse=True)
        return by_arrival
