"""The page of a gate: verdict, reasons, a sortable row a cell, and where everything comes from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

from cspsched.report import gate
from cspsched.report.html.document import page
from cspsched.report.html.template import render
from cspsched.studies.gate.result import Cell, GateResult
from cspsched.studies.gate.verdict import change

HEADER = ("trace", "objective", "policy", "verdict", "change", "certified excess", "base", "head", "limit")
FIRST = "gate.html"


def gate_pages(result: GateResult) -> dict[str, str]:
    """Pages by file name: the gate's own, and one for each comparison, to which it links."""
    named = {f"{gate.trace_of(one)}, {one.objective.label}": one for one in result.comparisons if one.rows}
    files = {name: f"{number:02}-{_file_name(name)}.html" for number, name in enumerate(named, 1)}
    pages = {files[name]: page(comparison) for name, comparison in named.items()}
    return {FIRST: _gate_page(result, files), **pages}


def _gate_page(result: GateResult, pages: Mapping[str, str]) -> str:
    sentence = gate.verdict_sentence(result)
    traces = dict.fromkeys(cell.trace for cell in result.cells)
    return render(
        "gate.html",
        title=sentence[0].upper() + sentence[1:],
        verdict=f"{sentence[0].upper()}{sentence[1:]}.",
        reasons=[(gate.name_of(cell), reason.text) for cell, reason in result.reasons],
        header=HEADER,
        rows=[_row(cell) for cell in result.cells],
        keys=[_keys(cell) for cell in result.cells],
        pages=list(pages.items()),
        origins=[(trace, list(gate.facts_of(result, trace))) for trace in traces],
    )


def _row(cell: Cell) -> list[str]:
    verdict, trace, objective, policy, base, head, difference, excess, limit = gate.cells_of(cell)
    return [trace, objective, policy, verdict, difference, excess, base, head, limit]


def _keys(cell: Cell) -> list[float | None]:
    """What the columns of numbers sort by."""
    difference = change(cell.head, cell.base)
    head, base = cell.head.value, cell.base.value if cell.base else None
    return [
        None,
        None,
        None,
        None,
        None if difference is None else float(difference),
        head.excess.at_most if head else None,
        None if base is None else base.value_ns,
        None if head is None else head.value_ns,
        None,
    ]


def _file_name(name: str) -> str:
    """Letters and digits of a name."""
    return PurePosixPath("".join(letter if letter.isalnum() else "-" for letter in name.lower())[:60]).name
