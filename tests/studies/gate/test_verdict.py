"""What a gate decides: exact rationals against a naive reading of the limits, at the edge and beyond."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.errors import UsageError
from cspsched.studies.gate.file import read_percent
from cspsched.studies.gate.run import run_gate
from cspsched.studies.gate.verdict import GateLimits, Kind, Side, Value, change, reasons
from cspsched.studies.reference import ReferenceLimits


@st.composite
def values(draw) -> Value:
    """Bound, best known and value, in order; small numbers, so that edges are met."""
    bound, best, value = sorted(draw(st.tuples(*[st.integers(0, 12)] * 3)))
    return Value(value_ns=value, best_ns=best, bound_ns=bound)


ratios = st.fractions(0, 3, max_denominator=12)


def side(outcome: Value | str, fingerprint: str = "a") -> Side:
    """A side of a cell."""
    return Side(policy="mine", fingerprint=fingerprint, outcome=outcome)


def kinds(head: Side, base: Side | None, **limits: Fraction) -> list[Kind]:
    """Kinds of the reasons against a cell."""
    return [reason.kind for reason in reasons(head, base, GateLimits(**limits))]


def excess(value: int, end: int) -> Fraction | None:
    """(value - end) / end; None for what is no share."""
    if end == 0:
        return None if value else Fraction(0)
    return Fraction(value - end, end)


@given(value=values(), limit=ratios)
def test_an_excess_passes_only_if_the_bound_proves_it(value, limit):
    """The upper end of the excess, as a rational, is at most the limit."""
    most = excess(value.value_ns, value.bound_ns)
    found = kinds(side(value), None, excess_at_most=limit)

    assert found == ([] if most is not None and most <= limit else [Kind.EXCESS])


@given(value=values(), limit=ratios)
def test_the_sentence_says_what_is_certain(value, limit):
    """`at least X, above the limit` is said exactly where even the lower end is above it."""
    least = excess(value.value_ns, value.best_ns)
    for reason in reasons(side(value), None, GateLimits(excess_at_most=limit)):
        assert (", above the limit" in reason.text) == (least is not None and least > limit)


@given(head=values(), base=values(), tolerance=ratios)
def test_a_regression_is_measured_on_one_instance(head, base, tolerance):
    """Exactly where head is above base by more than the tolerance, whatever the optimum is."""
    worse = head.value_ns > base.value_ns + tolerance * base.value_ns
    found = kinds(side(head), side(base), regression_at_most=tolerance)

    assert found == ([Kind.REGRESSION] if worse else [])


@given(head=values(), base=values())
def test_other_instances_are_compared_by_what_is_certain(head, base):
    """Exactly where the least possible excess of head is above the most possible of base."""
    least, most = excess(head.value_ns, head.best_ns), excess(base.value_ns, base.bound_ns)
    certain = least is not None and most is not None and least > most
    found = kinds(side(head), side(base, "b"))

    assert found == ([Kind.EXCESS_REGRESSION] if certain else [])
    assert change(side(head), side(base, "b")) is None


@pytest.mark.parametrize(
    ("head", "base", "found"),
    [
        ("boom", None, [Kind.HEAD_FAILED]),
        ("boom", "bang", [Kind.BASE_FAILED, Kind.HEAD_FAILED]),
        (Value(value_ns=9, best_ns=3, bound_ns=3), "bang", [Kind.BASE_FAILED, Kind.EXCESS]),
    ],
)
def test_a_failure_is_a_reason_of_its_own(head, base, found):
    """A side without value is never compared, and the other side is decided all the same."""
    other = None if base is None else side(base)

    assert kinds(side(head), other, excess_at_most=Fraction(1)) == found
    assert change(side(head), other) is None


@pytest.mark.parametrize(("text", "ratio"), [("40%", Fraction(2, 5)), (" 0.1 % ", Fraction(1, 1000))])
def test_percentages_are_exact(text, ratio):
    """0.1 % is a thousandth, no float near it."""
    assert read_percent(text) == ratio


@pytest.mark.parametrize("value", ["40", 0.4, "-1%", "a%", None])
def test_a_bare_number_is_no_percentage(value):
    """It could be a ratio or a percentage, so it is refused."""
    with pytest.raises(ValueError, match="expected a percentage"):
        read_percent(value)


def test_a_gate_has_no_clock():
    """A verdict that depends on the clock would not repeat."""
    with pytest.raises(UsageError, match="a gate has no clock"):
        run_gate([], [], [], limits=ReferenceLimits(time_limit_s=1.0))
