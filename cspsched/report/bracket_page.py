"""Brackets as a page: intervals, policies, what is left between the ends, and the curves over time."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from cspsched.improve.bracket import Bracket
from cspsched.report.bracket import bracket_figure, curve_figure, rows, sentences
from cspsched.report.files import png
from cspsched.report.html.template import render
from cspsched.report.output import write_files


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
    table, notes = [], []
    for bracket, end in brackets:
        title = bracket.improvement.objective.label + (f", all batches {end}" if end else "")
        name = "".join(letter if letter.isalnum() else "-" for letter in title)
        images[f"bracket-{name}"] = png(bracket_figure(bracket))
        if bracket.curve is not None and len(bracket.curve.times_ns) > 1:
            images[f"curve-{name}"] = png(curve_figure(bracket.curve))
        table += [[policy, title, value, over] for policy, value, over in rows(bracket)]
        notes += [f"{title}: {sentence}" for sentence in sentences(bracket)]
    header = ["policy", "objective", "value", "certified excess"]
    page = render(
        "brackets.html",
        has_charts=False,
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
