"""vLLM's V0 scheduler as of vllm 0.9.2 (`vllm/core/scheduler.py`): prefix caching off, single-step.

Source: rules written down from the behaviour of the real scheduler; whole recorded schedules of its default
mode, with recompute and with swap, are reproduced by `tests/test_conformance.py`. A request whose refill
outgrows the limits vanishes from vLLM (FINISHED_IGNORED: a bug, for `emulate_bugs`; here it is an error,
see `sarathi_family.py` for this and for the watermark of an empty device). The engine refuses
max_num_batched_tokens < max_num_seqs; here the tighter binds. For preemption by swap see `vllm_v0_steps.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

from cspsched.errors import UsageError
from cspsched.policies.batching import Configured
from cspsched.policies.sarathi_family import family_rules, family_rules_by_request
from cspsched.policies.settings import require_at_least, require_fraction
from cspsched.policies.vllm_v0_steps import forget, run_chunked, run_whole_prompts
from cspsched.policies.vllm_v1 import BY_PRIORITY, QueueOrder
from cspsched.problem.instance import Instance, Limits, Preemption
from cspsched.simulate.aggregated.state import Batch
from cspsched.simulate.kernel.cancel import cancel_with
from cspsched.simulate.kernel.records import PolicyState
from cspsched.simulate.kernel.rules import Order, Rules

SMALLEST_DEFAULT_BUDGET = 2048
"""Default of max_num_batched_tokens for short models, and with chunked prefill for all."""
LONG_SHARE = 0.04
"""Share of max_model_len from which on a prompt is long by default."""


class PreemptionMode(StrEnum):
    """What happens to the KV cache of a preempted request."""

    RECOMPUTE = "recompute"
    SWAP = "swap"


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmV0Settings:
    """The engine's arguments that are simulated; the instance's limits bind as well."""

    max_num_seqs: int = 128
    """Most running requests."""
    max_num_batched_tokens: int | None = None
    """Token budget of a batch with prefills. Default: max(max_model_len, 2048), or 2048 if chunked."""
    enable_chunked_prefill: bool = False
    """Decodes first, and prefill chunks beside them; else whole prompts first, in batches of their own."""
    delay_factor: float = 0.0
    """Latencies of the last prompt batch that the earliest waiting request must have waited (not chunked)."""
    watermark: float = 0.01
    """Share of the blocks that an admission leaves free."""
    policy: QueueOrder = field(default=QueueOrder.FCFS, metadata={"need": BY_PRIORITY})
    """Order of the queue; priority preempts for the sake of a more important request (not chunked)."""
    preemption_mode: PreemptionMode = PreemptionMode.RECOMPUTE
    """What happens to the KV cache of a preempted request; swap needs an instance that allows it."""
    max_num_partial_prefills: int = 1
    """Prefills among which the budget of a batch is split (chunked)."""
    max_long_partial_prefills: int = 1
    """How many of these may be long."""
    long_prefill_token_threshold: int = 0
    """Tokens above which a prefill is long. Default: 4 % of max_model_len."""
    emulate_bugs: bool = False
    """A request that no longer fits, for instance when its refill outgrows the limits, is dropped."""

    def __post_init__(self) -> None:
        at_least_one = (
            "max_num_seqs", "max_num_batched_tokens", "max_num_partial_prefills", "max_long_partial_prefills",
        )  # fmt: skip
        require_at_least(self, 1, *at_least_one, policy="vllm-v0")
        require_at_least(self, 0, "long_prefill_token_threshold", policy="vllm-v0")
        require_fraction(self, "watermark", policy="vllm-v0")
        if not 0 <= self.delay_factor < float("inf"):
            raise UsageError(f"policy 'vllm-v0': delay_factor is {self.delay_factor}, expected at least 0")
        if self.max_num_partial_prefills > 1 and not self.enable_chunked_prefill:
            raise UsageError("policy 'vllm-v0': max_num_partial_prefills needs enable_chunked_prefill=true")

    def token_budget(self, limits: Limits) -> int | None:
        """Token budget of a batch with prefills; None if nothing but the instance limits it."""
        if self.max_num_batched_tokens is not None:
            return self.max_num_batched_tokens
        if self.enable_chunked_prefill:
            return SMALLEST_DEFAULT_BUDGET
        return limits.max_model_len and max(limits.max_model_len, SMALLEST_DEFAULT_BUDGET)

    def long_tokens(self, limits: Limits) -> int:
        """Tokens above which a prefill is long."""
        longest = limits.max_model_len or limits.kv_tokens
        return self.long_prefill_token_threshold or int(LONG_SHARE * longest)


@dataclass(frozen=True, slots=True)
class VllmV0(Configured):
    """vLLM V0 (0.9.2): batches of whole prompts first, decodes only when none is admitted; or chunked."""

    settings: VllmV0Settings = VllmV0Settings()
    name: ClassVar[str] = "vllm-v0"
    settings_type: ClassVar[type[VllmV0Settings]] = VllmV0Settings

    def kernel_rules(self, instance: Instance) -> Rules:
        """Rules under an instance's limits and the settings, whichever are tighter.

        The aggregated loop knows whole prompts first without delay, priority, swap and bugs.

        Raises
        ------
        UsageError
            If the instance does not allow the preemption that the settings ask for.
        """
        settings, limits = self.settings, instance.limits
        budget, swaps = settings.token_budget(limits), settings.preemption_mode is PreemptionMode.SWAP
        by_priority = settings.policy is QueueOrder.PRIORITY
        if swaps:
            self._require_swap(instance.switches.preemption, by_priority=by_priority)
        own = PolicyState(
            swaps=swaps,
            delay=float(settings.delay_factor),
            by_priority=by_priority,
            most_partial=settings.max_num_partial_prefills,
            most_long=settings.max_long_partial_prefills,
            long_tokens=settings.long_tokens(limits),
        )
        common: dict[str, Any] = {
            "max_num_seqs": min(settings.max_num_seqs, budget or settings.max_num_seqs),
            "max_tokens": budget,
            "watermark": settings.watermark,
        }
        by_request: dict[str, Any] = {
            "own": own,
            "cancel": cancel_with(forget),
            "host_blocks": limits.host_kv_blocks if swaps else 0,
            "drops_above": self._longest_prompt(limits) if settings.emulate_bugs else 0,
        }
        if settings.enable_chunked_prefill:
            return family_rules_by_request(instance, run_chunked, longest_prompt=0, **common, **by_request)
        if not (swaps or settings.delay_factor or by_priority or settings.emulate_bugs):
            return family_rules(instance, batch=Batch.PREFILL_ONLY, **common)
        order = Order.PRIORITY if by_priority else Order.ARRIVAL
        return family_rules_by_request(
            instance, run_whole_prompts, order=order, sorts_by_key=by_priority, **common, **by_request
        )

    def _longest_prompt(self, limits: Limits) -> int:
        """Tokens above which vLLM drops a request when it comes to the head of the queue."""
        longest = limits.max_model_len or limits.kv_tokens
        if self.settings.enable_chunked_prefill:
            return longest
        return min(longest, self.settings.token_budget(limits) or longest)

    def _require_swap(self, allowed: Preemption, *, by_priority: bool) -> None:
        if not allowed.swaps:
            raise UsageError(
                f"policy {self.label}: preemption_mode=swap, but the instance allows preemption {allowed}; "
                "give it swap or either (--preemption either)"
            )
        if by_priority and not allowed.recomputes:
            raise UsageError(
                f"policy {self.label}: whoever makes room for a more important request is recomputed, but "
                "the instance allows swap only; give it either (--preemption either)"
            )
