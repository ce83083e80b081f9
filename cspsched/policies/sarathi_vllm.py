"""The vLLM scheduler of sarathi-serve (microsoft/sarathi-serve@96f9911): vLLM of early 2024.

Source: rules written down from the behaviour of the real scheduler; a whole recorded schedule of it is
reproduced by `tests/test_conformance.py`. It is vLLM V0 (`vllm_v0.py`) without chunks, delay, priority, and
with another default budget: by arrival, the last to be preempted is the one admitted last. Deviations: those
of its family (`sarathi_family.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cspsched.policies.batching import Configured
from cspsched.policies.sarathi_family import family_rules
from cspsched.policies.settings import require_at_least, require_fraction
from cspsched.problem.instance import Instance
from cspsched.simulate.aggregated.state import Batch
from cspsched.simulate.kernel.rules import Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class SarathiVllmSettings:
    """The scheduler's arguments that are simulated; the instance's limits bind as well."""

    max_num_seqs: int = 128
    """Most running requests."""
    max_batched_tokens: int | None = None
    """Token budget of a prefill batch. Default: the instance's max_model_len."""
    watermark: float = 0.01
    """Share of the blocks that an admission leaves free."""
    emulate_bugs: bool = False
    """A preempted request forgets what it has generated and makes its whole output again."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "max_num_seqs", "max_batched_tokens", policy="sarathi-vllm")
        require_fraction(self, "watermark", policy="sarathi-vllm")


@dataclass(frozen=True, slots=True)
class SarathiVllm(Configured):
    """vLLM as in sarathi-serve: batches of whole prompts first, decodes only when none is admitted."""

    settings: SarathiVllmSettings = SarathiVllmSettings()
    name: ClassVar[str] = "sarathi-vllm"
    settings_type: ClassVar[type[SarathiVllmSettings]] = SarathiVllmSettings

    def kernel_rules(self, instance: Instance) -> Rules:
        """Rules under an instance's limits and the settings, whichever are tighter."""
        return family_rules(
            instance,
            max_num_seqs=self.settings.max_num_seqs,
            max_tokens=self.settings.max_batched_tokens or instance.limits.max_model_len,
            watermark=self.settings.watermark,
            restarts_output=self.settings.emulate_bugs,
            batch=Batch.PREFILL_ONLY,
        )
