"""What every measure grows by while a batch runs, from its definition; for the exhaustive search."""

from __future__ import annotations

from fractions import Fraction
from math import lcm
from operator import add, mul

from cspsched.problem.instance import Instance
from cspsched.problem.objectives import Measure, Term

NS_PER_S = 10**9
WAITS_FOR_ALL = (Measure.LATENCY, Measure.MEAN_LATENCY, Measure.WEIGHTED_LATENCY)
WAITS_FOR_FIRST = (Measure.TTFT, Measure.MEAN_TTFT, Measure.WEIGHTED_TTFT)
PER_GAP = (Measure.ITL, Measure.MEAN_ITL)
PER_TOKEN = (Measure.TPOT, Measure.MEAN_TPOT)
PACED = (Measure.MAX_TPOT, Measure.MISSES, Measure.WEIGHTED_MISSES)
Pending = tuple[tuple[int, int, bool], ...]
"""For requests between their first and last token: time since the first, since the last; and who is late."""

Label = tuple[tuple[int, ...], int, Pending]
"""Totals, clock, and what is pending."""


class Ledger:
    """Totals of the terms of all stages, as integers in units that `values` divides by."""

    def __init__(self, instance: Instance, stages: tuple[tuple[Term, ...], ...]) -> None:
        self.requests = instance.requests
        self.measures = list(dict.fromkeys(term.measure for terms in stages for term in terms))
        self.stages = stages
        self.nothing = (0,) * len(self.measures)
        self.fresh: Pending = tuple((0, 0, False) for _ in self.requests)
        self.gaps = [request.output_tokens - 1 for request in self.requests]
        self.unit = lcm(*(gaps for gaps in self.gaps if gaps))
        lowest = max(request.priority for request in self.requests)
        self.urgency = [1 + lowest - request.priority for request in self.requests]
        self.last_arrival = max(request.arrival_ns for request in self.requests)
        self.looks_at_spans = any(measure in PACED for measure in self.measures)
        self.looks_at_gaps = Measure.MAX_ITL in self.measures
        self.waiting: dict[tuple[Measure, object], list[tuple[int, int]]] = {}
        rates = [self._rates(terms) for terms in stages]
        self.scales = [lcm(*(rate.denominator for rate in row)) for row in rates]
        self.rows = [
            [int(rate * scale) for rate in row] for row, scale in zip(rates, self.scales, strict=True)
        ]

    def values(self, totals: tuple[int, ...]) -> tuple[int, ...]:
        """Value of each stage, in units that `whole` divides by."""
        return tuple(sum(map(mul, row, totals)) for row in self.rows)

    def whole(self, values: tuple[int, ...]) -> tuple[Fraction, ...]:
        """The values in their own units."""
        return tuple(map(Fraction, values, self.scales))

    def _rates(self, terms: tuple[Term, ...]) -> list[Fraction]:
        """What a unit of each total adds to the value of a stage."""
        counts = (Measure.MISSES, Measure.WEIGHTED_MISSES)
        only_counts = all(term.measure in counts for term in terms)
        rates = dict.fromkeys(self.measures, Fraction(0))
        for term in terms:
            seconds = NS_PER_S if term.measure in counts and not only_counts else 1
            rates[term.measure] += term.weight * seconds / self._divisor(term.measure)
        return list(rates.values())

    def _divisor(self, measure: Measure) -> int:
        several = sum(gaps > 0 for gaps in self.gaps) or 1
        return {
            Measure.MEAN_LATENCY: len(self.requests),
            Measure.MEAN_TTFT: len(self.requests),
            Measure.MEAN_ITL: sum(self.gaps) or 1,
            Measure.TPOT: self.unit,
            Measure.MAX_TPOT: self.unit,
            Measure.MEAN_TPOT: self.unit * several,
        }.get(measure, 1)

    def dominates(self, state, known: Label, other: Label) -> bool:
        """Whether a label can do whatever another with the same state can, at no higher totals."""
        (accrued, clock, pending), (rival, rival_clock, rival_pending) = known, other
        pairs = zip(pending, rival_pending, strict=True)
        if any(mine[k] > theirs[k] for mine, theirs in pairs for k in (0, 1)):
            return False
        if clock == rival_clock or min(clock, rival_clock) >= self.last_arrival:
            waited = accrued
        elif clock < rival_clock and not (self.looks_at_spans or self.looks_at_gaps):
            # It may idle until then.
            waited, _ = self.grow(accrued, pending, state, state, clock, rival_clock)
        else:
            return False
        return all(a <= b for a, b in zip(waited, rival, strict=True))

    def grow(self, totals, pending, state, following, clock, end):
        """Totals and pending times once a batch that ends at `end` has led to the following state."""
        if not (self.looks_at_spans or self.looks_at_gaps):
            passing = (self._passing(measure, state, clock, end) for measure in self.measures)
            return tuple(map(add, totals, passing)), self.fresh
        ages, ended_gaps, ended_spans, newly_late = [], [], [], []
        for i, request in enumerate(self.requests):
            before, after = state[i][1], following[i][1]
            span, gap, late = pending[i]
            if 0 < before < request.output_tokens:
                span, gap = span + end - clock, gap + end - clock
            is_late = late
            if after > before:
                ttft, tpot = request.ttft_limit_ns, request.tpot_limit_ns
                if before == 0:
                    is_late |= ttft is not None and end - request.arrival_ns > ttft
                else:
                    ended_gaps.append(gap)
                gap = 0
                if after == request.output_tokens and after > 1:
                    ended_spans.append(span * (self.unit // self.gaps[i]))
                    is_late |= tpot is not None and span > tpot * self.gaps[i]
                if after == request.output_tokens:
                    span = 0
            if is_late and not late:
                newly_late.append(i)
            ages.append((span * self.looks_at_spans, gap * self.looks_at_gaps, is_late * self.looks_at_spans))
        grown = []
        for measure, total in zip(self.measures, totals, strict=True):
            if measure is Measure.MAX_ITL:
                grown.append(max([total, *ended_gaps]))
            elif measure is Measure.MAX_TPOT:
                grown.append(max([total, *ended_spans]))
            elif measure in (Measure.MISSES, Measure.WEIGHTED_MISSES):
                grown.append(total + sum(self._weight(measure, i) for i in newly_late))
            else:
                grown.append(total + self._passing(measure, state, clock, end))
        return tuple(grown), tuple(ages)

    def _weight(self, measure: Measure, i: int) -> int:
        weighted = (Measure.WEIGHTED_LATENCY, Measure.WEIGHTED_TTFT, Measure.WEIGHTED_MISSES)
        return self.urgency[i] if measure in weighted else 1

    def _passing(self, measure: Measure, state, clock: int, end: int) -> int:
        """Growth of a sum while time passes from `clock` to `end`."""
        if measure is Measure.MAKESPAN:
            return end - clock
        if (measure, state) not in self.waiting:
            self.waiting[measure, state] = self._waiting(measure, state)
        return sum(
            weight * (end - max(clock, arrival))
            for arrival, weight in self.waiting[measure, state]
            if arrival < end
        )

    def _waiting(self, measure: Measure, state) -> list[tuple[int, int]]:
        """Since when at the earliest requests wait in a state, and the weight of that."""
        found = []
        for i, request in enumerate(self.requests):
            generated = state[i][1]
            between = 0 < generated < request.output_tokens
            waits = generated == 0 or (measure in WAITS_FOR_ALL and generated < request.output_tokens)
            if measure in (*WAITS_FOR_ALL, *WAITS_FOR_FIRST) and waits:
                found.append((request.arrival_ns, self._weight(measure, i)))
            elif measure in PER_GAP and between:
                found.append((request.arrival_ns, 1))
            elif measure in PER_TOKEN and between:
                found.append((request.arrival_ns, self.unit // self.gaps[i]))
        return found
