"""A policy of answers to questions, asked step by step: the twin of the kernel's loop of questions."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence

from cspsched.problem.instance import Instance
from cspsched.simulate import Step
from cspsched.simulate.decisions import Answers, BatchMode, DecisionPolicy
from cspsched.units import ceil_div


class StepByStep:
    """A policy that asks another one, whenever something comes up."""

    def __init__(self, policy: DecisionPolicy) -> None:
        self.policy = policy
        self.name, self.label = policy.name, policy.label

    def new_run(self, instance: Instance) -> StepByStepRun:
        return StepByStepRun(instance, self.policy)


class StepByStepRun:
    """Queues of one run, and the view."""

    def __init__(self, instance: Instance, policy: DecisionPolicy) -> None:
        self.requests = instance.requests
        self.running: list[int] = []
        self._answers = Answers(policy, instance)
        self._limits = instance.limits
        self._chunked = instance.switches.chunked_prefill
        self._rank = [(self._answers.order(request), 0) for request in instance.requests]
        self._waiting: list[int] = []
        self._num_submitted = self._num_evicted = 0
        self._step: Step
        self.tokens_left = 0

    def submit(self, request: int) -> None:
        """Queue an arrival."""
        self._num_submitted += 1
        self._queue(request, self._num_submitted)

    def retire(self, requests: Sequence[int]) -> None:
        """Drop finished requests."""
        finished = set(requests)
        self.running = [request for request in self.running if request not in finished]

    def schedule(self, step: Step) -> None:
        """Running requests, then the queue unless a request was evicted."""
        self._step = step
        mode = self._answers.batch_mode(self)
        self._decide(step, mode)
        if not step.batch and not step.evicted and mode is not BatchMode.MIXED:
            self._decide(step, BatchMode.MIXED)

    def _decide(self, step: Step, mode: BatchMode) -> None:
        self.tokens_left = self._limits.max_batch_tokens
        self._serve_running(step, mode)
        if not step.evicted and mode is not BatchMode.DECODE_ONLY:
            self._admit(step)

    def _serve_running(self, step: Step, mode: BatchMode) -> None:
        position = 0
        while self.tokens_left and position < len(self.running):
            request = self.running[position]
            tokens = min(step.known_tokens[request] - step.computed_tokens[request], self.tokens_left)
            if step.decoding[request]:
                tokens = 0 if mode is BatchMode.PREFILL_ONLY else tokens
            else:
                skips = mode is BatchMode.DECODE_ONLY
                tokens = 0 if skips else self._answers.chunk(self, request, tokens)
            if not tokens:
                position += 1
                continue
            while step.missing_blocks(request, tokens) > step.free_blocks and step.held_blocks[request]:
                victim = self._answers.victim(self, request)
                position -= self.running.index(victim) < position
                self._evict(step, victim)
            if not step.held_blocks[request]:
                break
            step.schedule(request, tokens, step.missing_blocks(request, tokens))
            self.tokens_left -= tokens
            position += 1

    def _evict(self, step: Step, victim: int) -> None:
        self.tokens_left += step.preempt(victim)
        self.running.remove(victim)
        self._num_evicted += 1
        self._queue(victim, -self._num_evicted)

    def _queue(self, request: int, number: int) -> None:
        self._rank[request] = (self._rank[request][0], number)
        insort(self._waiting, request, key=self._rank.__getitem__)

    def _admit(self, step: Step) -> None:
        while self.tokens_left and self._waiting and len(self.running) < self._limits.max_batch_requests:
            request = self._waiting[0]
            known, block = step.known_tokens[request], self._limits.block_tokens
            if (known > self.tokens_left and not self._chunked) or ceil_div(known, block) > step.free_blocks:
                break
            tokens = self._answers.admission(self, request, min(known, self.tokens_left))
            if not tokens:
                break
            step.schedule(request, tokens, ceil_div(tokens, block))
            self.running.append(self._waiting.pop(0))
            self.tokens_left -= tokens

    # The view.

    @property
    def clock_ns(self) -> int:
        """Now."""
        return self._step.clock_ns

    @property
    def free_blocks(self) -> int:
        """KV blocks that no request holds."""
        return self._step.free_blocks

    @property
    def num_running(self) -> int:
        """Requests that hold KV blocks."""
        return len(self.running)

    @property
    def num_waiting(self) -> int:
        """Requests that have arrived and hold none."""
        return len(self._waiting)

    def known_tokens(self, request: int) -> int:
        """Prompt and generated tokens."""
        return self._step.known_tokens[request]

    def computed_tokens(self, request: int) -> int:
        """Tokens with KV entries."""
        return self._step.computed_tokens[request]

    def held_blocks(self, request: int) -> int:
        """KV blocks of a request."""
        return self._step.held_blocks[request]
