"""How the rate of arrivals changes: by hour and weekday, by slow random modulation, by spells of silence.

A shape has mean 1 and is constant over steps of the grid; what falls between is exact: the cumulative rate is
linear there, and arrivals are found by its inverse (time rescaling).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator
from scipy.signal import lfilter

from cspsched.errors import UsageError
from cspsched.trace.generators.arrays import Floats
from cspsched.trace.generators.record import Lognormal, NotNegative, Number, Positive, Record
from cspsched.trace.generators.seeds import child_of

GRID_S = 60.0
"""Step of the grid where no modulation has its own."""
MOST_STEPS = 20_000_000
_HOUR_S, _DAY_S = 3600.0, 86_400.0


class Modulation(Record):
    """A slow random factor of mean 1: lognormal, its logarithm an AR(1) process on a grid."""

    cv: Positive
    """Standard deviation of the factor."""
    phi: Annotated[Number, Field(ge=0, lt=1)]
    """Correlation of the logarithm with that of the step before."""
    step_s: Positive = GRID_S

    def draw(self, rng: np.random.Generator, size: int) -> Floats:
        """The factor of successive steps, shape (size,)."""
        shocks = rng.standard_normal(size)
        shocks[1:] *= math.sqrt(1 - self.phi**2)
        variance = math.log1p(self.cv**2)
        logarithm: Floats = lfilter([1.0], [1.0, -self.phi], shocks)
        return np.asarray(np.exp(math.sqrt(variance) * logarithm - variance / 2))


class Spells(Record):
    """Arrivals come in spells, with silence between them; the lengths are lognormal, in seconds."""

    on: Lognormal
    off: Lognormal

    @property
    def share_on(self) -> float:
        """Share of the time in which requests arrive."""
        return self.on.mean / (self.on.mean + self.off.mean)

    def edges(self, seeds: np.random.SeedSequence, duration_s: float) -> Floats:
        """Ends of alternating spells in seconds, the first with arrivals; the last is past the duration."""
        ends = np.zeros(0)
        pairs = 16
        while not len(ends) or ends[-1] < duration_s:
            pairs *= 2
            if pairs > MOST_STEPS:
                raise _too_long()
            draws = np.random.default_rng(seeds).standard_normal((pairs, 2))
            lengths = np.exp(draws * (self.on.sigma, self.off.sigma) + (self.on.mu, self.off.mu))
            ends = np.cumsum(lengths.ravel())
        return ends


@dataclass(frozen=True, kw_only=True)
class Cumulative:
    """The integral of a rate of mean 1: seconds and its value there, shape (num_points,), both from 0 on."""

    times_s: Floats
    values: Floats

    def inverse(self, values: Floats) -> Floats:
        """Seconds at which the integral reaches values, which it must reach."""
        return np.interp(values, self.values, self.times_s)


class RateShape(Record):
    """The course of the rate, of mean 1; without anything it is constant."""

    hours: tuple[NotNegative, ...] | None = Field(default=None, min_length=24, max_length=24)
    """Relative rate in the middle of each hour of the day, linear between; the trace begins at hour 0."""
    weekdays: tuple[NotNegative, ...] | None = Field(default=None, min_length=7, max_length=7)
    """Relative rate of each day; the trace begins at the first."""
    modulation: Modulation | None = None
    spells: Spells | None = None

    @model_validator(mode="after")
    def _has_a_mean(self) -> Self:
        for name in ("hours", "weekdays"):
            if getattr(self, name) is not None and not any(getattr(self, name)):
                raise ValueError(f"{name} are all 0, expected a rate above 0")
        return self

    @property
    def is_constant(self) -> bool:
        """Whether the rate is always the same."""
        return not (self.hours or self.weekdays or self.modulation or self.spells)

    def cumulative(self, seeds: np.random.SeedSequence, duration_s: float) -> Cumulative:
        """Integral of one course of the rate, at least up to a duration.

        A longer one begins as the shorter one of the same seeds does.

        Raises
        ------
        UsageError
            If it has more than `MOST_STEPS` steps.
        """
        if self.is_constant:
            return Cumulative(times_s=np.array([0.0, duration_s]), values=np.array([0.0, duration_s]))
        step_s = self.modulation.step_s if self.modulation else GRID_S
        if duration_s / step_s > MOST_STEPS:
            raise _too_long()
        num_steps = math.ceil(duration_s / step_s)
        rates = self._factors((np.arange(num_steps) + 0.5) * step_s)
        if self.modulation:
            rates *= self.modulation.draw(np.random.default_rng(child_of(seeds, 0)), num_steps)
        times_s = np.arange(num_steps + 1) * step_s
        if self.spells:
            times_s, rates = _silenced(times_s, rates, self.spells, child_of(seeds, 1))
        return Cumulative(
            times_s=times_s, values=np.concatenate(([0.0], np.cumsum(rates * np.diff(times_s))))
        )

    def _factors(self, middles_s: Floats) -> Floats:
        """Factor of hour and weekday at some times."""
        factors = np.ones_like(middles_s)
        if self.hours:
            table = np.array(self.hours) / np.mean(self.hours)
            centres_s = (np.arange(24) + 0.5) * _HOUR_S
            factors *= np.interp(middles_s, centres_s, table, period=_DAY_S)
        if self.weekdays:
            table = np.array(self.weekdays) / np.mean(self.weekdays)
            factors *= table[(middles_s // _DAY_S).astype(np.int64) % 7]
        return factors


def _silenced(
    times_s: Floats, rates: Floats, spells: Spells, seeds: np.random.SeedSequence
) -> tuple[Floats, Floats]:
    """Points where the steps or the spells have an edge, and rates; 0 in every second spell."""
    ends = spells.edges(seeds, times_s[-1])
    points = np.union1d(times_s, ends[ends < times_s[-1]])
    middles = (points[1:] + points[:-1]) / 2
    is_on = np.searchsorted(ends, middles) % 2 == 0
    step = np.searchsorted(times_s, middles) - 1
    return points, np.where(is_on, rates[step] / spells.share_on, 0.0)


def _too_long() -> UsageError:
    return UsageError(
        f"the rate changes over more than {MOST_STEPS:,} steps before the last arrival; expected a higher "
        "rate, fewer requests or a shorter duration"
    )
