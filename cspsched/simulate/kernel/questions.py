"""Answers of a policy in Python to the questions of the compiled loop (`each.decided`)."""

from __future__ import annotations

import numpy as np

from cspsched.problem.instance import Instance
from cspsched.simulate.decisions import Answers, DecisionPolicy
from cspsched.simulate.kernel import layout
from cspsched.simulate.kernel.each import layout as each
from cspsched.simulate.kernel.layout import Kernel
from cspsched.simulate.watch import Watch

ASK_MODE, ASK_CHUNK, ASK_VICTIM, ASK_ADMIT = range(16, 20)


class Questions:
    """One run's policy, and the view that it has of the kernel's arrays."""

    def __init__(self, instance: Instance, policy: DecisionPolicy, kernel: Kernel) -> None:
        self.requests = instance.requests
        self._now, self._rows, self._slots = kernel.now, kernel.rows, kernel.slots
        with Watch(policy, instance.requests):
            self._answers = Answers(policy, instance)
            keys = np.array([self._answers.order(request) for request in instance.requests])
        kernel.wide[:, each.KEY] = np.unique(keys, return_inverse=True)[1]
        self._watch = Watch(
            policy, instance.requests, lambda: (int(self._now[layout.BATCHES]), self.clock_ns)
        )

    def answer(self, question: int) -> None:
        """Ask the policy and leave its answer for the loop."""
        now = self._now
        with self._watch:
            now[each.ANSWER] = self._ask(question, int(now[each.ASKED]), int(now[each.MOST]))
        now[each.HAS_ANSWER] = 1

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
        return int(self._now[layout.CLOCK_NS])

    @property
    def free_blocks(self) -> int:
        """KV blocks that nobody holds."""
        return int(self._now[layout.FREE])

    @property
    def tokens_left(self) -> int:
        """Tokens that the batch still takes."""
        return int(self._now[each.BUDGET])

    @property
    def num_running(self) -> int:
        """Requests that hold KV blocks."""
        return int(self._now[each.NUM_LISTED])

    @property
    def num_waiting(self) -> int:
        """Requests that have arrived and hold none."""
        return int(self._now[each.HEAP_SIZE])

    @property
    def running(self) -> list[int]:
        """Requests that run, in order of admission."""
        running: list[int] = self._slots[: self._now[each.NUM_LISTED], each.LISTED].tolist()
        return running

    def known_tokens(self, request: int) -> int:
        """Prompt and generated tokens."""
        row = self._rows[request]
        return int(row[layout.PROMPT]) + int(row[layout.GENERATED])

    def computed_tokens(self, request: int) -> int:
        """Tokens with KV entries."""
        return int(self._rows[request, layout.CONTEXT])

    def held_blocks(self, request: int) -> int:
        """KV blocks of a request."""
        return int(self._rows[request, layout.BLOCKS])
