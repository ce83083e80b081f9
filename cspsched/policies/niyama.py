"""Deadline-first serving after Niyama (arXiv 2503.22562), on Sarathi's mixed batches.

Source: rules written down from the paper. Token k of a request is due at arrival + TTFT limit + (k - 1) x
TPOT limit (`ttft_limit_s`, `tpot_limit_s` of the trace; where it has none the settings decide). Every batch
takes all decodes, and beside them prefills by deadline of the next token + alpha x estimated time of the
prefill that is left: from earliest deadline first (alpha = 0) towards shortest first. A chunk is as large as
the predicted batch time (the instance's cost model) lets every decode meet its deadline. A prefill that would
miss its deadline is relegated behind all others, low tiers first. Only prefills are preempted for others.

Left open by the written rules and decided here:

* A request whose prefill runs out of its deadline is found by adding up the estimated times in the order of
  priority (alone, in full chunks); relegated is the queued one of the lowest tier, which is the largest
  `priority` of the trace, and among these the one of longest prefill. It stays relegated.
* A decode that is late even in a batch without prefills does not bound the chunks.
* Where even decodes alone lack memory the latest arrival among them is evicted and recomputed; whoever was
  evicted is due at its next token.
* alpha = 1 and limits of 2 s and 0.1 s: the paper tunes them by workload. Limits on the whole latency (TTLT,
  its batch tier) are not in a trace; a large ttft_limit_s stands for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from typing import ClassVar

from cspsched.errors import UsageError
from cspsched.policies.batching import Compiled, Configured
from cspsched.policies.needs import Need, RequestData
from cspsched.policies.ranking import RankedRun
from cspsched.problem.cost import BatchFeatures, triangle
from cspsched.problem.instance import Instance
from cspsched.problem.request import Request
from cspsched.simulate import Step
from cspsched.simulate.kernel.each.rules import AnyRules, Mode

NS_PER_MS = 1_000_000
RELEGATED_NS = 1e20
"""Added to the priority of a relegated request: more than any deadline."""
EMPTY = BatchFeatures(
    tokens=0, prefill_attention=0, prefill_tokens=0, prefill_context=0,
    decode_context=0, num_generating=0, num_prefills=0, num_decodes=0,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class NiyamaSettings:
    """The scheduler's parameters, and the limits of requests whose trace has none."""

    ttft_limit_ms: float = 2000.0
    """Time to the first token, where the trace has no limit."""
    tpot_limit_ms: float = 100.0
    """Time per output token after the first, where the trace has no limit."""
    alpha: float = 1.0
    """Weight of the estimated time of the prefill beside the deadline; 0 is earliest deadline first."""
    relegation: bool = True
    """Whether prefills that would miss their deadline go behind all others."""

    def __post_init__(self) -> None:
        for name in ("ttft_limit_ms", "tpot_limit_ms"):
            if not 1e-6 <= getattr(self, name) <= 1e12:
                raise UsageError(f"policy 'niyama': {name} is {getattr(self, name)}, expected 1e-6 to 1e12")
        if not 0 <= self.alpha < inf:
            raise UsageError(f"policy 'niyama': alpha is {self.alpha}, expected at least 0, finite")


@dataclass(frozen=True, slots=True)
class Niyama(Compiled, Configured):
    """Niyama-style (arXiv 2503.22562): earliest deadline first, chunks as large as the decodes' slack."""

    settings: NiyamaSettings = NiyamaSettings()
    name: ClassVar[str] = "niyama"
    settings_type: ClassVar[type[NiyamaSettings]] = NiyamaSettings
    needs: ClassVar[tuple[Need, ...]] = (
        Need(data=RequestData.LIMIT, without="those of its settings hold for all"),
    )

    def new_run(self, instance: Instance) -> NiyamaRun:
        """Empty queues under the instance's limits."""
        return NiyamaRun(instance, self.settings)


