"""LightLLM's router with whole prompts (`continues_batch`): admission by the memory that will be needed.

Source: rules written down from the behaviour of the router. A request that holds a tokens (input +
generated, one more if it is new) and has b = max(0, M - generated - 1) to come belongs to a batch only if
the peak of all is below the device's tokens; M is max_new_tokens (max_tokens of the request, its output where
it declares none) while the device is busy or the requests ignore the end of sequence, else
min(max_new_tokens, max(1.1 generated, router_max_new_token_len)). Prefills run alone. A decode that lacks
memory pauses the newest, which goes to the front of the queue.

Defaults: running_max_req_size 1000, router_token_ratio 0 (always busy, as in the older releases),
router_max_wait_tokens 1 (newer releases; 6 in old ones). Left open by the written rules and decided here:

* router_max_new_token_len has no default there; 1024 here, without effect while router_token_ratio is 0.
* Busy means a share of used KV blocks of at least (not above) router_token_ratio, so that 0 is always busy.
* A try without an admission starts the count of router_max_wait_tokens decode steps again.
* Paused requests lose their KV entries. Tokens are counted in KV blocks; with blocks of one token that is the
  router's own rule. A prompt longer than batch_max_tokens is cut where chunks are allowed.

Not simulated: the variant with chunked prefill (`chunked_prefill`): the rules give its admission (more tokens
to come, 16 in reserve), but not which requests share a batch with a chunk; tokens frozen by a prompt cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from cspsched.compiled.jit import inner, merged
from cspsched.policies.batching import (
    Configured,
    chunk_tokens,
    decode,
    has_started,
    prefill_with,
    queue_rules,
    rules_by_request,
    submit_to_queue,
)
from cspsched.policies.expected import declared_tokens
from cspsched.policies.settings import require_at_least, require_fraction
from cspsched.problem.instance import Instance
from cspsched.simulate.aggregated.state import Admit, Batch
from cspsched.simulate.kernel.actions import blocks_of
from cspsched.simulate.kernel.columns import HELD_TOKENS, IN_LOCKSTEP, LISTED, LOCKED, TO_COME
from cspsched.simulate.kernel.layout import DECODES, Kernel
from cspsched.simulate.kernel.loops import make_loop
from cspsched.simulate.kernel.records import NO_REQUEST, PolicyState
from cspsched.simulate.kernel.rules import Chunk, Rules


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
class Lightllm(Configured):
    """LightLLM (continuous batch): prefill alone, admitted if the peak of all outputs fits."""

    settings: LightllmSettings = LightllmSettings()
    name: ClassVar[str] = "lightllm"
    settings_type: ClassVar[type[LightllmSettings]] = LightllmSettings

    def kernel_rules(self, instance: Instance) -> Rules:
        """Rules under an instance's limits; by request unless the device counts as busy at all times."""
        settings, common = self.settings, router_rules(self.settings, instance)
        if settings.router_token_ratio:
            return rules_by_request(instance, run_lightllm, own=PolicyState(**router(settings)), **common)
        return queue_rules(
            instance,
            batch=Batch.DECODE_STEPS,
            decode_steps=settings.router_max_wait_tokens,
            admit=Admit.FUTURE,
            future_spare=1,
            future_extra=1,
            **common,
        )


def router_rules(settings: LightllmSettings, instance: Instance) -> dict[str, Any]:
    """Return the limits of the router under an instance's, and what it takes for outputs."""
    return {
        "max_tokens": settings.batch_max_tokens,
        "max_requests": settings.running_max_req_size,
        "chunk": Chunk.BEYOND_BUDGET if instance.switches.chunked_prefill else Chunk.NEVER,
        "expected_tokens": declared_tokens(instance),
    }


def router(settings: LightllmSettings) -> dict[str, Any]:
    """Return the router's fields of `PolicyState`."""
    return {
        "ratio": float(settings.router_token_ratio),
        "decode_steps": settings.router_max_wait_tokens,
        "assumed_tokens": settings.router_max_new_token_len,
    }


