"""Slow, plain twin of the `memory-price` certificate: request by request, from the last token to the first.

It shares no arithmetic with the fast code: shares are rationals, and the cheapest way of a request is found
from its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from cspsched.bounds.memory_price.details import PRICE_UNIT, MemoryPrices, Rule
from cspsched.bounds.parts.check import PlainPrices
from cspsched.problem.instance import Instance, Preemption
from cspsched.problem.request import Request
from cspsched.units import ceil_div, round_up

FREE = Fraction(0)


def plain_memory_price(instance: Instance, plain: PlainPrices, chosen: MemoryPrices) -> int:
    """The bound on the sum of latencies that some prices give, in nanoseconds."""
    requests, preempts = instance.requests, instance.switches.preemption is not Preemption.NONE
    if len({request.arrival_ns for request in requests}) > 1:
        raise ValueError("memory-price holds for requests that arrive together")
    if preempts and chosen.rules:
        raise ValueError("rules beside that of volume hold where nothing is preempted")
    costs: dict[tuple[int, ...], Fraction] = {}
    total = Fraction(0)
    for request in requests:
        hits = plain.hits.found(request), plain.hits.findable(request)
        shape = (request.prompt_tokens, request.output_tokens, *hits)
        if shape not in costs:
            costs[shape] = PlainWay(instance, chosen, request, *hits).least_cost()
        total += costs[shape]
    ends = round_up(total - Fraction(sum(map(sum, chosen.prices)), PRICE_UNIT))
    works = sorted(_own_work(request, plain) for request in requests)
    waited = sum(work * (len(works) - place) for place, work in enumerate(works))
    return round_up(plain.minorant.batch * ends + waited)


def _own_work(request: Request, plain: PlainPrices) -> Fraction:
    charged = request.prompt_tokens - plain.hits.found(request)
    surcharge = plain.minorant.prefill_batch * Fraction(charged, plain.max_batch_tokens)
    return plain.until(request, request.output_tokens) + surcharge


@dataclass(frozen=True)
class PlainWay:
    """One request: in which batches it may emit its tokens, and what that costs."""

    instance: Instance
    chosen: MemoryPrices
    request: Request
    found: int
    findable: int

    def least_cost(self) -> Fraction:
        """Number of its last batch and the prices of its shares, at least."""
        own = self.request.prompt_tokens - self.findable
        chunks = ceil_div(own, self.instance.limits.max_batch_tokens)
        longest = self.chosen.num_batches + self.request.output_tokens + chunks
        # What is still to pay from a batch on that has just emitted token k + 1, itself included.
        after = [number + price for number, price in enumerate(self._prices(-1, longest), start=1)]
        for age in reversed(range(self.request.output_tokens - 1)):
            after = list(self._one_earlier(age, after))
        return min(after[chunks - 1 :])

    def _one_earlier(self, age: int, after: list[Fraction]) -> Iterator[Fraction]:
        """The same one token earlier; in the last batch of all nothing may come any more."""
        prices, pause = self._prices(age, len(after)), self._pause()
        # Cheapest way from the end of a batch in which the request is there, or away, and has not gone on.
        waiting: list[Fraction | None] = [None] * len(after)
        for batch in reversed(range(len(after) - 1)):
            choices = [after[batch + 1]]
            later = waiting[batch + 1]
            if pause is not None and later is not None:
                choices.append(later + pause(prices[batch + 1]))
            waiting[batch] = min(choices)
        for price, rest in zip(prices, waiting, strict=True):
            if rest is not None:
                yield price + rest

    def _pause(self) -> Callable[[Fraction], Fraction] | None:
        switches = self.instance.switches
        if switches.preemption is not Preemption.NONE:
            return lambda _: FREE
        return (lambda price: price) if switches.holding else None

    def _prices(self, age: int, count: int) -> list[Fraction]:
        """Price of its shares in each batch that leaves it with the tokens of an age; -1 is the last."""
        limits, request = self.instance.limits, self.request
        elsewhere = self.found // limits.block_tokens
        peak = limits.blocks_of(request.peak_kv_tokens) - elsewhere
        tokens = request.peak_kv_tokens if age < 0 else request.prompt_tokens + age
        blocks = peak if self.instance.switches.reservation else limits.blocks_of(tokens) - elsewhere
        shares = [Fraction(blocks, limits.kv_blocks)]
        shares += [_share(rule, blocks, peak, limits.kv_blocks) for rule in self.chosen.rules]
        prices = [FREE] * count
        for share, row in zip(shares, self.chosen.prices, strict=True):
            if share:
                for batch, price in enumerate(row):
                    prices[batch] += share * Fraction(price, PRICE_UNIT)
        return prices


def _share(rule: Rule, resident: int, peak: int, kv_blocks: int) -> Fraction:
    """Share of one resident; 1 if it can be there with no other that counts."""
    beside_small, beside_large = kv_blocks - rule.small, kv_blocks - rule.large
    if peak >= rule.large and resident > beside_small:
        return Fraction(1)
    enough = resident > beside_large and resident * (rule.members - 1) > beside_small
    return Fraction(1, rule.members - 1) if peak >= rule.small and enough else FREE
