"""InferMax's unified scheduler (arXiv 2411.07447): one scheduler whose switches span the usual ones.

* priority: decodes or prefills first; hybrid: both may share a batch; chunked prefill on or off.
* reservation: an admission takes the blocks of I + O - 1 tokens, and nobody is ever evicted. The length is
  the true one, so with reservation it is clairvoyant.
* eviction, when a decode lacks memory: `newest`, the latest arrival (NRF), or `shortest`, the request with
  the fewest known tokens (SRF), whose refill is the cheapest. `histogram` evicts the newest and seldom has
  to: requests are counted by floor(log2 of the prompt), and an admission needs room for the mean of prompt +
  output of those of its class that have finished, if that is more than the known tokens, though it takes
  the blocks of these only. Prompts below histogram_threshold are admitted as ever.

The defaults are those of the published comparison of preemption with reservation: decodes first, hybrid,
chunks where the instance allows them, newest first. Left open by the written rules and decided here: an
admission needs the blocks of all known tokens, and takes them with the first chunk; evicted requests go back
to their place in order of arrival; nobody is admitted in a batch before which somebody was evicted; prefills
that go first leave the blocks that the decodes of the same batch need. The histogram's rule is that of the
authors' simulator (`histogram` of its scheduler `test`), which names no default threshold; here it is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import ClassVar

from cspsched.policies.batching import Compiled, Configured, QueueRun
from cspsched.policies.settings import require_at_least
from cspsched.problem.instance import Instance
from cspsched.simulate import Step
from cspsched.simulate.kernel.each.rules import AnyRules, Evict, Mode
from cspsched.simulate.kernel.rules import Batch, Gate, Reserve
from cspsched.units import ceil_div


class Phase(StrEnum):
    """Which half of a batch comes first."""

    DECODE = "decode"
    PREFILL = "prefill"


class Eviction(StrEnum):
    """Who is evicted first."""

    NEWEST = "newest"
    SHORTEST = "shortest"
    HISTOGRAM = "histogram"


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
    """Who is evicted first; histogram avoids evictions by the mean length of requests that have finished."""
    histogram_threshold: int = 0
    """Prompt from which on an admission looks at the histogram, in tokens."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, "histogram_threshold", policy="infermax")


@dataclass(frozen=True, slots=True)
class Infermax(Compiled, Configured):
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
        self._lengths: dict[int, tuple[int, int]] = {}
        self._phases = [self.decode, self._prefill_unless_evicted]
        if settings.priority is Phase.PREFILL:
            self._phases.reverse()

    def kernel_rules(self) -> AnyRules | None:
        """By request with prefills first in hybrid batches, where decodes sit out, and with other victims."""
        settings = self._settings
        prefills_first = settings.priority is Phase.PREFILL
        if (prefills_first and settings.hybrid) or settings.eviction is not Eviction.NEWEST:
            return self._rules_by_request(prefills_first=prefills_first)
        alone = Batch.PREFILL_ONLY if prefills_first else Batch.DECODE_ONLY
        return replace(
            self._base_rules(),
            batch=Batch.MIXED if settings.hybrid else alone,
            reserve=Reserve.PEAK if settings.reservation else Reserve.KNOWN,
            gate=Gate.NOT_AFTER_EVICTION,
        )

    def _rules_by_request(self, *, prefills_first: bool) -> AnyRules:
        settings, shortest = self._settings, self._settings.eviction is Eviction.SHORTEST
        alone = Mode.PREFILL_ONLY if prefills_first else Mode.DECODE_ONLY
        mixed = Mode.PREFILL_FIRST if prefills_first else Mode.MIXED
        return self._each_rules(
            mode=mixed if settings.hybrid else alone,
            reserve=Reserve.PEAK if settings.reservation else Reserve.KNOWN,
            evict=Evict.FEWEST_KNOWN if shortest else Evict.LAST_IN_ORDER,
            queue_after_eviction=False,
            learns_lengths=settings.eviction is Eviction.HISTOGRAM,
            length_threshold=settings.histogram_threshold,
            decodes_follow=settings.hybrid and prefills_first,
        )

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
        needed = max(self.reserved_tokens(step, request), self._expected_tokens(request))
        return self.blocks_of(needed) <= spare_blocks

    def retire(self, requests: Sequence[int]) -> None:
        """Drop finished requests, and count their lengths."""
        super().retire(requests)
        for request in requests:
            data = self.requests[request]
            length_class = data.prompt_tokens.bit_length()
            count, total = self._lengths.get(length_class, (0, 0))
            self._lengths[length_class] = (count + 1, total + data.prompt_tokens + data.output_tokens)

    def _expected_tokens(self, request: int) -> int:
        """Mean length of finished requests of like prompt, rounded up; 0 if it is not to be looked at."""
        prompt, settings = self.requests[request].prompt_tokens, self._settings
        if settings.eviction is not Eviction.HISTOGRAM or prompt < settings.histogram_threshold:
            return 0
        count, total = self._lengths.get(prompt.bit_length(), (1, 0))
        return ceil_div(total, count)

    def reserved_tokens(self, step: Step, request: int) -> int:
        """Known tokens, or with reservation those of the end."""
        return self.peak_tokens(request) if self._settings.reservation else step.known_tokens[request]

    def keep_first(self, step: Step) -> list[int]:
        """First arrivals, or most known tokens, first."""
        by_arrival = sorted(self.running, key=self.rank.__getitem__)
        if self._settings.eviction is Eviction.SHORTEST:
            by_arrival.sort(key=step.known_tokens.__getitem__, reverse=True)
        return by_arrival