@inner
def fits_for_ever(k: Kernel, request: int) -> bool:
    """Whether the peak of all that run and one more leaves enough free, if each decodes in every batch."""
    now = k.now
    # The peak stays below the capacity.
    most = int(now.kv_blocks) - 1
    if _most_at_end(k, request) <= most:
        return True
    is_busy = now.kv_blocks - now.free_blocks >= k.own.ratio * now.kv_blocks
    count = needed = 0
    for column in (LOCKED, LISTED):
        for position in range(now.locked_end if column == LOCKED else now.num_listed):
            other = int(k.slots[position, column])
            if other != NO_REQUEST:
                needed += _look_ahead(k, other, count, is_busy)
                count += 1
    needed += _look_ahead(k, request, count, is_busy)
    return needed <= most or _peak_fits(k, count + 1, most)


@inner
def _most_at_end(k: Kernel, request: int) -> int:
    """At least the KV blocks of all that run and one more if each held its whole output."""
    now = k.now
    cut = (now.block_tokens - 1) * now.num_locked
    blocks = blocks_of(k, k.requests[request].prompt_tokens + k.requests[request].expected_tokens)
    for position in range(now.num_listed):
        row = k.requests[k.slots[position, LISTED]]
        blocks += blocks_of(k, row.prompt_tokens + row.expected_tokens)
    return int(blocks + (now.locked_total + cut) // now.block_tokens)


@inner
def _look_ahead(k: Kernel, request: int, position: int, is_busy: bool) -> int:  # noqa: FBT001
    """Note what a request holds and will add; the blocks that it needs at last."""
    row = k.requests[request]
    generated, output, decoding = int(row.generated), int(row.expected_tokens), row.phase >= DECODES
    if row.phase == IN_LOCKSTEP:
        generated += int(k.now.num_decode_steps - row.joined)
    longest = output if is_busy else min(output, max(generated * 11 // 10, int(k.own.assumed_tokens)))
    to_come = max(0, longest - generated - 1)
    held = int(row.prompt_tokens) + generated + (not decoding)
    k.slots[position, TO_COME], k.slots[position, HELD_TOKENS] = to_come, held
    return blocks_of(k, held + to_come)


@inner
def _peak_fits(k: Kernel, count: int, most: int) -> bool:
    """Whether the blocks fit before each of the ends, the last end first."""
    _sort_by_end(k, count)
    block, held = int(k.now.block_tokens), 0
    for alive in range(1, count + 1):
        steps = int(k.slots[alive - 1, TO_COME])
        held += int(k.slots[alive - 1, HELD_TOKENS])
        # Between full blocks throughout and a block cut into by each: the exact sum is seldom needed.
        if (held + alive * (steps + block - 1)) // block <= most:
            continue
        if held + alive * steps > most * block:
            return False
        blocks = 0
        for position in range(alive):
            blocks += blocks_of(k, int(k.slots[position, HELD_TOKENS]) + steps)
        if blocks > most:
            return False
    return True


@inner
def _sort_by_end(k: Kernel, count: int) -> None:
    """Sort what requests hold and will add, who adds most first."""
    for position in range(1, count):
        to_come, held = k.slots[position, TO_COME], k.slots[position, HELD_TOKENS]
        place = position
        while place and k.slots[place - 1, TO_COME] < to_come:
            k.slots[place, TO_COME] = k.slots[place - 1, TO_COME]
            k.slots[place, HELD_TOKENS] = k.slots[place - 1, HELD_TOKENS]
            place -= 1
        k.slots[place, TO_COME], k.slots[place, HELD_TOKENS] = to_come, held


_prefill = prefill_with(chunk_tokens, fits_for_ever)


@inner
def is_time_to_prefill(k: Kernel) -> bool:
    """Whether enough decode steps have passed, or no decode could go on; then the count starts again."""
    now, own = k.now, k.own
    is_due = not now.num_running or has_started(k) or own.num_steps >= own.decode_steps
    if is_due:
        own.num_steps = 0
    return bool(is_due)


@merged
def lightllm_step(k: Kernel) -> None:
    """Prefill every so many decode steps, if something fits; else decode."""
    if is_time_to_prefill(k):
        _prefill(k)
    if not k.now.num_in_batch:
        k.own.num_steps += 1
        decode(k)


run_lightllm = make_loop("run_lightllm", submit=submit_to_queue, step=lightllm_step)
