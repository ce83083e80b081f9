"""What the schedulers of sarathi-serve share with each other and with vLLM V0, from which they descend.

A request is admitted with all the blocks of its known tokens, above a watermark; every decode wants to see a
free block, whether it needs one or not; who is preempted goes to the front of the queue and is recomputed.
Three deviations, each where the real programs stop, crash or drop a request:

* While nothing is running the watermark is waived: the real schedulers wait for ever for a prompt that fits
  the device but not above the watermark (vLLM V0 drops it).
* A prompt within the scheduler's own limit but beyond the instance's C is processed in pieces of C, if the
  instance allows chunks. Beyond the own limit it is an error (the real ones drop it: FINISHED_IGNORED).
* A preempted request generates what it still lacks (sarathi-serve forgets what it had generated and makes
  `max_tokens` more).

The setting `emulate_bugs` of a policy brings the last of sarathi-serve, and of vLLM V0 the drop and the
watermark that is never waived. What a request then generates is no longer what was asked for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cspsched.problem.instance import Instance
from cspsched.simulate import Step, StuckError
from cspsched.simulate.kernel.each.family import family_step
from cspsched.simulate.kernel.each.family_parts import submit_to_family
from cspsched.simulate.kernel.each.loops import make_loop
from cspsched.simulate.kernel.each.rules import AnyRules, EachRules
from cspsched.simulate.kernel.rules import Chunk, KernelRules, Need
from cspsched.units import ceil_div

run_family = make_loop("run_family", submit=submit_to_family, step=family_step)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnLimits:
    """What a scheduler allows itself; the instance's limits bind as well."""

    label: str
    """Label of the policy, for errors."""
    max_num_seqs: int
    """Most running requests."""
    max_tokens: int | None = None
    """Token budget of a batch with prefills, if there is one."""
    watermark: float = 0.0
    """Share of the blocks that an admission leaves free."""
    restarts_output: bool = False
    """Emulated bug of sarathi-serve: a preempted request forgets what it has generated."""
    drops_above: int | None = None
    """Emulated bug of vLLM V0: a longer request, or one that the watermark keeps out for ever, is dropped."""


