"""Slow, plain twin of the `window-price` certificate: request by request, line by line, window by window.

It rounds where the theorem's page says that the bound rounds, so that both reach the same integer, and shares
no arithmetic with the fast code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import floor, isqrt

from cspsched.bounds.check_parts import PlainPrices
from cspsched.bounds.check_time_price import PlainRequest, PlainTokens
from cspsched.bounds.time_price import FINE, PRICE_UNIT, STRETCH_UNIT
from cspsched.bounds.window_price import DOUBLE_RATE, RATE_UNIT, SLOPE_UNIT, WindowPrices
from cspsched.problem.instance import Instance
from cspsched.problem.request import Request
from cspsched.units import ceil_div


def plain_window_price(instance: Instance, plain: PlainPrices, chosen: WindowPrices) -> int:
    """The bound on the sum of latencies that some prices give, in nanoseconds."""
    limits = instance.limits
    start_ns = min(request.arrival_ns for request in instance.requests)
    tokens = PlainTokens(plain, chosen.frame())
    waiting = [PlainRequest(request, request.arrival_ns - start_ns, tokens) for request in instance.requests]
    queue = [sum(values) for values in zip(*(one.tolls() for one in waiting), strict=True)]
    tolls = [price + value // (FINE // PRICE_UNIT) for price, value in zip(chosen.prices, queue, strict=True)]
    capacity = limits.kv_blocks * limits.block_tokens
    longest = max(request.peak_kv_tokens for request in instance.requests)
    lines = [
        PlainLine(plain, chosen, capacity, longest, slope, reference)
        for reference in chosen.references
        for slope in chosen.slopes
    ]
    value = sum(PlainStay(one, chosen, lines, tolls).cost() for one in waiting)
    return value - ceil_div(sum(chosen.prices) * chosen.window_ns, PRICE_UNIT)


@dataclass(frozen=True)
class PlainLine:
    """One line: what its tokens cost, and what it gives for a nanosecond at some price."""

    plain: PlainPrices
    chosen: WindowPrices
    capacity: int
    longest: int
    slope: int
    reference: int
    _known: dict[tuple[int, int], int] = field(default_factory=dict)

    @property
    def alpha(self) -> int:
        """Whole nanoseconds that a batch costs."""
        return floor(self.plain.minorant.batch)

    def _share(self, resident: int, more: int) -> int:
        """Work that is not paid by memory; `more` = 1 rounds up."""
        work, share = floor(self.plain.decode(resident)) + more, STRETCH_UNIT - self.chosen.memory
        return ceil_div(work * share, STRETCH_UNIT) if more else work * share // STRETCH_UNIT

    @cached_property
    def costs(self) -> list[int]:
        """Cost of the token that leaves 0..longest tokens resident (lambda)."""
        costs = [0, 0]
        for resident in range(2, self.longest + 1):
            held = self.alpha * self.chosen.memory * resident // (STRETCH_UNIT * self.capacity)
            own = self.alpha * self.slope // SLOPE_UNIT + held * self.reference // PRICE_UNIT
            paid = self._share(resident, 0) * self.reference // PRICE_UNIT
            costs.append(own + paid + 2 * isqrt(own * paid))
        return costs

    @cached_property
    def _refills(self) -> list[int]:
        return [0, *(floor(self.plain.prefill(resident)) for resident in range(1, self.longest + 1))]

    @cached_property
    def needed(self) -> list[int]:
        """Price from which on no refill of so many or more tokens is cheaper."""
        needed = [0] * (self.longest + 2)
        for resident in range(self.longest, 0, -1):
            price = ceil_div(self.costs[resident] * PRICE_UNIT, max(self._refills[resident], 1))
            needed[resident] = max(price, needed[resident + 1])
        return needed

    def tokens(self, request: Request, cheapest: int) -> int:
        """Cost of all tokens after the first, if no price before the end is below `cheapest`."""
        first, last = request.prompt_tokens + 1, request.peak_kv_tokens
        every = range(first, last + 1)
        if cheapest >= self.needed[min(first, last)]:
            return sum(self.costs[resident] for resident in every)
        least = min(self.chosen.prices)
        return sum(min(self.costs[r], self._refills[r] * least // PRICE_UNIT) for r in every)

    def rate(self, resident: int, price: int) -> int:
        """What the line gives at most for one token at a price (h), in rate units, rounded up."""
        if (resident, price) not in self._known:
            self._known[resident, price] = self._rate(resident, price)
        return self._known[resident, price]

    def _rate(self, resident: int, price: int) -> int:
        memory, capacity = self.chosen.memory, self.capacity
        held = ceil_div(self.alpha * memory * resident, STRETCH_UNIT * capacity)
        own = ceil_div(self.alpha * self.slope, SLOPE_UNIT) + ceil_div(held * self.reference, PRICE_UNIT)
        paid = ceil_div(self._share(resident, 1) * self.reference, PRICE_UNIT)
        root = isqrt(own << 20) + isqrt(paid << 20) + 2
        root -= isqrt(price << 10) * isqrt(self._share(resident, 0) << 20) // 1024
        taken = price * memory * resident // (4 * capacity)
        if root <= 0:
            return -taken
        return (root**2 // 2**20 + 1) * ceil_div(2**40, 256 * self.alpha) // 2**20 + 1 - taken


@dataclass(frozen=True)
class PlainStay:
    """One request from its arrival on."""

    one: PlainRequest
    chosen: WindowPrices
    lines: list[PlainLine]
    tolls: list[int]

    def cost(self) -> int:
        """Least cost over all windows of its prompt and all moments of its end, less what is paid back."""
        one, window_ns = self.one, self.chosen.window_ns
        horizon = len(self.chosen.prices) * window_ns
        late = max(horizon - one.arrival, one.least + one.prefill) - one.area()
        best, earliest = late * DOUBLE_RATE, (one.arrival + one.least) // window_ns
        for boundary, cost in self._costs_of_ends():
            if boundary >= earliest:
                best = min(best, cost)
            later = boundary > one.arrival // window_ns
            if later and (boundary * window_ns - one.arrival - one.area()) * DOUBLE_RATE >= best:
                break
        return best // DOUBLE_RATE

    def _costs_of_ends(self) -> Iterator[tuple[int, int]]:
        """Boundary and cost if the request ends there; the first is its arrival."""
        one, lines, chosen = self.one, self.lines, self.chosen
        first = one.arrival // chosen.window_ns
        waited, states = 0, [(0, 2**62)] * len(lines)
        for window in range(first, len(chosen.prices)):
            start, end = max(window * chosen.window_ns, one.arrival), (window + 1) * chosen.window_ns
            toll = one.prefill * self.tolls[window] // PRICE_UNIT * DOUBLE_RATE
            states = [(given, min(least, waited - given + toll)) for given, least in states]
            cheapest = min(chosen.prices[first : window + 1])
            if window == first:
                yield first, self._dearest(states, cheapest) - self._rest(0)
            mu, next_mu = self._mu(start - one.arrival), self._mu(end - one.arrival)
            waited += (end - start) * (DOUBLE_RATE - mu - next_mu)
            gains = [self._given(line, chosen.prices[window], mu, next_mu) for line in lines]
            states = [
                (given + (end - start) * (DOUBLE_RATE - gain), least)
                for (given, least), gain in zip(states, gains, strict=True)
            ]
            dearest = max(self._dearest(states, cheapest), waited)
            yield window + 1, dearest - self._rest(end - one.arrival)

    def _dearest(self, states: list[tuple[int, int]], cheapest: int) -> int:
        return max(
            given + least + line.tokens(self.one.request, cheapest) * DOUBLE_RATE
            for line, (given, least) in zip(self.lines, states, strict=True)
        )

    def _given(self, line: PlainLine, price: int, mu: int, next_mu: int) -> int:
        request, rate = self.one.request, 0
        if request.output_tokens > 1:
            ends = (request.prompt_tokens + 1, request.peak_kv_tokens)
            rate = max(0, *(line.rate(resident, price) for resident in ends))
        return mu + next_mu if rate < next_mu else 2 * max(rate, mu)

    def _mu(self, since: int) -> int:
        rest = self.chosen.stretch * self.one.length - STRETCH_UNIT * since
        return ceil_div(rest * (RATE_UNIT // STRETCH_UNIT), self.one.length) if rest > 0 else 0

    def _rest(self, since: int) -> int:
        reach = ceil_div(self.chosen.stretch * self.one.length, STRETCH_UNIT)
        return self._mu(since) * max(reach - since, 0)
