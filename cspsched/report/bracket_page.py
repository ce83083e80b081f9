"""Brackets as a page: intervals, policies, what is left between the ends, and the curves over time."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from cspsched.improve.bracket import Bracket
from cspsched.improve.curve import Curve
from cspsched.report.bracket import bracket_figure, curve_figure, rows, sentences
from cspsched.report.files import png
from cspsched.report.html.sections import Band, Section
from cspsched.report.html.template import render
from cspsched.report.output import write_files
from cspsched.units import NS_PER_S


def write_brackets(brackets: list[tuple[Bracket, str]], data: dict[str, Any], folder: Path) -> list[Path]:
    """Write bracket.html, bracket.json and the pictures; returns the files.

    Parameters
    ----------
    brackets
        Each with the end of the cost model's error band, empty for the cost model as it is.
    data
        For the JSON file.

    Raises
    ------
    InputError
        If the folder cannot be written.
    """
    images: dict[str, bytes] = {}
    table, notes, sections = [], [], []
    for bracket, end in brackets:
        title = bracket.improvement.objective.label + (f", all batches {end}" if end else "")
        name = "".join(letter if letter.isalnum() else "-" for letter in title)
        images[f"bracket-{name}"] = png(bracket_figure(bracket))
        if bracket.curve is not None and len(bracket.curve.times_ns) > 1:
            images[f"curve-{name}"] = png(curve_figure(bracket.curve))
            sections.append(curve_section(bracket.curve, title))
        table += [[policy, title, value, over] for policy, value, over in rows(bracket)]
        notes += [f"{title}: {sentence}" for sentence in sentences(bracket)]
    header = ["policy", "objective", "value", "certified excess"]
    page = render(
        "listing.html",
        label="Policies and what is proven of them",
        sections=sections,
        title="Brackets around the optimum",
        header=header,
        rows=table,
        notes=notes,
        images={name: base64.b64encode(image).decode() for name, image in images.items()},
    )
    files: dict[str, str | bytes] = {
        "bracket.html": page,
        "bracket.json": json.dumps(data, indent=1) + "\n",
        **{f"{name}.png": image for name, image in images.items()},
    }
    return write_files(folder, files)


def curve_section(curve: Curve, title: str) -> Section:
    """By how much each policy is above the optimum on the requests that have arrived by each moment."""
    bands = []
    for policy in curve.policies_ns:
        ends = [[None if end is None else 100 * end for end in excess] for excess in curve.excess(policy)]
        least, most = zip(*ends, strict=True)
        bands.append(Band(label=policy, at_least=least, at_most=most))
    return Section(
        title=f"{title}, over time",
        text=["Above the optimum, about the requests that have arrived by each moment."],
        x=[time_ns / NS_PER_S for time_ns in curve.times_ns],
        bands=bands,
        y_label="above the optimum [%]",
    )
