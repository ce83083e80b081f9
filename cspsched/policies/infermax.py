"""InferMax's unified scheduler (arXiv 2411.07447): one scheduler whose switches span the usual ones.

* priority: decodes or prefills first; hybrid: both may share a batch; chunked prefill on or off.
* reservation: an admission takes the blocks of I + O - 1 tokens, and none is ever evicted. O is max_tokens of
  the request; where it declares none it is the true output, so with reservation it is then clairvoyant.
* eviction, when a decode lacks memory: `newest`, the latest arrival (NRF), or `shortest`, the request with
  the fewest known tokens (SRF), whose refill is the cheapest. `histogram` evicts the newest and seldom has
  to: requests are counted by floor(log2 of the prompt), and an admission needs room for the mean of prompt +
  output of those of its class that have finished, if that is more than the known tokens, though it takes
  the blocks of these only. Prompts below histogram_threshold are admitted as ever.

The defaults are those of the published comparison of preemption with reservation: decodes first, hybrid,
chunks where the instance allows them, newest first. Left open by the written rules and decided here: an
admission needs the blocks of all known tokens, and takes them with the first chunk; evicted requests go back
to their place in order of arrival; none is admitted in a batch before which one was evicted; prefills
that go first leave the blocks that the decodes of the same batch need. The histogram's rule is that of the
authors' simulator (`histogram` of its scheduler `test`), which names no default threshold; here it is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

from cspsched.compiled.jit import inner, merged
from cspsched.policies.batching import (
    Configured,
    chunk_tokens,
    decode_with,
    growing_blocks,
    last_in_order,
    most_blocks,
    prefill_with,
    queue_rules,
    reserved_tokens,
    rules_by_request,
    submit_to_queue,
)
from cspsched.policies.expected import declared_tokens
from cspsched.policies.settings import require_at_least
from cspsched.problem.instance import Instance
from cspsched.simulate.aggregated.state import Batch, Gate
from cspsched.simulate.kernel.actions import known_tokens
from cspsched.simulate.kernel.columns import LISTED
from cspsched.simulate.kernel.layout import Kernel
from cspsched.simulate.kernel.lists import bit_length
from cspsched.simulate.kernel.loops import Act, make_loop
from cspsched.simulate.kernel.records import PolicyState
from cspsched.simulate.kernel.rules import Chunk, Reserve, Rules


class Phase(StrEnum):
    """Which half of a batch comes first."""

    DECODE = "decode"
    PREFILL = "prefill"


class Eviction(StrEnum):
    """Who is evicted first."""

    NEWEST = "newest"
    SHORTEST = "shortest"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, kw_only=True)
class InfermaxSettings:
    """The scheduler's switches."""

    priority: Phase = Phase.DECODE
    """Which half of a batch comes first."""
    hybrid: bool = True
    """Whether the other half may share the batch."""
    chunked_prefill: bool | None = None
    """Whether a prompt may be split over batches. Default: as the instance allows."""
    reservation: bool = False
    """Whether an admission takes the blocks of prompt and output."""
    eviction: Eviction = Eviction.NEWEST
    """Who is evicted first; histogram avoids evictions by the mean length of requests that have finished."""
    histogram_threshold: int = 0
    """Prompt from which on an admission looks at the histogram, in tokens."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, "histogram_threshold", policy="infermax")


@dataclass(frozen=True, slots=True)
class Infermax(Configured):
    """InferMax's unified scheduler (arXiv 2411.07447): phase order, hybrid batches, reservation, eviction."""

    settings: InfermaxSettings = InfermaxSettings()
    name: ClassVar[str] = "infermax"
    settings_type: ClassVar[type[InfermaxSettings]] = InfermaxSettings

    def kernel_rules(self, instance: Instance) -> Rules:
        """Rules under an instance's limits.

        By request with prefills first in hybrid batches, where decodes sit out, and with other victims.
        """
        settings = self.settings
        common: dict[str, Any] = {
            "reserve": Reserve.PEAK if settings.reservation else Reserve.KNOWN,
            "expected_tokens": declared_tokens(instance) if settings.reservation else None,
        }
        if settings.chunked_prefill is not None:
            common["chunk"] = Chunk.ANY if settings.chunked_prefill else Chunk.NEVER
        prefills_first = settings.priority is Phase.PREFILL
        if (prefills_first and settings.hybrid) or settings.eviction is not Eviction.NEWEST:
            own = PolicyState(
                prefills_first=prefills_first,
                hybrid=settings.hybrid,
                length_threshold=settings.histogram_threshold,
            )
            run = run_shortest if settings.eviction is Eviction.SHORTEST else run_newest
            learns = settings.eviction is Eviction.HISTOGRAM
            return rules_by_request(instance, run, own=own, learns_lengths=learns, **common)
        alone = Batch.PREFILL_ONLY if prefills_first else Batch.DECODE_ONLY
        batch = Batch.MIXED if settings.hybrid else alone
        return queue_rules(instance, batch=batch, gate=Gate.NOT_AFTER_EVICTION, **common)


@inner
def fewest_known(k: Kernel) -> int:
    """Place of the request with the fewest known tokens; of equals the last in the order of the queue."""
    found = int(k.now.num_listed) - 1
    for place in range(k.now.num_listed - 2, -1, -1):
        request, other = int(k.slots[place, LISTED]), int(k.slots[found, LISTED])
        fewer = known_tokens(k, request) - known_tokens(k, other)
        if fewer < 0 or (not fewer and k.requests[request].key > k.requests[other].key):
            found = place
    return found


@inner
def fits(k: Kernel, request: int) -> bool:
    """Whether its blocks are free beside those that decodes of this batch are still to take."""
    now, own, needed = k.now, k.own, reserved_tokens(k, request)
    spare = now.free_blocks - (growing_blocks(k) if own.prefills_first and own.hybrid else 0)
    if now.learns_lengths:
        needed = max(needed, _expected_tokens(k, int(k.requests[request].prompt_tokens)))
    return bool(most_blocks(k, needed) <= spare)


@inner
def _expected_tokens(k: Kernel, prompt: int) -> int:
    """Mean length of finished requests of like prompt, rounded up; 0 if it is not to be looked at."""
    bits = bit_length(prompt)
    count = int(k.now.length_count[bits])
    if prompt < k.own.length_threshold or not count:
        return 0
    return (int(k.now.length_sum[bits]) + count - 1) // count


_prefill = prefill_with(chunk_tokens, fits)


def step_with(decode: Act) -> Act:
    """Return the step: one phase, then the other if the batch may have both or is still empty."""

    @merged
    def step(k: Kernel) -> None:
        """Decide a batch."""
        now, own = k.now, k.own
        if own.prefills_first:
            _prefill(k)
            if own.hybrid or not now.num_in_batch:
                decode(k)
        else:
            decode(k)
            if not now.num_evictions and (own.hybrid or not now.num_in_batch):
                _prefill(k)

    return step


run_newest = make_loop(
    "run_infermax_newest", submit=submit_to_queue, step=step_with(decode_with(last_in_order))
)
run_shortest = make_loop(
    "run_infermax_shortest", submit=submit_to_queue, step=step_with(decode_with(fewest_known))
)
