"""Slow, plain twins of what the certificates are made of; they share no arithmetic with the fast code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar

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
    reasons: ClassVar[list[str]] = ["kv-volume", "tokens", "slots", "longest-request"]

    def blocks(self, request: Request, emitted: int) -> int:
        """KV blocks over the prompt's unfinished batches and the batches that emit the first tokens."""
        total, unfinished = 0, request.prompt_tokens - self.limits.max_batch_tokens
        while unfinished > 0:
            total += self.limits.blocks_of(unfinished)
            unfinished -= self.limits.max_batch_tokens
        return total + sum(self.limits.blocks_of(request.prompt_tokens + k) for k in range(emitted))

    def tokens_and_slots(self, request: Request, emitted: int) -> tuple[int, int]:
        """Tokens processed and batches taken part in."""
        chunks = ceil_div(request.prompt_tokens, self.limits.max_batch_tokens)
        return request.prompt_tokens + emitted - 1, chunks + emitted - 1

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
    _later: dict[int, Fraction] = field(default_factory=dict)

    def until(self, request: Request, emitted: int) -> Fraction:
        """Unavoidable work of a request up to an output token."""
        lengths = range(request.prompt_tokens + 1, request.prompt_tokens + emitted)
        return self.prefill(request.prompt_tokens) + sum(map(self.later, lengths))

    def later(self, resident: int) -> Fraction:
        """The cheaper way to a later token that leaves so many tokens resident."""
        if resident not in self._later:
            self._later[resident] = min(self.prefill(resident), self.decode(resident))
        return self._later[resident]

    def prefill(self, resident: int) -> Fraction:
        """Prefill in the fewest chunks, the short one first, so that the least context is read again."""
        price, held, total = self.minorant, 0, self.minorant.head
        for chunk in self._chunks(resident):
            total += price.prefill_request + price.prefill_context * held
            total += (price.tokens + price.prefill_tokens) * chunk
            held += chunk
        return total + price.prefill_attention * Fraction(resident * (resident + 1), 2)

    def decode(self, resident: int) -> Fraction:
        """One decode."""
        price = self.minorant
        return price.tokens + price.decode_context * (resident - 1) + price.decode_request + price.head

    def _chunks(self, resident: int) -> Iterator[int]:
        full, rest = divmod(resident, self.max_batch_tokens)
        if rest:
            yield rest
        yield from [self.max_batch_tokens] * full


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


def plain_solo_times(instance: Instance, *, method: str) -> list[list[int]]:
    """For each request the least time of each of its tokens alone on the machine, in nanoseconds.

    Parameters
    ----------
    method
        `search` for the shortest chunking of every prefill, `minorant` for a bound on it.
    """
    solo = PlainSolo(instance, plain_prefills(instance, method=method))
    return [solo.token_times(request) for request in instance.requests]


def plain_prefills(instance: Instance, *, method: str) -> list[int]:
    """Least time of a lone prefill of 0, 1, ... tokens; methods as in `plain_solo_times`."""
    return _searched(instance) if method == "search" else _bounded(instance)


@dataclass(frozen=True)
class PlainSolo:
    """Lone times from a list of lone prefill times by length."""

    instance: Instance
    prefills: list[int]

    def token_times(self, request: Request) -> list[int]:
        """Time of each output token after the one before."""
        lengths = range(request.prompt_tokens + 1, request.prompt_tokens + request.output_tokens)
        later = [min(self.prefills[s], lone_decode(self.instance.cost, s)) for s in lengths]
        return [self.prefills[request.prompt_tokens], *later]


def lone_decode(cost: CostModel, resident: int) -> int:
    """Time of a batch of one decode that leaves so many tokens resident."""
    return cost.batch_time_ns(BatchFeatures(1, 0, 0, 0, resident - 1, 1, 0, 1))


def lone_chunk(cost: CostModel, held: int, chunk: int, generates: int) -> int:
    """Time of a batch of one chunk after so many tokens; it may generate a token."""
    attention = sum(range(held + 1, held + chunk + 1))
    return cost.batch_time_ns(BatchFeatures(chunk, attention, chunk, held, 0, generates, 1, 0))


def _longest(instance: Instance) -> int:
    return max(request.peak_kv_tokens for request in instance.requests)


def _searched(instance: Instance) -> list[int]:
    """Shortest lone prefill of every length, by trying every last chunk."""
    cost, budget = instance.cost, instance.limits.max_batch_tokens
    silent, emitting = [0], [0]
    for end in range(1, _longest(instance) + 1):
        starts = range(max(0, end - budget), end)
        silent.append(min(silent[n] + lone_chunk(cost, n, end - n, 0) for n in starts))
        emitting.append(min(silent[n] + lone_chunk(cost, n, end - n, 1) for n in starts))
    return emitting


def _bounded(instance: Instance) -> list[int]:
    """Largest bound of any minorant on the lone prefill of every length; each minorant is checked first."""
    candidates, top, budget = (
        minorants(instance),
        reachable_maxima(instance),
        instance.limits.max_batch_tokens,
    )
    for minorant in candidates:
        for objection in find_objections(minorant, instance.cost, top):
            raise CostError(f"cost model {instance.cost.name!r}: {objection}")
    prices = [PlainPrices(minorant, budget) for minorant in candidates]
    times = [0]
    for length in range(1, _longest(instance) + 1):
        chunks = ceil_div(length, budget)
        bounds = [
            (price.minorant.batch + price.minorant.prefill_batch) * chunks + price.prefill(length)
            for price in prices
        ]
        times.append(max(map(round_up, bounds)))
    return times
