"""The simple chunking scheduler of sarathi-serve (microsoft/sarathi-serve@96f9911).

Source: rules written down from the behaviour of the real scheduler; whole recorded schedules of it are
reproduced by `tests/test_conformance.py`. Turns of prefill chunks and of decodes alternate; a turn without
anything to do passes to the other at once. The recordings add to the written rules that a prefill turn which
continues a started prefill admits none, whatever the chunk leaves. Deviations: those of its family
(`sarathi_family.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from cspsched.policies.batching import Configured
from cspsched.policies.sarathi_family import family_rules
from cspsched.policies.settings import require_at_least, require_fraction
from cspsched.problem.instance import Instance
from cspsched.simulate.aggregated.state import Batch, Gate
from cspsched.simulate.kernel.rules import Chunk, Rules


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
class SimpleChunking(Configured):
    """Sarathi-Serve's simple chunking: batches of prefill chunks and batches of decodes take turns."""

    settings: SimpleChunkingSettings = SimpleChunkingSettings()
    name: ClassVar[str] = "simple-chunking"
    settings_type: ClassVar[type[SimpleChunkingSettings]] = SimpleChunkingSettings

    def kernel_rules(self, instance: Instance) -> Rules:
        """Rules under an instance's limits and the settings, whichever are tighter."""
        return family_rules(
            instance,
            max_num_seqs=self.settings.max_num_seqs,
            max_tokens=self.settings.chunk_size,
            watermark=self.settings.watermark,
            restarts_output=self.settings.emulate_bugs,
            longest_prompt=0,
            batch=Batch.TURNS,
            chunk=Chunk.ANY,
            gate=Gate.NOTHING_STARTED,
        )
