"""What one cell of a trace file may hold; a wrong one raises ValueError that says what was expected."""

from __future__ import annotations

import re
from datetime import date
from decimal import ROUND_HALF_EVEN, Decimal
from enum import Enum
from functools import lru_cache

from cspsched.problem.request import MAX_TOKENS
from cspsched.units import NS_PER_S, seconds_to_ns

MAX_PRIORITY = 1_000_000_000
# Seconds since 1970 fit with room, and so many nanoseconds still fit into 64 bits.
MAX_ARRIVAL_S = 9_000_000_000

# ASCII only and no underscores: int() and Decimal() read more than a person takes for a number.
# The optional zeros are for pandas, which writes 12 as 12.0 as soon as one cell of the column is empty.
_WHOLE_NUMBER = re.compile(r"(-?)0*([0-9]+)(?:\.0*)?")
# Three digits of exponent, so that no cell becomes an integer of a million digits.
_DECIMAL_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_TIME_OF_DAY = r"[ T]([01][0-9]|2[0-3]):([0-5][0-9]):([0-5][0-9])(?:\.([0-9]{1,9}))?(?:Z|\+00:00)?"
_UTC_TIME = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})" + _TIME_OF_DAY)
PLAIN_UTC_TIME = re.compile(r"((?:19[7-9]|20[0-9])[0-9]-[0-9]{2}-[0-9]{2})" + _TIME_OF_DAY)
"""Moments whose nanoseconds since 1970 fit into 64 bits with room."""
_EXPECTED_UTC = "expected a UTC time like 2023-11-16 18:17:03.9799600 or 2024-05-10 00:00:00.009930+00:00"


class TimeUnit(Enum):
    """How a column writes a time: a number of units, or a moment."""

    S = ("s", "seconds", 9)
    MS = ("ms", "milliseconds", 6)
    US = ("us", "microseconds", 3)
    NS = ("ns", "nanoseconds", 0)
    UTC = ("utc", "UTC", 0)

    def __init__(self, symbol: str, plural: str, decimals: int) -> None:
        self.symbol = symbol
        self.plural = plural
        self.decimals = decimals
        """Of one unit, down to a nanosecond."""

    def parse(self, text: str) -> int:
        """Nanoseconds nearest to a time of at least 0, or since a fixed moment; exact, digit by digit.

        Raises
        ------
        ValueError
            If the text is no time of the unit; says what was expected.
        """
        if self is TimeUnit.UTC:
            return _moment(text)
        number = text.strip()
        if not _DECIMAL_NUMBER.fullmatch(number):
            raise ValueError(f"expected a finite number of {self.plural}, at least 0")
        time_ns = int(Decimal(number).scaleb(self.decimals).to_integral_value(rounding=ROUND_HALF_EVEN))
        if time_ns < 0:
            raise ValueError(f"expected a number of {self.plural} of at least 0")
        if time_ns > MAX_ARRIVAL_S * NS_PER_S:
            most = MAX_ARRIVAL_S * NS_PER_S // 10**self.decimals
            raise ValueError(f"expected at most {most} {self.plural}; {_FINER[self.symbol]}")
        return time_ns

    def text(self, time_ns: int) -> str:
        """Digits of a time as a number of units, or a moment counted from 2000 on; exact."""
        if self is TimeUnit.UTC:
            days, rest_ns = divmod(time_ns, 86_400 * NS_PER_S)
            seconds, rest_ns = divmod(rest_ns, NS_PER_S)
            day = date.fromordinal(_FIRST_DAY + days).isoformat()
            time = f"{seconds // 3_600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
            return f"{day} {time}.{rest_ns:09d}".rstrip("0").rstrip(".") if rest_ns else f"{day} {time}"
        whole, rest = divmod(time_ns, 10**self.decimals)
        return f"{whole}.{rest:0{self.decimals}d}".rstrip("0").rstrip(".") if rest else str(whole)


_FIRST_DAY = date(2000, 1, 1).toordinal()
_FINER = {
    "s": "is it in milliseconds?",
    "ms": "is it in microseconds?",
    "us": "is it in nanoseconds?",
    "ns": "is it a time?",
}


def token_count(text: str) -> int:
    """Number of tokens, at least 1; `12.0` is 12, while `12.5`, `0` and `-0` are refused."""
    count = _whole_number(text, MAX_TOKENS, "expected a whole number of at least 1")
    if count < 1:
        raise ValueError("expected a whole number of at least 1")
    return count


def priority(text: str) -> int:
    """Priority, any whole number; smaller is served first."""
    return _whole_number(text, MAX_PRIORITY, "expected a whole number")


def request_name(text: str) -> str:
    """Name of a request without the blanks around it; control characters would not survive a CSV file."""
    name = text.strip()
    if not name or not name.isprintable():
        raise ValueError("expected a name of printable characters")
    return name


def name_or_none(text: str) -> str:
    """Name of a client or a prefix; an empty cell is no name."""
    return request_name(text) if text.strip() else ""


def limit_in_seconds(text: str) -> int | None:
    """Nanoseconds nearest to a time in seconds above 0; an empty cell is no limit."""
    number = text.strip()
    if not number:
        return None
    expected = "expected a finite number of seconds above 0, or an empty cell for no limit"
    if not _DECIMAL_NUMBER.fullmatch(number):
        raise ValueError(expected)
    limit_ns = seconds_to_ns(number)
    if limit_ns < 1:
        raise ValueError(expected)
    if limit_ns > MAX_ARRIVAL_S * NS_PER_S:
        raise ValueError(f"expected at most {MAX_ARRIVAL_S} seconds; is it in milliseconds?")
    return limit_ns


def token_count_or_none(text: str) -> int | None:
    """Number of tokens, at least 1; an empty cell is none."""
    return token_count(text) if text.strip() else None


def pause_in_seconds(text: str) -> int:
    """Nanoseconds nearest to a time in seconds, at least 0; an empty cell is 0."""
    return arrival_in_seconds(text) if text.strip() else 0


def shared_tokens(text: str) -> int:
    """Number of tokens that a prompt shares with others; an empty cell is 0."""
    if not text.strip():
        return 0
    count = _whole_number(text, MAX_TOKENS, "expected a whole number of at least 0")
    if count < 0:
        raise ValueError("expected a whole number of at least 0")
    return count


def arrival_in_seconds(text: str) -> int:
    """Nanoseconds nearest to a time in seconds, at least 0."""
    return TimeUnit.S.parse(text)


def _moment(text: str) -> int:
    """Nanoseconds since the day before 0001-01-01, exact to the last digit written."""
    match = _UTC_TIME.fullmatch(text.strip())
    if match is None:
        raise ValueError(_EXPECTED_UTC)
    day, hour, minute, second, fraction = match.groups(default="")
    seconds = _day_number(day) * 86_400 + int(hour) * 3_600 + int(minute) * 60 + int(second)
    return seconds * NS_PER_S + int(fraction.ljust(9, "0"))


@lru_cache(maxsize=16)
def _day_number(day: str) -> int:
    try:
        return date.fromisoformat(day).toordinal()
    except ValueError:
        raise ValueError(_EXPECTED_UTC) from None


def _whole_number(text: str, largest: int, expected: str) -> int:
    match = _WHOLE_NUMBER.fullmatch(text.strip())
    if match is None:
        raise ValueError(expected)
    sign, digits = match.groups()
    # Length first: int() refuses thousands of digits with a sentence of its own.
    if len(digits) > len(str(largest)) or int(digits) > largest:
        raise ValueError(f"expected at most {largest} in size")
    return -int(digits) if sign else int(digits)
