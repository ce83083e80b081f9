"""Vidur's vLLM (microsoft/vidur@7d47513): vLLM of early 2024, with a padded token budget.

Whole prompts in batches of their own, as long as number of prompts x longest prompt <= max_tokens_in_batch;
decodes, earliest arrival first, only when no prompt can be admitted. An admission takes the blocks of the
prompt and leaves a watermark; every decode wants to see a free block; who arrived last is preempted.

Deviation: a prompt beyond max_tokens_in_batch goes alone. In Vidur it blocks the queue for ever, and does so
here with emulate_bugs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
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
class VidurVllmSettings(VidurSettings):
    """Vidur's arguments that are simulated."""

    watermark_blocks_fraction: float = 0.01
    """Share of the blocks that an admission leaves free."""
    max_tokens_in_batch: int = 4096
    """Most padded tokens of a prefill batch: number of prompts x longest prompt."""

    def __post_init__(self) -> None:
        self.require("vidur-vllm", "max_tokens_in_batch")
        require_fraction(self, "watermark_blocks_fraction", policy="vidur-vllm")


@dataclass(frozen=True, slots=True)
class VidurVllm(Compiled, Configured):
    """Vidur's vLLM (early 2024): batches of whole prompts first, under a padded budget."""

    settings: VidurVllmSettings = VidurVllmSettings()
    name: ClassVar[str] = "vidur-vllm"
    settings_type: ClassVar[type[VidurVllmSettings]] = VidurVllmSettings

    def new_run(self, instance: Instance) -> VidurVllmRun:
        """Empty queues under the instance's limits and the settings, whichever are tighter."""
        return VidurVllmRun(instance, self.settings, self.label)


class VidurVllmRun(VidurRun):
    """Queues of one run."""

    def __init__(self, instance: Instance, settings: VidurVllmSettings, label: str) -> None:
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
        self._padded_tokens = settings.max_tokens_in_batch
        self._long_prompts_go_alone = not settings.emulate_bugs
        self._batch: Mapping[int, int] = {}

    def _own_rules(self) -> dict[str, Any]:
        """All of it."""
        return {"mode": Mode.PADDED, "padded_tokens": self._padded_tokens}

    def decide(self, step: Step) -> None:
        """Prompts; if there is none, decodes in the order of arrival."""
        self._batch = step.batch
        started = [request for request in self.idle if not step.decoding[request]]
        used = self.continue_prefills(step, started, 0)
        self.admit(step, used, step.free_blocks)
        if not step.batch:
            self.idle = deque(sorted(self.idle, key=self.arrival_ns.__getitem__))
            self.decode(step)

    def prefill_tokens(self, request: int, lacking: int, computed: int, used: int) -> int:
        """All tokens of a prompt, if the batch padded to its longest prompt stays within the budget."""
        tokens = super().prefill_tokens(request, lacking, computed, used)
        if self._long_prompts_go_alone and not used:
            return tokens
        longest = max(tokens, *self._batch.values()) if self._batch else tokens
        return tokens if (len(self._batch) + 1) * longest <= self._padded_tokens else 0
