"""Slow, plain twin of the `window-price` certificate: request by request, line by line, window by window.

It rounds where the theorem's page says that the bound rounds, so that both reach the same integer, and shares
no arithmetic with the fast code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from math import floor, isqrt

from cspsched.bounds.parts.check import PlainPrices
from cspsched.bounds.time_price.check import PlainRequest, PlainTokens
from cspsched.bounds.time_price.details import PRICE_UNIT, STRETCH_UNIT
from cspsched.bounds.window_price.details import DOUBLE_RATE, SLOPE_UNIT, WindowPrices
from cspsched.problem.instance import Instance
from cspsched.problem.request import Request
from cspsched.units import ceil_div


def plain_window_price(instance: Instance, plain: PlainPrices, chosen: WindowPrices) -> int:
    """The bound on the sum of latencies that some prices give, in nanoseconds."""
    limits = instance.limits
    if chosen.memory and any(map(plain.hits.found, instance.requests)):
        raise ValueError("memory has no price where requests share blocks")
    start_ns = min(request.arrival_ns for request in instance.requests)
    tokens = PlainTokens(plain, chosen.frame())
    waiting = [PlainRequest(request, request.arrival_ns - start_ns, tokens) for request in instance.requests]
    capacity = limits.kv_blocks * limits.block_tokens
    longest = max(request.peak_kv_tokens for request in instance.requests)
    lines = [
        PlainLine(plain, chosen, capacity, longest, slope, reference)
        for reference in chosen.references
        for slope in chosen.slopes
    ]
    stays = [PlainStay(one, chosen, lines) for one in waiting]
    covered = Counter(window for stay in stays for window in stay.covers())
    windows = chain.from_iterable(tokens.periods)
    prices = dict(zip(windows, chosen.prices, strict=True))
    value = sum(stay.cost(prices, covered) for stay in stays)
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
        return [0, *(floor(self.plain.refill(resident)) for resident in range(1, self.longest + 1))]

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

    @property
    def held(self) -> int:
        """How long mu is positive."""
        length = self.one.least * self.chosen.pace // STRETCH_UNIT
        return length if self.one.arrival + length <= self.one.end else 0

    @property
    def area(self) -> int:
        """Integral of mu."""
        return ceil_div(self.held * self.chosen.height, STRETCH_UNIT)

    def covers(self) -> range:
        """Windows all through which mu is positive."""
        window_ns = self.chosen.window_ns
        return range(ceil_div(self.one.arrival, window_ns), (self.one.arrival + self.held) // window_ns)

    def cost(self, prices: Mapping[int, int], covered: Mapping[int, int]) -> int:
        """Least cost over all windows of its prompt and of its end, less what is paid back.

        Parameters
        ----------
        prices, covered
            Price of each window, and how many requests cover it.
        """
        one, window_ns = self.one, self.chosen.window_ns
        late = max(one.end - one.arrival, one.least + one.prefill) - self.area
        best = late * DOUBLE_RATE
        for window, dearest in self._costs_of_ends(prices, covered):
            least = (max(window * window_ns - one.arrival, 0) - self.area) * DOUBLE_RATE
            if least >= best:
                break
            if window >= (one.arrival + one.least) // window_ns:
                best = min(best, max(dearest, least))
        return best // DOUBLE_RATE

    def _costs_of_ends(
        self, prices: Mapping[int, int], covered: Mapping[int, int]
    ) -> Iterator[tuple[int, int]]:
        """Window of the end, and the largest that any line shows at both its start and its end."""
        one, lines = self.one, self.lines
        cheapest, waited, states = 2**62, 0, [(0, 2**62)] * len(lines)
        for window in one.period:
            start = max(window * self.chosen.window_ns, one.arrival)
            end = (window + 1) * self.chosen.window_ns
            price = prices[window] + covered[window] * self.chosen.height * PRICE_UNIT // STRETCH_UNIT
            prompt_cost = one.prefill * price // PRICE_UNIT * DOUBLE_RATE
            states = [(given, min(least, waited - given + prompt_cost)) for given, least in states]
            opening = [given + least - self._back(start, one.arrival + self.held) for given, least in states]
            states = [
                (given + (end - start) * DOUBLE_RATE - self._given(line, prices[window], start, end), least)
                for line, (given, least) in zip(lines, states, strict=True)
            ]
            closing = [given + least - self._back(end, one.arrival + self.held) for given, least in states]
            waited += (end - start) * DOUBLE_RATE - self._back(start, min(end, one.arrival + self.held))
            cheapest = min(cheapest, prices[window])
            tokens = [line.tokens(one.request, cheapest) for line in lines]
            ends = zip(opening, closing, tokens, strict=True)
            yield window, max(min(at_start, at_end) + cost * DOUBLE_RATE for at_start, at_end, cost in ends)

    def _back(self, start: int, end: int) -> int:
        """Integral of mu over a time inside its length, or nothing if that is over."""
        return self.chosen.height * max(end - start, 0) * DOUBLE_RATE // STRETCH_UNIT

    def _given(self, line: PlainLine, price: int, start: int, end: int) -> int:
        """Integral of the larger of mu and what the line gives, over a time inside a window."""
        request, rate = self.one.request, 0
        if request.output_tokens > 1:
            ends = (request.prompt_tokens + 1, request.peak_kv_tokens)
            rate = max(0, *(line.rate(resident, price) for resident in ends))
        held = min(end, max(start, self.one.arrival + self.held))
        larger = max(2 * rate, self.chosen.height * DOUBLE_RATE // STRETCH_UNIT)
        return larger * (held - start) + 2 * rate * (end - held)
