"""What is minimised: three objectives that everything here knows, and mixtures of all measures.

A mixture is a weighted sum of measures with rational weights. Its value is an exact integer: nanoseconds
times its `scale`, or requests where it counts misses only. How measures become integer weights of times is
in `cspsched.problem.linear_form`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction

from cspsched.errors import InputError
from cspsched.units import NS_PER_S, Whole, exact_seconds


class Objective(StrEnum):
    """What is minimised, in integer nanoseconds (sums over requests; reports show means)."""

    MAKESPAN = "makespan"
    """End of the last batch, the clock starting at the first arrival."""
    LATENCY = "latency"
    """Sum over requests of completion - arrival."""
    TTFT = "ttft"
    """Sum over requests of first token - arrival."""

    def mean_s(self, value_ns: int, num_requests: int) -> float:
        """The number that people read: seconds, per request for the sums."""
        return value_ns / NS_PER_S / (1 if self is Objective.MAKESPAN else num_requests)

    def exact_s(self, value_ns: int, num_requests: int, whole: Whole = round) -> Decimal:
        """The same to the nanosecond, with nine decimals."""
        return exact_seconds(Fraction(value_ns, 1 if self is Objective.MAKESPAN else num_requests), whole)

    def show(self, value_ns: int, num_requests: int, whole: Whole = round) -> str:
        """A value as people read it; of a bound the nanosecond is rounded down, so that it stays one."""
        return f"{self.exact_s(value_ns, num_requests, whole):f} s"

    @property
    def label(self) -> str:
        """What the shown number is."""
        return "makespan" if self is Objective.MAKESPAN else f"mean {self}"


class Measure(StrEnum):
    """What a mixture may hold. Sums are over requests, those of gaps over all gaps between tokens."""

    MAKESPAN = "makespan"
    LATENCY = "latency"
    MEAN_LATENCY = "mean-latency"
    WEIGHTED_LATENCY = "weighted-latency"
    TTFT = "ttft"
    MEAN_TTFT = "mean-ttft"
    WEIGHTED_TTFT = "weighted-ttft"
    ITL = "itl"
    MEAN_ITL = "mean-itl"
    MAX_ITL = "max-itl"
    TPOT = "tpot"
    MEAN_TPOT = "mean-tpot"
    MAX_TPOT = "max-tpot"
    MISSES = "misses"
    WEIGHTED_MISSES = "weighted-misses"

    @property
    def counts(self) -> bool:
        """Whether it counts requests instead of time."""
        return self in (Measure.MISSES, Measure.WEIGHTED_MISSES)


BASIC = {
    Measure.MAKESPAN: Objective.MAKESPAN,
    Measure.LATENCY: Objective.LATENCY,
    Measure.MEAN_LATENCY: Objective.LATENCY,
    Measure.TTFT: Objective.TTFT,
    Measure.MEAN_TTFT: Objective.TTFT,
}
"""Measures that are, alone, one of the three objectives."""


@dataclass(frozen=True, slots=True)
class Term:
    """A measure with its weight; a miss in a mixture with times counts `weight` seconds."""

    measure: Measure
    weight: Fraction = Fraction(1)

    def __str__(self) -> str:
        return self.measure.value if self.weight == 1 else f"{self.weight}*{self.measure}"


@dataclass(frozen=True, slots=True)
class Mixture:
    """A weighted sum of measures on the requests of an instance; made by `linear_form.on_instance`."""

    terms: tuple[Term, ...]
    scale: int = 1
    """Values are integers in 1 / scale nanoseconds (of requests, if it counts)."""

    @property
    def value(self) -> str:
        """The text that names it."""
        return "+".join(map(str, self.terms))

    def __str__(self) -> str:
        return self.value

    @property
    def counts(self) -> bool:
        """Whether values are numbers of requests."""
        return all(term.measure.counts for term in self.terms)

    @property
    def label(self) -> str:
        """What the shown number is."""
        return self.value

    def mean_s(self, value_ns: int, num_requests: int) -> float:
        """The number that people read: seconds, or requests if it counts; never divided by their number."""
        del num_requests
        return value_ns / self.scale / (1 if self.counts else NS_PER_S)

    def exact_s(self, value_ns: int, num_requests: int, whole: Whole = round) -> Decimal:
        """The same to the nanosecond, of a mixture of times."""
        del num_requests
        return exact_seconds(Fraction(value_ns, self.scale), whole)

    def show(self, value_ns: int, num_requests: int, whole: Whole = round) -> str:
        """A value as people read it; `whole` as in `Objective.show`."""
        if self.counts:
            return f"{self.mean_s(value_ns, num_requests):g} missed"
        return f"{self.exact_s(value_ns, num_requests, whole):f} s"


AnyObjective = Objective | Mixture
TERM = re.compile(r"(?:(?P<weight>\d+(?:\.\d+|/\d+)?)\*)?(?P<measure>[a-z-]+)")


def parse_stages(text: str) -> tuple[tuple[Term, ...], ...]:
    """Stages of a lexicographic order, separated by commas; each a sum of terms such as `2*latency+ttft`.

    Raises
    ------
    InputError
        If a measure is unknown, a weight is no number above 0, or nothing is named.
    """
    stages = tuple(tuple(map(_term, stage.split("+"))) for stage in text.replace(" ", "").split(","))
    if len(set(stages)) < len(stages):
        raise InputError(f"objective {text!r} names a stage twice; once is enough")
    return stages


def basic_objective(terms: tuple[Term, ...]) -> Objective | None:
    """The one of the three objectives that a single term is, whatever its weight."""
    return BASIC.get(terms[0].measure) if len(terms) == 1 else None


def _term(text: str) -> Term:
    match = TERM.fullmatch(text)
    if match is None or match["measure"] not in set(Measure):
        raise InputError(
            f"objective {text!r} is not known, expected a measure or <weight>*<measure>, joined by + "
            f"(weighted sum) or , (one after the other); measures are {', '.join(Measure)}"
        )
    try:
        weight = Fraction(match["weight"] or 1)
    except ZeroDivisionError:
        weight = Fraction(0)
    if weight == 0:
        raise InputError(f"objective {text!r} has the weight {match['weight']}, expected a number above 0")
    return Term(Measure(match["measure"]), weight)
