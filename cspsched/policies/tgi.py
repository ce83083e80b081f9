"""Text Generation Inference v3's queue (`backends/v3`): prefill alone, memory reserved to the end.

Source: rules written down from the behaviour of the router. First come, first served; an admission takes
the KV blocks of input + max_new_tokens - 1 tokens, where max_new_tokens is the request's output. Left open by
the written rules and decided here:

* Enough wait if they are at least waiting_served_ratio x running; the decode steps are counted from the last
  prefill, and a prefill that finds no room leaves the count as it is.
* The budget max_batch_prefill_tokens (the instance's C by default) is rounded up to whole blocks, though
  never beyond C. A prompt longer than that is prefilled in chunks, before anything else, where chunks are
  allowed.
* max_batch_total_tokens bounds the sum of input + max_new_tokens over the batch; the launcher infers it from
  the device, which the KV blocks stand for here, so that by default it does not bind.

Not simulated: speculation (its slots), prefix caching.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from cspsched.errors import UsageError
from cspsched.policies.batching import Compiled, Configured, QueueRun
from cspsched.policies.settings import require_at_least
from cspsched.problem.instance import Instance
from cspsched.simulate import Step
from cspsched.simulate.kernel.each.rules import AnyRules, Mode
from cspsched.simulate.kernel.rules import Batch, Reserve
from cspsched.units import ceil_div


@dataclass(frozen=True, slots=True, kw_only=True)
class TgiSettings:
    """The launcher's arguments that are simulated; None takes the instance's limit."""

    max_batch_prefill_tokens: int | None = None
    """Token budget of a prefill batch. Default: the instance's C."""
    max_batch_size: int | None = None
    """Most running requests. Default: the instance's R."""
    max_batch_total_tokens: int | None = None
    """Most tokens of input and output together that may run. Default: what the KV blocks hold."""
    waiting_served_ratio: float = 0.3
    """Waiting requests per running one from which on decodes stop for a prefill (1.2 before v2)."""
    max_waiting_tokens: int = 20
    """Decode steps after which a prefill is tried however few requests wait."""

    def __post_init__(self) -> None:
        at_least_one = ("max_batch_prefill_tokens", "max_batch_size", "max_batch_total_tokens")
        require_at_least(self, 1, *at_least_one, policy="tgi")
        require_at_least(self, 0, "max_waiting_tokens", policy="tgi")
        if not self.waiting_served_ratio >= 0:
            raise UsageError(
                f"policy 'tgi': waiting_served_ratio is {self.waiting_served_ratio}, expected at least 0"
            )


@dataclass(frozen=True, slots=True)
class Tgi(Compiled, Configured):
    """TGI v3: prefill and decode batches apart, prompt and output reserved at admission, no preemption."""

    settings: TgiSettings = TgiSettings()
    name: ClassVar[str] = "tgi"
    settings_type: ClassVar[type[TgiSettings]] = TgiSettings

    def new_run(self, instance: Instance) -> TgiRun:
        """Empty queues under the instance's limits and the settings, whichever are tighter."""
        return TgiRun(instance, self.settings)


class TgiRun(QueueRun):
    """Queues of one run."""

    whole_prompts: ClassVar[bool] = True

    def __init__(self, instance: Instance, settings: TgiSettings) -> None:
        block, prefill_tokens = instance.limits.block_tokens, settings.max_batch_prefill_tokens
        super().__init__(
            instance,
            max_tokens=prefill_tokens and ceil_div(prefill_tokens, block) * block,
            max_requests=settings.max_batch_size,
        )
        self._settings = settings
        self._decode_steps = 0

    def kernel_rules(self) -> AnyRules | None:
        """By request with a budget of total tokens."""
        if self._settings.max_batch_total_tokens is not None:
            return self._each_rules(
                mode=Mode.WAITING_RATIO,
                reserve=Reserve.PEAK,
                ratio=float(self._settings.waiting_served_ratio),
                decode_steps=self._settings.max_waiting_tokens,
                total_tokens=self._settings.max_batch_total_tokens,
            )
        return replace(
            self._base_rules(),
            batch=Batch.WAITING_RATIO,
            reserve=Reserve.PEAK,
            waiting_ratio=self._settings.waiting_served_ratio,
            decode_steps=self._settings.max_waiting_tokens,
        )

    def schedule(self, step: Step) -> None:
        """Prefill if it is time and something fits, else decode."""
        if self._is_time_to_prefill(step):
            self.prefill(step)
        if step.batch:
            self._decode_steps = 0
        else:
            self._decode_steps += 1
            self.decode(step)

    def _is_time_to_prefill(self, step: Step) -> bool:
        if not self.running or not step.decoding[self.running[-1]]:
            return True
        enough_wait = len(self.waiting) >= self._settings.waiting_served_ratio * len(self.running)
        return enough_wait or self._decode_steps >= self._settings.max_waiting_tokens

    def fits(self, step: Step, request: int) -> bool:
        """Whether its blocks are free, and its tokens within the budget of all that run."""
        total = sum(self.peak_tokens(i) + 1 for i in (*self.running, request))
        limit = self._settings.max_batch_total_tokens
        return (limit is None or total <= limit) and super().fits(step, request)

    def reserved_tokens(self, step: Step, request: int) -> int:
        """Input + max_new_tokens - 1."""
        return self.peak_tokens(request)
