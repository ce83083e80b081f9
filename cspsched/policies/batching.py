"""What policies of continuous batching share: two queues, the two halves of a batch, and who makes room.

A policy adds its rules: the order of the queue (`key`), what an admission takes (`fits`, `reserved_tokens`),
how prompts are cut (`chunk`), who is evicted first, and which half of a batch comes first.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Protocol

from cspsched.policies.settings import describe_settings
from cspsched.problem.instance import Instance
from cspsched.problem.request import Request
from cspsched.simulate import Step
from cspsched.simulate.kernel.each.rules import AnyRules, EachRules, Loop
from cspsched.simulate.kernel.rules import Chunk, KernelRules
from cspsched.units import ceil_div


class Configured:
    """The label of a policy: its name with the settings that differ from the defaults."""

    __slots__ = ()
    name: ClassVar[str]
    settings: Any

    @property
    def label(self) -> str:
        """Name with the settings that differ from the defaults."""
        return ":".join(filter(None, (self.name, describe_settings(self.settings))))


class RunWithRules(Protocol):
    """A run that can say its limits and decisions to the compiled kernel."""

    def kernel_rules(self) -> AnyRules | None:
        """Rules for the compiled kernel; None if it does not know them."""


class _Starter(Protocol):
    def new_run(self, instance: Instance) -> RunWithRules: ...


class Compiled:
    """A policy that the compiled kernel can run: by the rules of its run."""

    __slots__ = ()

    def kernel_rules(self: _Starter, instance: Instance) -> AnyRules | None:
        """Rules for the compiled kernel under an instance's limits; None if it does not know the settings.

        Rules do not look at requests, and a run sets up columns of all that it is given.
        """
        return self.new_run(replace(instance, requests=instance.requests[:1])).kernel_rules()


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

    def kernel_rules(self) -> AnyRules | None:
        """The same limits and decisions for the compiled kernel; None where it does not know them."""
        return None

    def _base_rules(self) -> KernelRules:
        """Rules of a run that decides nothing otherwise."""
        cut = Chunk.BEYOND_BUDGET if self.whole_prompts else Chunk.ANY
        return KernelRules(
            kv_blocks=self.kv_blocks,
            block_tokens=self.block_tokens,
            max_tokens=self.max_tokens,
            max_running=self.max_running,
            chunk=cut if self.chunked else Chunk.NEVER,
            prefills_first=False,
        )

    def _each_rules(self, **decisions: Any) -> EachRules:
        """Rules of a run that decides for each request in every batch."""
        base = self._base_rules()
        rules = EachRules(
            loop=Loop.QUEUE,
            kv_blocks=base.kv_blocks,
            block_tokens=base.block_tokens,
            max_tokens=base.max_tokens,
            max_running=base.max_running,
            most_holders=base.max_running,
            batch_tokens=self.max_tokens + self._slack_tokens,
            chunk=base.chunk,
        )
        return replace(rules, **decisions)

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
