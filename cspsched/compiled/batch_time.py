"""Batch time from a flat table, plain or compiled: the same integers as `CostModel.batch_time_ns`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import Any, NamedTuple

import numpy as np

from cspsched.compiled.jit import inner
from cspsched.problem.cost import BatchFeatures, CostModel, IntArray, PiecewiseLinear

LINEAR_TERMS = ("tokens", "prefill_attention", "prefill_tokens")
"""Terms that are left unrounded in parts of a nanosecond; all others are rounded up to whole ones."""
NUM_PREFILLS, NUM_DECODES = 6, 7
"""Positions in `BatchFeatures`."""
Row = tuple[int, int, int, int]


class Term(NamedTuple):
    """A piecewise-linear term: its feature, and bases and slopes from each knot on, times the denominator."""

    feature: int
    """Position in `BatchFeatures`; -1 - position if only batches with a prefill pay the term."""
    denominator: int
    knots: Sequence[int]
    bases: Sequence[int]
    slopes: Sequence[int]

    @classmethod
    def of(cls, feature: int, function: PiecewiseLinear, reach: float) -> Term:
        """The pieces up to which the feature reaches."""
        end = bisect_right(function.knots, reach)
        pieces = function.knots[:end], function.knot_numerators[:end], function.slope_numerators[:end]
        return cls(feature, function.denominator, *pieces)

    def scaled(self, scale: int) -> Term:
        """In so many parts of a unit, of which the denominator is a divisor."""
        bases, slopes = ([scale // self.denominator * one for one in many] for many in self[3:])
        return self._replace(denominator=1, bases=bases, slopes=slopes)


def terms_of(cost: CostModel, reach: Callable[[int], float] = lambda position: inf) -> list[Term]:
    """Terms of a cost model up to what each feature reaches; those paid beside a prefill only come last."""
    alone, beside = cost.functions(mixed=False), cost.functions(mixed=True)
    terms = [Term.of(position, function, reach(position)) for position, function in alone]
    return terms + [Term.of(-1 - position, function, reach(position)) for position, function in beside]


def constants_of(cost: CostModel) -> tuple[int, int, int]:
    """What a batch takes anyway, with a prefill, and with a decode, rounded up."""
    return cost.step_ceil, cost.prefill_batch_ceil, cost.decode_batch_ceil


def flat_rows(constants: tuple[int, int, int], terms: Sequence[Term]) -> list[Row]:
    """Rows of the table.

    The constants and the row of the first knot; each term (feature, denominator, rows from and to of its
    knots); each knot (where, base, slope, 0).
    """
    first = 1 + len(terms)
    heads: list[Row] = []
    knots: list[Row] = []
    for term in terms:
        row = first + len(knots)
        heads.append((term.feature, term.denominator, row, row + len(term.knots)))
        knots += [(*piece, 0) for piece in zip(term.knots, term.bases, term.slopes, strict=True)]
    return [(*constants, first), *heads, *knots]


@inner
def term_ns(prices: IntArray, row: int, x: int) -> int:
    """Value of a term of the table at x > 0, rounded up."""
    term = prices[row]
    low, high = term[2], term[3]
    while high - low > 1:
        middle = (low + high) >> 1
        if prices[middle, 0] <= x:
            low = middle
        else:
            high = middle
    numerator = prices[low, 1] + prices[low, 2] * (x - prices[low, 0])
    return int((numerator + term[1] - 1) // term[1])


def batch_time_by(feature: Callable[[Any, int, int], int]) -> Callable[[Any, IntArray, int], int]:
    """Return the function that prices a batch from the table: every term rounded up once.

    Parameters
    ----------
    feature
        Of what describes batches, a position in `BatchFeatures` and which batch is meant. Called for priced
        features only: to write all eight down before costs the list scheduler a fifth of its speed.
    """

    @inner
    def batch_time_ns(source: Any, prices: IntArray, which: int) -> int:
        has_prefill = feature(source, NUM_PREFILLS, which) > 0
        time_ns = prices[0, 0]
        if has_prefill:
            time_ns += prices[0, 1]
        if feature(source, NUM_DECODES, which):
            time_ns += prices[0, 2]
        for row in range(1, prices[0, 3]):
            position = prices[row, 0]
            if position < 0:
                if not has_prefill:
                    break
                position = -1 - position
            x = feature(source, position, which)
            if x:
                time_ns += term_ns(prices, row, x)
        return int(time_ns)

    return batch_time_ns


class CostTables(NamedTuple):
    """Batch time in parts of a nanosecond: what is rounded up to whole ones, and what is left in parts."""

    whole: IntArray
    parts: IntArray
    scale: int


def cost_tables(cost: CostModel, scale: int) -> CostTables:
    """Terms of the cost model as tables, in `scale` parts of a nanosecond."""
    linear = {BatchFeatures._fields.index(name) for name in LINEAR_TERMS} if scale > 1 else set()
    terms = terms_of(cost)
    whole = flat_rows(constants_of(cost), [term for term in terms if term.feature not in linear])
    parts = flat_rows((0, 0, 0), [term.scaled(scale) for term in terms if term.feature in linear])
    return CostTables(_table(whole), _table(parts), scale)


def _table(rows: Iterable[Row]) -> IntArray:
    return np.array(list(rows), dtype=np.int64)


@inner
def _written_down(features: IntArray, position: int, _: int) -> int:
    return int(features[position])


_flat_batch_time = batch_time_by(_written_down)


@inner
def batch_time(costs: CostTables, features: IntArray) -> int:
    """Time of a batch from its features, in the order of `BatchFeatures`, in parts of a nanosecond."""
    whole = _flat_batch_time(features, costs.whole, 0) * costs.scale
    return whole + _flat_batch_time(features, costs.parts, 0)
