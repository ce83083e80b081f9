"""What others add to the page: text, a table, or bands over time; plain text that the page escapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Band:
    """What is known of one value over time: at least and at most, None where an end is not known.

    Attributes
    ----------
    label
        Whose value it is, such as a policy's name.
    at_least, at_most
        As long as the section's `x`.
    """

    label: str
    at_least: Sequence[float | None]
    at_most: Sequence[float | None]


@dataclass(frozen=True, kw_only=True)
class Section:
    """One more section of the page.

    Attributes
    ----------
    text
        Paragraphs before the table.
    header, rows
        A table, whose first column names the rows; none if there are no rows.
    notes
        Sentences below the table.
    x, bands
        A chart of bands over `x`; none if there are no bands.
    x_label, y_label
        What the axes show, with the unit.
    """

    title: str
    text: Sequence[str] = ()
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()
    x: Sequence[float] = ()
    bands: Sequence[Band] = ()
    x_label: str = "time [s]"
    y_label: str = ""

    def chart(self) -> dict[str, Any] | None:
        """The chart for the page's script; None if there is none."""
        if not self.bands:
            return None
        return {
            "x": list(self.x),
            "x_label": self.x_label,
            "y_label": self.y_label,
            "bands": [
                {"label": band.label, "least": list(band.at_least), "most": list(band.at_most)}
                for band in self.bands
            ],
        }
