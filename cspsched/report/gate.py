"""A gate's result in every form that teams read: terminal, Markdown, JUnit, annotations, badge, tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from typing import Any
from xml.etree import ElementTree

from cspsched.problem.objectives import Mixture
from cspsched.report.table import excess, footnotes, seconds
from cspsched.studies.compare import Comparison
from cspsched.studies.gate.result import Cell, GateResult, Verdict
from cspsched.studies.gate.verdict import Reason, Side, change
from cspsched.units import percent

MOST_MARKDOWN_LETTERS = 65_000
"""A comment of a pull request takes 65,536."""
NOT_IN_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
COLOURS = {Verdict.PASSED: "brightgreen", Verdict.FAILED: "red", Verdict.ERROR: "red"}
WORDS = {Verdict.PASSED: "pass", Verdict.FAILED: "FAIL", Verdict.ERROR: "ERROR"}
HEADER = ("", "trace", "objective", "policy", "base", "head", "change", "certified excess", "limit")


def lines(result: GateResult) -> list[str]:
    """A line a cell, a line a reason below it, a line on where each trace comes from, and the verdict."""
    told = []
    for cell in result.cells:
        told.append(_line(cell))
        told += [f"      {reason.text}" for reason in cell.reasons]
    origins = {one.provenance.line: None for one in result.comparisons if one.provenance}
    return [*told, *origins, verdict_sentence(result)]


def verdict_sentence(result: GateResult) -> str:
    """The verdict in one sentence."""
    cells = len(result.cells)
    failed = sum(cell.verdict is not Verdict.PASSED for cell in result.cells)
    what = f"{cells} cell{'' if cells == 1 else 's'}"
    if result.is_interrupted:
        return f"gate interrupted: {failed} of the {what} that were finished failed"
    return f"gate failed: {failed} of {what}" if failed else f"gate passed: {what}"


def markdown(result: GateResult) -> str:
    """Verdict, a row a cell, the reasons, and what lies behind them folded away; fits a comment."""
    rows = [HEADER, ("---",) * 4 + ("---:",) * 5, *map(_row, result.cells)]
    table = "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in rows)
    against = "\n".join(
        f"- **{_text(name_of(cell))}**: {_text(reason.text)}" for cell, reason in result.reasons
    )
    sentence = verdict_sentence(result)
    text = "\n\n".join(filter(None, (f"### {sentence[0].upper()}{sentence[1:]}", table, against))) + "\n"
    for trace in _traces(result):
        details = _details(result, trace)
        if len(text) + len(details) > MOST_MARKDOWN_LETTERS:
            return f"{text}\nMore does not fit here; the JSON has it.\n"
        text += details
    return text


def junit(result: GateResult) -> bytes:
    """JUnit XML: a suite a trace, a case for each policy and objective; no times, so that it repeats."""
    root = ElementTree.Element("testsuites", {"name": "cspsched gate", **_counts(result.cells)})
    for trace in _traces(result):
        cells = tuple(cell for cell in result.cells if cell.trace == trace)
        suite = ElementTree.SubElement(root, "testsuite", {"name": _xml(trace), **_counts(cells)})
        properties = ElementTree.SubElement(suite, "properties")
        for label, value in facts_of(result, trace):
            ElementTree.SubElement(properties, "property", {"name": label, "value": _xml(value)})
        for cell in cells:
            _testcase(suite, cell)
    ElementTree.indent(root)
    text: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def github_annotations(result: GateResult) -> list[str]:
    """Workflow commands of GitHub, one a reason, at the file of the policy if it has one."""
    return [_annotation(cell, reason) for cell, reason in result.reasons]


def badge(result: GateResult) -> dict[str, Any]:
    """What shields.io takes as an endpoint: the largest excess that is still possible."""
    ends = [cell.head.value.excess.at_most for cell in result.cells if cell.head.value]
    known = [end for end in ends if end is not None]
    most = f"at most {percent(max(known), 'ROUND_CEILING')}" if known and len(known) == len(ends) else "open"
    passed = result.verdict is Verdict.PASSED
    return {
        "schemaVersion": 1,
        "label": "excess over optimal",
        "message": most if passed else "gate failed",
        "color": COLOURS[result.verdict],
    }


def _line(cell: Cell) -> str:
    word = WORDS[cell.verdict]
    parts = [f"{_value(cell, cell.head)}{_against_base(cell)}"]
    if cell.head.value:
        parts.append(f"certified excess {excess(cell.head.value.excess)}{_limit(cell)}")
    return f"{word:5} {name_of(cell)}: {', '.join(parts)}"


def name_of(cell: Cell) -> str:
    """Trace, objective and policy."""
    return f"{cell.trace}, {cell.objective.label}, {cell.policy}"


def _against_base(cell: Cell) -> str:
    if cell.base is None:
        return ""
    difference = _change(cell)
    if difference == "-":
        return f" (base {_value(cell, cell.base)}{', of another instance' if _is_other(cell) else ''})"
    return f" ({difference} against base {_value(cell, cell.base)})"


def _is_other(cell: Cell) -> bool:
    return cell.base is not None and cell.base.fingerprint != cell.head.fingerprint


def _limit(cell: Cell) -> str:
    most = cell.limits.excess_at_most
    return "" if most is None else f" (limit {percent(float(most))})"


def _value(cell: Cell, side: Side) -> str:
    if side.value is None:
        return "failed"
    value_ns, objective = side.value.value_ns, cell.objective
    if isinstance(objective, Mixture) and objective.counts:
        return objective.show(value_ns, cell.num_requests)
    return seconds(objective.mean_s(value_ns, cell.num_requests))


def _change(cell: Cell) -> str:
    difference = change(cell.head, cell.base)
    if difference is None:
        return "-"
    if not difference:
        return "equal"
    return f"{'+' if difference > 0 else '-'}{percent(abs(float(difference)))}"


def cells_of(cell: Cell) -> tuple[str, ...]:
    """Texts of a cell, in the order of `HEADER`."""
    limits, value = cell.limits, cell.head.value
    most = [] if limits.excess_at_most is None else [f"excess {percent(float(limits.excess_at_most))}"]
    tolerance = [] if cell.base is None else [f"change {percent(float(limits.regression_at_most))}"]
    return (
        WORDS[cell.verdict],
        cell.trace,
        cell.objective.label,
        cell.policy,
        _value(cell, cell.base) if cell.base else "-",
        _value(cell, cell.head),
        _change(cell),
        excess(value.excess) if value else "-",
        ", ".join([*most, *tolerance]) or "-",
    )


def _row(cell: Cell) -> list[str]:
    """The same in Markdown; what fails is bold."""
    first, *others = map(_text, cells_of(cell))
    return [first if cell.verdict is Verdict.PASSED else f"**{first}**", *others]


def trace_of(comparison: Comparison) -> str:
    """Name of the trace; empty if it was not stated."""
    return comparison.provenance.trace if comparison.provenance else ""


def _details(result: GateResult, trace: str) -> str:
    """A folded section: what the values on a trace were measured against and where they come from."""
    notes = [
        f"- {_text(note)}"
        for comparison in result.comparisons
        if trace_of(comparison) == trace
        for note in footnotes(comparison)
    ]
    rows = [f"| {_cell(label)} | {_cell(_text(value))} |" for label, value in facts_of(result, trace)]
    parts = ["\n".join(dict.fromkeys(notes)), "\n".join(["| | |", "|---|---|", *rows])]
    title = f"<summary>{_text(trace)}: reference and provenance</summary>"
    return "\n\n".join([f"\n<details>{title}", *parts, "</details>\n"])


def _traces(result: GateResult) -> list[str]:
    return list(dict.fromkeys(cell.trace for cell in result.cells))


def facts_of(result: GateResult, trace: str) -> Iterator[tuple[str, str]]:
    """Where the comparisons of a trace come from; what differs between objectives stands once for each."""
    seen = set()
    for comparison in result.comparisons:
        if comparison.provenance and comparison.provenance.trace == trace:
            for row in comparison.provenance.rows():
                if row not in seen:
                    seen.add(row)
                    yield row


def _counts(cells: tuple[Cell, ...]) -> dict[str, str]:
    verdicts = [cell.verdict for cell in cells]
    return {
        "tests": str(len(verdicts)),
        "failures": str(verdicts.count(Verdict.FAILED)),
        "errors": str(verdicts.count(Verdict.ERROR)),
    }


def _testcase(suite: ElementTree.Element, cell: Cell) -> None:
    names = {"classname": _xml(f"{cell.trace}.{cell.objective}"), "name": _xml(cell.policy)}
    case = ElementTree.SubElement(suite, "testcase", names)
    if cell.reasons:
        tag = "error" if cell.verdict is Verdict.ERROR else "failure"
        texts = [reason.text for reason in cell.reasons]
        kind = {"message": _xml(texts[0]), "type": cell.reasons[0].kind.value}
        ElementTree.SubElement(case, tag, kind).text = _xml("\n".join(texts))
    ElementTree.SubElement(case, "system-out").text = _xml(_line(cell))


def _annotation(cell: Cell, reason: Reason) -> str:
    properties = {"file": str(cell.head_file)} if cell.head_file else {}
    properties["title"] = f"cspsched gate: {name_of(cell)}"
    stated = ",".join(f"{name}={_command(value, more=':,')}" for name, value in properties.items())
    return f"::error {stated}::{_command(reason.text)}"


def _command(text: str, more: str = "") -> str:
    """A value of a workflow command: percent signs and line ends escaped, in properties `:` and `,`, too."""
    return "".join(f"%{ord(letter):02X}" if letter in f"%\r\n{more}" else letter for letter in text)


def _xml(text: str) -> str:
    return NOT_IN_XML.sub("\ufffd", text)


def _text(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]~#@])", r"\\\1", escape(" ".join(text.split()), quote=False))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
