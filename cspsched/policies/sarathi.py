"""Sarathi-Serve's stall-free scheduler with fixed or dynamic chunks (microsoft/sarathi-serve@96f9911).

Source: rules written down from the behaviour of the real scheduler; whole recorded schedules of it are
reproduced by `tests/test_conformance.py`, with fixed chunks. The deviations are those of its family
(`sarathi_family.py`), and two of the dynamic chunks: a stage smaller than what the batch has used already
gives 0 tokens, not a negative number, and beyond `chunk_schedule_max_tokens` the last stage goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from cspsched.compiled.jit import inner, merged
from cspsched.errors import UsageError
from cspsched.policies.batching import Configured
from cspsched.policies.sarathi_family import (
    admit_with,
    continue_with,
    family_rules,
    family_rules_by_request,
    keep_with,
    preempt_to_front,
    schedule_decodes,
    submit_to_family,
)
from cspsched.policies.settings import require_at_least, require_fraction
from cspsched.problem.instance import Instance
from cspsched.simulate.aggregated.state import Gate
from cspsched.simulate.kernel.actions import lacking_tokens
from cspsched.simulate.kernel.layout import Kernel
from cspsched.simulate.kernel.lists import sort_by_key
from cspsched.simulate.kernel.loops import make_loop
from cspsched.simulate.kernel.records import PolicyState
from cspsched.simulate.kernel.rules import Chunk, Rules
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
class Sarathi(Configured):
    """Sarathi-Serve: every decode in every batch, and prefill chunks in what the chunk leaves."""

    settings: SarathiSettings = SarathiSettings()
    name: ClassVar[str] = "sarathi"
    settings_type: ClassVar[type[SarathiSettings]] = SarathiSettings

    def kernel_rules(self, instance: Instance) -> Rules:
        """Rules under an instance's limits and the settings, whichever are tighter.

        By request with dynamic chunks: several prompts may have prefill left.
        """
        settings = self.settings
        stage_tokens, sizes = settings.stages()
        chunks = [min(size, instance.limits.kv_tokens, instance.limits.max_batch_tokens) for size in sizes]
        common: dict[str, Any] = {
            "max_num_seqs": settings.max_num_seqs,
            "watermark": settings.watermark,
            "restarts_output": settings.emulate_bugs,
            "longest_prompt": 0,
        }
        if len(chunks) == 1:
            common |= {"max_tokens": chunks[0], "chunk": Chunk.ANY, "gate": Gate.NOT_AFTER_EVICTION}
            return family_rules(instance, **common)
        own = PolicyState(stage_tokens=stage_tokens, num_stages=len(chunks))
        return family_rules_by_request(
            instance, run_dynamic, own=own, stages=tuple(chunks), sorts_by_key=True, **common
        )


@inner
def _tokens_of_stage(k: Kernel, request: int, used: int) -> int:
    """What the chunk of the prompt's stage leaves."""
    stage = min(int(k.requests[request].kv_tokens) // int(k.own.stage_tokens), int(k.own.num_stages) - 1)
    return max(0, min(lacking_tokens(k, request), int(k.calendar[k.now.calendar_mask + 1 + stage]) - used))


@inner
def _may_admit(k: Kernel) -> bool:
    """Not after a preemption: the victim at the head has nothing to process until it is reset."""
    return not k.now.num_evictions


_keep_decodes = keep_with(preempt_to_front, sort_by_key)
_continue_prefills = continue_with(_tokens_of_stage)
_admit = admit_with(_tokens_of_stage, may_admit=_may_admit)


@merged
def sarathi_step(k: Kernel) -> None:
    """Started prefills, the queue, and the decodes, which were kept before."""
    num_decodes, num_started, promised = _keep_decodes(k)
    used = _continue_prefills(k, num_started, num_decodes)
    _admit(k, used, int(k.now.free_blocks) - promised)
    schedule_decodes(k, num_decodes)


run_dynamic = make_loop("run_sarathi_dynamic", submit=submit_to_family, step=sarathi_step)
