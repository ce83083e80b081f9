"""What one cell of a trace file may hold; a wrong one raises ValueError that says what was expected."""

from __future__ import annotations

import re

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
    number = text.strip()
    if not _DECIMAL_NUMBER.fullmatch(number):
        raise ValueError("expected a finite number of seconds, at least 0")
    arrival_ns = seconds_to_ns(number)
    if arrival_ns < 0:
        raise ValueError("expected a number of seconds of at least 0")
    if arrival_ns > MAX_ARRIVAL_S * NS_PER_S:
        raise ValueError(f"expected at most {MAX_ARRIVAL_S} seconds; is it in milliseconds?")
    return arrival_ns


def _whole_number(text: str, largest: int, expected: str) -> int:
    match = _WHOLE_NUMBER.fullmatch(text.strip())
    if match is None:
        raise ValueError(expected)
    sign, digits = match.groups()
    # Length first: int() refuses thousands of digits with a sentence of its own.
    if len(digits) > len(str(largest)) or int(digits) > largest:
        raise ValueError(f"expected at most {largest} in size")
    return -int(digits) if sign else int(digits)
