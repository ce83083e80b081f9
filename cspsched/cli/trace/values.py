"""Figures as text."""

from __future__ import annotations

from typing import Any


def value_text(value: Any) -> str:
    """Text of a figure, `-` where there is none."""
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{key} {number:,.6g}" for key, number in value.items())
    return f"{value:,.6g}" if isinstance(value, float) else f"{value:,}"
