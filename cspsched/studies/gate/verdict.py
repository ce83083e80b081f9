"""What a gate decides by: exact values of head and base on one instance, and certified excess."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR
from enum import StrEnum
from fractions import Fraction

from cspsched.problem.excess import Excess
from cspsched.units import percent


class Kind(StrEnum):
    """Why a cell of the matrix fails."""

    HEAD_FAILED = "head-failed"
    """The policy under test could not be run to the end."""
    BASE_FAILED = "base-failed"
    EXCESS = "excess"
    """The certified excess is not proven to stay within its limit."""
    REGRESSION = "regression"
    """The value is further above base's than the tolerance, on the same instance."""
    EXCESS_REGRESSION = "excess-regression"
    """On another instance than base's: even the least possible excess is above the most possible of base."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One reason against a cell, in one sentence."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GateLimits:
    """What is allowed, as exact ratios.

    Attributes
    ----------
    excess_at_most
        Limit on the upper end of the certified excess: only a proof that the excess is within it passes.
        None: no limit.
    regression_at_most
        Tolerance of head's value over base's.
    """

    excess_at_most: Fraction | None = None
    regression_at_most: Fraction = Fraction(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRules:
    """Limits that may differ between objectives: one ratio for all, or ratios by the objective's text."""

    excess_at_most: Fraction | Mapping[str, Fraction] | None = None
    regression_at_most: Fraction | Mapping[str, Fraction] | None = None

    def of(self, objective: str) -> GateLimits:
        """The limits for an objective."""
        return GateLimits(
            excess_at_most=_for(self.excess_at_most, objective),
            regression_at_most=_for(self.regression_at_most, objective) or Fraction(0),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """What a policy reaches, and the two ends of the optimum that it is measured against.

    All in nanoseconds, or in what the objective counts; `bound_ns <= best_ns <= value_ns`.
    """

    value_ns: int
    best_ns: int
    bound_ns: int

    @property
    def excess(self) -> Excess:
        """Certified excess."""
        return Excess.of(self.value_ns, best_ns=self.best_ns, bound_ns=self.bound_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """Head or base in one cell: a value, or the sentence that says why there is none.

    Attributes
    ----------
    fingerprint
        Of the instance that the value is of.
    """

    policy: str
    fingerprint: str
    outcome: Value | str

    @property
    def value(self) -> Value | None:
        """The value; None if the policy failed."""
        return self.outcome if isinstance(self.outcome, Value) else None

    @property
    def failure(self) -> str | None:
        """What the policy's code raised or did; None if it ran to the end."""
        return self.outcome if isinstance(self.outcome, str) else None


def _for(ratio: Fraction | Mapping[str, Fraction] | None, objective: str) -> Fraction | None:
    return ratio.get(objective) if isinstance(ratio, Mapping) else ratio


def reasons(head: Side, base: Side | None, limits: GateLimits) -> tuple[Reason, ...]:
    """Everything against a cell; empty if it passes."""
    return tuple(_reasons(head, base, limits))


def change(head: Side, base: Side | None) -> Fraction | None:
    """(head - base) / base of values on one instance; None where there are none, or base's is 0."""
    if base is None or head.value is None or base.value is None or head.fingerprint != base.fingerprint:
        return None
    base_ns = base.value.value_ns
    return Fraction(head.value.value_ns - base_ns, base_ns) if base_ns else None


def _reasons(head: Side, base: Side | None, limits: GateLimits) -> Iterator[Reason]:
    if base is not None and base.failure is not None:
        yield Reason(kind=Kind.BASE_FAILED, text=f"base cannot be run: {base.failure}")
    if head.value is None:
        yield Reason(kind=Kind.HEAD_FAILED, text=f"head cannot be run: {head.failure}")
        return
    if limits.excess_at_most is not None:
        yield from _excess(head.value, limits.excess_at_most)
    if base is not None and base.value is not None:
        if head.fingerprint == base.fingerprint:
            yield from _regression(head.value.value_ns, base.value.value_ns, limits.regression_at_most)
        else:
            yield from _excess_regression(head.value, base.value)


def _excess(value: Value, most: Fraction) -> Iterator[Reason]:
    """The claim `value <= (1 + most) optimum` is proven where it holds for the bound."""
    if value.value_ns <= (1 + most) * value.bound_ns:
        return
    limit, (least, highest) = f"the limit {percent(float(most))}", value.excess
    if least is None:
        text = f"the best known value is 0, of which the excess is no share, so it is not within {limit}"
    elif value.value_ns > (1 + most) * value.best_ns:
        text = f"the excess is at least {percent(least, ROUND_FLOOR)}, above {limit}"
    elif highest is None:
        text = f"the excess has no proven upper end, so it is not proven to be within {limit}"
    else:
        text = (
            f"the excess is proven to be at most {percent(highest, ROUND_CEILING)}, which leaves open "
            f"whether it is within {limit}; it is at least {percent(least, ROUND_FLOOR)}"
        )
    yield Reason(kind=Kind.EXCESS, text=text)


def _regression(head_ns: int, base_ns: int, tolerance: Fraction) -> Iterator[Reason]:
    if head_ns <= (1 + tolerance) * base_ns:
        return
    worse = f"{percent((head_ns - base_ns) / base_ns, ROUND_FLOOR)} above base's" if base_ns else "above 0"
    text = f"the value is {worse}, and the tolerance is {percent(float(tolerance))}"
    yield Reason(kind=Kind.REGRESSION, text=text)


def _excess_regression(head: Value, base: Value) -> Iterator[Reason]:
    """The least possible excess of head is above the most possible of base, exactly."""
    least, most = head.excess.at_least, base.excess.at_most
    if least is None or most is None:
        return
    if _ratio(head.value_ns, head.best_ns) <= _ratio(base.value_ns, base.bound_ns):
        return
    text = (
        f"the excess is at least {percent(least, ROUND_FLOOR)}, and base's, on another instance, was "
        f"at most {percent(most, ROUND_CEILING)}"
    )
    yield Reason(kind=Kind.EXCESS_REGRESSION, text=text)


def _ratio(value_ns: int, end_ns: int) -> Fraction:
    """1 + excess; nothing over nothing is no excess."""
    return Fraction(value_ns, end_ns) if end_ns else Fraction(1)
