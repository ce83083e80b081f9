"""Writes reports: tables, JSON, pictures and one page that shows them all."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from cspsched.compare import Comparison
from cspsched.errors import InputError
from cspsched.problem.metrics import measure
from cspsched.problem.result import Result
from cspsched.report import figures, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 110


def write_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Write report.html, report.md, comparison.json and the pictures; returns the files.

    Raises
    ------
    InputError
        If the folder cannot be written.
    """
    pictures = {
        "excess": figures.excess_figure(comparison),
        "latency": figures.latency_figure({row.policy: row.metrics for row in comparison.rows}),
    }
    for row in comparison.rows:
        name = _file_name(row.policy)
        pictures[f"batches-{name}"] = figures.batch_figure(row.metrics.history, row.policy)
        pictures[f"memory-{name}"] = figures.memory_figure(row.metrics.history, row.policy)
    images = {name: _png(figure) for name, figure in pictures.items()}
    title = f"{' and '.join(row.policy for row in comparison.rows)} against the optimum"
    links = "\n".join(f"![{name}]({name}.png)" for name in images)
    text = f"# {title}\n\n{table.markdown(comparison)}\n{links}\n"
    page = _page(title, table.header(comparison), table.rows(comparison), table.footnotes(comparison), images)
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
        files["batches.png"] = _png(figures.batch_figure(history, f"{result.status} schedule"))
        files["memory.png"] = _png(figures.memory_figure(history, f"{result.status} schedule"))
    return write_files(folder, files)


def write_files(folder: Path, files: Mapping[str, str | bytes]) -> list[Path]:
    """Write files into a folder, made if it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            (folder / name).write_bytes(data)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}") from None
    return [folder / name for name in files]


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def _file_name(policy: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in policy)


def _page(
    title: str, header: list[str], rows: list[list[str]], notes: list[str], images: Mapping[str, bytes]
) -> str:
    loader = PackageLoader("cspsched.report", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    encoded: dict[str, Any] = {name: base64.b64encode(data).decode() for name, data in images.items()}
    template = environment.get_template("comparison.html")
    return template.render(title=title, header=header, rows=rows, notes=notes, images=encoded)
