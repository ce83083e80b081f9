"""Slow, plain twins of what the certificates are made of; they share no arithmetic with the fast code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import ClassVar

from cspsched.bounds.best_hits.check import PlainHits
from cspsched.bounds.parts.minorant import Minorant, find_objections, minorants, reachable_maxima
from cspsched.errors import CostError
from cspsched.problem.cost import BatchFeatures, CostModel
from cspsched.problem.instance import Instance, Limits
from cspsched.problem.request import Request
from cspsched.units import ceil_div, round_up

MAX_POINTS = 4_096
"""Domains up to this are also checked at every whole number."""


@dataclass(frozen=True)
class PlainCounts:
    """Batch counts by going through the batches that a request cannot do without."""

    limits: Limits
    hits: PlainHits
    reasons: ClassVar[list[str]] = ["kv-volume", "tokens", "slots", "longest-request"]

    def blocks(self, request: Request, emitted: int) -> int:
        """KV blocks over the prompt's unfinished batches and the batches that emit the first tokens."""
        elsewhere = self.hits.found(request) // self.limits.block_tokens
        total, unfinished = 0, request.prompt_tokens - self.limits.max_batch_tokens
        while unfinished > self.hits.findable(request):
            total += self.limits.blocks_of(unfinished) - elsewhere
            unfinished -= self.limits.max_batch_tokens
        emitting = (self.limits.blocks_of(request.prompt_tokens + k) - elsewhere for k in range(emitted))
        return total + sum(emitting)

    def tokens_and_slots(self, request: Request, emitted: int) -> tuple[int, int]:
        """Tokens processed and batches taken part in."""
        charged = request.prompt_tokens - self.hits.found(request)
        own = request.prompt_tokens - self.hits.findable(request)
        return charged + emitted - 1, ceil_div(own, self.limits.max_batch_tokens) + emitted - 1

    def number(self, reason: str, requests: list[Request], emitted: int | None = None) -> int:
        """Batches by one argument, up to some output token of each request (all of them by default)."""
        heads = [request.output_tokens if emitted is None else emitted for request in requests]
        pairs = list(zip(requests, heads, strict=True))
        if reason == "kv-volume":
            return ceil_div(sum(self.blocks(*pair) for pair in pairs), self.limits.kv_blocks)
        tokens = [self.tokens_and_slots(*pair)[0] for pair in pairs]
        slots = [self.tokens_and_slots(*pair)[1] for pair in pairs]
        counts: dict[str, int] = {
            "tokens": ceil_div(sum(tokens), self.limits.max_batch_tokens),
            "slots": ceil_div(sum(slots), self.limits.max_batch_requests),
            "longest-request": max(slots),
        }
        return counts[reason]


def point_objections(minorant: Minorant, cost: CostModel, top: BatchFeatures[int]) -> Iterator[str]:
    """Batches of one feature alone that cost less than the minorant says, at every whole number if few."""
    alone = BatchFeatures(1, 0, 0, 0, 0, 0, 0, 0)
    for feature, most in top._asdict().items():
        for amount in range(1, most + 1 if most <= MAX_POINTS else 1):
            batch = alone._replace(**{feature: amount})
            # One of the two phases is there in every batch, and its price is at least the smaller one.
            time_ns = cost.batch_time_ns(batch)
            if not batch.num_prefills and not batch.num_decodes:
                time_ns += min(cost.prefill_batch_ceil, cost.decode_batch_ceil)
            if minorant.at(batch) > time_ns:
                yield f"the minorant is above the cost at {feature} = {amount}"
                break


@dataclass(frozen=True)
class PlainPrices:
    """Work under a minorant, one token after the other; repeated lengths are looked up."""

    minorant: Minorant
    max_batch_tokens: int
    hits: PlainHits
    _later: dict[int, Fraction] = field(default_factory=dict)
    _kept: list[Fraction] = field(default_factory=lambda: [Fraction(0)])
    """Least price of the first 0, 1, ... tokens, each processed or read again."""

    def until(self, request: Request, emitted: int) -> Fraction:
        """Unavoidable work of a request up to an output token."""
        lengths = range(request.prompt_tokens + 1, request.prompt_tokens + emitted)
        return self.first(request) + sum(map(self.later, lengths))

    def first(self, request: Request) -> Fraction:
        """Work up to the first token that is charged to the request."""
        return self.prefill(request.prompt_tokens, self.hits.found(request), self.hits.findable(request))

    def later(self, resident: int) -> Fraction:
        """The cheaper way to a later token that leaves so many tokens resident."""
        if resident not in self._later:
            self._later[resident] = min(self.refill(resident), self.decode(resident))
        return self._later[resident]

    def refill(self, resident: int) -> Fraction:
        """All tokens again, or the last one after those that a prefix cache holds or that are processed."""
        if not self.hits.caches:
            return self.prefill(resident)
        while len(self._kept) < resident:
            kept = min(self._token(len(self._kept)), self.minorant.prefill_context)
            self._kept.append(self._kept[-1] + kept)
        once = self._token(resident) + self.minorant.prefill_request + self.minorant.head
        return once + self._kept[resident - 1]

    def _token(self, resident: int) -> Fraction:
        """One token of a chunk, by itself."""
        price = self.minorant
        return price.tokens + price.prefill_tokens + price.prefill_attention * resident

    def prefill(self, resident: int, found: int = 0, findable: int = 0) -> Fraction:
        """Prefill in the fewest chunks, the short one first, so that the least context is read again.

        Other requests process the first tokens, `found`, and may process more.
        """
        price, total = self.minorant, self.minorant.head
        for end in range(resident, findable, -self.max_batch_tokens):
            total += price.prefill_request + price.prefill_context * max(0, end - self.max_batch_tokens)
        total += (price.tokens + price.prefill_tokens) * (resident - found)
        return total + price.prefill_attention * sum(range(found + 1, resident + 1))

    def decode(self, resident: int) -> Fraction:
        """One decode."""
        price = self.minorant
        return price.tokens + price.decode_context * (resident - 1) + price.decode_request + price.head


