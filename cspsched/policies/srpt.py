"""Shortest remaining processing time by true (clairvoyant) or predicted length, also with limited preemption.

* `srpt`: before every batch all requests are ordered by the output tokens that they still lack (SRTF of
  hao-ai-lab/vllm-ltr); a request that lacks memory evicts the resident of longest remaining output.
* `trail`: limited-preemption SRPT of TRAIL (arXiv 2410.01035): a request that has generated c = 0.8 of the
  length that was predicted at its arrival goes before all others and is no longer preempted for their sake
  (but it is where those before it would not fit otherwise). TRAIL predicts the rest anew with every token;
  here it is what is left of the first prediction.

Left open by the written rules: a request that has outlived its prediction goes before all others; a request
beyond the budgets keeps its memory until another needs it; evicted requests are recomputed; ties go to the
earlier submission.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cspsched.compiled.jit import inner, merged
from cspsched.errors import UsageError
from cspsched.policies.batching import Configured
from cspsched.policies.expected import PredictionSettings, predicted_tokens
from cspsched.policies.ranking import ranked_rules, serve
from cspsched.problem.instance import Instance
from cspsched.simulate.kernel.columns import KEY_BITS, LISTED
from cspsched.simulate.kernel.layout import Kernel
from cspsched.simulate.kernel.lists import next_arrival, next_number, numbered_key, push
from cspsched.simulate.kernel.loops import make_loop
from cspsched.simulate.kernel.records import PolicyState
from cspsched.simulate.kernel.rules import Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class SrptSettings(PredictionSettings):
    """How output lengths are known."""

    def __post_init__(self) -> None:
        self.require_prediction("srpt")


@dataclass(frozen=True, slots=True)
class Srpt(Configured):
    """Shortest remaining output first, preemptive (vllm-ltr's srtf); clairvoyant by default."""

    settings: SrptSettings = SrptSettings()
    name: ClassVar[str] = "srpt"
    settings_type: ClassVar[type[SrptSettings]] = SrptSettings

    def kernel_rules(self, instance: Instance) -> Rules:
        """Rules under an instance's limits; all may be preempted to the end."""
        return _rules(instance, self.settings, self.name, share=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrailSettings(PredictionSettings):
    """TRAIL's argument, and how output lengths are known."""

    c: float = 0.8
    """A request may be preempted only while it has generated less than this share of its output."""

    def __post_init__(self) -> None:
        if not 0 <= self.c <= 1:
            raise UsageError(f"policy 'trail': c is {self.c}, expected 0 to 1")
        self.require_prediction("trail")


@dataclass(frozen=True, slots=True)
class Trail(Configured):
    """Limited-preemption SRPT (TRAIL, arXiv 2410.01035); clairvoyant by default."""

    settings: TrailSettings = TrailSettings()
    name: ClassVar[str] = "trail"
    settings_type: ClassVar[type[TrailSettings]] = TrailSettings

    def kernel_rules(self, instance: Instance) -> Rules:
        """Rules under an instance's limits."""
        return _rules(instance, self.settings, self.name, share=float(self.settings.c))


def _rules(instance: Instance, settings: PredictionSettings, policy: str, *, share: float) -> Rules:
    predicted = predicted_tokens(instance, settings, policy)
    return ranked_rules(instance, run_remaining, own=PolicyState(share=share), expected_tokens=predicted)


@inner
def _submit(k: Kernel) -> None:
    """Queue all arrivals by output; place 0 is for those that go first."""
    request = next_arrival(k)
    while request >= 0:
        k.requests[request].key = numbered_key(int(k.requests[request].expected_tokens) + 1, next_number(k))
        push(k, request)
        request = next_arrival(k)


@merged
def remaining_step(k: Kernel) -> None:
    """Rank the running requests by the output that they lack, those come far enough first; then serve."""
    for position in range(k.now.num_listed):
        request = int(k.slots[position, LISTED])
        generated, output = int(k.requests[request].generated), int(k.requests[request].expected_tokens)
        place = 0 if generated >= k.own.share * output else output - generated + 1
        number = k.requests[request].key & ((1 << KEY_BITS) - 1)
        k.requests[request].key = numbered_key(place, number)
    serve(k)


run_remaining = make_loop("run_remaining", submit=_submit, step=remaining_step)
