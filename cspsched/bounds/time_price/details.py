"""What a `time-price` certificate states, and its units."""

from __future__ import annotations

from dataclasses import dataclass, fields

from cspsched.bounds.certificate import Details
from cspsched.bounds.parts.price_windows import Idle, PriceWindows, idle_details, idle_from_details

TIME_PRICE = "time-price"
PRICE_UNIT, STRETCH_UNIT, FINE = 1024, 16, 2**20
CHORDS = 8
"""Chords below the concave part of a request's cost of time; the slope of each is a multiple of 1 / 16."""


@dataclass(frozen=True, kw_only=True)
class Prices:
    """What a `time-price` certificate states; any values give a bound.

    Attributes
    ----------
    price
        P in 1 / 1024.
    num_windows, window_ns
        H is their product; Q is rounded down to one value in each window. They start at the first arrival.
    idle
        Where there are no windows for a while.
    stretch
        S in sixteenths, at least 16; 0 for mu = 0.
    pace
        L_i as a multiple of the time that the request's batches take at least, in sixteenths, at least 16.
    """

    price: int
    num_windows: int
    window_ns: int
    stretch: int
    pace: int
    idle: tuple[Idle, ...] = ()

    def __post_init__(self) -> None:
        if min(self.price, self.pace - STRETCH_UNIT) < 0 or 0 != self.stretch < STRETCH_UNIT:
            raise ValueError(f"prices of time that prove nothing: {self}")
        self.windows()

    @property
    def horizon_ns(self) -> int:
        """H."""
        return self.num_windows * self.window_ns

    def windows(self) -> PriceWindows:
        """Where time has a price."""
        return PriceWindows(self.window_ns, self.num_windows, self.idle)

    def to_details(self) -> Details:
        """Integers for a certificate, and text for idle time if there is any."""
        numbers: Details = {
            field.name: getattr(self, field.name) for field in fields(self) if field.name != "idle"
        }
        return numbers | idle_details(self.idle)

    @classmethod
    def from_details(cls, details: Details) -> Prices:
        """Read what `to_details` wrote; `KeyError` or `ValueError` if it is missing or proves nothing."""
        numbers = {field.name: int(details[field.name]) for field in fields(cls) if field.name != "idle"}
        return cls(**numbers, idle=idle_from_details(details))
