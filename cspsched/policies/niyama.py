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

import math
from dataclasses import dataclass
from typing import ClassVar

from cspsched.compiled.jit import inner, merged
from cspsched.errors import UsageError
from cspsched.policies.batching import Configured
from cspsched.policies.needs import Need, RequestData
from cspsched.policies.ranking import ranked_chunk, ranked_rules, serve_with
from cspsched.problem.instance import Instance
from cspsched.simulate.kernel.actions import decodes, lacking_tokens
from cspsched.simulate.kernel.columns import LISTED
from cspsched.simulate.kernel.layout import BY_RANK, HEAP, Kernel
from cspsched.simulate.kernel.lists import next_arrival, next_number, numbered_key, push
from cspsched.simulate.kernel.loops import make_loop
from cspsched.simulate.kernel.pricing import batch_time_ns
from cspsched.simulate.kernel.records import PolicyState
from cspsched.simulate.kernel.rules import Chunk, Rules

NEVER = int(Chunk.NEVER)
NS_PER_MS = 1_000_000
RELEGATED_NS = 1e20
"""Added to the priority of a relegated request: more than any deadline."""


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
        if not 0 <= self.alpha < math.inf:
            raise UsageError(f"policy 'niyama': alpha is {self.alpha}, expected at least 0, finite")


@dataclass(frozen=True, slots=True)
class Niyama(Configured):
    """Niyama-style (arXiv 2503.22562): earliest deadline first, chunks as large as the decodes' slack."""

    settings: NiyamaSettings = NiyamaSettings()
    name: ClassVar[str] = "niyama"
    settings_type: ClassVar[type[NiyamaSettings]] = NiyamaSettings
    needs: ClassVar[tuple[Need, ...]] = (
        Need(data=RequestData.LIMIT, without="those of its settings hold for all"),
    )

    def kernel_rules(self, instance: Instance) -> Rules:
        """Rules under an instance's limits."""
        settings = self.settings
        return ranked_rules(
            instance,
            run_niyama,
            own=PolicyState(alpha=float(settings.alpha), relegates=settings.relegation),
            ttft_limit_ns=float(settings.ttft_limit_ms * NS_PER_MS),
            tpot_limit_ns=float(settings.tpot_limit_ms * NS_PER_MS),
        )


@inner
def _submit(k: Kernel) -> None:
    """Queue all arrivals, behind all ranked ones until they are ranked themselves."""
    request = next_arrival(k)
    while request >= 0:
        number = next_number(k)
        k.notes[request].submitted_as = number
        k.requests[request].key = numbered_key(2, number)
        push(k, request)
        request = next_arrival(k)


@inner
def _rank_all(k: Kernel) -> None:
    """Keys of all: decodes first, then prefills by urgency; and the time that the decodes allow."""
    _gather(k)
    _sort(k)
    if k.own.relegates:
        _relegate(k)
    queue, heap, num_waiting = k.orders[:, BY_RANK], k.orders[:, HEAP], 0
    for place in range(k.own.num_queued):
        request = queue[place]
        k.requests[request].key = numbered_key(1, place)
        if not k.requests[request].blocks:
            # In order, the waiting ones are a heap.
            heap[num_waiting] = request
            num_waiting += 1
    _allow(k)


@inner
def _deadline_ns(k: Kernel, request: int) -> float:
    """When the next token of a request is due."""
    notes = k.notes[request]
    return float(notes.due_ns + float(k.requests[request].generated) * notes.token_ns)


@inner
def _gather(k: Kernel) -> None:
    """Drop those that decode now or have finished, enter those that wait anew, rank all that changed."""
    now, queue, kept = k.now, k.orders[:, BY_RANK], 0
    for place in range(k.own.num_queued):
        request = int(queue[place])
        row = k.requests[request]
        if decodes(k, request) or row.generated == row.output_tokens:
            k.notes[request].is_queued = 0
            continue
        queue[kept] = request
        kept += 1
        if row.blocks or row.evicted_at == now.decision - 1:
            _rank(k, request)
    for place in range(now.heap_size):
        request = int(k.orders[place, HEAP])
        if not k.notes[request].is_queued:
            k.notes[request].is_queued = 1
            queue[kept] = request
            kept += 1
            _rank(k, request)
    k.own.num_queued = kept


@inner
def _rank(k: Kernel, request: int) -> None:
    """Urgency of a prefill, and the time that the rest of it takes alone in one piece."""
    tokens = lacking_tokens(k, request)
    _empty_features(k)
    _add_chunk(k, 0, tokens, tokens)
    left_ns = k.notes[request].left_ns = batch_time_ns(k, 0)
    urgency = _deadline_ns(k, request) + k.own.alpha * left_ns
    if k.notes[request].is_relegated:
        urgency += RELEGATED_NS
    k.notes[request].urgency = urgency


