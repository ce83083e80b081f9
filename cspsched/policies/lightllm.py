"""LightLLM's router with whole prompts (`continues_batch`): admission by the memory that will be needed.

Source: rules written down from the behaviour of the router. A request that holds a tokens (input +
generated, one more if it is new) and has b = max(0, M - generated - 1) to come belongs to a batch only if
the peak of all is below the device's tokens; M is max_new_tokens (here the request's output) while the
device is busy or the requests ignore the end of sequence, else min(max_new_tokens, max(1.1 generated,
router_max_new_token_len)). Prefills run alone. A decode that lacks memory pauses the newest, which goes to
the front of the queue.

Defaults: running_max_req_size 1000, router_token_ratio 0 (always busy, as in the older releases),
router_max_wait_tokens 1 (newer releases; 6 in old ones). Left open by the written rules and decided here:

* router_max_new_token_len has no default there; 1024 here, without effect while router_token_ratio is 0.
* Busy means a share of used KV blocks of at least (not above) router_token_ratio, so that 0 is always busy.
* A try that admits nobody starts the count of router_max_wait_tokens decode steps again.
* Paused requests lose their KV entries. Tokens are counted in KV blocks; with blocks of one token that is the
  router's own rule. A prompt longer than batch_max_tokens is cut where chunks are allowed.

Not simulated: the variant with chunked prefill (`chunked_prefill`): the rules give its admission (more tokens
to come, 16 in reserve), but not which requests share a batch with a chunk; tokens frozen by a prompt cache.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from cspsched.policies.batching import Compiled, Configured, QueueRun
from cspsched.policies.future_memory import peak_blocks
from cspsched.policies.settings import require_at_least, require_fraction
from cspsched.problem.instance import Instance
from cspsched.simulate import Step
from cspsched.simulate.kernel.each.rules import AnyRules, Mode
from cspsched.simulate.kernel.rules import Admit, Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class LightllmSettings:
    """The server's arguments that are simulated; None takes the instance's limit."""

    running_max_req_size: int = 1000
    """Most running requests."""
    batch_max_tokens: int | None = None
    """Token budget of a prefill batch. Default: the instance's C."""
    router_max_wait_tokens: int = 1
    """Decode steps between two prefills."""
    router_token_ratio: float = 0.0
    """Share of used KV blocks from which on the full max_new_tokens is counted; 0: always."""
    router_max_new_token_len: int = 1024
    """Output length that is assumed at least while the device is not busy."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "running_max_req_size", "batch_max_tokens", policy="lightllm")
        require_at_least(self, 0, "router_max_wait_tokens", "router_max_new_token_len", policy="lightllm")
        require_fraction(self, "router_token_ratio", policy="lightllm")


@dataclass(frozen=True, slots=True)
class Lightllm(Compiled, Configured):
    """LightLLM (continuous batch): prefill alone, admitted if the peak of all outputs fits."""

    settings: LightllmSettings = LightllmSettings()
    name: ClassVar[str] = "lightllm"
    settings_type: ClassVar[type[LightllmSettings]] = LightllmSettings

    def new_run(self, instance: Instance) -> LightllmRun:
        """Empty queues under the instance's limits and the settings, whichever are tighter."""
        return LightllmRun(instance, self.settings)


class LightllmRun(QueueRun):
    """Queues of one run."""

    whole_prompts: ClassVar[bool] = True

    def __init__(self, instance: Instance, settings: LightllmSettings) -> None:
        super().__init__(
            instance, max_tokens=settings.batch_max_tokens, max_requests=settings.running_max_req_size
        )
        self._settings = settings
        self._decode_steps = 0

    def kernel_rules(self) -> AnyRules | None:
        """By request unless the device counts as busy at all times."""
        if self._settings.router_token_ratio:
            return self._rules_by_request()
        return replace(
            self._base_rules(),
            batch=Batch.DECODE_STEPS,
            decode_steps=self._settings.router_max_wait_tokens,
            admit=Admit.FUTURE,
            future_spare=1,
            future_extra=1,
        )

    def _rules_by_request(self, **decisions: Any) -> AnyRules:
        return self._each_rules(
            mode=Mode.DECODE_STEPS,
            decode_steps=self._settings.router_max_wait_tokens,
            admit=Admit.FUTURE,
            spare_blocks=1,
            ratio=float(self._settings.router_token_ratio),
            assumed_tokens=self._settings.router_max_new_token_len,
            **decisions,
        )

    def schedule(self, step: Step) -> None:
        """Prefill every so many decode steps, if something fits; else decode."""
        if self._is_time_to_prefill(step):
            self._decode_steps = 0
            self.prefill(step)
        if not step.batch:
            self._decode_steps += 1
            self.decode(step)

    def _is_time_to_prefill(self, step: Step) -> bool:
        if not self.running or not step.decoding[self.running[-1]]:
            return True
        return self._decode_steps >= self._settings.router_max_wait_tokens

    def fits(self, step: Step, request: int) -> bool:
        """Whether the peak of all running requests and this one stays below the capacity."""
        used_blocks = self.kv_blocks - step.free_blocks
        is_busy = used_blocks >= self._settings.router_token_ratio * self.kv_blocks
        profile = [self._profile(step, i, is_busy=is_busy) for i in (*self.running, request)]
        return peak_blocks(profile, self.block_tokens) < self.kv_blocks

    def _profile(self, step: Step, request: int, *, is_busy: bool) -> tuple[int, int]:
        """Tokens held, one more if the request is new, and those that it is assumed to add."""
        longest = self.requests[request].output_tokens
        generated = longest - self.output_left(step, request)
        if not is_busy:
            longest = min(longest, max(generated * 11 // 10, self._settings.router_max_new_token_len))
        return step.known_tokens[request] + (not step.decoding[request]), max(0, longest - generated - 1)
