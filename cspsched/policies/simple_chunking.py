"""The simple chunking scheduler of sarathi-serve (microsoft/sarathi-serve@96f9911).

Source: rules written down from the behaviour of the real scheduler; whole recorded schedules of it are
reproduced by `tests/test_conformance.py`. Turns of prefill chunks and of decodes alternate; a turn without
anything to do passes to the other at once. The recordings add to the written rules that a prefill turn which
continues a started prefill admits nobody, whatever the chunk leaves. Deviations: those of its family
(`sarathi_family.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from cspsched.policies.batching import Compiled, Configured
from cspsched.policies.sarathi_family import FamilyRun, OwnLimits
from cspsched.policies.settings import require_at_least, require_fraction
from cspsched.problem.instance import Instance
from cspsched.simulate import Step
from cspsched.simulate.kernel.rules import Batch, Chunk, Gate, KernelRules


@dataclass(frozen=True, slots=True, kw_only=True)
class SimpleChunkingSettings:
    """The scheduler's arguments that are simulated; the instance's limits bind as well."""

    chunk_size: int = field(default=512, metadata={"aliases": ("chunk",)})
    """Token budget of a prefill batch."""
    max_num_seqs: int = 128
    """Most running requests."""
    watermark: float = 0.01
    """Share of the blocks that an admission leaves free."""
    emulate_bugs: bool = False
    """A preempted request forgets what it has generated and makes its whole output again."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "chunk_size", "max_num_seqs", policy="simple-chunking")
        require_fraction(self, "watermark", policy="simple-chunking")


@dataclass(frozen=True, slots=True)
class SimpleChunking(Compiled, Configured):
    """Sarathi-Serve's simple chunking: batches of prefill chunks and batches of decodes take turns."""

    settings: SimpleChunkingSettings = SimpleChunkingSettings()
    name: ClassVar[str] = "simple-chunking"
    settings_type: ClassVar[type[SimpleChunkingSettings]] = SimpleChunkingSettings

    def new_run(self, instance: Instance) -> SimpleChunkingRun:
        """Empty queues under the instance's limits and the settings, whichever are tighter."""
        return SimpleChunkingRun(instance, self.settings, self.label)


class SimpleChunkingRun(FamilyRun):
    """Queues of one run, and whose turn it is."""

    def __init__(self, instance: Instance, settings: SimpleChunkingSettings, label: str) -> None:
        own = OwnLimits(
            label=label,
            max_num_seqs=settings.max_num_seqs,
            max_tokens=settings.chunk_size,
            watermark=settings.watermark,
            restarts_output=settings.emulate_bugs,
        )
        super().__init__(instance, own)
        self._turns = self.prefill_only, self.decode_only

    def _base_rules(self) -> KernelRules | None:
        """All of it."""
        rules = super()._base_rules()
        return rules and replace(
            rules, batch=Batch.TURNS, chunk=Chunk.ANY, gate=Gate.NOTHING_STARTED, longest_prompt=0
        )

    def schedule(self, step: Step) -> None:
        """Take the turn that is due, or the other one if there is nothing to do in it."""
        due, other = self._turns
        due(step)
        if step.batch:
            self._turns = other, due
        else:
            other(step)

    def admit(self, step: Step, used: int, spare_blocks: int) -> None:
        """Not in a turn that continues a started prefill."""
        if not used:
            super().admit(step, used, spare_blocks)

    def prefill_tokens(self, request: int, lacking: int, computed: int, used: int) -> int:
        """What the chunk leaves."""
        return min(lacking, self.max_tokens - used)