class FamilyRun:
    """Queues of one run, with prefill and decode as its parts; by default whole prompts.

    Attributes
    ----------
    running
        Requests that hold KV blocks.
    waiting
        Requests that hold none, next first.
    max_tokens
        Token budget of a batch with prefills.
    max_running
        Most running requests; all of them can decode in one batch.
    """

    def __init__(self, instance: Instance, own: OwnLimits) -> None:
        limits = instance.limits
        own_tokens = own.max_tokens or limits.kv_tokens
        self.label = own.label
        self._own = own
        self.requests = instance.requests
        self.max_tokens = min(own_tokens, limits.max_batch_tokens)
        self.max_running = min(own.max_num_seqs, limits.max_batch_requests, limits.max_batch_tokens)
        self.watermark_blocks = int(own.watermark * limits.kv_blocks)
        self.block_tokens = limits.block_tokens
        self.kv_blocks = limits.kv_blocks
        self.arrival_ns = [request.arrival_ns for request in instance.requests]
        self.running: list[int] = []
        self.waiting: deque[int] = deque()
        self._longest_prompt = own_tokens if instance.switches.chunked_prefill else self.max_tokens

    def submit(self, request: int) -> None:
        """Queue an arrival."""
        self.waiting.append(request)

    def retire(self, requests: Sequence[int]) -> None:
        """Drop finished requests from the running list."""
        finished = set(requests)
        self.running = [request for request in self.running if request not in finished]

    def kernel_rules(self) -> AnyRules | None:
        """The same limits and decisions for the compiled kernel; None where it does not know them."""
        return self._base_rules()

    def _base_rules(self) -> KernelRules | None:
        """Rules for the loop over aggregated state; None where an emulated bug is beyond it."""
        if self._own.drops_above is not None:
            return None
        return KernelRules(
            kv_blocks=self.kv_blocks,
            block_tokens=self.block_tokens,
            max_tokens=self.max_tokens,
            max_running=self.max_running,
            watermark_blocks=self.watermark_blocks,
            longest_prompt=self._longest_prompt,
            chunk=Chunk.TOO_LONG,
            need=Need.ONE_SPARE,
            restarts_output=self._own.restarts_output,
        )

    def _each_rules(self, **decisions: Any) -> EachRules:
        """Rules of a run that decides for each request in every batch."""
        rules = EachRules(
            run=run_family,
            keeps_order=True,
            kv_blocks=self.kv_blocks,
            block_tokens=self.block_tokens,
            max_tokens=self.max_tokens,
            max_running=self.max_running,
            most_holders=self.max_running,
            batch_tokens=self.max_tokens,
            watermark_blocks=self.watermark_blocks,
            longest_prompt=self._longest_prompt,
            restarts_output=self._own.restarts_output,
            drops_above=self._own.drops_above or 0,
        )
        return replace(rules, **decisions)

    # What a scheduler may decide otherwise.

    def in_order(self) -> Iterable[int]:
        """Running requests, the last one to be preempted first: by arrival; equals keep their order."""
        return sorted(self.running, key=self.arrival_ns.__getitem__)

    def may_admit(self, step: Step) -> bool:
        """Whether the head of the queue may be tried."""
        return True

    def blocks_to_admit(self, request: int, known: int) -> int:
        """Blocks that an admission takes: those of all known tokens."""
        return ceil_div(known, self.block_tokens)

    def prefill_tokens(self, request: int, lacking: int, computed: int, used: int) -> int:
        """Tokens of a prefill beside so many used in the batch: all of them, or the next piece of C."""
        tokens, left = min(lacking, self.max_tokens), self.max_tokens - used
        if not computed:
            self._refuse_long_prompt(request, lacking)
            return tokens if tokens <= left else 0
        return min(tokens, left)

    # The parts of a batch.

    def prefill_only(self, step: Step) -> None:
        """Continue what was started, then admit; no decode."""
        started = [request for request in self.running if not step.decoding[request]]
        used = self.continue_prefills(step, started, 0)
        self.admit(step, used, step.free_blocks)

    def decode_only(self, step: Step) -> None:
        """Every decode that can be kept; no prefill."""
        decodes, started, _ = self.keep_decodes(step)
        self.running = decodes + started
        self.schedule_decodes(step, decodes)

    def mixed(self, step: Step) -> None:
        """Keep the decodes, give started prefills and the queue what they leave; prefills stand first."""
        decodes, started, promised_blocks = self.keep_decodes(step)
        used = self.continue_prefills(step, started, len(decodes))
        self.running = decodes + started
        self.admit(step, used, step.free_blocks - promised_blocks)
        self.schedule_decodes(step, decodes)

    def keep_decodes(self, step: Step) -> tuple[list[int], list[int], int]:
        """Decodes in order, the requests with prefill left, and the blocks that the decodes need."""
        queue, decodes, started = deque(self.in_order()), [], []
        computed, held, decoding = step.computed_tokens, step.held_blocks, step.decoding
        block_tokens, promised = self.block_tokens, 0
        while queue:
            request = queue.popleft()
            if not decoding[request]:
                started.append(request)
            elif step.free_blocks > promised or self.make_room(step, request, queue, promised):
                decodes.append(request)
                promised += computed[request] == held[request] * block_tokens
        return decodes, started, promised

    def make_room(self, step: Step, request: int, queue: deque[int], promised: int) -> bool:
        """Preempt from the end of those not yet visited until a block is free, else the request itself.

        Returns whether the request is kept.
        """
        while step.free_blocks == promised and queue:
            self.preempt(step, queue.pop())
        if step.free_blocks == promised:
            self.preempt(step, request)
            return False
        return True

    def preempt(self, step: Step, request: int) -> None:
        """Evict a request to the front of the queue."""
        step.preempt(request)
        if self._own.restarts_output:
            step.restart_output(request)
        self.waiting.appendleft(request)

    def continue_prefills(self, step: Step, started: Iterable[int], used: int) -> int:
        """Give started prefills, whose blocks are allocated, their next tokens; return the tokens used."""
        for request in started:
            computed = step.computed_tokens[request]
            tokens = self.prefill_tokens(request, step.known_tokens[request] - computed, computed, used)
            if tokens:
                step.schedule(request, tokens, 0)
                used += tokens
        return used

    def admit(self, step: Step, used: int, spare_blocks: int) -> None:
        """Admit from the head of the queue, strictly in its order, until something does not fit."""
        admitted: list[int] = []
        while self.may_admit(step) and self.waiting and len(self.running) + len(admitted) < self.max_running:
            request = self.waiting[0]
            known = step.known_tokens[request]
            blocks = self.blocks_to_admit(request, known)
            if self._is_dropped(known, blocks):
                step.drop(self.waiting.popleft())
                continue
            tokens = self.prefill_tokens(request, known, 0, used)
            kept_free = self.watermark_blocks if self.running or admitted else 0
            if not tokens or blocks + kept_free > spare_blocks:
                break
            step.schedule(request, tokens, blocks)
            admitted.append(self.waiting.popleft())
            spare_blocks -= blocks
            used += tokens
        self.running += admitted

    def schedule_decodes(self, step: Step, decodes: Iterable[int]) -> None:
        """One token each."""
        for request in decodes:
            step.schedule(request, 1, step.missing_blocks(request, 1))

    def _is_dropped(self, known: int, blocks: int) -> bool:
        limit = self._own.drops_above
        return limit is not None and (known > limit or blocks + self.watermark_blocks > self.kv_blocks)

    def _refuse_long_prompt(self, request: int, known: int) -> None:
        if known > self._longest_prompt:
            name = self.requests[request].request_id
            raise StuckError(
                f"policy {self.label}: request {name!r} has {known} tokens to prefill in one batch, which "
                f"holds {self._longest_prompt}; raise the policy's token budget, or the instance's"
            )
