"""Vidur's vLLM (microsoft/vidur@7d47513): vLLM of early 2024, with a padded token budget.

Whole prompts in batches of their own, as long as number of prompts x longest prompt <= max_tokens_in_batch;
decodes, earliest arrival first, only when no prompt can be admitted. An admission takes the blocks of the
prompt and leaves a watermark; every decode wants to see a free block; who arrived last is preempted.

Deviation: a prompt beyond max_tokens_in_batch goes alone. In Vidur it blocks the queue for ever, and does so
here with emulate_bugs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cspsched.compiled.jit import inner, merged
from cspsched.policies.batching import Configured
from cspsched.policies.sarathi_family import admit_with, continue_with, whole_prompt
from cspsched.policies.settings import require_fraction
from cspsched.policies.vidur_family import (
    VidurSettings,
    decode_with,
    keep_apart,
    keep_left_out,
    list_idle_prefills,
    make_vidur_loop,
    may_admit,
    spare_blocks,
    vidur_rules,
)
from cspsched.problem.instance import Instance
from cspsched.simulate.kernel.columns import BATCHED, IDLE
from cspsched.simulate.kernel.layout import Kernel
from cspsched.simulate.kernel.lists import sort_by_key
from cspsched.simulate.kernel.records import PolicyState
from cspsched.simulate.kernel.rules import Rules


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
class VidurVllm(Configured):
    """Vidur's vLLM (early 2024): batches of whole prompts first, under a padded budget."""

    settings: VidurVllmSettings = VidurVllmSettings()
    name: ClassVar[str] = "vidur-vllm"
    settings_type: ClassVar[type[VidurVllmSettings]] = VidurVllmSettings

    def kernel_rules(self, instance: Instance) -> Rules:
        """Rules under an instance's limits and the settings, whichever are tighter."""
        settings = self.settings
        own = PolicyState(
            most_in_batch=settings.micro_batch_requests,
            emulates_bugs=settings.emulate_bugs,
            padded_tokens=settings.max_tokens_in_batch,
        )
        return vidur_rules(
            instance,
            run_vidur_vllm,
            settings,
            own=own,
            max_num_seqs=settings.batch_size_cap,
            watermark=settings.watermark_blocks_fraction,
            sorts_by_key=True,
        )


@inner
def _padded_prompt(k: Kernel, request: int, used: int) -> int:
    """All tokens of a prompt, if the batch padded to its longest prompt stays within the budget."""
    tokens = whole_prompt(k, request, used)
    if not used and not k.own.emulates_bugs:
        return tokens
    longest = tokens
    for position in range(k.now.num_batched):
        longest = max(longest, int(k.requests[k.slots[position, BATCHED]].tokens))
    return tokens if (k.now.num_in_batch + 1) * longest <= k.own.padded_tokens else 0


_continue_prefills = continue_with(_padded_prompt)
_admit = admit_with(_padded_prompt, may_admit=may_admit, enter=keep_apart)
_decode = decode_with()


@merged
def vidur_vllm_step(k: Kernel) -> None:
    """Prompts; if there is none, decodes in the order of arrival."""
    used = _continue_prefills(k, list_idle_prefills(k), 0)
    _admit(k, used, spare_blocks(k))
    if not k.now.num_in_batch:
        sort_by_key(k, IDLE, int(k.own.num_idle))
        _decode(k)
    keep_left_out(k)


run_vidur_vllm = make_vidur_loop("run_vidur_vllm", vidur_vllm_step)
