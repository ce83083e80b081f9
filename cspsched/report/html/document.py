"""The page of a comparison: verdict, table, schedules, distributions and notes in one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from cspsched.problem.schedule import Schedule
from cspsched.report import table
from cspsched.report.html import curves, lanes, verdict
from cspsched.report.html.sections import Section
from cspsched.report.html.template import render
from cspsched.report.output import write_files
from cspsched.studies.compare import Comparison
from cspsched.units import NS_PER_S

Cell = TypeVar("Cell")
SUMMARY = (
    "schedule", "batches", "end", "preemptions", "most KV blocks", "memory", "tokens", "requests", "nothing",
    "differs from the first",
)  # fmt: skip


def write_page(
    comparison: Comparison,
    path: str | Path,
    *,
    facts: Sequence[tuple[str, str]] = (),
    sections: Sequence[Section] = (),
) -> Path:
    """Write the page of a comparison into one file; returns its path.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    path = Path(path)
    return write_files(path.parent, {path.name: page(comparison, facts=facts, sections=sections)})[0]


def page(
    comparison: Comparison, *, facts: Sequence[tuple[str, str]] = (), sections: Sequence[Section] = ()
) -> str:
    """The page of a comparison: HTML that holds all it needs, and loads nothing.

    Parameters
    ----------
    facts
        More of what was compared than the comparison's own provenance: labels with their values.
    sections
        What stands before the notes.
    """
    drawn = lanes.drawn_schedules(comparison)
    differs = lanes.first_differences(drawn)
    cut = lanes.cut_ns(drawn)
    measured = {row.policy: row.metrics for row in comparison.rows[: lanes.MOST_POLICIES]}
    measured |= {one.name: one.metrics for one in drawn if one.name not in measured}
    distributions = curves.distributions(measured)
    bars, ticks = verdict.bars(comparison)
    return render(
        "comparison.html",
        title=verdict.title([row.policy for row in comparison.rows]),
        verdict=verdict.verdict(comparison),
        what=comparison.objective.label,
        bars=bars,
        ticks=ticks,
        is_open=any(bar.open for bar in bars),
        facts=[*(comparison.provenance.rows() if comparison.provenance else ()), *facts],
        header=_excess_first(table.header(comparison)),
        rows=list(map(_excess_first, table.rows(comparison))),
        keys=list(map(_excess_first, table.numbers(comparison))),
        foot=list(map(_excess_first, table.bounds_row(comparison))),
        certainty_header=verdict.CERTAINTY,
        certainty=verdict.certainty_rows(comparison),
        capacity=comparison.instance.limits.kv_tokens,
        preempts=any((one.schedule.evicted_to_host == 0).any() for one in drawn),
        swaps=any((one.schedule.evicted_to_host == 1).any() for one in drawn),
        summary_header=SUMMARY,
        summary=[_summary(one, differs.get((0, k))) for k, one in enumerate(drawn)],
        percentiles_header=("time", "schedule", *(f"{share} %" for share in curves.SHARES)),
        percentiles=curves.percentile_rows(distributions),
        sections=sections,
        notes=[*table.footnotes(comparison), *_drawn_notes(comparison, drawn, cut)],
        charts={
            "names": list(measured),
            "curves": curves.curves_json(distributions),
            "timeline": lanes.schedules_json(comparison.instance, drawn, differs, cut) if drawn else None,
        },
    )


def _excess_first(cells: list[Cell]) -> list[Cell]:
    """The last column behind the policy's name, where it is seen on a narrow screen, too."""
    return [cells[0], cells[-1], *cells[1:-1]]


def _summary(one: lanes.Drawn, differs: int | None) -> list[str]:
    """A schedule in numbers, for those who do not see the lanes."""
    schedule, limits = one.schedule, one.history.instance.limits
    most = int(one.occupied_blocks.max())
    return [
        f"{one.name} (best known)" if one.is_best and one.is_policy else one.name,
        f"{schedule.num_batches:,}",
        table.seconds(one.metrics.makespan_ns / NS_PER_S),
        f"{schedule.num_preemptions:,}",
        f"{most:,} of {limits.kv_blocks:,}",
        *(f"{100 * share:.1f} %" for share in one.binding.shares().values()),
        "-" if differs is None else f"in batch {differs:,}, at {_start(schedule, differs)}",
    ]


def _start(schedule: Schedule, batch: int) -> str:
    """When a batch starts, or that there is none."""
    if batch >= schedule.num_batches:
        return "its end"
    return table.seconds(int(schedule.start_ns[batch]) / NS_PER_S)


def _drawn_notes(comparison: Comparison, drawn: Sequence[lanes.Drawn], cut: int | None) -> list[str]:
    """What is not drawn."""
    left_out = len(comparison.rows) - sum(one.is_policy for one in drawn)
    notes = []
    if left_out:
        notes.append(f"{left_out:,} policies are not drawn: too many, or too long.")
    if cut is not None:
        notes.append(
            f"What starts after {table.seconds(cut / NS_PER_S)} is not drawn: the page would be too large."
        )
    return notes
