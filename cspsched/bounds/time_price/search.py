"""Chooses the prices of the `time-price` certificate: a coordinate search on the first requests of a trace.

Nothing here proves anything: every choice gives a bound, and `time_price.bound_ns` evaluates it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from cspsched.bounds.certificate import Certificate
from cspsched.bounds.critical_path import critical_path
from cspsched.bounds.parts.price_windows import PriceWindows
from cspsched.bounds.parts.tables import Tables
from cspsched.bounds.time_price.bound import Columns, bound_ns, columns
from cspsched.bounds.time_price.details import PRICE_UNIT, TIME_PRICE, Prices
from cspsched.bounds.window_price.search import window_price_certificates
from cspsched.problem.objectives import Objective

FEWEST_REQUESTS = 8
"""With fewer, requests have next to no others to wait for."""
SAMPLE_REQUESTS, MANY_REQUESTS = 1000, 20_000
"""Prices are chosen for the first requests of a trace, and refined for more of them. Windows are wider beyond
that, so that their number grows no further until they are a sixteenth of a stay."""
WINDOWS_PER_STAY, COARSE_WINDOWS_PER_STAY, MAX_WINDOWS = 64, 16, 2**23
COARSE, FINE_STEPS, REFINED = ((3, 1), (3, 2)), ((3, 2), (6, 5), (13, 12)), ((6, 5),)
"""Factors of the line search for the price."""
MAX_PRICE = 2**10 * PRICE_UNIT
STRETCHES, PACES, STAYS = (0, 17, 18, 20, 22, 26, 32), (18, 20, 22, 24, 28, 32), (0, 1, 2, 4, 8, 16, 32)
ROUNDS = 2
NO_BOUND = -1


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Prices that fit any part of a trace."""

    price: int = 4 * PRICE_UNIT
    stay: int = 2
    """How long time has a price after the last arrival of a period, in mean least stays of a request."""
    stretch: int = 18
    pace: int = 22

    def tail_ns(self, table: Columns) -> int:
        """How long time has a price after the last arrival of a period."""
        return (self.stay + 1) * table.mean_stay_ns

    def on(self, table: Columns) -> Prices:
        """The prices for some requests."""
        mean_ns = table.mean_stay_ns
        starts_ns, ends_ns = table.periods_ns(self.tail_ns(table))
        parts = min(WINDOWS_PER_STAY, WINDOWS_PER_STAY * MANY_REQUESTS // len(table.arrivals))
        parts = max(COARSE_WINDOWS_PER_STAY, parts)
        window_ns = max(1, mean_ns // parts, (sum(ends_ns) - sum(starts_ns)) // MAX_WINDOWS)
        windows = PriceWindows.covering(starts_ns, ends_ns, window_ns)
        return Prices(
            price=self.price,
            num_windows=windows.num_windows,
            window_ns=window_ns,
            stretch=self.stretch,
            pace=self.pace,
            idle=windows.idle,
        )

    def value_ns(self, table: Columns) -> int:
        """The bound that it gives, or a negative number."""
        value_ns = bound_ns(table, self.on(table))
        return NO_BOUND if value_ns is None else value_ns


def time_price_certificates(tables: Tables) -> list[Certificate]:
    """The certificates `time-price` and `window-price` on the sum of latencies.

    None for few requests or huge numbers.
    """
    if len(tables.arrivals_ns) < FEWEST_REQUESTS:
        return []
    found = []
    for work in tables.work:
        table = columns(tables, work)
        if table is not None:
            sample = table.first_requests(SAMPLE_REQUESTS)
            choice = best_price(Choice(), sample, COARSE)
            found.append((choice.value_ns(sample), choice, table, sample, work))
    if not found:
        return []
    _, choice, table, sample, work = max(found, key=lambda row: row[0])
    choice = best_choice(choice, sample)
    if len(sample.arrivals) < len(table.arrivals):
        choice = best_price(choice, table.first_requests(MANY_REQUESTS), REFINED)
    value_ns, prices = choice.value_ns(table), choice.on(table)
    details = prices.to_details() | work.minorant.to_details()
    flat = [Certificate(TIME_PRICE, Objective.LATENCY, value_ns, details)] if value_ns > 0 else []
    if hardly_waits(tables, value_ns):
        return flat
    return [*flat, *window_price_certificates(tables, work, table, prices.price, choice.tail_ns(table))]


def hardly_waits(tables: Tables, value_ns: int) -> bool:
    """Whether one price for all time proves less than that every request is alone.

    Then prices by window, which prove a few hundredths more, prove nothing new.
    """
    return value_ns < critical_path(tables, Objective.LATENCY).value_ns


def best_choice(choice: Choice, table: Columns) -> Choice:
    """Coordinate search over all four numbers."""
    for _ in range(ROUNDS):
        choice = best_price(choice, table, FINE_STEPS)
        for name, values in (("stay", STAYS), ("stretch", STRETCHES), ("pace", PACES)):
            choice = _best_of([choice, *(replace(choice, **{name: value}) for value in values)], table)
    return choice


def best_price(choice: Choice, table: Columns, factors: Iterable[tuple[int, int]]) -> Choice:
    """Line search: the price goes up or down by each factor as long as that helps."""
    for up, down in factors:
        for numerator, denominator in ((up, down), (down, up)):
            step = _scaled(choice, numerator, denominator)
            while step.value_ns(table) > choice.value_ns(table):
                choice, step = step, _scaled(step, numerator, denominator)
    return choice


def _scaled(choice: Choice, numerator: int, denominator: int) -> Choice:
    return replace(choice, price=min(choice.price * numerator // denominator, MAX_PRICE))


def _best_of(choices: list[Choice], table: Columns) -> Choice:
    """The first of equals, so that the search is the same everywhere."""
    values = [choice.value_ns(table) for choice in choices]
    return choices[values.index(max(values))]
