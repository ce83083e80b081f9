"""The one linear form of every objective: integer weights of times and of missed limits.

Model, metrics and bounds all read it. For request i let F be the time from its arrival to its first token, D
the time from there to its last one (0 for a single token), and late(i) whether it misses a limit. Then

    value = w M + sum_i (u_i F_i + v_i D_i) + x max gap + max_i (p_i D_i) + sum_i y_i late(i)

with the makespan M and the gaps between consecutive tokens of a request. Latency is F + D, TPOT is
D / (O - 1). A request misses its SLO if F > `ttft_limit_ns` or D > `tpot_limit_ns` (O - 1), as far as it has
such limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm

from cspsched.errors import InputError
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import (
    AnyObjective,
    Measure,
    Mixture,
    Objective,
    Term,
    basic_objective,
    parse_stages,
)
from cspsched.problem.request import Request
from cspsched.units import NS_PER_S


@dataclass(frozen=True, kw_only=True)
class LinearForm:
    """Integer weights, one of each request where there are several; all >= 0."""

    makespan: int
    first: tuple[int, ...]
    """u: of the time to the first token."""
    span: tuple[int, ...]
    """v: of the time from the first token to the last; equal to u for requests of one token."""
    max_gap: int
    max_span: tuple[int, ...]
    """p: the largest product with the time from the first token to the last counts."""
    late: tuple[int, ...]
    """y: of a missed limit."""

    @property
    def is_additive(self) -> bool:
        """Whether it is a weighted sum of times, with no maximum and no count."""
        return not (self.max_gap or any(self.max_span) or any(self.late))

    def is_about_gaps(self, requests: Sequence[Request]) -> bool:
        """Whether it looks at nothing but times between tokens of a request, so that arrivals say nothing."""
        due = any(y and request.ttft_limit_ns for y, request in zip(self.late, requests, strict=True))
        return not (self.makespan or any(self.first) or due)

    def is_regular(self, requests: Sequence[Request]) -> bool:
        """Whether no token that comes later can make it smaller; else idle time may pay."""
        paced = any(y and request.tpot_limit_ns for y, request in zip(self.late, requests, strict=True))
        slower = any(v > u for u, v in zip(self.first, self.span, strict=True))
        return not (self.max_gap or any(self.max_span) or paced or slower)

    def value(
        self,
        requests: Sequence[Request],
        makespan_ns: int,
        first_ns: Sequence[int],
        span_ns: Sequence[int],
        max_gap_ns: int,
    ) -> int:
        """Value of a schedule: its makespan, F and D of every request, and its largest gap (0 if none)."""
        additive = sum(
            u * f + v * d for u, v, f, d in zip(self.first, self.span, first_ns, span_ns, strict=True)
        )
        largest = max(p * d for p, d in zip(self.max_span, span_ns, strict=True))
        missed = sum(
            y
            for y, request, f, d in zip(self.late, requests, first_ns, span_ns, strict=True)
            if is_late(request, f, d)
        )
        return self.makespan * makespan_ns + additive + self.max_gap * max_gap_ns + largest + missed


def is_late(request: Request, first_ns: int, span_ns: int) -> bool:
    """Whether a request misses its SLO."""
    ttft, tpot = request.ttft_limit_ns, request.tpot_limit_ns
    return (ttft is not None and first_ns > ttft) or (
        tpot is not None and span_ns > tpot * (request.output_tokens - 1)
    )


def on_instance(stages: tuple[tuple[Term, ...], ...], instance: Instance) -> tuple[AnyObjective, ...]:
    """The objectives that parsed stages mean on an instance, in their order.

    Raises
    ------
    InputError
        If misses are to be counted and no request has a limit.
    """
    return tuple(basic_objective(terms) or _mixture(terms, instance) for terms in stages)


def read_objectives(text: str, instance: Instance) -> tuple[AnyObjective, ...]:
    """The objectives that a text such as `misses,latency` means on an instance.

    Raises
    ------
    InputError
        If the text means nothing, or misses are to be counted and no request has a limit.
    """
    return on_instance(parse_stages(text), instance)


def linear_form(objective: AnyObjective, instance: Instance) -> LinearForm:
    """Weights of an objective on an instance."""
    if isinstance(objective, Objective):
        rational = _Rational(instance, (Term(Measure(objective.value)),))
        return rational.scaled(1)
    return _Rational(instance, objective.terms).scaled(objective.scale)


def _mixture(terms: tuple[Term, ...], instance: Instance) -> Mixture:
    if any(term.measure.counts for term in terms) and not any(map(_is_limited, instance.requests)):
        raise InputError(
            "no request has a limit to miss; give the trace a column ttft_limit_s or tpot_limit_s, or leave "
            "misses out of --objective"
        )
    return Mixture(terms=terms, scale=_Rational(instance, terms).denominator)


def _is_limited(request: Request) -> bool:
    return request.ttft_limit_ns is not None or request.tpot_limit_ns is not None


class _Rational:
    """The form with rational weights, as the terms say."""

    def __init__(self, instance: Instance, terms: tuple[Term, ...]) -> None:
        requests = instance.requests
        count = len(requests)
        self.gaps = [request.output_tokens - 1 for request in requests]
        lowest = max(request.priority for request in requests)
        self.urgency = [Fraction(1 + lowest - request.priority) for request in requests]
        self.limited = list(map(_is_limited, requests))
        self.makespan, self.max_gap = Fraction(0), Fraction(0)
        self.first, self.span, self.max_span, self.late = ([Fraction(0)] * count for _ in range(4))
        in_ns = not all(term.measure.counts for term in terms)
        for term in terms:
            # A miss in a mixture with times counts as so many seconds.
            self._add(term.measure, term.weight * (NS_PER_S if in_ns and term.measure.counts else 1))
        for i, gaps in enumerate(self.gaps):
            if gaps == 0:
                self.span[i], self.max_span[i] = self.first[i], Fraction(0)

    def _add(self, measure: Measure, weight: Fraction) -> None:
        count, several = len(self.gaps), sum(gaps > 0 for gaps in self.gaps)
        each = [Fraction(1)] * count
        pace = [Fraction(1, gaps or 1) for gaps in self.gaps]
        if measure is Measure.MAKESPAN:
            self.makespan += weight
        elif measure is Measure.MAX_ITL:
            self.max_gap += weight
        elif measure is Measure.MAX_TPOT:
            self._add_to(self.max_span, pace, weight)
        elif measure.counts:
            urgency = self.urgency if measure is Measure.WEIGHTED_MISSES else each
            known = [w * limited for w, limited in zip(urgency, self.limited, strict=True)]
            self._add_to(self.late, known, weight)
        elif measure in (Measure.TPOT, Measure.MEAN_TPOT):
            self._add_to(self.span, pace, weight / (several or 1) if measure is Measure.MEAN_TPOT else weight)
        elif measure in (Measure.ITL, Measure.MEAN_ITL):
            gaps = sum(self.gaps) or 1
            self._add_to(self.span, each, weight / gaps if measure is Measure.MEAN_ITL else weight)
        else:
            self._add_waits(measure, weight)

    def _add_waits(self, measure: Measure, weight: Fraction) -> None:
        """Latency waits for all tokens, TTFT for the first."""
        weighted = measure in (Measure.WEIGHTED_LATENCY, Measure.WEIGHTED_TTFT)
        if measure in (Measure.MEAN_LATENCY, Measure.MEAN_TTFT):
            weight /= len(self.gaps)
        each = self.urgency if weighted else [Fraction(1)] * len(self.gaps)
        self._add_to(self.first, each, weight)
        if measure in (Measure.LATENCY, Measure.MEAN_LATENCY, Measure.WEIGHTED_LATENCY):
            self._add_to(self.span, each, weight)

    @staticmethod
    def _add_to(weights: list[Fraction], each: list[Fraction], weight: Fraction) -> None:
        for i, share in enumerate(each):
            weights[i] += weight * share

    @property
    def _all(self) -> list[Fraction]:
        return [self.makespan, self.max_gap, *self.first, *self.span, *self.max_span, *self.late]

    @property
    def denominator(self) -> int:
        """Least scale that makes all weights whole."""
        return lcm(*(weight.denominator for weight in self._all))

    def scaled(self, scale: int) -> LinearForm:
        """Integer weights of values in 1 / scale nanoseconds."""

        def whole(weights: list[Fraction]) -> tuple[int, ...]:
            return tuple(int(weight * scale) for weight in weights)

        return LinearForm(
            makespan=int(self.makespan * scale),
            first=whole(self.first),
            span=whole(self.span),
            max_gap=int(self.max_gap * scale),
            max_span=whole(self.max_span),
            late=whole(self.late),
        )
