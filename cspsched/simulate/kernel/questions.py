"""Answers of a policy in Python to the questions of the compiled loop (`kernel.decided`)."""

from __future__ import annotations

import numpy as np

from cspsched.problem.instance import Instance
from cspsched.simulate.decisions import Answers, DecisionPolicy, View
from cspsched.simulate.kernel.decided import ASK_ADMIT, ASK_CHUNK, ASK_VICTIM
from cspsched.simulate.kernel.layout import Kernel
from cspsched.simulate.kernel.records import set_column
from cspsched.simulate.watch import Watch


class Questions:
    """One run's policy, and the view that it has of the kernel's arrays."""

    def __init__(self, instance: Instance, policy: DecisionPolicy, kernel: Kernel) -> None:
        self._own, self._view = kernel.own, View(instance.requests, kernel)
        with Watch(policy, instance.requests):
            self._answers = Answers(policy, instance)
            keys = np.array([self._answers.order(request) for request in instance.requests])
        set_column(kernel.requests, "key", np.unique(keys, return_inverse=True)[1])
        now = kernel.now
        self._watch = Watch(policy, instance.requests, lambda: (int(now.num_batches), int(now.clock_ns)))

    def answer(self, question: int) -> None:
        """Ask the policy and leave its answer for the loop."""
        own = self._own
        with self._watch:
            own.answer = self._ask(question, int(own.asked), int(own.most))
        own.has_answer = 1

    def _ask(self, question: int, request: int, most: int) -> int:
        if question == ASK_ADMIT:
            return self._answers.admission(self._view, request, most)
        if question == ASK_CHUNK:
            return self._answers.chunk(self._view, request, most)
        if question == ASK_VICTIM:
            return self._answers.victim(self._view, request)
        return self._answers.batch_mode(self._view)
