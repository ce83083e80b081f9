"""A comparison as rows of text, for terminal, Markdown and HTML alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cspsched.compare import CLAIRVOYANT, Comparison, PolicyRow
from cspsched.problem.metrics import Objective
from cspsched.problem.result import StopReason
from cspsched.units import NS_PER_S

ARRIVAL_DOMINATED = 0.9
WHY_OPEN = {
    StopReason.TOO_LARGE: "the trace is too large for the exact solver",
    StopReason.TIME_LIMIT: "the exact solver ran into the time limit",
    StopReason.INTERRUPTED: "the exact solver was interrupted",
    StopReason.FINISHED: "the exact solver searched schedules of limited length only",
}
UNITS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9))
Column = tuple[str, Callable[[PolicyRow, dict[str, Any]], str]]

COLUMNS: tuple[Column, ...] = (
    ("policy", lambda row, _: row.policy),
    ("makespan", lambda _, m: seconds(m["makespan_s"])),
    ("latency mean", lambda _, m: seconds(m["latency_s"]["mean"])),
    ("latency p99", lambda _, m: seconds(m["latency_s"]["p99"])),
    ("TTFT mean", lambda _, m: seconds(m["ttft_s"]["mean"])),
    ("TTFT p99", lambda _, m: seconds(m["ttft_s"]["p99"])),
    ("TPOT mean", lambda _, m: _mean(m["tpot_s"])),
    ("ITL p99", lambda _, m: "-" if m["itl_s"] is None else seconds(m["itl_s"]["p99"])),
    ("preemptions", lambda _, m: f"{m['preemptions']:,}"),
    ("recomputed tokens", lambda _, m: f"{m['recomputed_tokens']:,}"),
    ("batches", lambda _, m: f"{m['num_batches']:,}"),
    ("certified excess", lambda row, _: excess(row.excess)),
)


def header(comparison: Comparison) -> list[str]:
    """Names of the columns; the last one says of which objective."""
    names = [name for name, _ in COLUMNS]
    return [*names[:-1], f"certified excess ({comparison.objective})"]


def rows(comparison: Comparison) -> list[list[str]]:
    """One row of text for each policy."""
    summaries = [(row, row.metrics.to_json()) for row in comparison.rows]
    return [[cell(row, summary) for _, cell in COLUMNS] for row, summary in summaries]


def footnotes(comparison: Comparison) -> list[str]:
    """What the reference is, what was rejected, and what the reader must know."""
    notes = [reference_sentence(comparison), *arrival_note(comparison), CLAIRVOYANT]
    if comparison.rejections:
        count, first = len(comparison.rejections), comparison.rejections[0].reason
        requests = "request is" if count == 1 else "requests are"
        notes.append(f"{count:,} {requests} rejected, the same for every policy; the first: {first}.")
    return notes


def reference_sentence(comparison: Comparison) -> str:
    """What the excess is measured against, in one sentence."""
    reference, requests = comparison.reference, len(comparison.instance.requests)
    what = "makespan" if comparison.objective is Objective.MAKESPAN else f"mean {comparison.objective}"
    best, bound = (
        f"{comparison.objective.mean_s(value_ns, requests):,.9f} s"
        for value_ns in (reference.best_known_ns, reference.bound_ns)
    )
    if reference.stop_reason is StopReason.ROUNDING:
        gap_ns = reference.best_known_ns - reference.bound_ns
        return (
            f"Reference: the optimum up to rounding, {what} {best}, found by {reference.best_known_by}, "
            f"within {gap_ns} ns in total of what {reference.certificate} proves."
        )
    if reference.is_optimum:
        return (
            f"Reference: the optimum, {what} {best}, found by {reference.best_known_by}, "
            f"proven by {reference.certificate}."
        )
    return (
        f"Reference: the optimal {what} is proven to lie between {bound} (certificate "
        f"{reference.certificate}) and {best} (schedule of {reference.best_known_by}), so each excess is an "
        f"interval ({WHY_OPEN[reference.stop_reason]})."
    )


def arrival_note(comparison: Comparison) -> list[str]:
    """A warning where the makespan says little, because the last arrivals decide it."""
    last_s = max(request.arrival_ns for request in comparison.instance.requests) / NS_PER_S
    best_s = comparison.reference.best_known_ns / NS_PER_S
    if comparison.objective is not Objective.MAKESPAN or last_s < ARRIVAL_DOMINATED * best_s:
        return []
    return [
        f"The last request arrives at {seconds(last_s)} of {seconds(best_s)}: the makespan is decided by the "
        "arrivals and says little about a policy; try --objective latency."
    ]


def markdown(comparison: Comparison) -> str:
    """Table and footnotes in Markdown."""
    lines = [header(comparison), ["---", *["---:"] * (len(COLUMNS) - 1)], *rows(comparison)]
    table = "\n".join("| " + " | ".join(map(_escaped, cells)) + " |" for cells in lines)
    return table + "\n\n" + "\n".join(f"- {note}" for note in footnotes(comparison)) + "\n"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def seconds(value: float) -> str:
    """A time in the unit that fits it, with four significant digits or to a tenth of a second."""
    if value >= 1e3:
        return f"{value:,.1f} s"
    rounded = float(f"{value:.4g}")
    unit, scale = next((pair for pair in UNITS if rounded >= pair[1]), UNITS[-1])
    return f"{f'{rounded / scale:#.4g}'.rstrip('.')} {unit}" if value else "0 s"


def excess(interval: Sequence[float]) -> str:
    """An excess as a percentage, or as an interval where the optimum is not known."""
    low, high = (percent(value) for value in interval)
    return low if low == high else f"{low} to {high}"


def percent(value: float) -> str:
    """A ratio in percent: two decimals, or two significant digits where that is more."""
    return f"{value * 100:.2f} %" if value == 0 or value >= 1e-3 else f"{value * 100:.2g} %"


def _mean(summary: dict[str, float] | None) -> str:
    return "-" if summary is None else seconds(summary["mean"])
