"""The answer first: one sentence, and the intervals of the certified excess as bars."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR
from math import ceil, floor, log10
from typing import NamedTuple

from cspsched.report.table import between, excess
from cspsched.studies.compare import Comparison, PolicyRow
from cspsched.units import percent

MOST_NAMED_POLICIES = 4
TICKS = 5
"""About so many intervals of the axis."""


class Bar(NamedTuple):
    """One policy's interval; widths in percent of the axis."""

    policy: str
    text: str
    certain: float
    open: float
    is_endless: bool
    """No end is proven: the bound is 0."""


def title(policies: Sequence[str]) -> str:
    """Heading of a comparison."""
    *others, last = policies
    if len(policies) > MOST_NAMED_POLICIES:
        return f"{len(policies)} policies against the optimum"
    return f"{', '.join(others)} and {last} against the optimum" if others else f"{last} against the optimum"


def verdict(comparison: Comparison) -> str:
    """What is proven of the best and the worst policy, in one sentence."""
    what = comparison.objective.label
    best = min(comparison.rows, key=lambda row: row.value_ns)
    worst = max(comparison.rows, key=lambda row: row.value_ns)
    count = len(comparison.rows)
    if best.value_ns == worst.value_ns:
        subject = best.policy if count == 1 else f"Each of the {count} policies"
        return f"{subject} {_proven(best, what)}."
    farthest = worst.policy if count == 2 else f"{worst.policy}, the farthest of {count} policies,"
    return f"{best.policy} {_proven(best, what)}; {farthest} is above the optimum {between(worst.excess)}."


def _proven(row: PolicyRow, what: str) -> str:
    if row.excess.is_exact and row.excess.at_least == 0:
        return f"is optimal: no schedule has a lower {what}"
    if row.excess.at_least == 0 and row.excess.at_most is not None:
        return (
            f"has the best known schedule and is above the optimal {what} by at most "
            f"{percent(row.excess.at_most, ROUND_CEILING)}"
        )
    return f"is above the optimal {what} {between(row.excess)}"


def bars(comparison: Comparison) -> tuple[list[Bar], list[tuple[float, str]]]:
    """Bars of all policies, and the ticks of their axis: place in percent of the axis, and text."""
    ends = [end for row in comparison.rows for end in row.excess if end is not None]
    step = _round_step(max(ends, default=0.0) or 0.01)
    top = step * ceil((max(ends, default=0.0) or 0.01) / step)
    drawn = []
    for row in comparison.rows:
        least = row.excess.at_least or 0.0
        most = top if row.excess.at_most is None else max(row.excess.at_most, least)
        drawn.append(
            Bar(
                policy=row.policy,
                text=excess(row.excess),
                certain=_share(least, top),
                open=_share(most - least, top),
                is_endless=row.excess.at_most is None,
            )
        )
    ticks = [(_share(k * step, top), f"{100 * k * step:.6g} %") for k in range(round(top / step) + 1)]
    return drawn, ticks


def _round_step(most: float) -> float:
    """1, 2 or 5 times a power of ten, so that some of them reach the most."""
    rough = most / TICKS
    power = 10.0 ** floor(log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)


def _share(part: float, whole: float) -> float:
    return round(100 * part / whole, 3)


CERTAINTY = ("policy", "value", "certain: at least", "still open", "no more than")


def certainty_rows(comparison: Comparison) -> list[list[str]]:
    """Each policy's excess taken apart: proven by a schedule, left open, and where the bound ends it."""
    count = len(comparison.instance.requests)
    return [
        [row.policy, comparison.objective.show(row.value_ns, count), *_certainty(row)]
        for row in comparison.rows
    ]


def _certainty(row: PolicyRow) -> tuple[str, str, str]:
    least, most = row.excess
    if least is None:
        return "no share of 0", "", ""
    shown = percent(least, ROUND_FLOOR)
    if most is None:
        return shown, "no end is proven", "not known"
    if row.excess.is_exact:
        return percent(least), "nothing", percent(least)
    points = percent(most - least, ROUND_CEILING).removesuffix(" %")
    return shown, f"{points} points", percent(most, ROUND_CEILING)
