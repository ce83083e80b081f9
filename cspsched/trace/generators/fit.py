"""A profile fitted to a trace, with the distances that it reaches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cspsched.errors import TraceError
from cspsched.problem.columns import RequestColumns, columns_of
from cspsched.trace.generators.arrays import Floats
from cspsched.trace.generators.fit_arrivals import FEWEST_WINDOWS, ArrivalFit, fitted_arrivals
from cspsched.trace.generators.fit_lengths import fit_lengths
from cspsched.trace.generators.generate import generate_trace
from cspsched.trace.generators.lengths import Lengths, QuantileTable
from cspsched.trace.generators.profile import Dispersion, Profile
from cspsched.trace.trace import Trace
from cspsched.units import NS_PER_S

FEWEST_REQUESTS = 100
WINDOWS_S = (1.0, 10.0, 60.0, 300.0)
_DRAWN_REQUESTS, _TRACES = 400_000, (4, 40)
"""Of a profile whose dispersion is told: together, and fewest and most traces."""
_ANY = Lengths(prompt=QuantileTable(tokens=(1, 1)), output=QuantileTable(tokens=(1, 1)))
"""Lengths of a trace whose arrivals alone are looked at."""


_MOST_COUNTED = 100


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a profile says of itself."""

    name: str
    source: str
    fit_date: str | None = None


def fit_profile(trace: Trace, description: Description, *, num_components: int | None = None) -> Profile:
    """Profile of a trace: lengths, their dependence, arrivals, and the distances to the trace.

    Parameters
    ----------
    num_components
        Components of mixtures of lognormals instead of tables of 256 quantiles.

    Raises
    ------
    TraceError
        If the trace has fewer than 100 requests.
    """
    if len(trace.requests) < FEWEST_REQUESTS:
        raise TraceError(
            f"trace {trace.name!r} has {len(trace.requests)} requests, expected at least "
            f"{FEWEST_REQUESTS} to fit a profile to"
        )
    columns = columns_of(trace.requests)
    profile = Profile(
        name=description.name,
        source=description.source,
        fit_date=description.fit_date,
        notes=_notes(columns),
        lengths=fit_lengths(columns.prompt_tokens, columns.output_tokens, num_components=num_components),
    )
    times_s = columns.arrival_ns / NS_PER_S
    return _with_arrivals(profile, times_s) if times_s[-1] > 0 else profile


def dispersion(times_s: Floats, window_s: float) -> float | None:
    """Variance over mean of the arrivals in whole windows from 0; None for fewer than 10."""
    num_windows = int(times_s[-1] // window_s)
    if num_windows < FEWEST_WINDOWS:
        return None
    # Only windows with arrivals are listed: a sparse trace may have billions without.
    window, counts = np.unique(times_s // window_s, return_counts=True)
    counts = counts[window < num_windows]
    mean = counts.sum() / num_windows
    return float(((counts**2).sum() / num_windows - mean**2) / mean)


def _with_arrivals(profile: Profile, times_s: Floats) -> Profile:
    """The profile with the arrivals that are most like those of the trace."""
    wanted = {window_s: value for window_s in WINDOWS_S if (value := dispersion(times_s, window_s))}
    best, least = profile, math.inf
    for fit in fitted_arrivals(times_s):
        changes = {
            "rate_per_s": rounded(len(times_s) / times_s[-1]),
            "arrivals": fit.arrivals,
            "arrivals_error": fit.error,
            "rate": fit.rate,
        }
        candidate = profile.model_copy(update=changes)
        drawn = _drawn(candidate, len(times_s))
        rows = []
        for window_s, value in wanted.items():
            if reached := [one for drawn_s in drawn if (one := dispersion(drawn_s, window_s))]:
                row = {"trace": rounded(value), "profile": rounded(float(np.mean(reached)))}
                rows.append(Dispersion(window_s=window_s, **row))
        distance = _distance(fit, rows, times_s, drawn)
        if distance < least:
            best, least = candidate.model_copy(update={"dispersion": tuple(rows)}), distance
    return best


def _drawn(profile: Profile, num_requests: int) -> list[Floats]:
    """Arrivals of some traces of the profile, as long as the one that it is fitted to."""
    alone = profile.model_copy(update={"lengths": _ANY})
    num_traces = min(max(_DRAWN_REQUESTS // num_requests, _TRACES[0]), _TRACES[1])
    traces = (generate_trace(alone, num_requests=num_requests, seed=seed) for seed in range(num_traces))
    return [columns_of(trace.requests).arrival_ns / NS_PER_S for trace in traces]


def _distance(fit: ArrivalFit, rows: Sequence[Dispersion], times_s: Floats, drawn: Sequence[Floats]) -> float:
    """How unlike the trace its twins are: dispersion in windows and variation of the gaps.

    The logarithm of a variance of n values has a variance of about 2 / n, so these add up as in a chi-square;
    n is at most 100, since neighbouring windows are alike. One more for every number of modulation (3) and
    spells (4), as much as it explains by chance.
    """
    squares = [
        math.log(row.profile / row.trace) ** 2 * min(times_s[-1] // row.window_s, _MOST_COUNTED) / 2
        for row in rows
    ]
    variation = _variation(times_s)
    reached = float(np.mean([_variation(one) for one in drawn]))
    if variation and reached:
        squares.append(math.log(reached / variation) ** 2 * _MOST_COUNTED)
    numbers = (3 if fit.rate.modulation else 0) + (4 if fit.rate.spells else 0)
    return float(sum(squares)) + numbers


def _variation(times_s: Floats) -> float:
    gaps_s = np.diff(times_s)
    return float(gaps_s.std() / gaps_s.mean())


def rounded(value: float) -> float:
    """Four significant digits, which is more than a trace tells."""
    return float(f"{value:.4g}")


def _notes(columns: RequestColumns) -> tuple[str, ...]:
    notes = []
    if not columns.arrival_ns.any():
        notes.append("the trace has no arrivals: Poisson ones are assumed, and the rate has to be given")
    if columns.client_id is not None:
        notes.append("clients are not told apart")
    if columns.prefix is not None:
        notes.append("prefixes that prompts share are not fitted: every prompt is of its own")
    return tuple(notes)
