"""What preemptive policies share: running and waiting requests in one order, decided anew for every batch."""

from __future__ import annotations

from bisect import insort
from heapq import merge

from cspsched.policies.batching import QueueRun
from cspsched.simulate import Step


class RankedRun(QueueRun):
    """Serves all requests by `rank`; whoever lacks memory evicts those of the end of the order.

    Whoever comes too late for the token budget or the request limit sits out the batch and keeps its memory.
    The first that cannot be served ends the batch. A subclass keeps the ranks up to date.
    """

    def serve(self, step: Step) -> None:
        """Fill the batch in the order of the ranks."""
        self.running.sort(key=self.rank.__getitem__)
        victims = list(self.running)
        admitted = []
        for request in merge(self.running, self.waiting, key=self.rank.__getitem__):
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
        blocks = step.missing_blocks(request, self.lacking(step, request))
        while blocks > step.free_blocks and victims and self.rank[victims[-1]] > self.rank[request]:
            step.preempt(victims.pop())
        if blocks > step.free_blocks:
            return False
        step.schedule(request, tokens, blocks)
        return True

    def _requeue_after(self, step: Step, admitted: list[int]) -> None:
        """Move the admitted, who were the first of the queue, and the evicted to where they belong now."""
        del self.waiting[: len(admitted)]
        self.running = [request for request in self.running if request not in step.evicted] + admitted
        for request in step.evicted:
            insort(self.waiting, request, key=self.rank.__getitem__)
