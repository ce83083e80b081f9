"""FastServe's skip-join multi-level feedback queue (LLMServe/FastServe).

Queue p has the quantum q 2^p, q = 10 ms; there is no last queue. A request joins the first queue whose
quantum covers the time that the cost model gives its prompt alone. Batches are filled from the highest queue
down; who has used more than the quantum of its queue goes to the front of the next. Every 1000 batches
whoever was idle for 3 s goes to the front of queue 0. Whoever lacks memory evicts from the end of the lowest
queue up.

Where the instance allows swap (preemption swap or either) an evicted request moves to host memory. No
prompt starts while less than 10 % of the host blocks are free, and after a batch before which nobody was
evicted the first of those in host memory, as many as a batch may have, come back ahead of their turn as
long as the blocks that the running requests need next stay free. (FastServe keeps one block in reserve for
each request of its small batches instead, which an R of hundreds would not bear.) A victim that host memory
has no room for is recomputed; if the instance allows swap alone, that is an error.

Where the instance has no swap an evicted request is recomputed (and looks for starving requests that come
more often than a refill takes may evict in a circle, which is an error). If memory is short that is not
FastServe's performance: it changes over requests at every quantum, and each change costs a refill. Left
open by the written rules and decided here: prefills and decodes share batches; prompts are cut where the
instance allows it; the requests of a batch keep their order when they are pushed to the front; idle counts
from the last batch or, before the first, from the arrival; time in a queue is that of the batches it was
in.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ldexp
from typing import ClassVar

from cspsched.errors import UsageError
from cspsched.policies.batching import Compiled, Configured
from cspsched.policies.ranking import RankedRun
from cspsched.policies.settings import require_at_least
from cspsched.problem.cost import BatchFeatures, triangle
from cspsched.problem.instance import Instance
from cspsched.simulate import Step
from cspsched.simulate.kernel.each.rules import AnyRules, Mode

NS_PER_MS = 1_000_000
LEAST_HOST_SHARE = 0.1
"""Share of the host blocks that must be free for a prompt to start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FastserveSettings:
    """The scheduler's parameters that are simulated; None takes the instance's limit."""

    quantum_ms: float = 10.0
    """Quantum of the highest queue."""
    starvation_threshold_ms: float = 3000.0
    """Idle time after which a request starves."""
    starvation_period: int = 1000
    """Batches between two looks for requests that starve."""
    max_batch_size: int | None = None
    """Most requests in a batch. Default: the instance's R."""
    max_tokens_per_batch: int | None = None
    """Token budget of a batch. Default: the instance's C."""

    def __post_init__(self) -> None:
        names = ("starvation_period", "max_batch_size", "max_tokens_per_batch")
        require_at_least(self, 1, *names, policy="fastserve")
        require_at_least(self, 0, "starvation_threshold_ms", policy="fastserve")
        if not self.quantum_ms * NS_PER_MS >= 1:
            raise UsageError(f"policy 'fastserve': quantum_ms is {self.quantum_ms}, expected at least 1e-6")


@dataclass(frozen=True, slots=True)
class Fastserve(Compiled, Configured):
    """FastServe's skip-join MLFQ: who has run long waits behind who has not; swap if the instance has it."""

    settings: FastserveSettings = FastserveSettings()
    name: ClassVar[str] = "fastserve"
    settings_type: ClassVar[type[FastserveSettings]] = FastserveSettings

    def new_run(self, instance: Instance) -> FastserveRun:
        """Empty queues under the instance's limits and the settings, whichever are tighter."""
        return FastserveRun(instance, self.settings)


