"""Traces drawn from a profile: the same arguments give the same requests."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Unpack

import numpy as np

from cspsched.errors import UsageError
from cspsched.problem.columns import OptionalFields, Positions, RequestColumns, Requests
from cspsched.trace.cells import MAX_ARRIVAL_S
from cspsched.trace.generators.arrays import Floats, Tokens
from cspsched.trace.generators.clients import Client, Population, superposed
from cspsched.trace.generators.profile import Profile
from cspsched.trace.generators.rate import Cumulative
from cspsched.trace.generators.seeds import child_of
from cspsched.trace.generators.sessions import Turns, draw_turns
from cspsched.trace.trace import Trace

MOST_REQUESTS = 100_000_000
_NS_PER_US = 1_000
_RATE, _CLIENTS, _POPULATION, _SESSIONS = range(4)
"""Parts that have seeds of their own."""


def generate_trace(
    profile: Profile,
    *,
    num_requests: int | None = None,
    duration_s: float | None = None,
    rate_per_s: float | None = None,
    seed: int,
) -> Trace:
    """Draw a trace.

    Parameters
    ----------
    profile : Profile
        What the traffic looks like.
    num_requests : int, optional
        So many requests, at least 1; they are named r0, r1, ...
    duration_s : float, optional
        Instead of a number: all requests that arrive in so many seconds.
    rate_per_s : float, optional
        Mean arrivals per second; the profile's if not given.
    seed : int
        At least 0.

    Returns
    -------
    Trace
        The first request arrives at 0; arrivals are whole microseconds.

    Raises
    ------
    UsageError
        If a number makes no sense, the profile has no lengths or no rate and none is given, or the trace
        would span more than 9e9 seconds.
    """
    rate_per_s = profile.rate_per_s if rate_per_s is None else rate_per_s
    drawing = _Drawing(profile, _checked_rate(profile, rate_per_s), _checked_seed(seed))
    if (num_requests is None) == (duration_s is None):
        raise UsageError("expected one of num_requests and duration_s")
    if num_requests is not None:
        if not 1 <= num_requests <= MOST_REQUESTS:
            raise UsageError(
                f"num_requests is {num_requests}, expected at least 1 and at most {MOST_REQUESTS}"
            )
        requests = drawing.of_number(num_requests)
    else:
        assert duration_s is not None
        if not 0 < duration_s <= MAX_ARRIVAL_S:
            raise UsageError(f"duration_s is {duration_s}, expected seconds above 0, at most {MAX_ARRIVAL_S}")
        requests = drawing.of_duration(duration_s)
    return Trace(name=profile.name, format="generated", requests=Requests(requests))


@dataclass(frozen=True)
class _Points:
    """Arrivals on the clock of the cumulative rate, sorted, and the position of the client of each."""

    values: Floats
    owners: Positions | None = None

    def first(self, count: int) -> _Points:
        """The first so many, the first of all at 0."""
        owners = None if self.owners is None else self.owners[:count]
        return _Points(self.values[:count] - self.values[0], owners)


class _Drawing:
    """One trace as it is drawn."""

    def __init__(self, profile: Profile, rate_per_s: float, seed: int) -> None:
        if profile.lengths is None:
            raise UsageError(
                f"profile {profile.name} has no lengths: take those of another one (--lengths NAME)"
            )
        self._profile, self._lengths, self._rate_per_s = profile, profile.lengths, rate_per_s
        self._rng, self._seeds = np.random.default_rng(seed), np.random.SeedSequence(seed)
        self._clients = _clients(profile, child_of(self._seeds, _POPULATION))

    def of_number(self, count: int) -> RequestColumns:
        """Columns of the first so many requests."""
        if self._profile.sessions is None:
            points = self._points(count)
            return self._columns(self._seconds(points.values), points.owners)
        num_sessions = math.ceil(count / self._profile.sessions.mean_turns)
        while True:
            starts_s = self._seconds(self._points(num_sessions).values)
            turns = self._turns(starts_s)
            # Sessions that start later would have turns among the first ones.
            if len(turns.session) >= count and turns.arrivals_s[count - 1] <= starts_s[-1]:
                return self._columns_of(turns.taken(np.arange(count)))
            num_sessions *= 2

    def of_duration(self, duration_s: float) -> RequestColumns:
        """Columns of all requests in a time."""
        cumulative = self._cumulative(duration_s)
        until = float(np.interp(duration_s, cumulative.times_s, cumulative.values)) * self._start_rate
        points = self._points_until(until)
        arrivals_s = cumulative.inverse(points.values / self._start_rate)
        if self._profile.sessions is None:
            return self._columns(arrivals_s, points.owners)
        turns = self._turns(arrivals_s)
        return self._columns_of(turns.taken(np.flatnonzero(turns.arrivals_s < duration_s)))

    @property
    def _start_rate(self) -> float:
        """Requests, or sessions, per second."""
        sessions = self._profile.sessions
        return self._rate_per_s / (sessions.mean_turns if sessions else 1)

    def _points(self, count: int) -> _Points:
        if not self._clients:
            gaps = self._profile.arrivals.gaps(self._rng, count - 1)
            return _Points(np.concatenate(([0.0], np.cumsum(gaps))))
        until = count + 4 * math.sqrt(count)
        while len((points := self._superposed(until)).values) < count:
            until *= 2
        return points.first(count)

    def _points_until(self, until: float) -> _Points:
        if self._clients:
            points = self._superposed(until)
            if not len(points.values):
                raise UsageError(
                    "no request arrives in the duration; expected a longer one, or a higher rate"
                )
            return points
        values = np.zeros(1)
        while values[-1] < until:
            missing = until - values[-1]
            gaps = self._profile.arrivals.gaps(self._rng, int(missing + 4 * math.sqrt(missing)) + 1)
            values = np.concatenate((values, values[-1] + np.cumsum(gaps)))
        return _Points(values[values < until])

    def _superposed(self, until: float) -> _Points:
        seeds = child_of(self._seeds, _CLIENTS)
        return _Points(*superposed(self._clients, self._profile.arrivals, seeds, until))

    def _seconds(self, values: Floats) -> Floats:
        """Times at which the clock of the cumulative rate shows some values."""
        units = values / self._start_rate
        if not units[-1] <= MAX_ARRIVAL_S:
            raise self._too_slow()
        duration_s = float(units[-1])
        cumulative = self._cumulative(duration_s)
        while cumulative.values[-1] < units[-1]:
            duration_s *= 2
            cumulative = self._cumulative(duration_s)
        return cumulative.inverse(units)

    def _cumulative(self, duration_s: float) -> Cumulative:
        return self._profile.rate.cumulative(child_of(self._seeds, _RATE), duration_s)

    def _too_slow(self) -> UsageError:
        return UsageError(
            f"rate_per_s is {self._rate_per_s}: the trace spans over {MAX_ARRIVAL_S} s, "
            "expected a higher rate"
        )

    def _turns(self, starts_s: Floats) -> Turns:
        """Turns of sessions by arrival."""
        assert self._profile.sessions is not None
        rng = np.random.default_rng(child_of(self._seeds, _SESSIONS))
        turns = draw_turns(self._profile.sessions, self._lengths, rng, starts_s)
        return turns.taken(np.argsort(turns.arrivals_s, kind="stable"))

    def _columns(self, arrivals_s: Floats, owners: Positions | None) -> RequestColumns:
        prompts, outputs = self._client_lengths(len(arrivals_s), owners)
        if owners is None:
            return _columns(arrivals_s, prompts, outputs)
        return _columns(arrivals_s, prompts, outputs, client_id=[f"c{owner}" for owner in owners.tolist()])

    def _client_lengths(self, count: int, owners: Positions | None) -> tuple[Tokens, Tokens]:
        prompts, outputs = self._lengths.draw(self._rng, count)
        if owners is not None:
            for position, client in enumerate(self._clients):
                own = np.flatnonzero(owners == position) if client.lengths else ()
                if client.lengths and len(own):
                    prompts[own], outputs[own] = client.lengths.draw(self._rng, len(own))
        return prompts, outputs

    def _columns_of(self, turns: Turns) -> RequestColumns:
        sessions, prompts = turns.session.tolist(), turns.prompts.tolist()
        prefix = [((f"s{session}", prompt),) for session, prompt in zip(sessions, prompts, strict=True)]
        return _columns(turns.arrivals_s, turns.prompts, turns.outputs, prefix=prefix)


def _columns(
    arrivals_s: Floats, prompts: Tokens, outputs: Tokens, **optional: Unpack[OptionalFields]
) -> RequestColumns:
    """Whole microseconds, so that the last bit of a platform's logarithm does not show in the file."""
    arrivals_us = np.rint((arrivals_s - arrivals_s[0]) * 1e6).astype(np.int64)
    return RequestColumns.of_fields(
        request_id=[f"r{k}" for k in range(len(arrivals_us))],
        arrival_ns=arrivals_us * _NS_PER_US,
        prompt_tokens=prompts,
        output_tokens=outputs,
        **optional,
    )


def _clients(profile: Profile, seeds: np.random.SeedSequence) -> tuple[Client, ...]:
    if isinstance(profile.clients, Population):
        return profile.clients.draw(np.random.default_rng(seeds), profile.lengths)
    return profile.clients or ()


def _checked_rate(profile: Profile, rate_per_s: float | None) -> float:
    if rate_per_s is None:
        raise UsageError(f"profile {profile.name} has no rate of its own, expected one (--rate)")
    if not 0 < rate_per_s < math.inf:
        raise UsageError(f"rate_per_s is {rate_per_s}, expected a finite rate above 0")
    return rate_per_s


def _checked_seed(seed: int) -> int:
    if seed < 0:
        raise UsageError(f"seed is {seed}, expected at least 0")
    return seed
