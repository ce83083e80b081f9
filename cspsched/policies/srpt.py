"""Shortest remaining processing time by true output length, also with limited preemption: clairvoyant.

* `srpt`: before every batch all requests are ordered by the output tokens that they still lack (SRTF of
  hao-ai-lab/vllm-ltr); whoever lacks memory evicts the resident of longest remaining output.
* `trail`: limited-preemption SRPT of TRAIL (arXiv 2410.01035) with the true length in place of its
  prediction: a request that has generated c = 0.8 of it goes before all others and is no longer preempted for
  their sake (but it is where those before it would not fit otherwise).

Left open by the written rules: a request beyond the budgets keeps its memory until somebody needs it; evicted
requests are recomputed; ties go to the earlier submission.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cspsched.errors import UsageError
from cspsched.policies.batching import Compiled, Configured
from cspsched.policies.mc_sf import output_tokens
from cspsched.policies.ranking import RankedRun
from cspsched.problem.instance import Instance
from cspsched.simulate import Step
from cspsched.simulate.kernel.each.rules import AnyRules, Mode


class Srpt(Compiled):
    """Shortest remaining output first, preemptive (vllm-ltr's srtf); clairvoyant."""

    name: ClassVar[str] = "srpt"
    label: ClassVar[str] = "srpt"

    def new_run(self, instance: Instance) -> SrptRun:
        """Empty queues under the instance's limits; everybody may be preempted to the end."""
        return SrptRun(instance, c=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrailSettings:
    """TRAIL's argument."""

    c: float = 0.8
    """A request may be preempted only while it has generated less than this share of its output."""

    def __post_init__(self) -> None:
        if not 0 <= self.c <= 1:
            raise UsageError(f"policy 'trail': c is {self.c}, expected 0 to 1")


@dataclass(frozen=True, slots=True)
class Trail(Compiled, Configured):
    """Limited-preemption SRPT (TRAIL, arXiv 2410.01035) with true output lengths; clairvoyant."""

    settings: TrailSettings = TrailSettings()
    name: ClassVar[str] = "trail"
    settings_type: ClassVar[type[TrailSettings]] = TrailSettings

    def new_run(self, instance: Instance) -> SrptRun:
        """Empty queues under the instance's limits."""
        return SrptRun(instance, c=self.settings.c)


class SrptRun(RankedRun):
    """Queues of one run; the key is the remaining output, and -1 for those that may not be preempted."""

    def __init__(self, instance: Instance, *, c: float) -> None:
        super().__init__(instance, key=output_tokens)
        self._c = c
        self._preemptible_tokens = [c * request.output_tokens for request in instance.requests]

    def kernel_rules(self) -> AnyRules | None:
        """All of it."""
        return self._each_rules(mode=Mode.REMAINING, ratio=float(self._c))

    def schedule(self, step: Step) -> None:
        """Rank the running requests by what they lack now, then serve."""
        for request in self.running:
            left = self.output_left(step, request)
            generated = self.requests[request].output_tokens - left
            is_safe = generated >= self._preemptible_tokens[request]
            self.rank[request] = (-1 if is_safe else left, self.rank[request][1])
        self.serve(step)
