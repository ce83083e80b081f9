"""What preemptive policies share: running and waiting requests in one order, decided anew for every batch."""

from __future__ import annotations

from bisect import insort
from heapq import merge
from typing import Any

from cspsched.policies.batching import QueueRun
from cspsched.problem.instance import Instance
from cspsched.simulate import Step
from cspsched.simulate.kernel.each.rules import EachRules, Loop


class RankedRun(QueueRun):
    """Serves all requests by `rank`; whoever lacks memory evicts those of the end of the order.

    Victims are recomputed; a subclass may set `swaps`, and they move to host memory while it has room.
    Whoever comes too late for the token budget or the request limit sits out the batch and keeps its memory.
    The first that cannot be served ends the batch. A subclass keeps the ranks up to date.
    """

    swaps = False
    """Whether victims move to host memory."""

    def __init__(self, instance: Instance, **limits: Any) -> None:
        super().__init__(instance, **limits)
        self.swapped: list[int] = []
        self._recomputes = instance.switches.preemption.recomputes

    def _each_rules(self, **decisions: Any) -> EachRules:
        """Rules of a run that serves by rank; whoever has no place in the batch keeps its memory."""
        return super()._each_rules(loop=Loop.RANKED, most_holders=self.kv_blocks, **decisions)

    def may_start(self, step: Step) -> bool:
        """Whether requests that hold nothing may be admitted."""
        return True

    def lacking(self, step: Step, request: int) -> int:
        """Known tokens of a request without KV entries, on the device or in host memory."""
        return super().lacking(step, request) - step.host_tokens[request]

    def serve(self, step: Step) -> None:
        """Fill the batch in the order of the ranks."""
        self.running.sort(key=self.rank.__getitem__)
        victims = list(self.running)
        admitted = []
        waiting = self.waiting if self.may_start(step) else []
        for request in merge(self.running, waiting, self.swapped, key=self.rank.__getitem__):
            is_new = not step.held_blocks[request]
            if not self._serve_one(step, request, victims):
                break
            if is_new:
                admitted.append(request)
        self._requeue_after(step, admitted)

    def _serve_one(self, step: Step, request: int, victims: list[int]) -> bool:
        """Schedule one request, making room at the expense of those behind it; whether it could be served."""
        tokens = self.chunk(step, request) if len(step.batch) < self.max_running else 0
        if not tokens or request in step.evicted:
            return False
        blocks = self.blocks_to_serve(step, request)
        while blocks > step.free_blocks and victims and self.rank[victims[-1]] > self.rank[request]:
            self._push_out(step, victims.pop())
        if blocks > step.free_blocks:
            return False
        if step.host_tokens[request]:
            step.swap_in(request)
        step.schedule(request, tokens, self.blocks_to_serve(step, request))
        return True

    def blocks_to_serve(self, step: Step, request: int) -> int:
        """KV blocks that a request lacks on the device for all its known tokens."""
        return step.missing_blocks(request, step.known_tokens[request] - step.computed_tokens[request])

    def _push_out(self, step: Step, victim: int) -> None:
        """Evict a running request; one that may not be dropped needs room in host memory."""
        has_room = step.held_blocks[victim] <= step.free_host_blocks
        if self.swaps and (has_room or not self._recomputes):
            step.swap_out(victim)
        else:
            step.preempt(victim)

    def _requeue_after(self, step: Step, admitted: list[int]) -> None:
        """Move the admitted, who were the first of the queues, and the evicted to where they belong now."""
        back = set(step.restored)
        del self.waiting[: len(admitted) - len(back)]
        self.swapped = [request for request in self.swapped if request not in back]
        self.running = [request for request in self.running if request not in step.evicted] + admitted
        for request in step.evicted:
            queue = self.swapped if request in step.swapped else self.waiting
            insort(queue, request, key=self.rank.__getitem__)
