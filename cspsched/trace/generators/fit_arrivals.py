"""Arrivals fitted to a trace, from the slow to the fast: hours, silences, modulation, gaps.

Each part is taken out of the time of the trace before the next is fitted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import gamma, kstest, weibull_min

from cspsched.trace.generators.arrays import Floats
from cspsched.trace.generators.arrivals import Renewal, weibull_shape
from cspsched.trace.generators.rate import Modulation, RateShape, Spells
from cspsched.trace.generators.record import FitError, Lognormal

STEPS_S = (10.0, 20.0, 60.0, 120.0, 300.0)
FEWEST_WINDOWS = 10
"""From fewer windows the variation of a rate is not told."""
SILENCE = 10.0
"""A gap of so many times the mean of the others is a silence: of Poisson arrivals one in 22,000 is."""
_LEAST_SILENT_SHARE = 0.05
_FEWEST_GAPS = 5
"""In a window from which a rhythm is told."""
_HOUR_S, _DAY_S = 3600.0, 86_400.0
_FEWEST_AN_HOUR = 100
"""Requests for each hour of the day."""
_MOST_PHI = 0.98
_CV = (0.01, 100.0)


@dataclass(frozen=True, kw_only=True)
class ArrivalFit:
    """Arrivals of a profile."""

    arrivals: Renewal
    rate: RateShape
    error: FitError
    """Of the gaps on the clock of the rate."""


def fitted_arrivals(times_s: Floats) -> Iterator[ArrivalFit]:
    """Fits with and without silences, and by the step of their modulation; the simplest first.

    Parameters
    ----------
    times_s
        Sorted arrivals from 0 on, shape (num_requests,), not all at 0.
    """
    hours = _hours(times_s)
    # Where the rate is twice as high the clock runs twice as fast, and what is left has no hours.
    course = RateShape(hours=hours).cumulative(np.random.SeedSequence(0), float(times_s[-1]))
    clock_s = np.interp(times_s, course.times_s, course.values)
    yield from _steady(clock_s, RateShape(hours=hours))
    parted = _without_silences(clock_s)
    if parted is not None:
        yield from _steady(parted[1], RateShape(hours=hours, spells=parted[0]))


def _steady(times_s: Floats, rate: RateShape) -> Iterator[ArrivalFit]:
    """Fits of arrivals out of which hours and silences are taken, without a modulation and with some."""
    gaps = np.diff(times_s) / np.diff(times_s).mean()
    arrivals, error = _renewal(gaps, float(gaps.std()))
    yield ArrivalFit(arrivals=arrivals, rate=rate, error=error)
    for step_s in STEPS_S:
        if not FEWEST_WINDOWS <= times_s[-1] / step_s <= len(times_s):
            continue
        local = _local_gaps(times_s, step_s)
        modulation = _modulation(times_s, step_s, local[1]) if local else None
        if local and modulation:
            arrivals, error = _renewal(*local)
            modulated = rate.model_copy(update={"modulation": modulation})
            yield ArrivalFit(arrivals=arrivals, rate=modulated, error=error)


def _hours(times_s: Floats) -> tuple[float, ...] | None:
    """Relative rate of the hours of the day, the trace beginning at hour 0.

    None for less than two days, or few requests.
    """
    num_days = int(times_s[-1] // _DAY_S)
    if num_days < 2 or len(times_s) < _FEWEST_AN_HOUR * 24:
        return None
    whole = times_s[times_s < num_days * _DAY_S]
    counts = np.bincount((whole % _DAY_S // _HOUR_S).astype(np.int64), minlength=24)
    return tuple(np.round(counts / counts.mean(), 4).tolist())


def _without_silences(times_s: Floats) -> tuple[Spells, Floats] | None:
    """Spells with and without arrivals, and the arrivals with each silence as long as a mean gap.

    None if the silences are less than 5 % of the time.
    """
    gaps_s = np.diff(times_s)
    is_silent = gaps_s > _threshold(gaps_s)
    usual_s = float(gaps_s[~is_silent].mean())
    if not usual_s or gaps_s[is_silent].sum() < _LEAST_SILENT_SHARE * times_s[-1]:
        return None
    last = np.append(np.flatnonzero(is_silent), len(gaps_s))
    first = np.concatenate(([0], last[:-1] + 1))
    # The spell of a single request lasts as long as a mean gap.
    on_s = np.maximum(times_s[last] - times_s[first], usual_s)
    active_s = np.concatenate(([0.0], np.cumsum(np.where(is_silent, usual_s, gaps_s))))
    return Spells(on=_lognormal(on_s), off=_lognormal(gaps_s[is_silent])), active_s


def _threshold(gaps_s: Floats) -> float:
    """The longest gap that is no silence."""
    threshold = math.inf
    while (lower := SILENCE * float(gaps_s[gaps_s <= threshold].mean())) < threshold:
        threshold = lower
    return threshold


def _lognormal(values: Floats) -> Lognormal:
    """With the mean of the values, so that shares of time are theirs, and the spread of their logarithms."""
    sigma = float(np.log(values).std())
    return Lognormal(mu=round(math.log(values.mean()) - sigma**2 / 2, 4), sigma=round(sigma, 4))


def _local_gaps(times_s: Floats, window_s: float) -> tuple[Floats, float] | None:
    """Gaps within windows over the mean of their window, and their standard deviation.

    The mean of n gaps takes one degree of freedom of each window. None if no window has gaps enough.
    """
    window = (times_s // window_s).astype(np.int64)
    gaps_s, of = np.diff(times_s), window[1:]
    inside = window[1:] == window[:-1]
    gaps_s, of = gaps_s[inside], of[inside]
    counts, sums_s = np.bincount(of), np.bincount(of, weights=gaps_s)
    told = (counts >= _FEWEST_GAPS) & (sums_s > 0)
    if not told.any():
        return None
    kept = told[of]
    gaps = gaps_s[kept] / (sums_s[told] / counts[told])[np.searchsorted(np.flatnonzero(told), of[kept])]
    return gaps, math.sqrt(float(((gaps - 1) ** 2).sum()) / float((counts[told] - 1).sum()))


def _renewal(gaps: Floats, cv: float) -> tuple[Renewal, FitError]:
    """The family whose gaps of some variation are nearest to gaps of mean 1, and how near."""
    cv = round(min(max(cv, _CV[0]), _CV[1]), 4)
    ordered = np.sort(gaps)
    shape = weibull_shape(cv)
    laws = {
        "gamma": gamma(cv**-2, scale=cv**2),
        "weibull": weibull_min(shape, scale=1 / math.gamma(1 + 1 / shape)),
    }
    ks = {family: float(kstest(ordered, law.cdf).statistic) for family, law in laws.items()}
    best = min(ks, key=ks.__getitem__)
    middles = (np.arange(len(ordered)) + 0.5) / len(ordered)
    w1 = float(np.abs(ordered - laws[best].ppf(middles)).mean())
    error = FitError(ks=round(ks[best], 6), w1_over_mean=round(w1, 6))
    return Renewal.model_validate({"family": best, "cv": cv}), error


def _modulation(times_s: Floats, step_s: float, cv: float) -> Modulation | None:
    """What the counts of windows vary by beyond a renewal process, and how long it lasts.

    Variance of the counts: mean cv^2 of the gaps, and mean^2 times the variance of the factor.
    """
    counts = np.bincount((times_s // step_s).astype(np.int64))[: int(times_s[-1] // step_s)]
    mean = counts.mean()
    variance = (counts.var() - mean * cv**2) / mean**2
    if variance <= 0:
        return None
    covariance = float(((counts[1:] - mean) * (counts[:-1] - mean)).mean()) / mean**2
    phi = math.log1p(covariance) / math.log1p(variance) if covariance > 0 else 0.0
    return Modulation(cv=round(math.sqrt(variance), 4), phi=round(min(phi, _MOST_PHI), 4), step_s=step_s)