class FastserveRun(RankedRun):
    """Queues of one run; the key of the rank is the queue, the number the place in it."""

    def __init__(self, instance: Instance, settings: FastserveSettings) -> None:
        super().__init__(
            instance, max_tokens=settings.max_tokens_per_batch, max_requests=settings.max_batch_size
        )
        self.swaps = instance.switches.preemption.swaps
        self._least_host_blocks = LEAST_HOST_SHARE * instance.limits.host_kv_blocks
        self._settings = settings
        self._cost = instance.cost
        self._used_ns = [0] * len(instance.requests)
        self._idle_since_ns = [request.arrival_ns for request in instance.requests]
        self._in_batch: list[int] = []
        self._batch_start_ns = 0
        self._num_batches = 0
        self._front = 0

    def kernel_rules(self) -> AnyRules | None:
        """Without swap."""
        if self.swaps:
            return None
        return self._each_rules(
            mode=Mode.LEVELS,
            ratio=float(self._settings.quantum_ms * NS_PER_MS),
            price=float(self._settings.starvation_threshold_ms * NS_PER_MS),
            starvation_period=self._settings.starvation_period,
        )

    def submit(self, request: int) -> None:
        """Join the first queue whose quantum covers the prefill."""
        level, prefill_ns = 0, self._prefill_ns(self.requests[request].prompt_tokens)
        while self._quantum_ns(level) < prefill_ns:
            level += 1
        self.rank[request] = (level, 0)
        super().submit(request)

    def schedule(self, step: Step) -> None:
        """Account for the last batch, look for starving requests, then serve from the highest queue down."""
        self._charge(step)
        if self._num_batches and self._num_batches % self._settings.starvation_period == 0:
            self._rescue(step)
        self.serve(step)
        if self.swapped and step.batch and not step.evicted:
            self._bring_back(step)
        self._in_batch, self._batch_start_ns = list(step.batch), step.clock_ns
        self._num_batches += bool(step.batch)

    def may_start(self, step: Step) -> bool:
        """Whether host memory has room for those who would have to make room."""
        return not self.swaps or step.free_host_blocks >= self._least_host_blocks

    def _bring_back(self, step: Step) -> None:
        """Swap in ahead of their turn the first of the swapped requests, while the blocks are to spare."""
        for request in self.swapped[: self.max_running]:
            if self.blocks_to_serve(step, request) + self.growing_blocks(step) > step.free_blocks:
                break
            step.swap_in(request)
            self.running.append(request)
        self.swapped = [request for request in self.swapped if step.host_tokens[request]]

    def _prefill_ns(self, tokens: int) -> int:
        """Time of a batch with nothing but a prompt."""
        features = BatchFeatures(
            tokens=tokens,
            prefill_attention=triangle(tokens),
            prefill_tokens=tokens,
            prefill_context=0,
            decode_context=0,
            num_generating=1,
            num_prefills=1,
            num_decodes=0,
        )
        return self._cost.batch_time_ns(features)

    def _quantum_ns(self, level: float) -> float:
        return ldexp(self._settings.quantum_ms * NS_PER_MS, int(level))

    def _charge(self, step: Step) -> None:
        """Demote whoever has used up the quantum of its queue."""
        elapsed_ns = step.clock_ns - self._batch_start_ns
        # The last is pushed to the front first, so that the order stays.
        for request in reversed(self._in_batch):
            self._used_ns[request] += elapsed_ns
            self._idle_since_ns[request] = step.clock_ns
            level = self.rank[request][0]
            if self._used_ns[request] > self._quantum_ns(level):
                self._push_front(request, level + 1)

    def _rescue(self, step: Step) -> None:
        """Move starving requests to the front of the highest queue."""
        threshold_ns = self._settings.starvation_threshold_ms * NS_PER_MS
        everybody = self.running + self.waiting + self.swapped
        for request in sorted(everybody, key=self.rank.__getitem__, reverse=True):
            if step.clock_ns - self._idle_since_ns[request] >= threshold_ns:
                self._push_front(request, 0)
        self.waiting.sort(key=self.rank.__getitem__)
        self.swapped.sort(key=self.rank.__getitem__)

    def _push_front(self, request: int, level: float) -> None:
        self._front -= 1
        self.rank[request] = (level, self._front)
        self._used_ns[request] = 0
