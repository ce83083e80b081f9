"""Piecewise-linear functions with exact rational slopes: the terms of a cost model."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import lcm
from typing import Any

import numpy as np
import numpy.typing as npt

from cspsched.errors import CostError
from cspsched.problem.json_io import require_keys

IntArray = npt.NDArray[np.int64]

SANE_NUMBER = re.compile(r"[-+]?[0-9./]{1,60}(?:[eE][-+]?[0-9]{1,2})?")
"""Exact numbers are short: `1e999999999` would be a number of a billion digits."""
INT64_SAFE = 2**62
"""Products of int64 arrays stay exact below this; larger models are evaluated with Python integers."""


@dataclass(frozen=True)
class PiecewiseLinear:
    """A non-decreasing piecewise-linear function with f(0) = 0, in nanoseconds.

    Attributes
    ----------
    knots
        Where the slope changes; the first is 0, strictly increasing.
    slopes
        Slope from each knot to the next (the last holds for ever), rationals >= 0.
    """

    knots: tuple[int, ...] = (0,)
    slopes: tuple[Fraction, ...] = (Fraction(0),)

    def __post_init__(self) -> None:
        if len(self.knots) != len(self.slopes) or not self.knots or self.knots[0] != 0:
            raise CostError(
                f"piecewise-linear term: {len(self.knots)} knots starting at {self.knots[:1]} and "
                f"{len(self.slopes)} slopes, expected as many slopes as knots and 0 as the first knot"
            )
        if any(left >= right for left, right in zip(self.knots, self.knots[1:], strict=False)):
            raise CostError(f"piecewise-linear term: knots {self.knots} are not strictly increasing")
        if any(slope < 0 for slope in self.slopes):
            raise CostError(f"piecewise-linear term: slopes {self.slopes} must all be at least 0")

    @classmethod
    def linear(cls, slope: Fraction | int | str) -> PiecewiseLinear:
        """The straight line of a slope in nanoseconds per unit."""
        return cls((0,), (Fraction(slope),))

    @cached_property
    def denominator(self) -> int:
        """Common denominator of all slopes."""
        return lcm(*(slope.denominator for slope in self.slopes))

    @cached_property
    def slope_numerators(self) -> tuple[int, ...]:
        """Slopes times the common denominator."""
        return tuple(int(slope * self.denominator) for slope in self.slopes)

    @cached_property
    def knot_numerators(self) -> tuple[int, ...]:
        """Values at the knots times the common denominator."""
        values = [0]
        for k in range(1, len(self.knots)):
            values.append(values[-1] + self.slope_numerators[k - 1] * (self.knots[k] - self.knots[k - 1]))
        return tuple(values)

    @property
    def is_zero(self) -> bool:
        """Whether the term costs nothing anywhere."""
        return not any(self.slopes)

    def numerator(self, x: int) -> int:
        """Exact value at x times the common denominator."""
        k = bisect_right(self.knots, x) - 1
        return self.knot_numerators[k] + self.slope_numerators[k] * (x - self.knots[k])

    def exact(self, x: int) -> Fraction:
        """Unrounded value at x in nanoseconds."""
        return Fraction(self.numerator(x), self.denominator)

    def ceil(self, x: int) -> int:
        """Value at x in nanoseconds, rounded up."""
        return -(-self.numerator(x) // self.denominator)

    def ceil_array(self, x: IntArray) -> IntArray:
        """Values at many points in nanoseconds, rounded up; falls back to Python integers near overflow."""
        if self.is_zero or len(x) == 0:
            return np.zeros(len(x), dtype=np.int64)
        values: IntArray = -(-self.numerators(x) // self.denominator)
        return values.astype(np.int64)

    def numerators(self, x: IntArray) -> npt.NDArray[Any]:
        """Exact values at many points times the common denominator: int64, Python integers near overflow."""
        largest = int(x.max(initial=0))
        # One further, so that the last slope is covered too; knots beyond may be of any size.
        if max(self.numerator(largest + 1), self.denominator) >= INT64_SAFE:
            return np.array([self.numerator(int(value)) for value in x], dtype=object)
        reached = slice(bisect_right(self.knots, largest))
        knots = np.array(self.knots[reached], dtype=np.int64)
        k = np.searchsorted(knots, x, side="right") - 1
        base = np.array(self.knot_numerators[reached], dtype=np.int64)[k]
        slope = np.array(self.slope_numerators[reached], dtype=np.int64)[k]
        numerators: IntArray = base + slope * (x - knots[k])
        return numerators

    def to_json(self) -> dict[str, Any]:
        """Knots as integers, slopes as exact text."""
        return {"knots": list(self.knots), "slopes_ns": [str(slope) for slope in self.slopes]}

    @classmethod
    def from_json(cls, data: Any, where: str, ns_per_unit: Fraction = Fraction(1)) -> PiecewiseLinear:
        """Read what `to_json` wrote (or a cost file's table, with slopes in another unit)."""
        require_keys(data, where, required=("knots", "slopes_ns"))
        if not isinstance(data["knots"], list) or not isinstance(data["slopes_ns"], list):
            raise CostError(f"{where}: knots and slopes_ns must be lists")
        if not all(isinstance(knot, int) and not isinstance(knot, bool) for knot in data["knots"]):
            raise CostError(f"{where}: knots are {data['knots']}, expected whole numbers")
        slopes = tuple(
            ns_per_unit * read_rational(text, f"{where}.slopes_ns[{k}]")
            for k, text in enumerate(data["slopes_ns"])
        )
        return cls(tuple(data["knots"]), slopes)


NOTHING = PiecewiseLinear()
"""The term that costs nothing."""


def read_rational(text: Any, where: str) -> Fraction:
    """Read an exact number from text such as `97.76`, `8.6e-8` or `2444/25`."""
    try:
        if isinstance(text, bool) or not isinstance(text, str | int):
            raise ValueError
        if not SANE_NUMBER.fullmatch(str(text).strip()):
            raise ValueError
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise CostError(
            f"{where} is {text!r}, expected an exact number as text, such as '97.76' or '2444/25'"
        ) from None
