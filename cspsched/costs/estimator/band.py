"""How sure a cost model is: an error band for each kind of work, and the range that was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from cspsched.costs.presets import cost_path, read_cost
from cspsched.errors import CostError
from cspsched.problem.cost import FUNCTION_TERMS, BatchFeatures, CostModel, PiecewiseLinear, read_rational
from cspsched.problem.json_io import require_int, require_keys

GROUPS: Mapping[str, tuple[str, ...]] = {
    "tokens": ("step", "tokens"),
    "head": ("head",),
    "prefill_attention": (
        "prefill_batch", "prefill_request", "prefill_attention", "prefill_tokens", "prefill_context",
    ),
    "decode_attention": ("decode_batch", "decode_request", "decode_context"),
    "mixed_attention": ("mixed_request", "mixed_context"),
}  # fmt: skip
"""Terms of a cost model that are fitted together, under the name of what they price."""
BAND_KEYS = ("low", "high")


@dataclass(frozen=True)
class Band:
    """Factors on the terms of each group: four fifths of the measurements lie between low and high.

    Attributes
    ----------
    low, high
        Factor by group; 1 for a group that is missing.
    """

    low: Mapping[str, Fraction] = field(default_factory=dict)
    high: Mapping[str, Fraction] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, factors in (("low", self.low), ("high", self.high)):
            for group, factor in factors.items():
                if group not in GROUPS:
                    raise CostError(f"band.{name}: unknown work {group!r}; known: {', '.join(GROUPS)}")
                if factor <= 0:
                    raise CostError(f"band.{name}.{group} is {factor}, expected more than 0")

    def to_json(self) -> dict[str, dict[str, str]]:
        """Factors as exact text."""
        return {
            name: {group: str(factor) for group, factor in getattr(self, name).items()} for name in BAND_KEYS
        }

    @classmethod
    def from_json(cls, data: Any, where: str) -> Band:
        """Read what `to_json` wrote.

        Raises
        ------
        CostError
            If a factor is no number above 0, or belongs to nothing.
        """
        require_keys(data, where, required=BAND_KEYS, optional=())
        factors = {}
        for name in BAND_KEYS:
            require_keys(data[name], f"{where}.{name}", required=(), optional=tuple(GROUPS))
            factors[name] = {
                group: read_rational(text, f"{where}.{name}.{group}") for group, text in data[name].items()
            }
        return cls(**factors)

    def bounds(self, cost: CostModel) -> tuple[CostModel, CostModel]:
        """The cost model at the low and at the high end of the band."""
        return _scaled(cost, self.low, "low"), _scaled(cost, self.high, "high")


@dataclass(frozen=True)
class Domain:
    """What was measured: the largest value of each feature of a batch that the fit has seen.

    Attributes
    ----------
    largest
        By feature of `BatchFeatures`; a feature that is missing has no limit.
    """

    largest: Mapping[str, int] = field(default_factory=dict)

    def outside(self, batch: BatchFeatures[int]) -> tuple[str, ...]:
        """Features of a batch that go beyond what was measured."""
        return tuple(name for name, most in self.largest.items() if getattr(batch, name) > most)

    @classmethod
    def from_json(cls, data: Any, where: str) -> Domain:
        """Read a table of whole numbers by feature."""
        require_keys(data, where, required=(), optional=BatchFeatures._fields)
        return cls({name: require_int(data, name, where) for name in data})


@dataclass(frozen=True)
class Estimate:
    """Answer to how long a batch takes, in nanoseconds.

    Attributes
    ----------
    low_ns, high_ns
        The ends of the error band.
    extrapolated
        Features that go beyond what was measured; empty inside the domain.
    """

    time_ns: int
    low_ns: int
    high_ns: int
    extrapolated: tuple[str, ...]


@dataclass(frozen=True)
class Estimator:
    """A cost model with its error band and its domain."""

    cost: CostModel
    low: CostModel
    high: CostModel
    domain: Domain

    @classmethod
    def of(cls, cost: CostModel, band: Band, domain: Domain) -> Estimator:
        """Put a fit together."""
        low, high = band.bounds(cost)
        return cls(cost, low, high, domain)

    @classmethod
    def load(cls, name_or_path: str | Path) -> Estimator:
        """Read a cost file; one without a band or a domain is sure of itself everywhere.

        Raises
        ------
        UsageError, InputError
            As `load_cost`.
        """
        path = cost_path(name_or_path)
        data = read_cost(path)
        cost = CostModel.from_json(data, str(path))
        band = Band.from_json(data.get("band", {"low": {}, "high": {}}), f"{path}: band")
        return cls.of(cost, band, Domain.from_json(data.get("domain", {}), f"{path}: domain"))

    def estimate(self, batch: BatchFeatures[int]) -> Estimate:
        """How long a batch takes, how sure that is, and whether it lies beyond what was measured."""
        return Estimate(
            time_ns=self.cost.batch_time_ns(batch),
            low_ns=self.low.batch_time_ns(batch),
            high_ns=self.high.batch_time_ns(batch),
            extrapolated=self.domain.outside(batch),
        )


def _scaled(cost: CostModel, factors: Mapping[str, Fraction], end: str) -> CostModel:
    terms: dict[str, Fraction | PiecewiseLinear] = {}
    for group, factor in factors.items():
        for name in GROUPS[group]:
            term = getattr(cost, name)
            if name in FUNCTION_TERMS:
                terms[name] = PiecewiseLinear(term.knots, tuple(factor * slope for slope in term.slopes))
            else:
                terms[name] = factor * term
    changed: Any = terms
    return replace(cost, name=f"{cost.name}-{end}", **changed)
