"""Azure's LLM inference traces of 2023 and 2024, and those with images; source Azure/AzurePublicDataset.

2023 writes naive times with seven digits of fraction, 2024 writes six digits and `+00:00`.
Naive times are UTC.
"""

from __future__ import annotations

import re
from datetime import date
from functools import lru_cache

from cspsched.trace.format import TraceFormat
from cspsched.units import NS_PER_S

_EXPECTED = "expected a UTC time like 2023-11-16 18:17:03.9799600 or 2024-05-10 00:00:00.009930+00:00"
_TIMESTAMP = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[ T]([01][0-9]|2[0-3]):([0-5][0-9]):([0-5][0-9])"
    r"(?:\.([0-9]{1,9}))?(?:Z|\+00:00)?"
)


def parse_timestamp(text: str) -> int:
    """Nanoseconds since the day before 0001-01-01, exact to the last digit written."""
    match = _TIMESTAMP.fullmatch(text.strip())
    if match is None:
        raise ValueError(_EXPECTED)
    day, hour, minute, second, fraction = match.groups(default="")
    seconds = _day_number(day) * 86_400 + int(hour) * 3_600 + int(minute) * 60 + int(second)
    return seconds * NS_PER_S + int(fraction.ljust(9, "0"))


@lru_cache(maxsize=16)
def _day_number(day: str) -> int:
    try:
        return date.fromisoformat(day).toordinal()
    except ValueError:
        raise ValueError(_EXPECTED) from None


AZURE = TraceFormat(
    name="azure",
    arrival_column="TIMESTAMP",
    prompt_column="ContextTokens",
    output_column="GeneratedTokens",
    parse_arrival=parse_timestamp,
    counted_columns={"NumImages": "images"},
)
