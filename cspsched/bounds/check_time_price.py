"""Slow, plain twin of the `time-price` certificate: request by request, token by token, window by window.

It rounds where the theorem's page says that the bound rounds, so that both reach the same integer, and shares
no arithmetic with the fast code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import floor, isqrt

from cspsched.bounds.check_parts import PlainPrices
from cspsched.bounds.time_price import CHORDS, FINE, PRICE_UNIT, STRETCH_UNIT, Prices
from cspsched.problem.instance import Instance
from cspsched.problem.request import Request
from cspsched.units import ceil_div


def plain_time_price(instance: Instance, plain: PlainPrices, prices: Prices) -> int:
    """The bound on the sum of latencies that some prices give, in nanoseconds."""
    start_ns = min(request.arrival_ns for request in instance.requests)
    tokens = PlainTokens(plain, prices)
    waiting = [PlainRequest(request, request.arrival_ns - start_ns, tokens) for request in instance.requests]
    queue = [sum(values) for values in zip(*(one.tolls() for one in waiting), strict=True)]
    tolls = [prices.price + value // (FINE // PRICE_UNIT) for value in queue]
    value = sum(one.least_cost(tolls) - one.area() for one in waiting)
    return value - ceil_div(prices.price * prices.horizon_ns, PRICE_UNIT)


@dataclass(frozen=True)
class PlainTokens:
    """Costs of single tokens; repeated ones are looked up."""

    plain: PlainPrices
    prices: Prices
    _known: dict[tuple[int, int], int] = field(default_factory=dict)

    @property
    def alpha(self) -> int:
        """Whole nanoseconds that a batch costs."""
        return floor(self.plain.minorant.batch)

    def later(self, slope: int, request: Request) -> int:
        """Cost of all tokens after the first, at a price of the request's own time in sixteenths."""
        first, last = request.prompt_tokens + 1, request.peak_kv_tokens
        return sum(self.token(slope, resident) for resident in range(first, last + 1))

    def token(self, slope: int, resident: int) -> int:
        """The cheaper of a decode in a batch of the best length and a refill."""
        if (slope, resident) not in self._known:
            own = self.alpha * slope // STRETCH_UNIT
            refill = floor(self.plain.prefill(resident)) * self.prices.price // PRICE_UNIT
            decode = self._decode(slope, floor(self.plain.decode(resident)))
            self._known[slope, resident] = min(decode, own + refill)
        return self._known[slope, resident]

    def _decode(self, slope: int, work: int) -> int:
        own, paid = self.alpha * slope // STRETCH_UNIT, work * self.prices.price // PRICE_UNIT
        if self.alpha * self.prices.price * STRETCH_UNIT >= work * slope * PRICE_UNIT:
            return own + paid + 2 * isqrt(own * paid)
        # The best batch would be shorter than the token's own work.
        return own + paid + work * slope // STRETCH_UNIT + self.alpha * self.prices.price // PRICE_UNIT


@dataclass(frozen=True)
class PlainRequest:
    """One request: what it pays, and what it makes others pay."""

    request: Request
    arrival: int
    tokens: PlainTokens

    @property
    def chunks(self) -> int:
        """Batches of the prompt."""
        return ceil_div(self.request.prompt_tokens, self.tokens.plain.max_batch_tokens)

    @property
    def decoding(self) -> int:
        """Least time of the batches of the later tokens."""
        return self.tokens.alpha * (self.request.output_tokens - 1)

    @property
    def least(self) -> int:
        """Least time of all its batches."""
        return self.decoding + self.tokens.alpha * self.chunks

    @property
    def length(self) -> int:
        """L, 0 if there is no mu."""
        prices = self.tokens.prices
        length = self.least * prices.pace // STRETCH_UNIT
        end = self.arrival + ceil_div(length * prices.stretch, STRETCH_UNIT)
        return length if prices.stretch and end <= prices.horizon_ns else 0

    @property
    def reach(self) -> int:
        """How long mu is positive."""
        return self.tokens.prices.stretch * self.length // STRETCH_UNIT

    @property
    def prefill(self) -> int:
        """Work of the prompt with its part of the surcharge."""
        plain, prompt = self.tokens.plain, self.request.prompt_tokens
        return floor(plain.prefill(prompt) + plain.minorant.prefill_batch * prompt / plain.max_batch_tokens)

    def area(self) -> int:
        """Integral of mu."""
        return ceil_div(self.tokens.prices.stretch**2 * self.length, 2 * STRETCH_UNIT**2)

    def tolls(self) -> list[int]:
        """What others pay for making it wait, in each window, in fine units."""
        prices = self.tokens.prices
        tolls = [0] * prices.num_windows
        if self.reach:
            window = ceil_div(self.arrival, prices.window_ns)
            value = FINE * (self.reach - (window + 1) * prices.window_ns + self.arrival) // self.length
            while value >= 0 and window < prices.num_windows:
                tolls[window] = value
                window, value = window + 1, value - ceil_div(FINE * prices.window_ns, self.length)
        return tolls

    def least_cost(self, tolls: list[int]) -> int:
        """The least over the windows of its prompt."""
        prices, lone, free = self.tokens.prices, self.tokens.later(STRETCH_UNIT, self.request), self._free()
        best = max(prices.horizon_ns - self.arrival, self.least + self.prefill)
        for window in range(self.arrival // prices.window_ns, prices.num_windows):
            since = max(window * prices.window_ns - self.arrival, 0)
            stay = lone + since + self._integral(since, since + self.decoding)
            best = min(best, max(free, stay) + self.prefill * tolls[window] // PRICE_UNIT)
            if stay >= best:
                break
        return best

    def _free(self) -> int:
        stretch, length = self.tokens.prices.stretch, self.length
        costs = [
            max((2 * stretch - STRETCH_UNIT) * length // (2 * STRETCH_UNIT), 0) + self._all(STRETCH_UNIT)
        ]
        for chord in range(CHORDS):
            if (chord + 1) * length > CHORDS * self.least:
                start = length * chord * (chord + 1) // (2 * CHORDS**2)
                costs.append(start + self._all(STRETCH_UNIT + stretch - 2 * chord - 1))
        return min(costs)

    def _all(self, slope: int) -> int:
        chunk = self.tokens.alpha * slope // STRETCH_UNIT
        return self.tokens.later(slope, self.request) + self.chunks * chunk

    def _integral(self, start: int, end: int) -> int:
        start, end = min(start, self.reach), min(end, self.reach)
        return (end - start) * (self._mu(start) + self._mu(end)) // (2 * PRICE_UNIT)

    def _mu(self, since: int) -> int:
        rest = self.tokens.prices.stretch * self.length - STRETCH_UNIT * since
        return PRICE_UNIT // STRETCH_UNIT * rest // max(self.length, 1)
