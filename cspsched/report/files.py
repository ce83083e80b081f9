"""Writes reports: tables, JSON, pictures, and one page that shows everything."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from cspsched.problem.result import Result
from cspsched.referee.metrics import measure
from cspsched.report import figures, gate, table
from cspsched.report.html import Section, page
from cspsched.report.html.gate import gate_pages
from cspsched.report.html.verdict import title
from cspsched.report.output import write_files
from cspsched.studies.compare import Comparison
from cspsched.studies.gate.result import GateResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 110
MOST_PICTURED_POLICIES = 12
MOST_NAME_LETTERS = 60


def write_comparison(comparison: Comparison, folder: Path, *, sections: Sequence[Section] = ()) -> list[Path]:
    """Write report.html, report.md, comparison.json, policies.csv and the pictures; returns the files.

    Parameters
    ----------
    sections
        More sections of the page.

    Raises
    ------
    InputError
        If the folder cannot be written.
    """
    images = {name: png(figure) for name, figure in pictures_of(comparison)}
    links = "\n\n".join(f"![{name}]({name}.png)" for name in images)
    heading = title([row.policy for row in comparison.rows])
    notes = "".join(f"{note}\n\n" for note in _picture_note(comparison))
    text = f"# {heading}\n\n{table.markdown(comparison)}\n{notes}{links}\n"
    files: dict[str, str | bytes] = {
        "report.html": page(comparison, sections=sections),
        "report.md": text,
        "comparison.json": json.dumps(comparison.to_json(), indent=1) + "\n",
        "policies.csv": comparison.to_frame().to_csv(index=False, lineterminator="\n"),
        **{f"{name}.png": image for name, image in images.items()},
    }
    return write_files(folder, files)


def write_gate(result: GateResult, folder: Path) -> list[Path]:
    """Write every output of a gate into a folder, its pages included; returns the files.

    Raises
    ------
    InputError
        If the folder cannot be written.
    """
    frame, parquet = result.to_frame(), BytesIO()
    frame.to_parquet(parquet, index=False)
    files: dict[str, str | bytes] = {
        "gate.json": json.dumps(result.to_json(), indent=1) + "\n",
        "gate.md": gate.markdown(result),
        "junit.xml": gate.junit(result),
        "badge.json": json.dumps(gate.badge(result)) + "\n",
        "cells.csv": frame.to_csv(index=False, lineterminator="\n"),
        "cells.parquet": parquet.getvalue(),
        **gate_pages(result),
    }
    return write_files(folder, files)


def write_solution(result: Result, folder: Path) -> list[Path]:
    """Write schedule.json and the two pictures of the schedule; returns the files."""
    files: dict[str, str | bytes] = {"schedule.json": json.dumps(result.to_json()) + "\n"}
    if result.schedule is not None:
        history = measure(result.instance, result.schedule).history
        files["batches.png"] = png(figures.batch_figure(history, f"{result.verdict} schedule"))
        files["memory.png"] = png(figures.memory_figure(history, f"{result.verdict} schedule"))
    return write_files(folder, files)


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the font lacks shows as boxes; the tables have it in full.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def pictures_of(comparison: Comparison) -> Iterator[tuple[str, Figure]]:
    """Pictures by file name, one at a time: a figure is large."""
    if any(end for row in comparison.rows for end in row.excess):
        yield "excess", figures.excess_figure(comparison)
    yield "latency", figures.latency_figure({row.policy: row.metrics for row in comparison.rows})
    pictured = comparison.rows[:MOST_PICTURED_POLICIES]
    frame = figures.frame_of([row.metrics.history for row in pictured])
    for position, row in enumerate(pictured):
        name = _file_name(row.policy, position)
        yield f"batches-{name}", figures.batch_figure(row.metrics.history, row.policy, frame)
        yield f"memory-{name}", figures.memory_figure(row.metrics.history, row.policy, frame)


def _picture_note(comparison: Comparison) -> list[str]:
    if len(comparison.rows) <= MOST_PICTURED_POLICIES:
        return []
    return [f"Schedules are drawn for the first {MOST_PICTURED_POLICIES} policies only."]


def _file_name(policy: str, position: int) -> str:
    """Letters and digits of a policy, with its number where that is not the whole name."""
    name = "".join(letter if letter.isalnum() else "-" for letter in policy)[:MOST_NAME_LETTERS]
    return name if name == policy else f"{position + 1}-{name}"