class NiyamaRun(RankedRun):
    """Queues of one run; the key of a rank is the priority, and -infinity for decodes, which come first."""

    def __init__(self, instance: Instance, settings: NiyamaSettings) -> None:
        super().__init__(instance)
        self._settings = settings
        self._cost = instance.cost
        self._relegated: set[int] = set()
        self._known_prefill_ns: dict[int, int] = {}
        self._features = EMPTY
        self._longest_ns = inf

    def kernel_rules(self) -> AnyRules | None:
        """All of it."""
        settings = self._settings
        return self._each_rules(
            mode=Mode.RELEGATING if settings.relegation else Mode.DEADLINES,
            ratio=float(settings.alpha),
            price=float(settings.ttft_limit_ms * NS_PER_MS),
            output_price=float(settings.tpot_limit_ms * NS_PER_MS),
        )

    def schedule(self, step: Step) -> None:
        """Priorities, relegation, the time that the decodes allow; then serve in that order."""
        queued = [request for request in self.running if not step.decoding[request]] + self.waiting
        left_ns = {request: self._prefill_ns(self.lacking(step, request)) for request in queued}
        for request in self.running:
            self.rank[request] = (-inf, self.rank[request][1])
        for request in queued:
            key = self._deadline_ns(step, request) + float(self._settings.alpha) * left_ns[request]
            key += RELEGATED_NS * (request in self._relegated)
            self.rank[request] = (key, self.rank[request][1])
        if self._settings.relegation:
            self._relegate(step, left_ns)
        self.waiting.sort(key=self.rank.__getitem__)
        self._allow(step)
        self.serve(step)

    def chunk(self, step: Step, request: int) -> int:
        """One token of a decode; of a prefill what the budget and the slack of the decodes leave."""
        tokens = super().chunk(step, request)
        if step.decoding[request] or not tokens:
            return tokens
        computed, lacking = step.computed_tokens[request], self.lacking(step, request)
        fitting = self._longest_chunk(computed, tokens, lacking)
        if fitting < lacking and not self.chunked:
            return 0
        self._features = (
            _with_chunk(self._features, computed, fitting, lacking) if fitting else self._features
        )
        return fitting

    def _limits_ns(self, request: Request) -> tuple[float, float]:
        ttft_ns, tpot_ns = request.ttft_limit_ns, request.tpot_limit_ns
        return (
            float(self._settings.ttft_limit_ms * NS_PER_MS if ttft_ns is None else ttft_ns),
            float(self._settings.tpot_limit_ms * NS_PER_MS if tpot_ns is None else tpot_ns),
        )

    def _deadline_ns(self, step: Step, request: int) -> float:
        """When the next token of a request is due."""
        data = self.requests[request]
        ttft_ns, tpot_ns = self._limits_ns(data)
        generated = step.known_tokens[request] - data.prompt_tokens
        return data.arrival_ns + ttft_ns + generated * tpot_ns

    def _prefill_ns(self, tokens: int) -> int:
        """Estimated time of a prefill alone, in one piece; whoever waits is asked again for every batch."""
        if tokens not in self._known_prefill_ns:
            self._known_prefill_ns[tokens] = self._cost.batch_time_ns(_with_chunk(EMPTY, 0, tokens, tokens))
        return self._known_prefill_ns[tokens]

    def _relegate(self, step: Step, left_ns: dict[int, int]) -> None:
        """Take prefills out, lowest tier and longest first, until each that is left ends in time."""
        ends_ns = float(step.clock_ns)
        kept: list[tuple[int, int, int]] = []
        for request in sorted(left_ns.keys() - self._relegated, key=self.rank.__getitem__):
            ends_ns += left_ns[request]
            heappush(kept, (-self.requests[request].priority, -left_ns[request], request))
            if ends_ns > self._deadline_ns(step, request):
                victim = heappop(kept)[2]
                ends_ns -= left_ns[victim]
                self._relegated.add(victim)
                self.rank[victim] = (self.rank[victim][0] + RELEGATED_NS, self.rank[victim][1])

    def _allow(self, step: Step) -> None:
        """Start the batch with its decodes, and find the longest time in which those in time stay so."""
        contexts = [step.computed_tokens[i] for i in self.running if step.decoding[i]]
        count = len(contexts)
        self._features = EMPTY._replace(
            tokens=count, decode_context=sum(contexts), num_generating=count, num_decodes=count
        )
        alone_ns = self._cost.batch_time_ns(self._features) if count else 0
        slacks_ns = (self._deadline_ns(step, i) - step.clock_ns for i in self.running if step.decoding[i])
        self._longest_ns = min((slack for slack in slacks_ns if slack >= alone_ns), default=inf)

    def _longest_chunk(self, computed: int, most: int, lacking: int) -> int:
        """Largest chunk up to `most` that the decodes can wait for; batch time grows with it."""
        if self._longest_ns == inf:
            return most
        least = 0
        while least < most:
            tokens = (least + most + 1) // 2
            features = _with_chunk(self._features, computed, tokens, lacking)
            if self._cost.batch_time_ns(features) <= self._longest_ns:
                least = tokens
            else:
                most = tokens - 1
        return least


def _with_chunk(features: BatchFeatures[int], computed: int, tokens: int, lacking: int) -> BatchFeatures[int]:
    """Features of a batch with one more chunk of a prefill, which generates if it is the last."""
    return features._replace(
        tokens=features.tokens + tokens,
        prefill_attention=features.prefill_attention + triangle(computed + tokens) - triangle(computed),
        prefill_tokens=features.prefill_tokens + tokens,
        prefill_context=features.prefill_context + computed,
        num_generating=features.num_generating + (tokens == lacking),
        num_prefills=features.num_prefills + 1,
    )
