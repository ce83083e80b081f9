"""Vidur's Orca and FasterTransformer (microsoft/vidur@7d47513): every request reserves the longest length.

Orca: running requests first, then whole prompts, in one batch; no token budget. FasterTransformer: a batch of
requests runs to its end before the next is formed. Both admit while the blocks of max_model_len tokens are
free (no watermark), so that none is ever preempted, and take at most max_batch_size requests in a batch:
as many as Vidur's memory planner finds room for, at most batch_size_cap.

Vidur reserves floor(max_tokens / block size) blocks, here it is the ceiling: a request may need them. Its
KeyError for batches beyond its tables has no place here; they are priced by the instance's cost. With
emulate_bugs FasterTransformer never gives back the blocks of requests that finish before their batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cspsched.compiled.jit import inner, merged
from cspsched.policies.batching import Configured
from cspsched.policies.reserving import longest_blocks
from cspsched.policies.sarathi_family import admit_with, continue_with, whole_prompt
from cspsched.policies.vidur_family import (
    VidurSettings,
    decode_with,
    decodes_first_with,
    keep_apart,
    keep_left_out,
    make_vidur_loop,
    may_admit,
    vidur_rules,
)
from cspsched.problem.instance import Instance, Limits
from cspsched.simulate.kernel.layout import Kernel
from cspsched.simulate.kernel.records import PolicyState
from cspsched.simulate.kernel.rules import Reserve, Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class VidurOrcaSettings(VidurSettings):
    """Vidur's arguments that are simulated."""

    max_batch_size: int | None = None
    """Most requests in a batch. Default: as many as have room, in equal parts for the stages."""

    def __post_init__(self) -> None:
        self.require("vidur-orca", "max_batch_size")

    def batch_requests(self, limits: Limits) -> int:
        """Most requests in a batch under an instance's limits."""
        blocks = limits.blocks_of(limits.max_model_len or limits.kv_tokens)
        planned = self.max_batch_size or limits.kv_blocks // blocks // self.num_pipeline_stages
        return max(min(planned, self.batch_size_cap), 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class VidurFasterTransformerSettings(VidurOrcaSettings):
    """Vidur's arguments that are simulated."""

    def __post_init__(self) -> None:
        self.require("vidur-faster-transformer", "max_batch_size")


@dataclass(frozen=True, slots=True)
class VidurOrca(Configured):
    """Vidur's Orca: decodes first and whole prompts beside them, memory reserved to the longest length."""

    settings: VidurOrcaSettings = VidurOrcaSettings()
    name: ClassVar[str] = "vidur-orca"
    settings_type: ClassVar[type[VidurOrcaSettings]] = VidurOrcaSettings

    def kernel_rules(self, instance: Instance) -> Rules:
        """Rules under an instance's limits and the settings, whichever are tighter."""
        return _rules(instance, self.settings, runs_to_end=False)


@dataclass(frozen=True, slots=True)
class VidurFasterTransformer(Configured):
    """Vidur's FasterTransformer: a batch of requests runs to its end before the next is formed."""

    settings: VidurFasterTransformerSettings = VidurFasterTransformerSettings()
    name: ClassVar[str] = "vidur-faster-transformer"
    settings_type: ClassVar[type[VidurFasterTransformerSettings]] = VidurFasterTransformerSettings

    def kernel_rules(self, instance: Instance) -> Rules:
        """Rules under an instance's limits and the settings, whichever are tighter."""
        return _rules(instance, self.settings, runs_to_end=True)


def _rules(instance: Instance, settings: VidurOrcaSettings, *, runs_to_end: bool) -> Rules:
    most = settings.batch_requests(instance.limits)
    own = PolicyState(
        most_in_batch=most,
        emulates_bugs=settings.emulate_bugs and runs_to_end,
        runs_to_end=runs_to_end,
    )
    return vidur_rules(
        instance,
        run_vidur_reserving,
        settings,
        own=own,
        max_num_seqs=most * settings.num_pipeline_stages,
        reserve=Reserve.FIXED,
        fixed_blocks=longest_blocks(instance.limits),
    )


@inner
def _longest_blocks(k: Kernel, request: int) -> int:
    """Blocks that an admission takes."""
    return int(k.now.fixed_blocks)


_continue_prefills = continue_with(whole_prompt)
_admit = admit_with(whole_prompt, may_admit=may_admit, blocks_to_admit=_longest_blocks, enter=keep_apart)
_decodes_first = decodes_first_with(decode_with(), _continue_prefills, _admit)


@merged
def vidur_reserving_step(k: Kernel) -> None:
    """Decodes, then started prefills, then the queue; or only the batch that came back."""
    k.own.is_full = k.own.runs_to_end and k.own.num_idle + k.now.num_locked > 0
    _decodes_first(k)
    keep_left_out(k)


run_vidur_reserving = make_vidur_loop("run_vidur_reserving", vidur_reserving_step)
