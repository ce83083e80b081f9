"""Arrivals by time rescaling: a renewal process of rate 1, run on the clock of the cumulative rate."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from scipy.optimize import brentq
from scipy.special import gammaln

from cspsched.trace.generators.arrays import Floats
from cspsched.trace.generators.record import Number, Record

_SHAPES = (0.05, 500.0)


class Renewal(Record):
    """Independent gaps of mean 1 between arrivals."""

    family: Literal["gamma", "weibull"] = "gamma"
    cv: Annotated[Number, Field(ge=0.01, le=100)] = 1.0
    """Standard deviation over mean of the gaps: 1 is Poisson, more is bursty."""

    def gaps(self, rng: np.random.Generator, size: int) -> Floats:
        """Gaps, shape (size,)."""
        if self.family == "gamma":
            return rng.gamma(shape=self.cv**-2, scale=self.cv**2, size=size)
        shape = weibull_shape(self.cv)
        return rng.weibull(shape, size=size) / math.gamma(1 + 1 / shape)

    def first(self, rng: np.random.Generator) -> float:
        """Time from any moment to the next arrival, when the process has run for ever.

        A uniform part of a gap drawn by its length: of Gamma(k) that is Gamma(k + 1), and of Weibull(c) the
        1/c-th power of Gamma(1 + 1/c).
        """
        if self.family == "gamma":
            length = rng.gamma(shape=self.cv**-2 + 1, scale=self.cv**2)
        else:
            shape = weibull_shape(self.cv)
            length = rng.gamma(1 + 1 / shape) ** (1 / shape) / math.gamma(1 + 1 / shape)
        return float(length * rng.random())


def weibull_cv(shape: float) -> float:
    """Standard deviation over mean of a Weibull distribution."""
    return math.sqrt(math.expm1(float(gammaln(1 + 2 / shape) - 2 * gammaln(1 + 1 / shape))))


def weibull_shape(cv: float) -> float:
    """Shape of the Weibull distribution with a given variation."""
    return float(brentq(lambda shape: weibull_cv(shape) - cv, *_SHAPES))