@inner
def _sort(k: Kernel) -> None:
    """Sort the prefills by urgency, then submission; they are nearly sorted already."""
    queue = k.orders[:, BY_RANK]
    for position in range(1, k.own.num_queued):
        request, place = queue[position], position
        urgency, number = k.notes[request].urgency, k.notes[request].submitted_as
        while place:
            other = k.notes[queue[place - 1]]
            if other.urgency < urgency or (other.urgency == urgency and other.submitted_as < number):
                break
            queue[place] = queue[place - 1]
            place -= 1
        queue[place] = request


@inner
def _relegate(k: Kernel) -> None:
    """Take prefills out, lowest tier and longest first, until each that is left ends in time."""
    queue, ends_ns, some = k.orders[:, BY_RANK], float(k.now.clock_ns), False
    for place in range(k.own.num_queued):
        request = int(queue[place])
        if k.notes[request].is_relegated:
            continue
        ends_ns += k.notes[request].left_ns
        if ends_ns > _deadline_ns(k, request):
            victim = _lowest(k, place + 1)
            ends_ns -= k.notes[victim].left_ns
            k.notes[victim].is_relegated = 1
            k.notes[victim].urgency += RELEGATED_NS
            some = True
    if some:
        _sort(k)


@inner
def _lowest(k: Kernel, count: int) -> int:
    """Of the first so many prefills that are not relegated the lowest tier, then longest, then first."""
    found = -1
    for place in range(count):
        request = int(k.orders[place, BY_RANK])
        if not k.notes[request].is_relegated and (found < 0 or _is_lower(k, request, found)):
            found = request
    return found


@inner
def _is_lower(k: Kernel, request: int, other: int) -> bool:
    """Whether a request is relegated before another one."""
    one, two = k.notes[request], k.notes[other]
    if one.tier != two.tier:
        return bool(one.tier > two.tier)
    if one.left_ns != two.left_ns:
        return bool(one.left_ns > two.left_ns)
    return request < other


@inner
def _allow(k: Kernel) -> None:
    """Start the batch with all decodes, and find the longest time in which those in time stay so."""
    now, count, context = k.now, 0, 0
    for position in range(now.num_listed):
        request = int(k.slots[position, LISTED])
        if decodes(k, request):
            k.requests[request].key = k.notes[request].submitted_as
            count += 1
            context += k.requests[request].kv_tokens
    _empty_features(k)
    now.decode_context, now.num_decodes = context, count
    alone_ns = float(batch_time_ns(k, count)) if count else 0.0
    longest_ns = math.inf
    for position in range(now.num_listed):
        request = int(k.slots[position, LISTED])
        if decodes(k, request):
            slack_ns = _deadline_ns(k, request) - float(now.clock_ns)
            if slack_ns >= alone_ns:
                longest_ns = min(longest_ns, slack_ns)
    k.own.longest_ns = longest_ns


@inner
def _fitting_chunk(k: Kernel, request: int, most: int, lacking: int) -> int:
    """Largest chunk up to `most` that the decodes can wait for; it counts as part of the batch."""
    now, computed, least = k.now, int(k.requests[request].kv_tokens), 0
    longest_ns = k.own.longest_ns
    if longest_ns == math.inf:
        least = most
    while least < most:
        tokens = (least + most + 1) // 2
        _add_chunk(k, computed, tokens, lacking)
        fits = batch_time_ns(k, int(now.num_decodes)) <= longest_ns
        _remove_chunk(k, computed, tokens, lacking)
        if fits:
            least = tokens
        else:
            most = tokens - 1
    if least < lacking and now.chunk == NEVER:
        return 0
    if least:
        _add_chunk(k, computed, least, lacking)
    return least


@inner
def _empty_features(k: Kernel) -> None:
    """A batch of nothing."""
    now = k.now
    now.attention = now.prefill_tokens = now.prefill_context = 0
    now.num_prefills = now.num_generating = 0


@inner
def _add_chunk(k: Kernel, computed: int, tokens: int, lacking: int) -> None:
    """One more chunk of a prefill, which generates if it is the last."""
    now = k.now
    now.attention += tokens * (2 * computed + tokens + 1) // 2
    now.prefill_tokens += tokens
    now.prefill_context += computed
    now.num_prefills += 1
    now.num_generating += tokens == lacking


@inner
def _remove_chunk(k: Kernel, computed: int, tokens: int, lacking: int) -> None:
    """Take back what `_add_chunk` added."""
    now = k.now
    now.attention -= tokens * (2 * computed + tokens + 1) // 2
    now.prefill_tokens -= tokens
    now.prefill_context -= computed
    now.num_prefills -= 1
    now.num_generating -= tokens == lacking


@inner
def _chunk(k: Kernel, request: int, lacking: int) -> int:
    """One token of a decode; of a prefill what the budget and the slack of the decodes leave."""
    tokens = ranked_chunk(k, request, lacking)
    if not tokens or decodes(k, request):
        return tokens
    return _fitting_chunk(k, request, tokens, lacking)


_serve = serve_with(_chunk)


@merged
def niyama_step(k: Kernel) -> None:
    """Priorities, relegation, the time that the decodes allow; then serve in that order."""
    _rank_all(k)
    _serve(k)


run_niyama = make_loop("run_niyama", submit=_submit, step=niyama_step)
