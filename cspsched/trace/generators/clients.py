"""Traffic as a superposition of clients: few send much, each in its own rhythm and with its own lengths."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from cspsched.problem.columns import Positions
from cspsched.trace.generators.arrays import Floats
from cspsched.trace.generators.arrivals import Renewal
from cspsched.trace.generators.lengths import Lengths
from cspsched.trace.generators.record import NotNegative, Positive, Record
from cspsched.trace.generators.seeds import child_of


class Client(Record):
    """One client; what it has not is the profile's."""

    share: Positive
    """Of the requests, relative to the shares of the others."""
    arrivals: Renewal | None = None
    lengths: Lengths | None = None


class ZipfRates(Record):
    """The k-th client has a rate of k to the power of minus the exponent."""

    kind: Literal["zipf"] = "zipf"
    exponent: NotNegative

    def draw(self, rng: np.random.Generator, size: int) -> Floats:
        """Relative rates, shape (size,)."""
        del rng
        return np.arange(1, size + 1, dtype=np.float64) ** -self.exponent


class LognormalRates(Record):
    """The logarithm of a client's rate is normal."""

    kind: Literal["lognormal"] = "lognormal"
    sigma: NotNegative

    def draw(self, rng: np.random.Generator, size: int) -> Floats:
        """Relative rates, shape (size,)."""
        return np.exp(self.sigma * rng.standard_normal(size))


class Population(Record):
    """Clients that are drawn with the trace."""

    number: Annotated[int, Field(ge=1, le=100_000)]
    rates: Annotated[ZipfRates | LognormalRates, Field(discriminator="kind")]
    length_sigma: NotNegative = 0.0
    """Each client has the profile's lengths times a lognormal factor of mean 1 and this sigma."""

    def draw(self, rng: np.random.Generator, lengths: Lengths | None) -> tuple[Client, ...]:
        """The clients."""
        shares = self.rates.draw(rng, self.number)
        logarithms = self.length_sigma * rng.standard_normal(self.number) - self.length_sigma**2 / 2
        return tuple(
            Client(
                share=share,
                lengths=lengths.scaled(factor) if lengths and self.length_sigma else None,
            )
            for share, factor in zip(shares.tolist(), np.exp(logarithms).tolist(), strict=True)
        )


def superposed(
    clients: tuple[Client, ...], arrivals: Renewal, seeds: np.random.SeedSequence, until: float
) -> tuple[Floats, Positions]:
    """Points of all clients on a clock of rate 1, sorted, and the position of the client of each.

    Every client's process has run for ever when the clock starts. A longer clock of the same seeds begins as
    a shorter one does.

    Parameters
    ----------
    arrivals
        Rhythm of the clients that have none of their own.
    until
        Time on the clock at which it ends; the points are before it.
    """
    total = sum(client.share for client in clients)
    streams = []
    for position, client in enumerate(clients):
        rate = client.share / total
        rng = np.random.default_rng(child_of(seeds, position))
        streams.append(points_until(client.arrivals or arrivals, rng, until * rate) / rate)
    points = np.concatenate(streams)
    owners = np.repeat(np.arange(len(clients)), [len(stream) for stream in streams])
    order = np.argsort(points, kind="stable")
    return points[order], owners[order]


def points_until(arrivals: Renewal, rng: np.random.Generator, until: float) -> Floats:
    """Points of one process of rate 1 before a time, when it has run for ever at 0."""
    ends = [np.array([arrivals.first(rng)])]
    while (last := float(ends[-1][-1])) < until:
        missing = until - last
        ends.append(last + np.cumsum(arrivals.gaps(rng, int(missing + 4 * (missing + 1) ** 0.5) + 1)))
    points = np.concatenate(ends)
    return points[points < until]
