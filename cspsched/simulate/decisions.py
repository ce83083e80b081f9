"""Fast policies of one's own: answers to a few questions, asked only when they come up.

A `DecisionPolicy` serves what runs in order of admission and then the queue, under one token budget, as vLLM
V1 does. What it decides otherwise it says by overriding a method; what it does not override is never asked.
So the compiled kernel can run it: between two questions any number of batches passes without any Python.
`DecisionRun` is the same policy for the clear engine, step by step.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from enum import IntEnum
from numbers import Integral, Real
from typing import ClassVar, Protocol

from cspsched.errors import PolicyError
from cspsched.problem.instance import Instance
from cspsched.problem.request import Request
from cspsched.simulate.kernel.each.rules import EachRules, Loop
from cspsched.simulate.kernel.rules import Chunk
from cspsched.simulate.step import Step
from cspsched.units import ceil_div


class BatchMode(IntEnum):
    """What a batch may hold; if there is none of it, the batch is mixed."""

    MIXED = 0
    PREFILL_ONLY = 1
    DECODE_ONLY = 2


class View(Protocol):
    """What a policy may look at when it is asked. Requests are positions in `requests`.

    Attributes
    ----------
    requests
        All requests of the instance.
    clock_ns
        Now.
    free_blocks
        KV blocks that nobody holds.
    tokens_left
        Tokens that the batch still takes.
    num_running, num_waiting
        Requests that hold KV blocks, and those that have arrived and hold none.
    running
        Those that run, in order of admission; made anew at every look.
    """

    @property
    def requests(self) -> Sequence[Request]: ...  # noqa: D102
    @property
    def clock_ns(self) -> int: ...  # noqa: D102
    @property
    def free_blocks(self) -> int: ...  # noqa: D102
    @property
    def tokens_left(self) -> int: ...  # noqa: D102
    @property
    def num_running(self) -> int: ...  # noqa: D102
    @property
    def num_waiting(self) -> int: ...  # noqa: D102
    @property
    def running(self) -> list[int]: ...  # noqa: D102

    def known_tokens(self, request: int) -> int:
        """Prompt and generated tokens."""

    def computed_tokens(self, request: int) -> int:
        """Tokens with KV entries; the batch being decided is not in it."""

    def held_blocks(self, request: int) -> int:
        """KV blocks of a request."""


class DecisionPolicy:
    """A policy as answers to questions; this one is vLLM's first come, first served."""

    name: ClassVar[str] = "decisions"

    @property
    def label(self) -> str:
        """Name with the settings that differ from the defaults; two settings need two labels."""
        return self.name

    # The questions.

    def start(self, instance: Instance) -> DecisionPolicy:
        """The object that answers in one run; a policy with state returns a new one."""
        return self

    def order(self, request: Request) -> float:
        """Key of a request in the queue, a number, smaller first; asked once before the run.

        Among equals the first submitted goes first, but whoever is preempted goes before all of them.
        """
        return 0

    def batch_mode(self, view: View) -> BatchMode:
        """What the next batch may hold; asked before every batch, so it costs most."""
        return BatchMode.MIXED

    def admit(self, view: View, request: int) -> bool:
        """Whether the head of the queue, whose known tokens fit into the free blocks, is admitted now."""
        return True

    def chunk(self, view: View, request: int, most: int) -> int:
        """Tokens of a prefill in this batch, 0 to `most`, which is what it lacks and the budget leaves."""
        return most

    def victim(self, view: View, request: int) -> int:
        """The running request to evict, as a running one lacks KV blocks: the last admitted."""
        return view.running[-1]

    # Whoever runs it.

    def new_run(self, instance: Instance) -> DecisionRun:
        """Empty queues under the instance's limits, for the clear engine."""
        return DecisionRun(instance, self)

    def kernel_rules(self, instance: Instance) -> EachRules:
        """Rules for the compiled kernel under an instance's limits, and which questions it has to ask."""
        limits = instance.limits
        return EachRules(
            loop=Loop.DECIDED,
            kv_blocks=limits.kv_blocks,
            block_tokens=limits.block_tokens,
            max_tokens=limits.max_batch_tokens,
            batch_tokens=limits.max_batch_tokens,
            max_running=limits.max_batch_requests,
            most_holders=limits.max_batch_requests,
            chunk=Chunk.ANY if instance.switches.chunked_prefill else Chunk.NEVER,
            asks=sum(1 << bit for bit, names in enumerate(QUESTIONS) if self._overrides(names)),
        )

    def _overrides(self, names: Sequence[str]) -> bool:
        return any(getattr(type(self), name) is not getattr(DecisionPolicy, name) for name in names)


QUESTIONS = (("batch_mode",), ("chunk",), ("victim",), ("admit", "chunk"))
"""Methods behind each question of the kernel, in the order of its bits."""


class Answers:
    """A policy's answers, refused with its name where they are none."""

    def __init__(self, policy: DecisionPolicy, instance: Instance) -> None:
        self._label = policy.label
        self._policy = policy.start(instance)
        if not isinstance(self._policy, DecisionPolicy):
            self._policy, started = policy, self._policy
            raise self._refusal("start", f"returns {started!r}, expected a DecisionPolicy")

    def order(self, request: Request) -> float:
        """Key of a request in the queue."""
        key = self._policy.order(request)
        if not isinstance(key, Real) or key != key:
            raise self._refusal("order", f"of request {request.request_id!r} is {key!r}, expected a number")
        return key

    def batch_mode(self, view: View) -> BatchMode:
        """What the next batch may hold."""
        mode = self._policy.batch_mode(view)
        try:
            return BatchMode(mode)
        except ValueError:
            raise self._refusal("batch_mode", f"is {mode!r}, expected a BatchMode") from None

    def chunk(self, view: View, request: int, most: int) -> int:
        """Tokens of a started prefill."""
        tokens = self._policy.chunk(view, request, most)
        if not isinstance(tokens, Integral) or not 0 <= tokens <= most:
            name = view.requests[request].request_id
            raise self._refusal("chunk", f"of request {name!r} is {tokens!r}, expected 0 to {most}")
        return int(tokens)

    def admission(self, view: View, request: int, most: int) -> int:
        """Tokens of an admission, 0 if there is none."""
        admits = self._policy.admit(view, request)
        if admits is None:
            name = view.requests[request].request_id
            raise self._refusal("admit", f"of request {name!r} is None, expected true or false")
        return self.chunk(view, request, most) if admits else 0

    def victim(self, view: View, request: int) -> int:
        """The running request to evict."""
        victim = self._policy.victim(view, request)
        if not isinstance(victim, Integral) or victim not in view.running:
            raise self._refusal("victim", f"is {victim!r}, expected a running request")
        return int(victim)

    def _refusal(self, method: str, what: str) -> PolicyError:
        """What a method must not answer, and where it begins."""
        code = getattr(getattr(type(self._policy), method), "__code__", None)
        line = f" ({code.co_filename}:{code.co_firstlineno})" if code else ""
        return PolicyError(f"policy {self._label}: {method} {what}{line}")


class DecisionRun:
    """Queues of one run in the clear engine; it is the view, too."""

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
        """Running requests, then the queue unless somebody was evicted."""
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
        """KV blocks that nobody holds."""
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
