"""What the parts of a profile have in common: frozen, strict, no unknown keys, finite numbers."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Number = float


class Record(BaseModel):
    """A part of a profile, as JSON has it: what is unknown, infinite or of another type is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class FitError(Record):
    """Distance of a distribution from the data that it was fitted to."""

    ks: Annotated[Number, Field(ge=0, le=1)]
    """Kolmogorov-Smirnov: largest difference of the distribution functions; of lengths on whole tokens."""
    w1_over_mean: NotNegative
    """Wasserstein-1 distance over the mean of the data."""


class Lognormal(Record):
    """A positive quantity whose natural logarithm is normal."""

    mu: Number
    """Mean of the logarithm."""
    sigma: NotNegative
    """Standard deviation of the logarithm."""

    @property
    def mean(self) -> float:
        """exp(mu + sigma^2 / 2)."""
        from math import exp

        return exp(self.mu + self.sigma**2 / 2)
