"""The two modes of vLLM's V0 scheduler (vllm 0.9.2): whole prompts first, or chunks beside decodes.

With preemption by swap a victim enters the end of the swapped queue. Its head comes back, in a step in which
nobody was preempted, once the blocks of its known tokens are free above the watermark. Where the real
scheduler stops, a run here goes on or says why not:

* A victim that host memory has no room for is an error, as in vLLM ("lack of CPU swap space").
* Whoever makes room for a more important request waits with the others in vLLM, which then fails an assertion
  if that request was swapped; here it is recomputed.
* A swapped prefill comes back in one piece, and in vLLM never if that is more than the budget of a batch;
  here it is cut then.
* While nothing is running the watermark is waived, as for admissions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice

from cspsched.policies.sarathi_family import FamilyRun, OwnLimits
from cspsched.problem.instance import Instance
from cspsched.simulate import Step, StuckError
from cspsched.simulate.kernel.each.family_parts import submit_to_family
from cspsched.simulate.kernel.each.loops import make_loop
from cspsched.simulate.kernel.each.rules import AnyRules, Mode
from cspsched.simulate.kernel.each.v0_chunked import chunked_step
from cspsched.simulate.kernel.rules import Batch, Order
from cspsched.units import ceil_div

run_chunked = make_loop("run_chunked", submit=submit_to_family, step=chunked_step)


class V0Run(FamilyRun):
    """Queues of one run; `running` is in the order in which the last batch left it.

    Attributes
    ----------
    swapped
        Requests in host memory, next first.
    """

    def __init__(self, instance: Instance, own: OwnLimits, *, swaps: bool) -> None:
        super().__init__(instance, own)
        self.swapped: deque[int] = deque()
        self._swaps = swaps
        self._host_blocks = instance.limits.host_kv_blocks if swaps else 0

    def in_order(self) -> Iterable[int]:
        """As it is: the last one is preempted first."""
        return self.running

    def preempt(self, step: Step, request: int) -> None:
        """Evict a request to the end of the swapped queue, or to be recomputed."""
        if not self._swaps:
            self.recompute(step, request)
            return
        blocks = ceil_div(step.known_tokens[request], self.block_tokens)
        if blocks > step.free_host_blocks:
            name = self.requests[request].request_id
            raise StuckError(
                f"policy {self.label}: request {name!r} needs {blocks} KV blocks in host memory to be "
                f"swapped out, {step.free_host_blocks} are free (vLLM stops there, too); give more host "
                "memory, or preemption_mode=recompute"
            )
        step.swap_out(request)
        self.swapped.append(request)

    def recompute(self, step: Step, request: int) -> None:
        """Evict a request to the front of the queue."""
        super().preempt(step, request)

    def may_return(self, step: Step, spare_blocks: int) -> bool:
        """Whether the head of the swapped queue fits beside those that run."""
        if not self.swapped or len(self.running) >= self.max_running:
            return False
        kept_free = self.watermark_blocks if self.running else 0
        blocks = ceil_div(step.known_tokens[self.swapped[0]], self.block_tokens)
        return blocks + kept_free <= spare_blocks

    def restore(self, step: Step) -> int:
        """Bring the head of the swapped queue back and return it."""
        request = self.swapped.popleft()
        step.swap_in(request)
        self.running.append(request)
        return request


class V0DefaultRun(V0Run):
    """Whole prompts in batches of their own; decodes only when none is admitted."""

    def __init__(
        self, instance: Instance, own: OwnLimits, *, swaps: bool, delay_factor: float, by_priority: bool
    ) -> None:
        super().__init__(instance, own, swaps=swaps)
        self._delay_factor = delay_factor
        self._by_priority = by_priority
        self._importance = [(request.priority, request.arrival_ns) for request in instance.requests]
        self._last_step_ns = 0
        self._last_was_prompt = False
        self._prompt_latency_ns = 0

    def kernel_rules(self) -> AnyRules | None:
        """Without swap; by request with delay or priority."""
        rules = self._base_rules()
        if self._swaps or self._delay_factor or self._by_priority or rules is None:
            return self._each_rules(
                mode=Mode.PREFILL_ONLY,
                swaps=self._swaps,
                host_blocks=self._host_blocks,
                ratio=float(self._delay_factor),
                by_importance=self._by_priority,
                order=Order.PRIORITY if self._by_priority else Order.ARRIVAL,
            )
        return replace(rules, batch=Batch.PREFILL_ONLY)

    def schedule(self, step: Step) -> None:
        """Prompts first; if there is none, room for a more important request, decodes, who was swapped."""
        self._note_latency(step.clock_ns)
        self.prefill_only(step)
        self._last_was_prompt = bool(step.batch)
        if not step.batch:
            if self._by_priority:
                self._prefer_important(step)
            evicted = len(step.evicted)
            self.decode_only(step)
            if len(step.evicted) == evicted:
                self._return(step)

    def _return(self, step: Step) -> None:
        """Bring back from host memory, in order, who fits; decodes go on at the end of the batch."""
        while self.may_return(step, step.free_blocks):
            request = self.restore(step)
            if step.decoding[request]:
                self.schedule_decodes(step, [request])

    def _note_latency(self, now_ns: int) -> None:
        """Measure the batch before, if it was one of prompts."""
        if self._last_was_prompt:
            self._prompt_latency_ns = now_ns - self._last_step_ns
        self._last_step_ns = now_ns

    def may_admit(self, step: Step) -> bool:
        """Whether nobody is swapped, and the earliest arrival has waited for the delay, or nobody runs."""
        if self.swapped:
            return False
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
                self.recompute(step, self.running.pop())
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

    New prefills are tried even after a preemption, but not with the victims of the same step. A started
    prefill, too, wants to see a free block, unless its tokens fill its blocks; if nobody else is left it goes
    on without (vLLM evicts it again and again).
    """

    def __init__(self, instance: Instance, own: OwnLimits, partial: PartialPrefills, *, swaps: bool) -> None:
        super().__init__(instance, own, swaps=swaps)
        self._partial = partial
        self._slot_tokens = self.max_tokens
        self._long_left = 0
        self._victims: list[int] = []

    def kernel_rules(self) -> AnyRules | None:
        """Without swap, and with one partial prefill at a time."""
        return self._each_rules(
            run=run_chunked,
            mode=Mode.CHUNKED,
            longest_prompt=0,
            swaps=self._swaps,
            host_blocks=self._host_blocks,
            most_partial=self._partial.most,
            most_long=self._partial.most_long,
            long_prefill=self._partial.long_tokens,
        )

    def schedule(self, step: Step) -> None:
        """Visit the running requests, restore, admit, hand over: new prefills, started ones, decodes."""
        if self._partial.most > 1:
            self._split_budget(step)
        unvisited, decodes, chunks, promised = self._visit(step)
        finishing = [r for r, tokens in chunks.items() if tokens == self._lacking(step, r)]
        others = [request for request in chunks if request not in finishing]
        kept = [*decodes, *finishing, *others]
        self.running = [*unvisited, *kept]
        used = len(decodes) + sum(chunks.values())
        restored = {} if step.evicted else self._return(step, used, promised)
        if restored:
            back = sorted(restored, key=step.decoding.__getitem__, reverse=True)
            self.running = [*unvisited, *back, *kept]
            decodes += [request for request in back if step.decoding[request]]
            chunks |= {request: n for request, n in restored.items() if not step.decoding[request]}
            promised += sum(step.missing_blocks(request, n) for request, n in restored.items())
        self.admit(step, used + sum(restored.values()), step.free_blocks - promised)
        for request, tokens in chunks.items():
            step.schedule(request, tokens, step.missing_blocks(request, tokens))
        self.schedule_decodes(step, decodes)
        self.waiting.extendleft(self._victims)
        self._victims.clear()

    def _visit(self, step: Step) -> tuple[deque[int], list[int], dict[int, int], int]:
        """Running requests beyond the budget, decodes, chunks, and the blocks that the decodes need."""
        queue = deque(self.running)
        decodes: list[int] = []
        chunks: dict[int, int] = {}
        used = promised = 0
        while queue and used < self.max_tokens:
            request = queue.popleft()
            if not step.decoding[request]:
                is_first = not decodes and not chunks
                if self._goes_on(step, request, queue, promised, is_first=is_first):
                    chunks[request] = self.prefill_tokens(request, self._lacking(step, request), 0, used)
                    used += chunks[request]
            elif self._sees_block(step, request, queue, promised):
                decodes.append(request)
                promised += step.missing_blocks(request, 1)
                used += 1
        return queue, decodes, chunks, promised

    def _goes_on(self, step: Step, request: int, queue: deque[int], promised: int, *, is_first: bool) -> bool:
        """Whether a started prefill is kept: it wants a free block unless its tokens fill its blocks."""
        if step.known_tokens[request] % self.block_tokens == 0:
            return True
        while step.free_blocks == promised and queue:
            self.preempt(step, queue.pop())
        if step.free_blocks > promised or is_first:
            return True
        self.preempt(step, request)
        return False

    def _sees_block(self, step: Step, request: int, queue: deque[int], promised: int) -> bool:
        return step.free_blocks > promised or self.make_room(step, request, queue, promised)

    def _lacking(self, step: Step, request: int) -> int:
        return step.known_tokens[request] - step.computed_tokens[request]

    def _return(self, step: Step, used: int, promised: int) -> dict[int, int]:
        """Bring back from host memory, in order, who fits; the tokens that each of them processes."""
        restored: dict[int, int] = {}
        while self.may_return(step, step.free_blocks - promised):
            tokens = self._tokens_after_return(step, self.swapped[0], used)
            if not tokens:
                break
            request = self.restore(step)
            restored[request] = tokens
            promised += step.missing_blocks(request, tokens)
            used += tokens
        return restored

    def _tokens_after_return(self, step: Step, request: int, used: int) -> int:
        """All that it lacks, or nothing if that is too much; only beyond a whole budget a part."""
        lacking = step.known_tokens[request] - step.host_tokens[request]
        tokens, left = min(lacking, self.max_tokens), self.max_tokens - used
        return tokens if tokens <= left else 0

    def recompute(self, step: Step, request: int) -> None:
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
