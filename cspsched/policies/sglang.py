"""SGLang's scheduler as of 0.5.23, with the radix cache off.

Source: rules written down from the behaviour of the real scheduler. Prefill goes first and alone. Tokens are
set aside for outputs: what is left of max_new_tokens (here the request's output), at most 4096, in full for
the requests of the prefill batch and times a ratio for the running ones; if requests ignore the end of
sequence (ignore_eos), their decodes are simulated to the end instead. The ratio starts at 0.7 x
schedule_conservativeness, falls linearly within 600 decode steps to 0.14 of that, starts again when the
scheduler is idle, and rises after a retraction. Retracted first: fewest generated tokens, then longest
prompt (retraction_policy=priority: the least important before that).

With enable_mixed_chunk the decodes of running requests join a prefill batch and count in its budgets. With
prefill_decode_interval so many decode batches lie between two prefills. With enable_priority_scheduling the
queue is ordered by `priority` of the trace first (smaller is more important here, as with
schedule_low_priority_values_first), and a request that does not fit, or finds max_running_requests running,
retracts running ones whose priority is larger by more than priority_scheduling_preemption_threshold = 10.

Defaults: chunked_prefill_size 8192 (a GPU of 60 to 160 GB), max_prefill_tokens 16384,
schedule_conservativeness 1, schedule_policy fcfs. Left open by the written rules and decided here:

* A retracted request goes to the end of the queue (fcfs), and reserves what it still has to generate.
* A full batch (somebody did not fit) is tried again once a request finishes or is retracted.
* max_prefill_tokens counts like chunked_prefill_size, but a prompt that exceeds what is left of it waits.
* The KV blocks of a prompt in chunks are all taken with its first chunk; nobody else could take them anyway.
* The last running request is never aborted: the instance has rejected requests that do not fit alone.
* Without the cache no prefix is known, so that lpm and dfs-weight are fcfs. random draws a place for every
  request once, not for every batch.
* For a more important request the least important are retracted first, the last queued of equals, as few as
  make a place and room enough for it, and none if all of them do not.

Not simulated: hrrn (its service estimate is not in the rules), routing keys.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random
from typing import ClassVar

from cspsched.errors import UsageError
from cspsched.policies.batching import Compiled, Configured, QueueRun, first_come
from cspsched.policies.needs import Need, RequestData
from cspsched.policies.settings import require_at_least
from cspsched.problem.instance import Instance
from cspsched.problem.request import Request
from cspsched.simulate import Step
from cspsched.simulate.kernel.each.rules import AnyRules, Evict, Mode
from cspsched.simulate.kernel.rules import Order
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
    RANDOM = "random"
    LPM = "lpm"
    """Longest cached prefix."""
    DFS_WEIGHT = "dfs-weight"


class RetractionPolicy(StrEnum):
    """Who is retracted first."""

    LENGTH = "length"
    PRIORITY = "priority"


KEYS: dict[SchedulePolicy, Callable[[Request], float]] = {
    SchedulePolicy.FCFS: first_come,
    SchedulePolicy.LOF: lambda request: -request.output_tokens,
    SchedulePolicy.SHORTEST_PREFILL_FIRST: lambda request: request.prompt_tokens,
    SchedulePolicy.LPM: first_come,
    SchedulePolicy.DFS_WEIGHT: first_come,
}


KERNEL_ORDERS: dict[SchedulePolicy, Order] = {
    SchedulePolicy.FCFS: Order.ARRIVAL,
    SchedulePolicy.LOF: Order.LONGEST_OUTPUT,
    SchedulePolicy.SHORTEST_PREFILL_FIRST: Order.PROMPT,
    SchedulePolicy.LPM: Order.ARRIVAL,
    SchedulePolicy.DFS_WEIGHT: Order.ARRIVAL,
}


BY_PRIORITY = Need(data=RequestData.PRIORITY, without="none goes before another for it")
RETRACTED_BY_PRIORITY = Need(
    data=RequestData.PRIORITY, value=RetractionPolicy.PRIORITY, without="it retracts as by length"
)


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
    random_seed: int = 0
    """Seed of schedule_policy=random."""
    enable_mixed_chunk: bool = False
    """Whether decodes join the batches of prefills."""
    prefill_decode_interval: int | None = None
    """Decode batches between two batches with prefills, while there are decodes. Default: none."""
    ignore_eos: bool = False
    """Whether requests are known to generate all of max_new_tokens; then admissions simulate them."""
    enable_priority_scheduling: bool = field(default=False, metadata={"need": BY_PRIORITY})
    """Whether more important requests go first and retract others."""
    priority_scheduling_preemption_threshold: int = 10
    """A running request is retracted for one whose priority value is smaller by more than that."""
    retraction_policy: RetractionPolicy = field(
        default=RetractionPolicy.LENGTH, metadata={"need": RETRACTED_BY_PRIORITY}
    )
    """Who is retracted first when a decode lacks memory."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "max_prefill_tokens", "max_running_requests", policy="sglang")
        at_least_zero = ("prefill_decode_interval", "priority_scheduling_preemption_threshold", "random_seed")
        require_at_least(self, 0, *at_least_zero, policy="sglang")
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
class Sglang(Compiled, Configured):
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
        )
        self.rank = [(place, 0) for place in _places(instance.requests, settings)]
        self._settings = settings
        self._decode_steps = settings.prefill_decode_interval or 0
        self._max_prefill_tokens = settings.max_prefill_tokens
        self._first_ratio = min(0.7 * settings.schedule_conservativeness, 1.0)
        self._ratio = self._first_ratio
        self._is_full = False

    def kernel_rules(self) -> AnyRules | None:
        """Without random order, simulated decodes (ignore_eos) and retraction by priority."""
        settings = self._settings
        order = KERNEL_ORDERS.get(settings.schedule_policy)
        simple = not settings.ignore_eos and settings.retraction_policy is RetractionPolicy.LENGTH
        if order is None or not simple:
            return None
        return self._each_rules(
            mode=Mode.SGLANG,
            order=order,
            evict=Evict.FEWEST_GENERATED,
            most_prefill=self._max_prefill_tokens,
            mixes_decodes=settings.enable_mixed_chunk,
            decode_steps=settings.prefill_decode_interval or 0,
            retracts_for=settings.enable_priority_scheduling,
            threshold=settings.priority_scheduling_preemption_threshold,
            ratio=float(self._first_ratio),
        )

    def schedule(self, step: Step) -> None:
        """Prefill whatever can be; else decode, after retractions if memory is short."""
        if not self.running:
            self._is_full = False
            if not self.waiting:
                self._ratio = self._first_ratio
        if self._may_prefill(step):
            self.prefill(step)
        is_prefill = bool(step.batch)
        self._decode_steps = 0 if is_prefill else self._decode_steps + 1
        if self.running and (not is_prefill or self._settings.enable_mixed_chunk):
            self.decode(step)
        if self.running and not is_prefill:
            self._update_ratio(step)

    def retire(self, requests: Sequence[int]) -> None:
        """Drop finished requests; somebody may fit now."""
        super().retire(requests)
        self._is_full = False

    def _may_prefill(self, step: Step) -> bool:
        """Whether there have been decodes enough, and the batch is not full."""
        interval = self._settings.prefill_decode_interval or 0
        if self._decode_steps < interval and any(step.decoding[request] for request in self.running):
            return False
        # Somebody more important may make room.
        return not self._is_full or self._settings.enable_priority_scheduling

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

    def may_admit(self, step: Step) -> bool:
        """Whether another request may run; `fits` sees to its place if others can be made to give theirs."""
        return super().may_admit(step) or self._settings.enable_priority_scheduling

    def fits(self, step: Step, request: int) -> bool:
        """Whether there is room for a request and the outputs, if need be that of less important ones."""
        victims = self._victims_for(step, request)
        self._is_full = victims is None
        for victim in victims or ():
            self.evict(step, victim)
        return victims is not None

    def _victims_for(self, step: Step, request: int) -> list[int] | None:
        """As few as make room and a place of those that may be retracted; None if all of them do not."""
        free_blocks, others, victims = step.free_blocks, list(self.running), []
        candidates = self._candidates(step, request)
        while len(others) >= self.max_running or not self._has_room(step, request, others, free_blocks):
            victim = next(candidates, None)
            if victim is None:
                return None
            victims.append(victim)
            others.remove(victim)
            free_blocks += step.held_blocks[victim]
        return victims

    def _candidates(self, step: Step, request: int) -> Iterator[int]:
        """Requests less important by more than the threshold: the least first, of equals the last queued."""
        if self._settings.enable_priority_scheduling:
            priority = {i: self.requests[i].priority for i in self.running if i not in step.batch}
            most = self.requests[request].priority + self._settings.priority_scheduling_preemption_threshold
            for victim in sorted(priority, key=lambda i: (-priority[i], -self.rank[i][1])):
                if priority[victim] > most:
                    yield victim

    def _has_room(self, step: Step, request: int, others: Sequence[int], free_blocks: int) -> bool:
        """The test of an admission beside other running requests."""
        if self._settings.enable_mixed_chunk:
            free_blocks -= self.growing_blocks(step)
        if self._settings.ignore_eos:
            return self._can_run_to_the_end(step, request, others, free_blocks)
        whole = shared = 0
        for i in others:
            left = min(self.output_left(step, i), MOST_NEW_TOKENS)
            whole, shared = (whole + left, shared) if i in step.batch else (whole, shared + left)
        # One product, so that the order of the requests does not matter to the last bit.
        set_aside = whole + self._ratio * shared
        needed = self.lacking(step, request) + min(self.output_left(step, request), MOST_NEW_TOKENS)
        return needed + self.block_tokens < free_blocks * self.block_tokens - set_aside

    def _can_run_to_the_end(self, step: Step, request: int, others: Sequence[int], free_blocks: int) -> bool:
        """Whether all can decode until each has finished, with a token to spare for everybody then alive."""
        states = sorted((self.output_left(step, i), step.known_tokens[i]) for i in (*others, request))
        free_tokens = free_blocks * self.block_tokens - self.lacking(step, request)
        for position, (left, occupied) in enumerate(states):
            alive = len(states) - position
            if free_tokens - left * alive <= alive:
                return False
            free_tokens += occupied
        return True

    def chunk(self, step: Step, request: int) -> int:
        """The whole prompt, or whole blocks of it that the budget leaves."""
        lacking, block = self.lacking(step, request), self.block_tokens
        taken = sum(ceil_div(tokens, block) * block for tokens in step.batch.values())
        num_decodes = 0
        if self._settings.enable_mixed_chunk:
            num_decodes = sum(step.decoding[i] for i in self.running)
            taken += num_decodes
        if taken and taken + lacking > self._max_prefill_tokens:
            return 0
        budget = max(min(self.max_tokens - taken, step.tokens_left - num_decodes), 0)
        if lacking <= budget:
            return lacking
        return budget // block * block if self.chunked else 0

    def keep_first(self, step: Step) -> list[int]:
        """Most generated tokens first, then the shortest prompt; before that the important, if asked for."""
        kept = sorted(self.running, key=lambda i: (-self._generated(step, i), self.requests[i].prompt_tokens))
        if self._settings.retraction_policy is RetractionPolicy.PRIORITY:
            kept.sort(key=lambda i: self.requests[i].priority)
        return kept

    def requeue(self, request: int) -> None:
        """At the end of those of the same key."""
        self.rank[request] = (self.rank[request][0], self.next_number())
        insort(self.waiting, request, key=self.rank.__getitem__)


def _places(requests: Sequence[Request], settings: SglangSettings) -> list[int]:
    """Place of every request in the order of the queue; equals have the same, and go by submission."""
    if settings.schedule_policy is SchedulePolicy.RANDOM:
        rng = Random(settings.random_seed)
        keys = [rng.random() for _ in requests]
    else:
        keys = [KEYS[settings.schedule_policy](request) for request in requests]
    levels = [request.priority if settings.enable_priority_scheduling else 0 for request in requests]
    ordered = sorted(set(zip(levels, keys, strict=True)))
    place = {pair: position for position, pair in enumerate(ordered)}
    return [place[pair] for pair in zip(levels, keys, strict=True)]
