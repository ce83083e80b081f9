"""Vidur's Sarathi (microsoft/vidur@7d47513): decodes, then prefill chunks in what they leave of the chunk.

The blocks of a whole prompt are taken at its first chunk, above a watermark. Decodes are not bounded by the
chunk, running prefills not by the number of requests in a batch; skipped prefills stand in front, and who
came back from a batch last is preempted first.

With emulate_bugs a preempted request that was partially prefilled forgets the rest of its prompt: it is
refilled as far as it was, and what it lacks of the prompt follows one token a batch, as if it were decoded,
in blocks taken one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cspsched.compiled.jit import inner, merged
from cspsched.policies.batching import Configured
from cspsched.policies.sarathi_family import admit_with, continue_with, preempt_to_front
from cspsched.policies.settings import require_fraction
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
from cspsched.problem.instance import Instance
from cspsched.simulate.kernel.actions import blocks_of, decodes, known_tokens
from cspsched.simulate.kernel.columns import IDLE
from cspsched.simulate.kernel.layout import Kernel
from cspsched.simulate.kernel.lists import sort_by_key
from cspsched.simulate.kernel.records import PolicyState
from cspsched.simulate.kernel.rules import Rules


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
class VidurSarathi(Configured):
    """Vidur's Sarathi: every decode in every batch, and prefill chunks in what the chunk leaves."""

    settings: VidurSarathiSettings = VidurSarathiSettings()
    name: ClassVar[str] = "vidur-sarathi"
    settings_type: ClassVar[type[VidurSarathiSettings]] = VidurSarathiSettings

    def kernel_rules(self, instance: Instance) -> Rules:
        """Rules under an instance's limits and the settings, whichever are tighter."""
        settings, limits = self.settings, instance.limits
        own = PolicyState(most_in_batch=settings.micro_batch_requests, emulates_bugs=settings.emulate_bugs)
        return vidur_rules(
            instance,
            run_vidur_sarathi,
            settings,
            own=own,
            max_num_seqs=settings.batch_size_cap,
            watermark=settings.watermark_blocks_fraction,
            max_tokens=min(settings.chunk_size, limits.max_batch_tokens),
        )


@inner
def _prompt_tokens(k: Kernel, request: int) -> int:
    """Known tokens to be prefilled, or those that are remembered of them."""
    if k.own.emulates_bugs and k.notes[request].remembered:
        return int(k.notes[request].remembered)
    return known_tokens(k, request)


@inner
def _prompt_blocks(k: Kernel, request: int) -> int:
    """Blocks of these tokens."""
    return blocks_of(k, _prompt_tokens(k, request))


@inner
def _chunk(k: Kernel, request: int, used: int) -> int:
    """What the chunk leaves, or less."""
    lacking = _prompt_tokens(k, request) - int(k.requests[request].kv_tokens)
    return max(min(lacking, int(k.now.max_tokens) - used), 0)


@inner
def _is_prefilled(k: Kernel, request: int) -> bool:
    """Whether a request takes one token a batch: its prompt, or what is remembered of it, is processed."""
    if decodes(k, request) or not k.own.emulates_bugs:
        return decodes(k, request)
    remembered = k.notes[request].remembered
    return bool(remembered and k.requests[request].kv_tokens >= remembered)


@inner
def _restart(k: Kernel, request: int) -> None:
    """Evict a request to the front of the queue; with the bug it remembers only what it had processed."""
    if k.own.emulates_bugs:
        # Processed tokens as Vidur counts them: the end of a prefill has produced one more.
        processed = k.requests[request].kv_tokens + _is_prefilled(k, request)
        k.notes[request].remembered = processed if processed < known_tokens(k, request) else 0
    preempt_to_front(k, request)


_decode = decode_with(_is_prefilled, _restart)
_continue_prefills = continue_with(_chunk)
_admit = admit_with(_chunk, may_admit=may_admit, blocks_to_admit=_prompt_blocks, enter=keep_apart)
_decodes_first = decodes_first_with(_decode, _continue_prefills, _admit)


@merged
def vidur_sarathi_step(k: Kernel) -> None:
    """Decodes, then started prefills, then the queue; what is left out is sorted by arrival."""
    _decodes_first(k)
    sort_by_key(k, IDLE, int(k.own.num_idle))
    keep_left_out(k)


run_vidur_sarathi = make_vidur_loop("run_vidur_sarathi", vidur_sarathi_step)