def naive_total_completion(releases: list[int], processing: list[int]) -> int:
    """Sum of completions under SRPT, by looking at all requests at every release and completion."""
    remaining, completed, clock = dict(enumerate(processing)), 0, 0
    while remaining:
        clock = max(clock, min(releases[i] for i in remaining))
        current = min((i for i in remaining if releases[i] <= clock), key=lambda i: remaining[i])
        events = [releases[i] for i in remaining if releases[i] > clock]
        step = min([remaining[current], *(event - clock for event in events)])
        clock += step
        remaining[current] -= step
        if remaining[current] == 0:
            del remaining[current]
            completed += clock
    return completed


@dataclass(frozen=True)
class PlainSolo:
    """Least times alone on the machine, in nanoseconds.

    Attributes
    ----------
    method
        `search` for the shortest chunking of every prefill, `minorant` for a bound on it.
    """

    instance: Instance
    method: str
    hits: PlainHits

    def token_times(self, request: Request) -> list[int]:
        """Time of each output token after the one before."""
        lengths = range(request.prompt_tokens + 1, request.prompt_tokens + request.output_tokens)
        later = [min(self.refills[s], lone_decode(self.instance.cost, s)) for s in lengths]
        return [self.first(request), *later]

    def first(self, request: Request) -> int:
        """From the arrival to the first token: with what earlier requests hold, or later with more."""
        wait_ns = self.hits.wait_ns(request)
        soon = self._after(request, self.hits.found_itself(request))
        return soon if wait_ns is None else min(soon, wait_ns + self.own_first(request))

    def own_first(self, request: Request) -> int:
        """Its own batches up to the first token."""
        return self._after(request, self.hits.findable(request))

    def _after(self, request: Request, found: int) -> int:
        """A prompt of which the first blocks may be found."""
        if self.method == "search":
            return self._searched(found)[request.prompt_tokens]
        return self._bounded(
            request.prompt_tokens - found,
            [p.prefill(request.prompt_tokens, found, found) for p in self._prices],
        )

    @cached_property
    def refills(self) -> list[int]:
        """Refill that leaves 0, 1, ... tokens resident."""
        longest = max(request.peak_kv_tokens for request in self.instance.requests)
        if self.method == "search":
            return self._searched(longest if self.hits.caches else 0)
        refills = ([p.refill(resident) for p in self._prices] for resident in range(1, longest + 1))
        tokens = [1] * longest if self.hits.caches else range(1, longest + 1)
        return [0, *map(self._bounded, tokens, refills)]

    def _bounded(self, tokens: int, works: list[Fraction]) -> int:
        """Most that any minorant says of so many tokens in chunks, whose work under each is given."""
        chunks = ceil_div(tokens, self.instance.limits.max_batch_tokens)
        minorants = (price.minorant for price in self._prices)
        batches = ((minorant.batch + minorant.prefill_batch) * chunks for minorant in minorants)
        return max(round_up(batch + work) for batch, work in zip(batches, works, strict=True))

    @cached_property
    def _prices(self) -> list[PlainPrices]:
        """One for each minorant, which is checked first."""
        cost, top = self.instance.cost, reachable_maxima(self.instance)
        candidates = minorants(self.instance)
        for minorant in candidates:
            for objection in find_objections(minorant, cost, top):
                raise CostError(f"cost model {cost.name!r}: {objection}")
        return [PlainPrices(one, self.instance.limits.max_batch_tokens, self.hits) for one in candidates]

    def _searched(self, found: int) -> list[int]:
        """Shortest lone prefill of every length, by trying every last chunk after blocks that are found."""
        if found not in self._known:
            cost, budget = self.instance.cost, self.instance.limits.max_batch_tokens
            longest = max(request.peak_kv_tokens for request in self.instance.requests)
            silent, emitting = [0], [0]
            for end in range(1, longest + 1):
                starts = range(max(0, end - budget), end)
                best = min(silent[n] + lone_chunk(cost, n, end - n, 0) for n in starts)
                silent.append(0 if end <= found and end % self.instance.limits.block_tokens == 0 else best)
                emitting.append(min(silent[n] + lone_chunk(cost, n, end - n, 1) for n in starts))
            self._known[found] = emitting
        return self._known[found]

    @cached_property
    def _known(self) -> dict[int, list[int]]:
        return {}


def lone_decode(cost: CostModel, resident: int) -> int:
    """Time of a batch of one decode that leaves so many tokens resident."""
    return cost.batch_time_ns(BatchFeatures(1, 0, 0, 0, resident - 1, 1, 0, 1))


def lone_chunk(cost: CostModel, held: int, chunk: int, generates: int) -> int:
    """Time of a batch of one chunk after so many tokens; it may generate a token."""
    attention = sum(range(held + 1, held + chunk + 1))
    return cost.batch_time_ns(BatchFeatures(chunk, attention, chunk, held, 0, generates, 1, 0))
