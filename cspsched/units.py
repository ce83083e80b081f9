"""Integer nanoseconds and seconds; every rounding has a name that says its direction."""

from __future__ import annotations

from collections.abc import Callable
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction

NS_PER_S = 1_000_000_000
LEAST_PLAIN = 1e-3
"""Below a tenth of a percent a ratio is shown with two significant digits."""


def seconds_to_ns(seconds: str | float | Decimal) -> int:
    """Nanoseconds nearest to a time in seconds; text is read exactly, digit by digit.

    Raises
    ------
    ValueError
        If the text is no finite number.
    """
    try:
        value = Decimal(seconds if isinstance(seconds, str) else repr(float(seconds)))
        return int((value * NS_PER_S).to_integral_value(rounding=ROUND_HALF_EVEN))
    except ArithmeticError as error:
        raise ValueError(f"not a finite number: {seconds!r}") from error


def ns_to_seconds(time_ns: int | float) -> float:
    """Seconds as a float, for people to read; never used to decide anything."""
    return time_ns / NS_PER_S


Whole = Callable[[Fraction], int]
"""`round`, `math.floor` for what nothing is below, or `math.ceil` for what is reached at most."""


def exact_seconds(time_ns: int | Fraction, whole: Whole = round) -> Decimal:
    """Seconds with nine decimals, to a whole nanosecond: what is printed, however large.

    A float of seconds has no ninth decimal from 2^53 ns (104 days) on, and wrong ones before.
    """
    digits = f"{abs(whole(Fraction(time_ns))):010d}"
    sign = "-" if time_ns < 0 else ""
    return Decimal(f"{sign}{digits[:-9]}.{digits[-9:]}")


def ceil_div(numerator: int, denominator: int) -> int:
    """Quotient rounded up, in exact integers (denominator > 0)."""
    return -(-numerator // denominator)


def round_up(value: Fraction) -> int:
    """Smallest integer not below a rational: a lower bound on integers stays a lower bound."""
    return ceil_div(value.numerator, value.denominator)


def percent(value: float, rounding: str = ROUND_HALF_EVEN) -> str:
    """A ratio in percent: two decimals, or two significant digits where that is more.

    Parameters
    ----------
    rounding
        A mode of `decimal`: down for what is proven at least, up for what is possible at most.
    """
    # The shortest decimal that is the float: 2 % is to stay 2 % where it is rounded up.
    exact = Decimal(repr(float(value))) * 100
    if value == 0 or value >= LEAST_PLAIN:
        return f"{exact.quantize(Decimal('0.01'), rounding):f} %"
    return f"{float(exact.quantize(Decimal(1).scaleb(exact.adjusted() - 1), rounding)):.2g} %"
