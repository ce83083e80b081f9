"""Sarathi-Serve's stall-free scheduler with fixed or dynamic chunks (microsoft/sarathi-serve@96f9911).

Source: rules written down from the behaviour of the real scheduler; whole recorded schedules of it are
reproduced by `tests/test_conformance.py`, with fixed chunks. The deviations are those of its family
(`sarathi_family.py`), and two of the dynamic chunks: a stage smaller than what the batch has used already
gives 0 tokens, not a negative number, and beyond `chunk_schedule_max_tokens` the last stage goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from cspsched.errors import UsageError
from cspsched.policies.batching import Compiled, Configured
from cspsched.policies.sarathi_family import FamilyRun, OwnLimits
from cspsched.policies.settings import require_at_least, require_fraction
from cspsched.problem.instance import Instance
from cspsched.simulate import Step
from cspsched.simulate.kernel.each.rules import AnyRules
from cspsched.simulate.kernel.rules import Chunk, Gate
from cspsched.units import ceil_div

DYNAMIC = ("low_chunk_size", "high_chunk_size", "chunk_schedule_max_tokens", "chunk_schedule_stages")
CHUNK_MULTIPLE = 32
"""Dynamic chunks are rounded to multiples of this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SarathiSettings:
    """The scheduler's arguments that are simulated; the instance's limits bind as well."""

    chunk: int = field(default=512, metadata={"aliases": ("chunk_size",)})
    """Token budget of a batch, decodes included."""
    max_num_seqs: int = 128
    """Most running requests; gates admission only."""
    watermark: float = 0.01
    """Share of the blocks that an admission leaves free."""
    enable_dynamic_chunking_schedule: bool = False
    """Whether the chunk shrinks in stages while a prompt is processed; takes the four settings below."""
    low_chunk_size: int | None = None
    """Chunk of the last stage."""
    high_chunk_size: int | None = None
    """Chunk of the first stage."""
    chunk_schedule_max_tokens: int | None = None
    """Processed tokens of a prompt over which the stages are spread."""
    chunk_schedule_stages: int | None = None
    """Number of stages."""
    emulate_bugs: bool = False
    """A preempted request forgets what it has generated and makes its whole output again."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "chunk", "max_num_seqs", *DYNAMIC, policy="sarathi")
        require_fraction(self, "watermark", policy="sarathi")
        missing = [name for name in DYNAMIC if getattr(self, name) is None]
        if self.enable_dynamic_chunking_schedule and missing:
            raise UsageError(f"policy 'sarathi': dynamic chunks need {', '.join(missing)}, too")
        if not self.enable_dynamic_chunking_schedule and len(missing) < len(DYNAMIC):
            given = next(name for name in DYNAMIC if name not in missing)
            raise UsageError(f"policy 'sarathi': {given} needs enable_dynamic_chunking_schedule=true")

    def stages(self) -> tuple[int, list[int]]:
        """Processed tokens of a prompt per stage, and the chunk of each stage."""
        low, high, max_tokens, count = (getattr(self, name) for name in DYNAMIC)
        if not self.enable_dynamic_chunking_schedule:
            return 1, [self.chunk]
        spaced = [low + (high - low) * k // max(count - 1, 1) for k in reversed(range(count))]
        multiple = min(CHUNK_MULTIPLE, low)
        return ceil_div(max_tokens, count), [round(size / multiple) * multiple for size in spaced]


@dataclass(frozen=True, slots=True)
class Sarathi(Compiled, Configured):
    """Sarathi-Serve: every decode in every batch, and prefill chunks in what the chunk leaves."""

    settings: SarathiSettings = SarathiSettings()
    name: ClassVar[str] = "sarathi"
    settings_type: ClassVar[type[SarathiSettings]] = SarathiSettings

    def new_run(self, instance: Instance) -> SarathiRun:
        """Empty queues under the instance's limits and the settings, whichever are tighter."""
        return SarathiRun(instance, self.settings, self.label)


class SarathiRun(FamilyRun):
    """Queues of one run."""

    def __init__(self, instance: Instance, settings: SarathiSettings, label: str) -> None:
        own = OwnLimits(
            label=label,
            max_num_seqs=settings.max_num_seqs,
            watermark=settings.watermark,
            restarts_output=settings.emulate_bugs,
        )
        super().__init__(instance, own)
        self._stage_tokens, sizes = settings.stages()
        self._chunks = [min(size, self.max_tokens) for size in sizes]

    def schedule(self, step: Step) -> None:
        """Take decodes, then started prefills, then the queue."""
        self.mixed(step)

    def kernel_rules(self) -> AnyRules | None:
        """By request with dynamic chunks: several of them may have prefill left."""
        rules = self._base_rules()
        if rules is None:
            return None
        if len(self._chunks) > 1:
            return self._each_rules(
                longest_prompt=0,
                by_arrival=True,
                queue_after_eviction=False,
                stage_tokens=self._stage_tokens,
                num_stages=len(self._chunks),
                stages=tuple(self._chunks),
            )
        return replace(
            rules,
            max_tokens=self._chunks[0],
            longest_prompt=0,
            chunk=Chunk.ANY,
            gate=Gate.NOT_AFTER_EVICTION,
        )

    def may_admit(self, step: Step) -> bool:
        """Not after a preemption: the victim at the head has nothing to process until it is reset."""
        return not step.evicted

    def prefill_tokens(self, request: int, lacking: int, computed: int, used: int) -> int:
        """What the chunk of the prompt's stage leaves."""
        stage = min(computed // self._stage_tokens, len(self._chunks) - 1)
        return max(0, min(lacking, self._chunks[stage] - used))
