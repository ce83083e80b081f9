"""Figures as text."""

from __future__ import annotations


def value_text(value: float | None) -> str:
    """Text of a figure, `-` where there is none."""
    if value is None:
        return "-"
    return f"{value:,.6g}" if isinstance(value, float) else f"{value:,}"
