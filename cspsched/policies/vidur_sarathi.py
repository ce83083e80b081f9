"""Vidur's Sarathi (microsoft/vidur@7d47513): decodes, then prefill chunks in what they leave of the chunk.

The blocks of a whole prompt are taken at its first chunk, above a watermark. Decodes are not bounded by the
chunk, running prefills not by the number of requests in a batch; skipped prefills stand in front, and who
came back from a batch last is preempted first.

With emulate_bugs a preempted request that was partially prefilled forgets the rest of its prompt: it is
refilled as far as it was, and what it lacks of the prompt follows one token a batch, as if it were decoded,
in blocks taken one by one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, ClassVar

from cspsched.policies.batching import Compiled, Configured
from cspsched.policies.sarathi_family import OwnLimits
from cspsched.policies.settings import require_fraction
from cspsched.policies.vidur_family import VidurRun, VidurSettings
from cspsched.problem.instance import Instance
from cspsched.simulate import Step
from cspsched.simulate.kernel.each.rules import Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class VidurSarathiSettings(VidurSettings):
    """Vidur's arguments that are simulated."""

    watermark_blocks_fraction: float = 0.01
    """Share of the blocks that an admission leaves free."""
    chunk_size: int = 512
    """Tokens up to which prefills fill a batch, decodes included."""

    def __post_init__(self) -> None:
        self.require("vidur-sarathi", "chunk_size")
        require_fraction(self, "watermark_blocks_fraction", policy="vidur-sarathi")


@dataclass(frozen=True, slots=True)
class VidurSarathi(Compiled, Configured):
    """Vidur's Sarathi: every decode in every batch, and prefill chunks in what the chunk leaves."""

    settings: VidurSarathiSettings = VidurSarathiSettings()
    name: ClassVar[str] = "vidur-sarathi"
    settings_type: ClassVar[type[VidurSarathiSettings]] = VidurSarathiSettings

    def new_run(self, instance: Instance) -> VidurSarathiRun:
        """Empty queues under the instance's limits and the settings, whichever are tighter."""
        return VidurSarathiRun(instance, self.settings, self.label)


class VidurSarathiRun(VidurRun):
    """Queues of one run."""

    def __init__(self, instance: Instance, settings: VidurSarathiSettings, label: str) -> None:
        own = OwnLimits(
            label=label, max_num_seqs=settings.batch_size_cap, watermark=settings.watermark_blocks_fraction
        )
        super().__init__(
            instance,
            own,
            batches_in_flight=settings.num_pipeline_stages,
            max_in_batch=settings.micro_batch_requests,
            emulates_bugs=settings.emulate_bugs,
        )
        self._chunk = min(settings.chunk_size, self.max_tokens)
        self._forgets_prompts = settings.emulate_bugs
        # What Vidur takes for the prompt of a request that was preempted, where it differs.
        self._remembered: dict[int, int] = {}

    def _own_rules(self) -> dict[str, Any]:
        """All of it."""
        return {"mode": Mode.STALL_FREE, "max_tokens": self._chunk, "longest_prompt": 0}

    def decide(self, step: Step) -> None:
        """Decodes, then started prefills, then the queue; who is left out is sorted by arrival."""
        super().decide(step)
        self.idle = deque(sorted(self.idle, key=self.arrival_ns.__getitem__))

    def is_prefilled(self, step: Step, request: int) -> bool:
        """Whether the prompt, or what is remembered of it, is processed."""
        return step.decoding[request] or step.computed_tokens[request] >= self._remembered.get(
            request, step.known_tokens[request]
        )

    def prefill_tokens(self, request: int, lacking: int, computed: int, used: int) -> int:
        """What the chunk leaves, or less."""
        prompt = self._remembered.get(request, computed + lacking)
        return max(min(prompt - computed, self._chunk - used), 0)

    def blocks_to_admit(self, request: int, known: int) -> int:
        """Blocks of the whole prompt, or of what is remembered of it."""
        return super().blocks_to_admit(request, self._remembered.get(request, known))

    def preempt(self, step: Step, request: int) -> None:
        """Evict a request to the front of the queue; with the bug it remembers only what it had processed."""
        if self._forgets_prompts:
            # Processed tokens as Vidur counts them: the end of a prefill has produced one more.
            processed = step.computed_tokens[request] + self.is_prefilled(step, request)
            self._remembered.pop(request, None)
            if processed < step.known_tokens[request]:
                self._remembered[request] = processed
        super().preempt(step, request)
