"""Vidur's LightLLM (microsoft/vidur@7d47513): `lightllm` with Vidur's defaults and names.

Prefills run alone, up to max_tokens_in_batch tokens, and are tried when nothing runs and after every ten
decode batches; an admission looks ahead to the peak of the memory that all will need.

Vidur asks for blocks of one token and raises RuntimeError if a decode finds no memory, and its tables for
these blocks are empty: no run of it can be recorded. Here blocks of any size do, a decode that lacks memory
preempts the newest as in `lightllm.py`, and there is one pipeline stage, as in Vidur.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cspsched.policies.batching import Configured
from cspsched.policies.lightllm import Lightllm, LightllmSettings
from cspsched.policies.settings import require_at_least
from cspsched.problem.instance import Instance
from cspsched.simulate.kernel.rules import Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class VidurLightllmSettings:
    """Vidur's arguments that are simulated; the instance's limits bind as well."""

    batch_size_cap: int = 128
    """Most running requests."""
    max_tokens_in_batch: int = 4096
    """Token budget of a prefill batch."""
    max_waiting_iters: int = 10
    """Decode batches between two tries to prefill."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "batch_size_cap", "max_tokens_in_batch", policy="vidur-lightllm")
        require_at_least(self, 0, "max_waiting_iters", policy="vidur-lightllm")


@dataclass(frozen=True, slots=True)
class VidurLightllm(Configured):
    """Vidur's LightLLM: prefill alone every ten decodes, admitted if the peak of all outputs fits."""

    settings: VidurLightllmSettings = VidurLightllmSettings()
    name: ClassVar[str] = "vidur-lightllm"
    settings_type: ClassVar[type[VidurLightllmSettings]] = VidurLightllmSettings

    def kernel_rules(self, instance: Instance) -> Rules:
        """Rules under an instance's limits and the settings, whichever are tighter."""
        own = self.settings
        like_lightllm = LightllmSettings(
            running_max_req_size=own.batch_size_cap,
            batch_max_tokens=own.max_tokens_in_batch,
            router_max_wait_tokens=own.max_waiting_iters,
        )
        return Lightllm(like_lightllm).kernel_rules(instance)
