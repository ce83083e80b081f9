"""What a trace looks like in numbers: lengths, rate, burstiness, correlation, shared prefixes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import StatisticsError, correlation, fmean, pvariance
from typing import Any

from cspsched.problem.columns import columns_of
from cspsched.trace.jitter import MIN_TICK_NS
from cspsched.trace.sharing import PrefixStatistics, prefix_statistics
from cspsched.trace.trace import Trace
from cspsched.units import NS_PER_S, ns_to_seconds

STATISTICS_SCHEMA = "cspsched/trace-statistics/1"

DISPERSION_WINDOW_S = 60
# Below this, equal gaps are more likely a hand-written example than a coarse clock.
_MIN_GAPS_FOR_WARNING = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStatistics:
    """Tokens per request; percentiles by linear interpolation."""

    mean: float
    p50: float
    p95: float
    p99: float
    max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceStatistics:
    """Figures of a trace; None where the trace does not determine one."""

    num_requests: int
    span_s: float
    """From the first arrival to the last."""
    rate_per_s: float | None
    """Requests over the span; None if all arrive together."""
    prompt_tokens: TokenStatistics
    output_tokens: TokenStatistics
    interarrival_cv: float | None
    """Standard deviation of the gaps over their mean: 1 for a Poisson process."""
    dispersion_60s: float | None
    """Variance over mean of the arrivals in windows of 60 s; None for fewer than two whole windows."""
    spearman_prompt_output: float | None
    """Rank correlation of prompt and output tokens; None if one of them is constant."""
    quantum_ns: int | None
    """Greatest common divisor of the gaps; None if all arrive together."""
    tick_ns: int | None
    """Shortest gap above 0: the tick of the clock that stamped the arrivals, if it is a coarse one."""
    prefix: PrefixStatistics | None
    """What prompts share with earlier ones; None if no request has a prefix."""
    warnings: tuple[str, ...]
    """One sentence each, empty if nothing is odd."""

    def to_json(self) -> dict[str, Any]:
        """Plain values with a schema version."""
        return {"schema": STATISTICS_SCHEMA, **asdict(self), "warnings": list(self.warnings)}


def describe(trace: Trace) -> TraceStatistics:
    """Figures of a trace."""
    columns = columns_of(trace.requests)
    arrivals_ns, prompts, outputs = (
        column.tolist() for column in (columns.arrival_ns, columns.prompt_tokens, columns.output_tokens)
    )
    gaps_ns = [after - before for before, after in pairwise(arrivals_ns)]
    span_s = ns_to_seconds(sum(gaps_ns))
    tick_ns = min(filter(None, gaps_ns), default=None)
    return TraceStatistics(
        num_requests=len(prompts),
        span_s=span_s,
        rate_per_s=len(prompts) / span_s if span_s else None,
        prompt_tokens=_token_statistics(prompts),
        output_tokens=_token_statistics(outputs),
        interarrival_cv=_variation(gaps_ns),
        dispersion_60s=_dispersion(arrivals_ns, DISPERSION_WINDOW_S * NS_PER_S),
        spearman_prompt_output=_spearman(prompts, outputs),
        quantum_ns=math.gcd(*gaps_ns) or None,
        tick_ns=tick_ns,
        prefix=None if columns.prefix is None else prefix_statistics(arrivals_ns, prompts, columns.prefix),
        warnings=tuple(_quantisation_warnings(gaps_ns, tick_ns)),
    )


def _token_statistics(tokens: Iterable[int]) -> TokenStatistics:
    ordered = sorted(tokens)
    p50, p95, p99 = (_percentile(ordered, percent) for percent in (50, 95, 99))
    return TokenStatistics(mean=fmean(ordered), p50=p50, p95=p95, p99=p99, max=ordered[-1])


def _percentile(ordered: Sequence[int], percent: int) -> float:
    """Linear interpolation between the neighbours, as numpy's default."""
    below, hundredths = divmod((len(ordered) - 1) * percent, 100)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * hundredths / 100


def _variation(gaps_ns: Sequence[int]) -> float | None:
    """Standard deviation over mean."""
    mean = fmean(gaps_ns) if len(gaps_ns) > 1 else 0.0
    return math.sqrt(pvariance(gaps_ns)) / mean if mean else None


def _dispersion(arrivals_ns: Sequence[int], window_ns: int) -> float | None:
    """Variance over mean of the counts; the last window, cut off by the end of the trace, is left out."""
    num_windows = (arrivals_ns[-1] - arrivals_ns[0]) // window_ns
    if num_windows < 2:
        return None
    counts = Counter((arrival - arrivals_ns[0]) // window_ns for arrival in arrivals_ns)
    whole = [counts[window] for window in range(num_windows)]
    return pvariance(whole) / fmean(whole)


def _spearman(prompts: Sequence[int], outputs: Sequence[int]) -> float | None:
    try:
        return correlation(_ranks(prompts), _ranks(outputs))
    except StatisticsError:
        return None


def _ranks(values: Sequence[int]) -> list[float]:
    """Rank of every value, equal values sharing the mean of theirs."""
    counts = Counter(values)
    rank: dict[int, float] = {}
    num_below = 0
    for value in sorted(counts):
        rank[value] = num_below + (counts[value] + 1) / 2
        num_below += counts[value]
    return [rank[value] for value in values]


def _quantisation_warnings(gaps_ns: Sequence[int], tick_ns: int | None) -> list[str]:
    """A coarse clock makes bursts that never were: most gaps are 0, the others at least a tick."""
    share_zero = gaps_ns.count(0) / max(len(gaps_ns), 1)
    if tick_ns is None or tick_ns < MIN_TICK_NS or share_zero < 0.5:
        return []
    if len(gaps_ns) < _MIN_GAPS_FOR_WARNING:
        return []
    return [
        f"{share_zero:.0%} of the gaps are 0 and the others at least {ns_to_seconds(tick_ns):g} s: the clock "
        "is coarse, and the bursts at its ticks are not real "
        "(--dejitter uniform draws arrivals within their ticks)"
    ]
