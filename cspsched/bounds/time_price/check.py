"""Slow, plain twin of the `time-price` certificate: request by request, token by token, window by window.

It rounds where the theorem's page says that the bound rounds, so that both reach the same integer, and shares
no arithmetic with the fast code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from math import floor, isqrt

from cspsched.bounds.parts.check import PlainPrices
from cspsched.bounds.parts.price_windows import Idle
from cspsched.bounds.time_price.details import CHORDS, FINE, PRICE_UNIT, STRETCH_UNIT, Prices
from cspsched.problem.instance import Instance
from cspsched.problem.request import Request
from cspsched.units import ceil_div


def plain_time_price(instance: Instance, plain: PlainPrices, prices: Prices) -> int:
    """The bound on the sum of latencies that some prices give, in nanoseconds."""
    start_ns = min(request.arrival_ns for request in instance.requests)
    tokens = PlainTokens(plain, prices)
    waiting = [PlainRequest(request, request.arrival_ns - start_ns, tokens) for request in instance.requests]
    queue: Counter[int] = Counter()
    for one in waiting:
        queue.update(dict(one.waiting_prices()))
    value = sum(one.least_cost(queue) - one.area() for one in waiting)
    return value - ceil_div(prices.price * prices.horizon_ns, PRICE_UNIT)


def plain_periods(num_windows: int, idle: Sequence[Idle]) -> list[range]:
    """Windows of each period, numbered by time: idle time counts, too."""
    first, moved, periods = 0, 0, []
    for before, skipped in (*idle, Idle(num_windows, 0)):
        periods.append(range(first + moved, before + moved))
        first, moved = before, moved + skipped
    return periods


@dataclass(frozen=True)
class PlainTokens:
    """Costs of single tokens; repeated ones are looked up."""

    plain: PlainPrices
    prices: Prices
    _known: dict[tuple[int, int], int] = field(default_factory=dict)

    @cached_property
    def periods(self) -> list[range]:
        """Windows that have a price."""
        return plain_periods(self.prices.num_windows, self.prices.idle)

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
            refill = floor(self.plain.refill(resident)) * self.prices.price // PRICE_UNIT
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

    @cached_property
    def period(self) -> range:
        """Windows from its arrival to the end of its period; none if it arrives outside of all."""
        arrival = self.arrival // self.tokens.prices.window_ns
        found = (period for period in self.tokens.periods if arrival in period)
        return range(arrival, next(found, range(arrival)).stop)

    @property
    def end(self) -> int:
        """End of its period, or its arrival."""
        return self.period.stop * self.tokens.prices.window_ns if self.period else self.arrival

    @property
    def chunks(self) -> int:
        """Batches of the prompt."""
        plain = self.tokens.plain
        own = self.request.prompt_tokens - plain.hits.findable(self.request)
        return ceil_div(own, plain.max_batch_tokens)

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
        return length if prices.stretch and end <= self.end else 0

    @property
    def reach(self) -> int:
        """How long mu is positive."""
        return self.tokens.prices.stretch * self.length // STRETCH_UNIT

    @property
    def prefill(self) -> int:
        """Work of the prompt with its part of the surcharge."""
        plain, request = self.tokens.plain, self.request
        charged = Fraction(request.prompt_tokens - plain.hits.found(request), plain.max_batch_tokens)
        return floor(plain.first(request) + plain.minorant.prefill_batch * charged)

    def area(self) -> int:
        """Integral of mu."""
        return ceil_div(self.tokens.prices.stretch**2 * self.length, 2 * STRETCH_UNIT**2)

    def waiting_prices(self) -> Iterator[tuple[int, int]]:
        """Windows, and what others pay in them for making it wait, in fine units."""
        prices = self.tokens.prices
        if self.reach:
            window = ceil_div(self.arrival, prices.window_ns)
            value = FINE * (self.reach - (window + 1) * prices.window_ns + self.arrival) // self.length
            while value >= 0 and window in self.period:
                yield window, value
                window, value = window + 1, value - ceil_div(FINE * prices.window_ns, self.length)

    def least_cost(self, queue: Mapping[int, int]) -> int:
        """The least over the windows of its prompt; `queue` says what all others sum up to there."""
        prices, lone, free = self.tokens.prices, self.tokens.later(STRETCH_UNIT, self.request), self._free()
        best = max(self.end - self.arrival, self.least + self.prefill)
        for window in self.period:
            since = max(window * prices.window_ns - self.arrival, 0)
            stay = lone + since + self._integral(since, since + self.decoding)
            prefill_price = prices.price + queue[window] // (FINE // PRICE_UNIT)
            best = min(best, max(free, stay) + self.prefill * prefill_price // PRICE_UNIT)
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
