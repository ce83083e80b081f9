"""Runs of users' own step policies to start from: two queues, the two halves of a batch, and who makes room.

A run adds its rules: the order of the queue (`key`), what an admission takes (`fits`, `reserved_tokens`),
how prompts are cut (`chunk`), what is evicted first (`keep_first`), and which half of a batch comes first.
Our own policies say the same as functions that compile (`batching.py`, `ranking.py`).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Sequence
from heapq import merge
from typing import Any, ClassVar

from cspsched.problem.instance import Instance
from cspsched.problem.request import Request
from cspsched.simulate.step import Step
from cspsched.units import ceil_div


def first_come(request: Request) -> int:
    """Key of first come, first served: all alike, so that the order of submission decides."""
    return 0


class QueueRun:
    """Queues of one run, with prefill and decode as its parts.

    While nothing is running the head of the queue is admitted whatever `fits` says: alone it fits the device,
    or the instance would have rejected it. So no policy waits for ever on a margin that it keeps.

    Attributes
    ----------
    running
        Requests that hold KV blocks, in order of admission. Only the last may have prefill left.
    waiting
        Requests that hold none, by rank.
    rank
        (key, number) of every request, smaller first; the number is that of its submission.
    """

    whole_prompts: ClassVar[bool] = False
    """Whether a prompt is cut only if it is longer than the whole budget of a batch."""

    def __init__(
        self,
        instance: Instance,
        *,
        max_tokens: int | None = None,
        max_requests: int | None = None,
        chunked: bool | None = None,
        key: Callable[[Request], float] = first_come,
    ) -> None:
        limits = instance.limits
        self.requests = instance.requests
        self.block_tokens = limits.block_tokens
        self.kv_blocks = limits.kv_blocks
        self.max_tokens = min(limits.max_batch_tokens, max_tokens or limits.max_batch_tokens)
        # All running requests may decode in one batch, so the token budget bounds their number, too.
        self.max_running = min(limits.max_batch_requests, limits.max_batch_tokens)
        self.max_running = min(self.max_running, max_requests or self.max_running)
        self.chunked = instance.switches.chunked_prefill if chunked is None else chunked
        self.running: list[int] = []
        self.waiting: list[int] = []
        self.rank: list[tuple[float, int]] = [(key(request), 0) for request in instance.requests]
        self._slack_tokens = limits.max_batch_tokens - self.max_tokens
        self._num_submitted = 0

    def submit(self, request: int) -> None:
        """Queue an arrival."""
        self.rank[request] = (self.rank[request][0], self.next_number())
        insort(self.waiting, request, key=self.rank.__getitem__)

    def next_number(self) -> int:
        """A number larger than all before."""
        self._num_submitted += 1
        return self._num_submitted

    def retire(self, requests: Sequence[int]) -> None:
        """Drop finished requests from the running list."""
        finished = set(requests)
        self.running = [request for request in self.running if request not in finished]

    def cancel(self, request: int) -> None:
        """Drop a request that leaves before its end from all lists."""
        self.retire([request])
        self.waiting = [other for other in self.waiting if other != request]

    # What a policy may decide otherwise.

    def fits(self, step: Step, request: int) -> bool:
        """Whether a waiting request may be admitted now: all that it reserves is free."""
        return self.blocks_of(self.reserved_tokens(step, request)) <= step.free_blocks

    def may_admit(self, step: Step) -> bool:
        """Whether another request may run beside those that do."""
        return len(self.running) < self.max_running

    def reserved_tokens(self, step: Step, request: int) -> int:
        """Tokens whose KV blocks a request takes at its admission: all that are known."""
        return step.known_tokens[request]

    def chunk(self, step: Step, request: int) -> int:
        """Tokens of a prefill that go into this batch: all, or what the budget leaves if it may be cut."""
        lacking, budget = self.lacking(step, request), self.budget(step)
        if lacking <= budget:
            return lacking
        may_be_cut = self.chunked and (lacking > self.max_tokens or not self.whole_prompts)
        return max(budget, 0) if may_be_cut else 0

    def keep_first(self, step: Step) -> list[int]:
        """Running requests, the first to be evicted last: in order of admission."""
        return list(self.running)

    def requeue(self, request: int) -> None:
        """Put an evicted request back into the queue: at its rank, as if it had never been admitted."""
        insort(self.waiting, request, key=self.rank.__getitem__)

    # The parts of a batch.

    def budget(self, step: Step) -> int:
        """Tokens that the batch may still take."""
        return step.tokens_left - self._slack_tokens

    def lacking(self, step: Step, request: int) -> int:
        """Known tokens of a request without KV entries."""
        return step.known_tokens[request] - step.computed_tokens[request]

    def blocks_of(self, tokens: int) -> int:
        """KV blocks of a number of tokens, at most the whole device."""
        return min(ceil_div(tokens, self.block_tokens), self.kv_blocks)

    def peak_tokens(self, request: int) -> int:
        """KV entries that a request holds at its end."""
        return self.requests[request].peak_kv_tokens

    def output_left(self, step: Step, request: int) -> int:
        """Output tokens that a request has still to generate, as its caller asked for them."""
        return self.peak_tokens(request) + 1 - step.known_tokens[request]

    def decode(self, step: Step) -> None:
        """One token for every decode, after evictions if blocks are short."""
        self._make_room(step)
        for request in self.running:
            if step.decoding[request] and step.tokens_left:
                step.schedule(request, 1, self._growth(step, request))

    def growing_blocks(self, step: Step) -> int:
        """KV blocks that the running requests lack to decode a token each."""
        return sum(self._growth(step, request) for request in self.running)

    def _make_room(self, step: Step) -> None:
        """Evict from the end of `keep_first` until all that are left can decode, but never the first."""
        needed = self.growing_blocks(step)
        if needed <= step.free_blocks:
            return
        kept = self.keep_first(step)
        while needed > step.free_blocks and len(kept) > 1:
            victim = kept.pop()
            needed -= self._growth(step, victim)
            self.evict(step, victim)

    def _growth(self, step: Step, request: int) -> int:
        """Blocks that a running request takes to process one more token: 1 if all its blocks are full."""
        return int(step.computed_tokens[request] == step.held_blocks[request] * self.block_tokens)

    def evict(self, step: Step, request: int) -> None:
        """Preempt a running request and queue it again."""
        step.preempt(request)
        self.running.remove(request)
        self.requeue(request)

    def prefill(self, step: Step) -> None:
        """Continue the started prefill, then admit from the head of the queue while it fits."""
        if self._continue_prefill(step):
            while self.waiting and self.may_admit(step) and self._admit(step):
                pass

    def _continue_prefill(self, step: Step) -> bool:
        """Go on with the prefill of the last admitted; whether none is left over."""
        if not self.running or step.decoding[self.running[-1]]:
            return True
        request = self.running[-1]
        tokens = self.chunk(step, request)
        if tokens:
            step.schedule(request, tokens, step.missing_blocks(request, tokens))
        return tokens == self.lacking(step, request)

    def _admit(self, step: Step) -> bool:
        """Admit the head of the queue if it fits; whether another may follow."""
        request = self.waiting[0]
        tokens = self.chunk(step, request)
        if not tokens or (self.running and not self.fits(step, request)):
            return False
        step.schedule(request, tokens, self.blocks_of(self.reserved_tokens(step, request)))
        self.running.append(self.waiting.pop(0))
        return tokens == step.known_tokens[request]


class RankedRun(QueueRun):
    """Serves all requests by `rank`; one that lacks memory evicts those of the end of the order.

    Victims are recomputed; a subclass may set `swaps`, and they move to host memory while it has room.
    A request that comes too late for the token budget or the request limit sits out the batch and keeps its
    memory. The first that cannot be served ends the batch. A subclass keeps the ranks up to date.
    """

    swaps = False
    """Whether victims move to host memory."""

    def __init__(self, instance: Instance, **limits: Any) -> None:
        super().__init__(instance, **limits)
        self.swapped: list[int] = []
        self._recomputes = instance.switches.preemption.recomputes

    def cancel(self, request: int) -> None:
        """Drop a request that leaves before its end from all lists."""
        super().cancel(request)
        self.swapped = [other for other in self.swapped if other != request]

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
