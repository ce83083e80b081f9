r"""Affine minorants of a batch time on the batches that an instance can form.

Theorem: for every batch of a feasible schedule

    T >= batch + [n_pre > 0] prefill_batch + tokens N + prefill_attention A + prefill_tokens P
         + prefill_context X + decode_context K + head n_gen + prefill_request n_pre + decode_request n_dec

Each piecewise-linear term is replaced by a line below it. A batch has 1 <= N <= top, so the term over N may
be replaced by any edge of its lower convex hull on that interval; the other features may be 0, so theirs get
the steepest line through the origin; what decodes cost on top beside a prefill is left out. A line below a
piecewise-linear function at its knots and at both ends of the interval is below it everywhere between, and
that is what `find_objections` checks. Rounding up the terms of a batch only lengthens it. Source: problem.md,
sections 4 and 5.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from math import floor, lcm
from typing import NamedTuple

from cspsched.bounds.certificate import Details
from cspsched.errors import InputError
from cspsched.problem.cost import (
    FUNCTION_FEATURES,
    BatchFeatures,
    CostModel,
    PiecewiseLinear,
    triangle,
)
from cspsched.problem.instance import Instance

MAX_TANGENTS = 8
MAX_SCALE = 10**9
"""Largest common denominator that is kept; beyond it coefficients are rounded down to 1 / COARSE_SCALE."""
COARSE_SCALE = 10**6


@dataclass(frozen=True, kw_only=True)
class Minorant:
    """Coefficients of an affine function below the batch time, exact, in nanoseconds per unit, all >= 0."""

    batch: Fraction
    """alpha: what every batch costs."""
    prefill_batch: Fraction
    """What a batch with prefill costs on top of alpha."""
    tokens: Fraction
    prefill_attention: Fraction
    prefill_tokens: Fraction
    prefill_context: Fraction
    decode_context: Fraction
    head: Fraction
    prefill_request: Fraction
    decode_request: Fraction

    @cached_property
    def scale(self) -> int:
        """Common denominator of the coefficients."""
        return lcm(*(getattr(self, field.name).denominator for field in fields(self)))

    def scaled(self, name: str) -> int:
        """A coefficient times the common denominator."""
        return int(getattr(self, name) * self.scale)

    def at(self, batch: BatchFeatures[int]) -> Fraction:
        """Value for a batch in nanoseconds."""
        amounts: dict[str, int] = batch._asdict()
        total = self.batch + (self.prefill_batch if batch.num_prefills else 0)
        total += self.prefill_request * batch.num_prefills + self.decode_request * batch.num_decodes
        for name, feature in FUNCTION_FEATURES.items():
            total += getattr(self, name) * amounts[feature]
        return total

    def to_details(self) -> Details:
        """Coefficients as exact text, for a certificate."""
        return {f"minorant_{field.name}_ns": str(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_details(cls, details: Details) -> Minorant:
        """Read what `to_details` wrote.

        Raises
        ------
        InputError
            If a coefficient is missing or is no rational.
        """
        try:
            return cls(
                **{field.name: Fraction(details[f"minorant_{field.name}_ns"]) for field in fields(cls)}
            )
        except (KeyError, ValueError, ZeroDivisionError) as error:
            raise InputError(f"certificate details hold no minorant: {error}") from None


class Line(NamedTuple):
    """y = intercept + slope x."""

    slope: Fraction
    intercept: Fraction


def reachable_maxima(instance: Instance) -> BatchFeatures[int]:
    """Upper ends of the features over all batches of feasible schedules.

    No request is longer than I + O - 1 and all residents fit into M, but for blocks that the prefix cache
    shares. A chunk's attention c (n + (c + 1) / 2) is at most c (n + c).
    """
    limits = instance.limits
    # A million requests have few lengths.
    peaks = Counter(instance.columns.peak_kv_tokens.tolist())
    count, volume, longest = len(instance.requests), sum(k * n for k, n in peaks.items()), max(peaks)
    memory = volume if instance.switches.prefix_caching else limits.kv_tokens
    tokens = min(limits.max_batch_tokens, memory, volume)
    processed = min(limits.max_batch_requests, limits.max_batch_tokens, count)
    context = min(memory, volume - count, processed * (longest - 1))
    return BatchFeatures(
        tokens=tokens,
        prefill_attention=min(tokens * longest, sum(triangle(k) * n for k, n in peaks.items())),
        prefill_tokens=tokens,
        prefill_context=context,
        decode_context=context,
        num_generating=processed,
        num_prefills=processed,
        num_decodes=processed,
    )


def minorants(instance: Instance) -> tuple[Minorant, ...]:
    """Several minorants of the instance's cost model: one for each tangent that is kept of the term over N.

    Returns
    -------
    tuple[Minorant, ...]
        At most 8, by rising slope; the first has the largest price per batch, which is > 0.
    """
    cost, top = instance.cost, reachable_maxima(instance)
    overhead = cost.step_ceil + min(cost.prefill_batch_ceil, cost.decode_batch_ceil)
    slopes = {
        name: slope_through_origin(getattr(cost, name), getattr(top, feature))
        for name, feature in FUNCTION_FEATURES.items()
    }
    return tuple(
        _coarse(
            Minorant(
                batch=overhead + line.intercept,
                prefill_batch=Fraction(max(0, cost.prefill_batch_ceil - cost.decode_batch_ceil)),
                prefill_request=cost.prefill_request,
                decode_request=cost.decode_request,
                **slopes | {"tokens": line.slope},
            )
        )
        for line in tangents(cost.tokens, top.tokens, overhead)
    )


def tangents(function: PiecewiseLinear, top: int, overhead: int) -> list[Line]:
    """Lines below a function on [1, top] whose intercept is at least -overhead, by rising slope.

    The horizontal line at 1, the edges of the lower convex hull as far as the limit allows, and the line at
    the limit through the corner where the hull gets too steep. Of many, 8 are kept, evenly spread.
    """
    vertices = hull_vertices(function, 1, top)
    lines = [Line(Fraction(0), function.exact(1))]
    for left, line in zip(vertices, lower_hull(function, 1, top), strict=False):
        if overhead + line.intercept < 0:
            # Batches may be many: only a price per batch that is not negative bounds their sum from below.
            lines.append(Line((overhead + function.exact(left)) / left, Fraction(-overhead)))
            break
        lines.append(line)
    distinct = list(dict.fromkeys(lines))
    last = len(distinct) - 1
    kept = min(last, MAX_TANGENTS - 1)
    return [distinct[round(k * last / kept)] for k in range(kept + 1)] if kept else distinct


def lower_hull(function: PiecewiseLinear, bottom: int, top: int) -> list[Line]:
    """Lines whose maximum is the lower convex hull on [bottom, top], by rising slope; at least one.

    On a domain of a single point the line is horizontal.
    """
    vertices = hull_vertices(function, bottom, top)
    lines = [_line_through(function, left, right) for left, right in pairwise(vertices)]
    return lines or [Line(Fraction(0), function.exact(bottom))]


def hull_vertices(function: PiecewiseLinear, bottom: int, top: int) -> list[int]:
    """Corners of the lower convex hull on [bottom, top], ascending."""
    hull: list[int] = []
    for x in _corners(function, bottom, top):
        while len(hull) > 1 and _is_above(function, hull[-2], hull[-1], x):
            hull.pop()
        hull.append(x)
    return hull


def slope_through_origin(function: PiecewiseLinear, top: int) -> Fraction:
    """Steepest slope of a line through the origin that is below a function on [0, top]."""
    if top < 1:
        return Fraction(0)
    return min(function.exact(x) / x for x in _corners(function, 0, top) if x)


def find_objections(minorant: Minorant, cost: CostModel, top: BatchFeatures[int]) -> Iterator[str]:
    """Where a minorant fails to be below a cost model on batches up to the given features.

    Checks every knot and both ends of each domain. The piecewise-linear terms are compared unrounded, the
    constants rounded up, as a batch pays them.
    """
    overhead = cost.step_ceil + min(cost.prefill_batch_ceil, cost.decode_batch_ceil)
    allowed = Line(minorant.tokens, minorant.batch - overhead)
    for x in _corners(cost.tokens, 1, top.tokens):
        if allowed.intercept + allowed.slope * x > cost.tokens.exact(x):
            yield f"the line over tokens is above the cost at {x}"
    for name, feature in FUNCTION_FEATURES.items():
        function, slope = getattr(cost, name), getattr(minorant, name)
        if name != "tokens" and any(
            slope * x > function.exact(x) for x in _corners(function, 0, getattr(top, feature))
        ):
            yield f"the line over {feature} is above the cost"
    for name in ("prefill_request", "decode_request"):
        if getattr(minorant, name) > getattr(cost, name):
            yield f"{name} is {getattr(minorant, name)}, the cost model has {getattr(cost, name)}"
    if minorant.prefill_batch > max(0, cost.prefill_batch_ceil - cost.decode_batch_ceil):
        yield f"prefill_batch is {minorant.prefill_batch}, more than a prefill adds to a batch"
    if any(getattr(minorant, field.name) < 0 for field in fields(minorant)):
        yield "a coefficient is negative"


def _corners(function: PiecewiseLinear, bottom: int, top: int) -> list[int]:
    """Both ends of a domain and the knots between, ascending."""
    between = [knot for knot in function.knots if bottom < knot < top]
    return [bottom, *between, top] if top > bottom else [bottom]


def _line_through(function: PiecewiseLinear, left: int, right: int) -> Line:
    slope = (function.exact(right) - function.exact(left)) / (right - left)
    return Line(slope, function.exact(left) - slope * left)


def _is_above(function: PiecewiseLinear, left: int, middle: int, right: int) -> bool:
    """Whether the point in the middle is on or above the chord."""
    chord = _line_through(function, left, right)
    return function.exact(middle) >= chord.intercept + chord.slope * middle


def _coarse(minorant: Minorant) -> Minorant:
    """The same if its common denominator is handy, else every coefficient rounded down (all features >= 0).

    A coefficient that would become 0 stays as it is: a batch must keep a price.
    """
    if minorant.scale <= MAX_SCALE:
        return minorant
    values = {field.name: getattr(minorant, field.name) for field in fields(minorant)}
    return Minorant(
        **{
            name: Fraction(floor(value * COARSE_SCALE), COARSE_SCALE) or value
            for name, value in values.items()
        }
    )
