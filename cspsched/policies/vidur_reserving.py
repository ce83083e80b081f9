"""Vidur's Orca and FasterTransformer (microsoft/vidur@7d47513): every request reserves the longest length.

Orca: running requests first, then whole prompts, in one batch; no token budget. FasterTransformer: a batch of
requests runs to its end before the next is formed. Both admit while the blocks of max_model_len tokens are
free (no watermark), so that nobody is ever preempted, and take at most max_batch_size requests in a batch:
as many as Vidur's memory planner finds room for, at most batch_size_cap.

Vidur reserves floor(max_tokens / block size) blocks, here it is the ceiling: a request may need them. Its
KeyError for batches beyond its tables has no place here; they are priced by the instance's cost. With
emulate_bugs FasterTransformer never gives back the blocks of requests that finish before their batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from cspsched.policies.batching import Compiled, Configured
from cspsched.policies.reserving import ReservingRun
from cspsched.policies.sarathi_family import OwnLimits
from cspsched.policies.vidur_family import VidurRun, VidurSettings
from cspsched.problem.instance import Instance, Limits
from cspsched.simulate import Step
from cspsched.simulate.kernel.each.rules import Mode
from cspsched.simulate.kernel.rules import Reserve


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
class VidurOrca(Compiled, Configured):
    """Vidur's Orca: decodes first and whole prompts beside them, memory reserved to the longest length."""

    settings: VidurOrcaSettings = VidurOrcaSettings()
    name: ClassVar[str] = "vidur-orca"
    settings_type: ClassVar[type[VidurOrcaSettings]] = VidurOrcaSettings

    def new_run(self, instance: Instance) -> VidurReservingRun:
        """Empty queues under the instance's limits and the settings, whichever are tighter.

        Raises
        ------
        UsageError
            If max_model_len is not known, or is more than the device holds.
        """
        return VidurReservingRun(instance, self.settings, self.label)


@dataclass(frozen=True, slots=True)
class VidurFasterTransformer(Compiled, Configured):
    """Vidur's FasterTransformer: a batch of requests runs to its end before the next is formed."""

    settings: VidurFasterTransformerSettings = VidurFasterTransformerSettings()
    name: ClassVar[str] = "vidur-faster-transformer"
    settings_type: ClassVar[type[VidurFasterTransformerSettings]] = VidurFasterTransformerSettings

    def new_run(self, instance: Instance) -> VidurFasterTransformerRun:
        """Empty queues under the instance's limits and the settings, whichever are tighter.

        Raises
        ------
        UsageError
            If max_model_len is not known, or is more than the device holds.
        """
        return VidurFasterTransformerRun(instance, self.settings, self.label)


class VidurReservingRun(VidurRun, ReservingRun):
    """Queues of one run: the reservation of `ReservingRun`, in the batches of `VidurRun`."""

    def __init__(self, instance: Instance, settings: VidurOrcaSettings, label: str) -> None:
        max_in_batch = settings.batch_requests(instance.limits)
        own = OwnLimits(label=label, max_num_seqs=max_in_batch * settings.num_pipeline_stages)
        super().__init__(
            instance,
            own,
            batches_in_flight=settings.num_pipeline_stages,
            max_in_batch=max_in_batch,
            emulates_bugs=settings.emulate_bugs,
        )

    def _own_rules(self) -> dict[str, Any]:
        """All of it."""
        return {"mode": Mode.WHOLE, "reserve": Reserve.FIXED, "fixed_blocks": self._blocks[0]}

    def make_room(self, step: Step, request: int, queue: deque[int], promised: int) -> bool:
        """Nobody needs a block: all are reserved."""
        return True


class VidurFasterTransformerRun(VidurReservingRun):
    """Queues of one run, and the blocks that the bug has lost."""

    def __init__(self, instance: Instance, settings: VidurOrcaSettings, label: str) -> None:
        super().__init__(instance, settings, label)
        self._leaks = settings.emulate_bugs
        self._leaked_blocks = 0
        self._forms_batch = True

    def _own_rules(self) -> dict[str, Any]:
        """All of it."""
        return super()._own_rules() | {"groups": True}

    def decide(self, step: Step) -> None:
        """Go on with the batch that came back; form one only if there is none."""
        self._forms_batch = not self.idle
        super().decide(step)

    def may_admit(self, step: Step) -> bool:
        """Whether a batch is being formed and takes more requests."""
        return self._forms_batch and super().may_admit(step)

    def admit(self, step: Step, used: int, spare_blocks: int) -> None:
        """Admit as all others do, in the blocks that are not lost."""
        super().admit(step, used, spare_blocks - self._leaked_blocks)

    def retire(self, requests: Sequence[int]) -> None:
        """Drop finished requests; with the bug the blocks of all but the last of a batch are lost."""
        super().retire(requests)
        if self._leaks and self._in_flight[0]:
            self._leaked_blocks += sum(self.blocks_to_admit(request, 0) for request in requests)
