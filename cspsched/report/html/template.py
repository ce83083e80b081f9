"""Pages from templates: everything is inside the file, escaped, and forbidden to load anything."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from cspsched.problem.cost import IntArray
from cspsched.report.html.sections import Section

TEMPLATES = files("cspsched.report") / "templates"
LIBRARY = "vendor/uPlot.iife.min.js"
STYLES = ("vendor/uPlot.min.css", "page.css")
COMMON_SCRIPTS = ("scripts/theme.js", "scripts/table.js")
CHART_SCRIPTS = (
    "scripts/data.js",
    "scripts/charts.js",
    "scripts/schedule.js",
    "scripts/lanes.js",
    "scripts/timeline.js",
    "scripts/start.js",
)
"""Joined into one module, so that no name is global."""


def render(
    template: str,
    *,
    sections: Sequence[Section] = (),
    charts: Mapping[str, Any] | None = None,
    **context: Any,
) -> str:
    """A page from a template.

    Parameters
    ----------
    sections
        For the template, and their bands for the page's script.
    charts
        What else the script draws. Without it, and without bands, no charts and no library are in the page.
    """
    bands = [section.chart() for section in sections]
    has_charts = charts is not None or any(bands)
    loader = PackageLoader("cspsched.report", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    module = "".join(map(_text, (*COMMON_SCRIPTS, *(CHART_SCRIPTS if has_charts else ()))))
    scripts = [("module", module)]
    if has_charts:
        scripts.insert(0, ("text/javascript", _text(LIBRARY)))
    return environment.get_template(template).render(
        style="".join(map(_text, STYLES)),
        scripts=scripts,
        sections=sections,
        data=packed({**(charts or {}), "bands": bands}) if has_charts else "",
        allowed=" ".join(f"'sha256-{_digest(text)}'" for _, text in scripts),
        **context,
    )


@cache
def _text(name: str) -> str:
    """A file of the templates, which are ours or the library's: the page takes it as it is."""
    return TEMPLATES.joinpath(name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def packed(data: Any) -> str:
    """JSON, deflated, in base64: no sign of it means anything in HTML."""
    text = json.dumps(data, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def steps(column: IntArray) -> list[int]:
    """The first number and the differences of the others: what changes little packs small."""
    differences: list[int] = np.diff(column, prepend=0).tolist()
    return differences
