"""Answers of a policy in Python to the questions of the compiled loop (`each.decided`)."""

from __future__ import annotations

import numpy as np

from cspsched.problem.instance import Instance
from cspsched.simulate.decisions import Answers, DecisionPolicy
from cspsched.simulate.kernel import columns as each
from cspsched.simulate.kernel.layout import Kernel
from cspsched.simulate.kernel.records import set_column
from cspsched.simulate.watch import Watch

ASK_MODE, ASK_CHUNK, ASK_VICTIM, ASK_ADMIT = range(16, 20)


class Questions:
    """One run's policy, and the view that it has of the kernel's arrays."""

    def __init__(self, instance: Instance, policy: DecisionPolicy, kernel: Kernel) -> None:
        self.requests = instance.requests
        self._now, self._own = kernel.now, kernel.own
        self._rows, self._slots = kernel.requests, kernel.slots
        with Watch(policy, instance.requests):
            self._answers = Answers(policy, instance)
            keys = np.array([self._answers.order(request) for request in instance.requests])
        set_column(kernel.requests, "key", np.unique(keys, return_inverse=True)[1])
        self._watch = Watch(policy, instance.requests, lambda: (int(self._now.num_batches), self.clock_ns))

    def answer(self, question: int) -> None:
        """Ask the policy and leave its answer for the loop."""
        own = self._own
        with self._watch:
            own.answer = self._ask(question, int(own.asked), int(own.most))
        own.has_answer = 1

    def _ask(self, question: int, request: int, most: int) -> int:
        if question == ASK_ADMIT:
            return self._answers.admission(self, request, most)
        if question == ASK_CHUNK:
            return self._answers.chunk(self, request, most)
        if question == ASK_VICTIM:
            return self._answers.victim(self, request)
        return self._answers.batch_mode(self)

    @property
    def clock_ns(self) -> int:
        """Now."""
        return int(self._now.clock_ns)

    @property
    def free_blocks(self) -> int:
        """KV blocks that no request holds."""
        return int(self._now.free_blocks)

    @property
    def tokens_left(self) -> int:
        """Tokens that the batch still takes."""
        return int(self._own.budget)

    @property
    def num_running(self) -> int:
        """Requests that hold KV blocks."""
        return int(self._now.num_listed)

    @property
    def num_waiting(self) -> int:
        """Requests that have arrived and hold none."""
        return int(self._now.heap_size)

    @property
    def running(self) -> list[int]:
        """Requests that run, in order of admission."""
        running: list[int] = self._slots[: self._now.num_listed, each.LISTED].tolist()
        return running

    def known_tokens(self, request: int) -> int:
        """Prompt and generated tokens."""
        row = self._rows[request]
        return int(row.prompt_tokens) + int(row.generated)

    def computed_tokens(self, request: int) -> int:
        """Tokens with KV entries."""
        return int(self._rows[request].kv_tokens)

    def held_blocks(self, request: int) -> int:
        """KV blocks of a request."""
        return int(self._rows[request].blocks)
