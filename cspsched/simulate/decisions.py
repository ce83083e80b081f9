"""Fast policies of one's own: answers to a few questions, asked only when they come up.

A `DecisionPolicy` serves what runs in order of admission and then the queue, under one token budget, as vLLM
V1 does. What it decides otherwise it says by overriding a method; what it does not override is never asked.
So the compiled kernel can run it: between two questions any number of batches passes without any Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from numbers import Integral, Real
from typing import ClassVar

from cspsched.errors import PolicyError
from cspsched.problem.instance import Instance
from cspsched.problem.request import Request
from cspsched.simulate.kernel.columns import LISTED
from cspsched.simulate.kernel.decided import run_decided
from cspsched.simulate.kernel.layout import Kernel
from cspsched.simulate.kernel.records import PolicyState
from cspsched.simulate.kernel.rules import Chunk, Rules


class BatchMode(IntEnum):
    """What a batch may hold; if there is none of it, the batch is mixed."""

    MIXED = 0
    PREFILL_ONLY = 1
    DECODE_ONLY = 2


class View:
    """What a policy may look at when it is asked. Requests are positions in `requests`.

    Attributes
    ----------
    requests
        All requests of the instance.
    """

    def __init__(self, requests: Sequence[Request], kernel: Kernel) -> None:
        self.requests = requests
        self._k = kernel

    @property
    def clock_ns(self) -> int:
        """Now."""
        return int(self._k.now.clock_ns)

    @property
    def free_blocks(self) -> int:
        """KV blocks that no request holds."""
        return int(self._k.now.free_blocks)

    @property
    def tokens_left(self) -> int:
        """Tokens that the batch still takes."""
        return int(self._k.own.budget)

    @property
    def num_running(self) -> int:
        """Requests that hold KV blocks."""
        return int(self._k.now.num_listed)

    @property
    def num_waiting(self) -> int:
        """Requests that have arrived and hold none."""
        return int(self._k.now.heap_size)

    @property
    def running(self) -> list[int]:
        """Requests that run, in order of admission; made anew at every look."""
        running: list[int] = self._k.slots[: self._k.now.num_listed, LISTED].tolist()
        return running

    def known_tokens(self, request: int) -> int:
        """Prompt and generated tokens."""
        row = self._k.requests[request]
        return int(row.prompt_tokens) + int(row.generated)

    def computed_tokens(self, request: int) -> int:
        """Tokens with KV entries; the batch being decided is not in it."""
        return int(self._k.requests[request].kv_tokens)

    def held_blocks(self, request: int) -> int:
        """KV blocks of a request."""
        return int(self._k.requests[request].blocks)


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

        Among equals the first submitted goes first, but a preempted one goes before all of them.
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

    def kernel_rules(self, instance: Instance) -> Rules:
        """Rules for the compiled kernel under an instance's limits, and which questions it has to ask."""
        limits = instance.limits
        return Rules(
            run=run_decided,
            lockstep=False,
            kv_blocks=limits.kv_blocks,
            block_tokens=limits.block_tokens,
            max_tokens=limits.max_batch_tokens,
            batch_tokens=limits.max_batch_tokens,
            max_running=limits.max_batch_requests,
            most_holders=limits.max_batch_requests,
            chunk=Chunk.ANY if instance.switches.chunked_prefill else Chunk.NEVER,
            own=PolicyState(
                asks=sum(1 << bit for bit, names in enumerate(QUESTIONS) if self._overrides(names))
            ),
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
