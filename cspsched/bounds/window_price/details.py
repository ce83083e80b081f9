"""What a `window-price` certificate states, and its units."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from cspsched.bounds.certificate import Details
from cspsched.bounds.parts.price_windows import Idle, PriceWindows, idle_details, idle_from_details
from cspsched.bounds.time_price.details import STRETCH_UNIT, Prices
from cspsched.problem.cost import IntArray

WINDOW_PRICE = "window-price"
SLOPE_UNIT, RATE_UNIT, DOUBLE_RATE = 64, 2**12, 2**13


@dataclass(frozen=True, kw_only=True)
class WindowPrices:
    """What a `window-price` certificate states; any values give a bound.

    Attributes
    ----------
    prices
        P in each window, in 1 / 1024.
    window_ns
        Length of a window; the first begins at the first arrival.
    height
        S, what mu_i is, in sixteenths.
    pace
        L_i, how long it is so, as a multiple of the time that the request's batches take at least, in
        sixteenths, at least 16.
    memory
        B in sixteenths.
    slopes, references
        Of the lines: s in 1 / 64, p in 1 / 1024; every pair is a line.
    idle
        Where there are no windows for a while.
    """

    prices: tuple[int, ...]
    window_ns: int
    height: int
    pace: int
    memory: int
    slopes: tuple[int, ...]
    references: tuple[int, ...]
    idle: tuple[Idle, ...] = ()

    def __post_init__(self) -> None:
        least = min((self.memory, self.height, STRETCH_UNIT - self.memory, *self.references, *self.prices))
        if least < 0 or min(self.slopes, default=0) < 1 or not self.references:
            raise ValueError("prices, shares or lines that prove nothing")
        self.frame()

    def frame(self) -> Prices:
        """Windows as `time_price` knows them, without its mu_i."""
        return Prices(
            price=0,
            num_windows=len(self.prices),
            window_ns=self.window_ns,
            stretch=0,
            pace=self.pace,
            idle=self.idle,
        )

    def windows(self) -> PriceWindows:
        """Where time has a price."""
        return PriceWindows(self.window_ns, len(self.prices), self.idle)

    def at(self, prices: IntArray) -> WindowPrices:
        """The same with other prices."""
        return replace(self, prices=tuple(prices.tolist()))

    def to_details(self) -> Details:
        """Integers, and lists of them as text, for a certificate."""
        named = ((field.name, getattr(self, field.name)) for field in fields(self) if field.name != "idle")
        numbers: Details = {
            name: " ".join(map(str, value)) if isinstance(value, tuple) else value for name, value in named
        }
        return numbers | idle_details(self.idle)

    @classmethod
    def from_details(cls, details: Details) -> WindowPrices:
        """Read what `to_details` wrote; `KeyError` or `ValueError` if it is missing or proves nothing."""
        lists = {
            name: tuple(map(int, str(details[name]).split())) for name in ("prices", "slopes", "references")
        }
        numbers = {name: int(details[name]) for name in ("window_ns", "height", "pace", "memory")}
        return cls(**lists, **numbers, idle=idle_from_details(details))  # type: ignore[arg-type]
