"""Writes reports: tables, JSON, pictures and one page that shows them all."""

from __future__ import annotations

import base64
import json
import warnings
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from cspsched.problem.result import Result
from cspsched.referee.metrics import measure
from cspsched.report import figures, table
from cspsched.report.output import write_files
from cspsched.studies.compare import Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 110
MOST_NAMED_POLICIES = 4
MOST_PICTURED_POLICIES = 12
MOST_NAME_LETTERS = 60


def write_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Write report.html, report.md, comparison.json and the pictures; returns the files.

    Raises
    ------
    InputError
        If the folder cannot be written.
    """
    images = {name: png(figure) for name, figure in pictures_of(comparison)}
    title = _title([row.policy for row in comparison.rows])
    notes = [*table.footnotes(comparison), *_picture_note(comparison)]
    links = "\n\n".join(f"![{name}]({name}.png)" for name in images)
    text = f"# {title}\n\n{table.markdown(comparison)}\n{links}\n"
    body = [*table.rows(comparison), *table.bounds_row(comparison)]
    page = html_page(title, table.header(comparison), body, notes, images)
    files: dict[str, str | bytes] = {
        "report.html": page,
        "report.md": text,
        "comparison.json": json.dumps(comparison.to_json(), indent=1) + "\n",
        **{f"{name}.png": image for name, image in images.items()},
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


def _title(policies: list[str]) -> str:
    *others, last = policies
    if len(policies) > MOST_NAMED_POLICIES:
        return f"{len(policies)} policies against the optimum"
    return f"{', '.join(others)} and {last} against the optimum" if others else f"{last} against the optimum"


def _picture_note(comparison: Comparison) -> list[str]:
    if len(comparison.rows) <= MOST_PICTURED_POLICIES:
        return []
    return [f"Schedules are drawn for the first {MOST_PICTURED_POLICIES} policies only."]


def _file_name(policy: str, position: int) -> str:
    """Letters and digits of a policy, with its number where that is not the whole name."""
    name = "".join(letter if letter.isalnum() else "-" for letter in policy)[:MOST_NAME_LETTERS]
    return name if name == policy else f"{position + 1}-{name}"


def html_page(
    title: str, header: list[str], rows: list[list[str]], notes: list[str], images: Mapping[str, bytes]
) -> str:
    """One page with a table, notes, and pictures inside."""
    loader = PackageLoader("cspsched.report", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    encoded: dict[str, Any] = {name: base64.b64encode(data).decode() for name, data in images.items()}
    template = environment.get_template("comparison.html")
    return template.render(title=title, header=header, rows=rows, notes=notes, images=encoded)
