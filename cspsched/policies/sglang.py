"""SGLang's scheduler as of 0.5.23: radix cache off, no mixed chunks, no priorities.

Source: rules written down from the behaviour of the real scheduler. Prefill goes first and alone. Tokens are
set aside for outputs: what is left of max_new_tokens (here the request's output), at most 4096, in full for
the requests of the prefill batch and times a ratio for the running ones. The ratio starts at 0.7 x
schedule_conservativeness, falls linearly within 600 decode steps to 0.14 of that, starts again when the
scheduler is idle, and rises after a retraction. Retracted first: fewest generated tokens, then longest
prompt.

Defaults: chunked_prefill_size 8192 (a GPU of 60 to 160 GB), max_prefill_tokens 16384,
schedule_conservativeness 1, schedule_policy fcfs. Left open by the written rules and decided here:

* A retracted request goes to the end of the queue (fcfs), and reserves what it still has to generate.
* A full batch (somebody did not fit) is tried again once a request finishes or is retracted.
* max_prefill_tokens counts like chunked_prefill_size, but a prompt that exceeds what is left of it waits.
* The KV blocks of a prompt in chunks are all taken with its first chunk; nobody else could take them anyway.
* The last running request is never aborted: the instance has rejected requests that do not fit alone.

Requests stop by themselves (ignore_eos is off). Not simulated: lpm and dfs-weight (fcfs without the cache),
random, hrrn (its service estimate is not given), routing keys, the exact test for requests that ignore the
end of sequence, prefill_decode_interval.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from cspsched.errors import UsageError
from cspsched.policies.batching import Configured, QueueRun, first_come
from cspsched.policies.settings import require_at_least
from cspsched.problem.instance import Instance
from cspsched.problem.request import Request
from cspsched.simulate import Step
from cspsched.units import ceil_div

MOST_NEW_TOKENS = 4096
"""More output than that is not set aside."""
DECAY_STEPS = 600
RETRACT_STEPS = 20
"""Decode steps that a retraction expects to be enough for."""


class SchedulePolicy(StrEnum):
    """Order of the waiting queue."""

    FCFS = "fcfs"
    LOF = "lof"
    """Longest output first."""
    SHORTEST_PREFILL_FIRST = "shortest-prefill-first"


KEYS: dict[SchedulePolicy, Callable[[Request], float]] = {
    SchedulePolicy.FCFS: first_come,
    SchedulePolicy.LOF: lambda request: -request.output_tokens,
    SchedulePolicy.SHORTEST_PREFILL_FIRST: lambda request: request.prompt_tokens,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SglangSettings:
    """The server's arguments that are simulated; None takes the instance's limit."""

    chunked_prefill_size: int = 8192
    """Token budget of a prefill batch, to which prompts are cut; -1 cuts none."""
    max_prefill_tokens: int = 16384
    """Token budget of a prefill batch beyond which no further prompt is taken."""
    max_running_requests: int | None = None
    """Most running requests. Default: the instance's R."""
    schedule_conservativeness: float = 1.0
    """Factor on the share of outputs that is set aside."""
    schedule_policy: SchedulePolicy = SchedulePolicy.FCFS
    """Order of the waiting queue."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "max_prefill_tokens", "max_running_requests", policy="sglang")
        if self.chunked_prefill_size < 1 and self.chunked_prefill_size != -1:
            raise UsageError(
                f"policy 'sglang': chunked_prefill_size is {self.chunked_prefill_size}, "
                "expected at least 1, or -1 to cut no prompt"
            )
        if not self.schedule_conservativeness >= 0:
            raise UsageError(
                f"policy 'sglang': schedule_conservativeness is {self.schedule_conservativeness}, "
                "expected at least 0"
            )


@dataclass(frozen=True, slots=True)
class Sglang(Configured):
    """SGLang (0.5.23): prefill first and alone, a decaying share of the outputs set aside."""

    settings: SglangSettings = SglangSettings()
    name: ClassVar[str] = "sglang"
    settings_type: ClassVar[type[SglangSettings]] = SglangSettings

    def new_run(self, instance: Instance) -> SglangRun:
        """Empty queues under the instance's limits and the settings, whichever are tighter."""
        return SglangRun(instance, self.settings)


class SglangRun(QueueRun):
    """Queues of one run."""

    def __init__(self, instance: Instance, settings: SglangSettings) -> None:
        chunk = settings.chunked_prefill_size
        super().__init__(
            instance,
            max_tokens=None if chunk == -1 else chunk,
            max_requests=settings.max_running_requests,
            chunked=False if chunk == -1 else None,
            key=KEYS[settings.schedule_policy],
        )
        self._max_prefill_tokens = settings.max_prefill_tokens
        self._first_ratio = min(0.7 * settings.schedule_conservativeness, 1.0)
        self._ratio = self._first_ratio
        self._is_full = False

    def schedule(self, step: Step) -> None:
        """Prefill whatever can be; else decode, after retractions if memory is short."""
        if not self.running:
            self._is_full = False
            if not self.waiting:
                self._ratio = self._first_ratio
        if not self._is_full:
            self.prefill(step)
        if not step.batch and self.running:
            self.decode(step)
            self._update_ratio(step)

    def retire(self, requests: Sequence[int]) -> None:
        """Drop finished requests; somebody may fit now."""
        super().retire(requests)
        self._is_full = False

    def _update_ratio(self, step: Step) -> None:
        """Decay, or after a retraction expect a few more tokens of everybody than have been generated."""
        if not step.evicted:
            least = 0.14 * self._first_ratio
            self._ratio = max(self._ratio - (self._first_ratio - least) / DECAY_STEPS, least)
            return
        self._is_full = False
        generated = sum(self._generated(step, request) for request in self.running)
        outputs = sum(self.requests[request].output_tokens for request in self.running)
        self._ratio = min(1.0, (generated + RETRACT_STEPS * len(self.running)) / (outputs + 1))

    def _generated(self, step: Step, request: int) -> int:
        return step.known_tokens[request] - self.requests[request].prompt_tokens

    def fits(self, step: Step, request: int) -> bool:
        """Whether prompt, output and a block are less than what is free and not set aside for outputs."""
        set_aside = sum(
            min(self.output_left(step, i), MOST_NEW_TOKENS) * (1.0 if i in step.batch else self._ratio)
            for i in self.running
        )
        needed = self.lacking(step, request) + min(self.output_left(step, request), MOST_NEW_TOKENS)
        self._is_full = needed + self.block_tokens >= step.free_blocks * self.block_tokens - set_aside
        return not self._is_full

    def chunk(self, step: Step, request: int) -> int:
        """The whole prompt, or whole blocks of it that the budget leaves."""
        lacking, block = self.lacking(step, request), self.block_tokens
        taken = sum(ceil_div(tokens, block) * block for tokens in step.batch.values())
        if taken and taken + lacking > self._max_prefill_tokens:
            return 0
        budget = max(min(self.max_tokens - taken, step.tokens_left), 0)
        if lacking <= budget:
            return lacking
        return budget // block * block if self.chunked else 0

    def keep_first(self, step: Step) -> list[int]:
        """Most generated tokens first, then the shortest prompt."""
        return sorted(self.running, key=lambda i: (-self._generated(step, i), self.requests[i].prompt_tokens))

    def requeue(self, request: int) -> None:
        """At the end of those of the same key."""
        self.rank[request] = (self.rank[request][0], self.next_number())
        insort(self.waiting, request, key=self.rank.__getitem__)
