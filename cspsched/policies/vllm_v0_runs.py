"""The two modes of vLLM's V0 scheduler (vllm 0.9.2): whole prompts first, or chunks beside decodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from cspsched.policies.sarathi_family import FamilyRun, OwnLimits
from cspsched.problem.instance import Instance
from cspsched.simulate import Step


class V0Run(FamilyRun):
    """Queues of one run; `running` is in the order in which the last batch left it."""

    def in_order(self) -> Iterable[int]:
        """As it is: the last one is preempted first."""
        return self.running


class V0DefaultRun(V0Run):
    """Whole prompts in batches of their own; decodes only when none is admitted."""

    def __init__(self, instance: Instance, own: OwnLimits, *, delay_factor: float, by_priority: bool) -> None:
        super().__init__(instance, own)
        self._delay_factor = delay_factor
        self._by_priority = by_priority
        self._importance = [(request.priority, request.arrival_ns) for request in instance.requests]
        self._last_step_ns = 0
        self._last_was_prompt = False
        self._prompt_latency_ns = 0

    def schedule(self, step: Step) -> None:
        """Prompts first; if there is none, room for a more important request, and decodes."""
        self._note_latency(step.clock_ns)
        self.prefill_only(step)
        self._last_was_prompt = bool(step.batch)
        if not step.batch:
            if self._by_priority:
                self._prefer_important(step)
            self.decode_only(step)

    def _note_latency(self, now_ns: int) -> None:
        """Measure the batch before, if it was one of prompts."""
        if self._last_was_prompt:
            self._prompt_latency_ns = now_ns - self._last_step_ns
        self._last_step_ns = now_ns

    def may_admit(self, step: Step) -> bool:
        """Whether the earliest arrival has waited longer than the delay, or nobody runs."""
        if not self._delay_factor or not self.waiting or not self.running:
            return True
        waited_ns = step.clock_ns - min(self.arrival_ns[request] for request in self.waiting)
        return waited_ns > self._delay_factor * self._prompt_latency_ns

    def _prefer_important(self, step: Step) -> None:
        """Preempt whom the head of the queue surpasses in (priority, arrival) until it can be admitted.

        The queue, which the next step serves, is sorted only here.
        """
        self.running.sort(key=self._importance.__getitem__)
        if self.waiting:
            head = self.waiting[0]
            while self.running and self._importance[self.running[-1]] > self._importance[head]:
                if self._could_admit(step, head):
                    break
                self.preempt(step, self.running.pop())
        self.waiting = deque(sorted(self.waiting, key=self._importance.__getitem__))

    def _could_admit(self, step: Step, request: int) -> bool:
        blocks = self.blocks_to_admit(request, step.known_tokens[request])
        return len(self.running) < self.max_running and blocks + self.watermark_blocks <= step.free_blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialPrefills:
    """How many prefills may share the budget of a batch."""

    most: int
    """Prefills among which the budget is split."""
    most_long: int
    """How many of these may be long."""
    long_tokens: int
    """Tokens above which a prefill is long."""


class V0ChunkedRun(V0Run):
    """Decodes and started prefills in the order of `running`, then new prefills in what the budget leaves.

    New prefills are tried even after a preemption, but not with the victims of the same step.
    """

    def __init__(self, instance: Instance, own: OwnLimits, partial: PartialPrefills) -> None:
        super().__init__(instance, own)
        self._partial = partial
        self._slot_tokens = self.max_tokens
        self._long_left = 0
        self._victims: list[int] = []

    def schedule(self, step: Step) -> None:
        """Visit the running requests, admit, and hand over: new prefills, started ones, decodes."""
        if self._partial.most > 1:
            self._split_budget(step)
        unvisited, decodes, chunks, promised = self._visit(step)
        finishing = [r for r, tokens in chunks.items() if tokens == self._lacking(step, r)]
        others = [request for request in chunks if request not in finishing]
        self.running = [*unvisited, *decodes, *finishing, *others]
        self.admit(step, len(decodes) + sum(chunks.values()), step.free_blocks - promised)
        for request, tokens in chunks.items():
            step.schedule(request, tokens, 0)
        self.schedule_decodes(step, decodes)
        self.waiting.extendleft(self._victims)
        self._victims.clear()

    def _visit(self, step: Step) -> tuple[deque[int], list[int], dict[int, int], int]:
        """Running requests beyond the budget, decodes, chunks, and the blocks that the decodes need."""
        queue, decodes, chunks = deque(self.running), [], {}
        used = promised = 0
        while queue and used < self.max_tokens:
            request = queue.popleft()
            if not step.decoding[request]:
                chunks[request] = self.prefill_tokens(request, self._lacking(step, request), 0, used)
                used += chunks[request]
            elif step.free_blocks > promised or self.make_room(step, request, queue, promised):
                decodes.append(request)
                promised += step.missing_blocks(request, 1)
                used += 1
        return queue, decodes, chunks, promised

    def _lacking(self, step: Step, request: int) -> int:
        return step.known_tokens[request] - step.computed_tokens[request]

    def preempt(self, step: Step, request: int) -> None:
        """Evict a request; it is queued after the admissions of this step."""
        step.preempt(request)
        self._victims.append(request)

    def prefill_tokens(self, request: int, lacking: int, computed: int, used: int) -> int:
        """What the budget leaves, at most the share of one prefill."""
        return min(lacking, self.max_tokens - used, self._slot_tokens)

    def admit(self, step: Step, used: int, spare_blocks: int) -> None:
        """Admit in order; long prompts beyond their number are passed over."""
        if self._partial.most == 1:
            super().admit(step, used, spare_blocks)
            return
        queue = self.waiting
        self.waiting = deque(self._without_excess_long(step))
        super().admit(step, used, spare_blocks)
        self.waiting = deque(request for request in queue if not step.held_blocks[request])

    def _split_budget(self, step: Step) -> None:
        """Split the budget among the prefills that run and those that may start."""
        running = [self._is_long(step, request) for request in self.running if not step.decoding[request]]
        self._long_left = self._partial.most_long - sum(running)
        may_start = sum(1 for _ in islice(self._without_excess_long(step), self._partial.most))
        num_slots = min(self._partial.most, len(running) + may_start)
        self._slot_tokens = max(1, self.max_tokens // max(1, num_slots))

    def _is_long(self, step: Step, request: int) -> bool:
        return self._lacking(step, request) > self._partial.long_tokens

    def _without_excess_long(self, step: Step) -> Iterable[int]:
        """Waiting requests, of the long ones only as many as may still start."""
        long_left = self._long_left
        for request in self.waiting:
            is_long = self._is_long(step, request)
            if not is_long or long_left > 0:
                yield request
            long_left -= is_long
