"""Measured runs beside simulated ones: as text, as Markdown, and as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Any

from matplotlib.figure import Figure

from cspsched.costs.frontend import stated
from cspsched.report.table import seconds
from cspsched.studies.validation.nouns import METRICS, STATISTICS
from cspsched.studies.validation.study import MS_PER_S, RunRow, Validation

NAMES = {"ttft": "TTFT", "tpot": "TPOT", "latency": "latency"}
DPI = 110
COLOURS = {"mean": "#333333", "p50": "#4c72b0", "p90": "#dd8452", "p99": "#c44e52"}
BAND, LINE = "#dddddd", "#888888"
BAND_SHARE = 5.0
"""Per cent: what the picture marks as near."""
UNKNOWN = "-"


def table(found: Validation) -> list[list[str]]:
    """Header and a row for each stage and metric."""
    header = ["run", "stage", "load", "metric", "measured mean", "simulated"]
    lines = [[*header, "difference", *(f"error {statistic}" for statistic in STATISTICS), "verdict"]]
    for row in found.rows:
        lines += [_line(row, metric) for metric in METRICS if metric in row.measured]
    return lines


def _line(row: RunRow, metric: str) -> list[str]:
    measured, simulated = row.measured[metric].get("mean"), row.simulated.get(metric, {}).get("mean")
    difference = row.difference_s(metric, "mean")
    return [
        row.run,
        row.stage,
        row.load,
        NAMES[metric],
        UNKNOWN if measured is None else seconds(measured),
        UNKNOWN if simulated is None else seconds(simulated),
        UNKNOWN if difference is None else f"{difference * MS_PER_S:+.1f} ms",
        *(share(row.error(metric, statistic)) for statistic in STATISTICS),
        verdict(row),
    ]


def verdict(row: RunRow) -> str:
    """Whether the server keeps up, and whether the real one did, if that is known."""
    if row.is_stable is None:
        return UNKNOWN
    said = "stable" if row.is_stable else "grows"
    if row.was_stable is None or row.was_stable == row.is_stable:
        return said
    return f"{said}, measured {'stable' if row.was_stable else 'grows'}"


def share(error: float | None) -> str:
    """A relative error in per cent."""
    return UNKNOWN if error is None else f"{100 * error:+.1f} %"


def summary_lines(found: Validation) -> Iterator[str]:
    """Errors over all rows, those of peers, what was simulated, and what was added around it."""
    for metric, statistics in found.summary().items():
        parts = [
            f"{statistic} {100 * one['mean_abs']:.1f} % (at most {100 * one['max_abs']:.1f} %)"
            for statistic, one in statistics.items()
        ]
        yield f"absolute error of {NAMES[metric]} over {_rows_of(found, metric)}: {', '.join(parts)}"
    yield from peer_lines(found)
    told: dict[str, None] = {}
    for row in found.rows:
        told.setdefault(f"{row.run}: {row.deployment.line}")
    yield from told
    frontends = {row.deployment.frontend for row in found.rows}
    for frontend in frontends:
        yield f"frontend {stated(frontend)}"


def _rows_of(found: Validation, metric: str) -> str:
    count = max(len(found.errors(metric, statistic)) for statistic in STATISTICS)
    return f"{count} {'row' if count == 1 else 'rows'}"


def peer_lines(found: Validation) -> Iterator[str]:
    """What peers publish of the same rows, beside our error."""
    for row in found.rows:
        for peer, figures in row.peers.items():
            pairs = [
                f"{NAMES[metric]} {statistic} {share(error)} (here {share(row.error(metric, statistic))})"
                for metric, statistics in figures.items()
                for statistic, error in statistics.items()
            ]
            yield f"{peer} on {' '.join(filter(None, (row.run, row.stage)))}: {', '.join(pairs)}"


def text(found: Validation) -> str:
    """Table and summary for a terminal."""
    lines = table(found)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join([*rows, "", *summary_lines(found)])


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    head, *body = lines
    shown = [head, ["---"] * len(head), *body]
    return (
        "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in shown)
        + "\n"
    )


def section(found: Validation) -> str:
    """Table and summary of a page in Markdown."""
    lines = "\n".join(f"- {line}" for line in summary_lines(found))
    return f"{markdown(table(found))}\n{lines}\n"


def picture(found: Validation) -> bytes:
    """PNG: the errors of each row, a panel a metric, a mark a statistic; the band is 5 %."""
    height = 1.6 + 0.32 * len(found.rows)
    figure = Figure(figsize=(12, height), layout="constrained")
    panels: Any = figure.subplots(1, len(METRICS), sharey=True)
    for axes, metric in zip(panels, METRICS, strict=True):
        axes.axvspan(-BAND_SHARE, BAND_SHARE, color=BAND)
        axes.axvline(0, color=LINE, linewidth=0.8)
        for statistic in STATISTICS:
            points = [
                (100 * error, place)
                for place, row in enumerate(found.rows)
                if (error := row.error(metric, statistic)) is not None
            ]
            if points:
                axes.plot(
                    *zip(*points, strict=True), "o", color=COLOURS[statistic], label=statistic, markersize=5
                )
        axes.set_title(NAMES[metric])
        axes.set_xlabel("simulated over measured, %")
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(found.rows)), [f"{row.run} {row.stage} {row.load}" for row in found.rows])
    panels[0].set_ylim(len(found.rows) - 0.5, -0.5)
    handles, labels = panels[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
