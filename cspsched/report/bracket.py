"""A bracket around the optimum: its picture, and the sentences that say what each end rests on."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from cspsched.compare import CLAIRVOYANT
from cspsched.errors import InputError
from cspsched.improve.bracket import Bracket
from cspsched.problem.metrics import Objective
from cspsched.report.table import excess, percent

BAND, POINT, LINE = "#4c72b0", "#c44e52", "#333333"
ROW_INCHES = 0.4
WIDE_RATIO = 20.0
"""From this ratio of the worst policy to the bound on the axis is logarithmic."""


def text(bracket: Bracket) -> str:
    """The bracket in sentences, and a table of the policies."""
    rows = [
        ("policy", _what(bracket), "certified excess"),
        *(
            (rival.policy, _seconds(bracket, rival.value_ns), excess(bracket.excess(rival)))
            for rival in bracket.improvement.rivals
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{name:{widths[0]}}  {value:>{widths[1]}}  {over:>{widths[2]}}" for name, value, over in rows]
    return "\n".join([*sentences(bracket), "", *lines])


def write_picture(bracket: Bracket, path: Path) -> None:
    """Write the picture in the format of the file's name.

    Raises
    ------
    InputError
        If there is no such format, or the file cannot be written.
    """
    try:
        bracket_figure(bracket).savefig(path)
    except ValueError as error:
        raise InputError(f"{path}: {str(error).splitlines()[0]}; name the file .png, .svg or .pdf") from None
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


def sentences(bracket: Bracket) -> list[str]:
    """Both ends, what gave them, and what the reader must know."""
    found = bracket.improvement
    low, high = (_seconds(bracket, value_ns) for value_ns in (bracket.low_ns, bracket.high_ns))
    told = [
        f"optimal {_what(bracket)} in [{low}, {high}]: gap {percent(found.gap)}, "
        f"U/L {bracket.high_ns / bracket.low_ns:.4f}",
        f"L by certificate {found.bound.name}; U by {found.found_by} ({found.steps:,} steps, "
        f"stopped: {found.stop_reason}), {percent(found.gain)} below {found.best_policy.policy}",
        CLAIRVOYANT,
    ]
    if found.rejections:
        told.append(f"{len(found.rejections):,} requests rejected; the first: {found.rejections[0].reason}")
    return told


def bracket_figure(bracket: Bracket) -> Figure:
    """The interval that holds the optimum as a band, the policies as points."""
    found = bracket.improvement
    count = len(found.instance.requests)
    figure = Figure(figsize=(10, 1.8 + ROW_INCHES * len(found.rivals)), layout="constrained")
    axes = figure.subplots()
    low, high = (found.objective.mean_s(value_ns, count) for value_ns in (bracket.low_ns, bracket.high_ns))
    axes.axvspan(low, high, color=BAND, alpha=0.3, label="the optimum is in here")
    axes.axvline(low, color=BAND, label=f"bound: {found.bound.name}")
    axes.axvline(high, color=LINE, linestyle="--", label="best known schedule")
    values = [found.objective.mean_s(rival.value_ns, count) for rival in found.rivals]
    axes.plot(values, range(len(values)), "o", color=POINT)
    for position, (value, rival) in enumerate(zip(values, found.rivals, strict=True)):
        axes.annotate(
            excess(bracket.excess(rival)), (value, position), textcoords="offset points", xytext=(8, -3)
        )
    axes.set_yticks(range(len(values)), [rival.policy.replace("$", r"\$") for rival in found.rivals])
    axes.set_ylim(len(values) - 0.5, -0.5)
    if max(values) > WIDE_RATIO * low:
        axes.set_xscale("log")
    # Room for the text beside the worst policy.
    axes.set_xlim(right=max(values) + 0.3 * (max(values) - low))
    axes.set_xlabel(f"{_what(bracket)} [s]")
    axes.set_title(f"Bracket around the optimal {_what(bracket)}, {count:,} requests")
    axes.grid(visible=True, axis="x", alpha=0.3)
    figure.legend(frameon=False, loc="outside lower right", ncols=3)
    return figure


def _what(bracket: Bracket) -> str:
    objective = bracket.improvement.objective
    return objective.value if objective is Objective.MAKESPAN else f"mean {objective}"


def _seconds(bracket: Bracket, value_ns: int) -> str:
    found = bracket.improvement
    return f"{found.objective.mean_s(value_ns, len(found.instance.requests)):,.6f} s"
