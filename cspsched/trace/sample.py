"""Fewer or more requests of a trace, drawn with a seed; what is kept stays in the order of its arrival."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cspsched.errors import UsageError
from cspsched.problem.columns import Positions, Prefix, RequestColumns, Requests, columns_of
from cspsched.problem.cost import IntArray
from cspsched.trace.trace import Trace
from cspsched.units import NS_PER_S

MOST_REQUESTS = 100_000_000


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A sampled trace, and how it was made."""

    trace: Trace
    how: str
    """One sentence."""


def sample_trace(
    trace: Trace, *, num_requests: int | None = None, rate_per_s: float | None = None, seed: int
) -> Sample:
    """So many requests of a trace, or as many as make a rate over its span.

    Fewer are drawn without replacement, each with its own arrival (thinning). More are copies of the whole
    trace,     all but the first turned in time by a random offset as if the trace were a circle (circular
    bootstrap, Politis and Romano 1992), so that lengths, bursts and their order stay together; the last
    copy is thinned. Each copy shares prefixes within itself only.

    Parameters
    ----------
    num_requests, rate_per_s
        One of them.
    seed
        At least 0.

    Raises
    ------
    UsageError
        If a number makes no sense, or a rate is asked of a trace whose requests all arrive together.
    """
    columns = columns_of(trace.requests)
    wanted = _wanted(columns, num_requests, rate_per_s)
    rng = np.random.default_rng(seed)
    num_whole, rest = divmod(wanted, len(columns))
    if num_whole == 0:
        kept = _chosen(rng, len(columns), rest)
        how = f"{rest:,} of {len(columns):,} requests, drawn without replacement (seed {seed})"
        sampled = columns.taken(kept)
        return _sample(trace, sampled.earlier(int(sampled.arrival_ns[0])), how)
    if wanted == len(columns):
        return Sample(trace=trace, how="the whole trace")
    how = f"{num_whole:,} times the whole trace" + (f" and {rest:,} more" if rest else "")
    how += f", every copy but the first turned in time by a random offset (seed {seed})"
    return _sample(trace, _copied(rng, columns, num_whole, rest), how)


def _wanted(columns: RequestColumns, num_requests: int | None, rate_per_s: float | None) -> int:
    if (num_requests is None) == (rate_per_s is None):
        raise UsageError("expected one of num_requests and rate_per_s (--requests, --rate)")
    if rate_per_s is not None:
        span_s = float(columns.arrival_ns[-1] - columns.arrival_ns[0]) / NS_PER_S
        if not 0 < rate_per_s < math.inf:
            raise UsageError(f"rate_per_s is {rate_per_s}, expected a finite rate above 0")
        if not span_s:
            raise UsageError(
                "all requests of the trace arrive together: it has no rate, expected a number (--requests)"
            )
        num_requests = round(min(rate_per_s * span_s, 2.0 * MOST_REQUESTS))
    assert num_requests is not None
    if not 1 <= num_requests <= MOST_REQUESTS:
        raise UsageError(
            f"that makes {num_requests} requests, expected at least 1 and at most {MOST_REQUESTS}"
        )
    return num_requests


def _chosen(rng: np.random.Generator, count: int, wanted: int) -> Positions:
    return np.sort(rng.choice(count, size=wanted, replace=False))


def _copied(rng: np.random.Generator, columns: RequestColumns, num_whole: int, rest: int) -> RequestColumns:
    """Whole copies and a part of one, by arrival, named by their place."""
    every = np.arange(len(columns))
    positions, arrivals_ns = [every], [columns.arrival_ns]
    for copy in range(1, num_whole + (rest > 0)):
        positions.append(every if copy < num_whole else _chosen(rng, len(columns), rest))
        arrivals_ns.append(_turned(rng, columns.arrival_ns)[positions[-1]])
    times_ns = np.concatenate(arrivals_ns)
    order = np.argsort(times_ns, kind="stable")
    copies = np.repeat(np.arange(len(positions)), [len(part) for part in positions])[order]
    taken = columns.taken(np.concatenate(positions)[order])
    return replace(
        taken,
        request_id=[f"r{k}" for k in range(len(taken))],
        arrival_ns=times_ns[order],
        prefix=None if taken.prefix is None else _renamed(taken.prefix, copies.tolist()),
    )


def _turned(rng: np.random.Generator, arrival_ns: IntArray) -> IntArray:
    """Arrivals on a circle begun at another time; the last and the first are a mean gap apart."""
    span_ns = int(arrival_ns[-1] - arrival_ns[0])
    period_ns = span_ns + max(span_ns // max(len(arrival_ns) - 1, 1), 1)
    turned_ns = (arrival_ns - arrival_ns[0] + int(rng.integers(period_ns))) % period_ns
    return np.asarray(turned_ns + arrival_ns[0])


def _renamed(prefixes: Sequence[Prefix], copies: Sequence[int]) -> list[Prefix]:
    """The streams of every copy but the first are its own."""
    return [
        tuple((f"{stream}~{copy}", tokens) for stream, tokens in prefix) if copy else prefix
        for prefix, copy in zip(prefixes, copies, strict=True)
    ]


def _sample(trace: Trace, columns: RequestColumns, how: str) -> Sample:
    return Sample(trace=replace(trace, requests=Requests(columns)), how=how)
