"""Text Generation Inference v3's queue (`backends/v3`): prefill alone, memory reserved to the end.

Source: rules written down from the behaviour of the router. First come, first served; an admission takes
the KV blocks of input + max_new_tokens - 1 tokens, at most the device, where max_new_tokens is max_tokens of
the request (its output where it declares none). Left open by the written rules and decided here:

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

from dataclasses import dataclass
from typing import Any, ClassVar

from cspsched.compiled.jit import inner, merged
from cspsched.errors import UsageError
from cspsched.policies.batching import (
    Configured,
    chunk_tokens,
    decode,
    fits,
    has_started,
    prefill_with,
    queue_rules,
    rules_by_request,
    submit_to_queue,
)
from cspsched.policies.expected import declared_tokens
from cspsched.policies.settings import require_at_least
from cspsched.problem.instance import Instance
from cspsched.simulate.aggregated.state import Batch
from cspsched.simulate.kernel.columns import LISTED
from cspsched.simulate.kernel.layout import Kernel
from cspsched.simulate.kernel.loops import make_loop
from cspsched.simulate.kernel.records import PolicyState
from cspsched.simulate.kernel.rules import Chunk, Reserve, Rules
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
class Tgi(Configured):
    """TGI v3: prefill and decode batches apart, prompt and output reserved at admission, no preemption."""

    settings: TgiSettings = TgiSettings()
    name: ClassVar[str] = "tgi"
    settings_type: ClassVar[type[TgiSettings]] = TgiSettings

    def kernel_rules(self, instance: Instance) -> Rules:
        """Rules under an instance's limits; by request with a budget of total tokens."""
        settings = self.settings
        block, prefill_tokens = instance.limits.block_tokens, settings.max_batch_prefill_tokens
        common: dict[str, Any] = {
            "max_tokens": prefill_tokens and ceil_div(prefill_tokens, block) * block,
            "max_requests": settings.max_batch_size,
            "reserve": Reserve.PEAK,
            "expected_tokens": declared_tokens(instance),
        }
        if instance.switches.chunked_prefill:
            common["chunk"] = Chunk.BEYOND_BUDGET
        ratio, steps = settings.waiting_served_ratio, settings.max_waiting_tokens
        if settings.max_batch_total_tokens is None:
            batch = Batch.WAITING_RATIO
            return queue_rules(instance, batch=batch, waiting_ratio=ratio, decode_steps=steps, **common)
        own = PolicyState(
            waiting_ratio=float(ratio), decode_steps=steps, total_tokens=settings.max_batch_total_tokens
        )
        return rules_by_request(instance, run_tgi, own=own, **common)


@inner
def fits_total(k: Kernel, request: int) -> bool:
    """Whether its blocks are free, and input and output of all that run stay within the limit."""
    total = k.now.locked_total + k.requests[request].prompt_tokens + k.requests[request].expected_tokens
    for position in range(k.now.num_listed):
        row = k.requests[k.slots[position, LISTED]]
        total += row.prompt_tokens + row.expected_tokens
    return bool(total <= k.own.total_tokens) and fits(k, request)


_prefill = prefill_with(chunk_tokens, fits_total)


@merged
def tgi_step(k: Kernel) -> None:
    """Prefill if enough requests wait or decode steps have passed, and something fits; else decode."""
    now, own = k.now, k.own
    is_due = not now.num_running or has_started(k) or own.num_steps >= own.decode_steps
    if is_due or now.num_waiting >= own.waiting_ratio * now.num_running:
        _prefill(k)
    if now.num_in_batch:
        own.num_steps = 0
    else:
        own.num_steps += 1
        decode(k)


run_tgi = make_loop("run_tgi", submit=submit_to_queue, step=tgi_step)
