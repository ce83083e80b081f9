"""A comparison as rows of text, for terminal, Markdown and HTML alike."""

from __future__ import annotations

from collections.abc import Callable
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from html import escape
from math import ceil, floor
from typing import Any, NamedTuple

from cspsched.problem.excess import Excess
from cspsched.problem.objectives import Objective
from cspsched.problem.result import Status, StopReason
from cspsched.studies.compare import CLAIRVOYANT, Comparison, PolicyRow
from cspsched.units import NS_PER_S, percent

ARRIVAL_DOMINATED = 0.9
WHY_OPEN = {
    StopReason.TOO_LARGE: "the trace is too large for the exact solver",
    StopReason.HITS: "the exact solver knows no prefix cache hits",
    StopReason.TIME_LIMIT: "the exact solver had no more time or work",
    StopReason.INTERRUPTED: "the search was interrupted",
    StopReason.FINISHED: "the exact solver searched schedules of limited length only",
    StopReason.ROUNDING: "the exact solver prices batches without rounding",
    StopReason.FAILED: "every search of the exact solver failed",
}
UNITS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9))
PERCENTILES = ("p50", "p90", "p99")


class Column(NamedTuple):
    """A column: its name, the text of a row, and the number that the text stands for, None if there is none.

    Both are made from a row and the summary of its metrics.
    """

    name: str
    cell: Callable[[PolicyRow, dict[str, Any]], str]
    number: Callable[[PolicyRow, dict[str, Any]], float | None]


def _measured(name: str, key: str, statistic: str) -> Column:
    """Column of a statistic of times, `-` where no request has one."""
    return Column(
        f"{name} {statistic}",
        lambda _, m: "-" if m[key] is None else seconds(m[key][statistic]),
        lambda _, m: None if m[key] is None else m[key][statistic],
    )


def _counted(name: str, key: str) -> Column:
    return Column(name, lambda _, m: f"{m[key]:,}", lambda _, m: m[key])


COLUMNS = (
    Column("policy", lambda row, _: row.policy, lambda *_: None),
    Column("makespan", lambda _, m: seconds(m["makespan_s"]), lambda _, m: m["makespan_s"]),
    *(_measured("latency", "latency_s", statistic) for statistic in ("mean", *PERCENTILES)),
    *(_measured("TTFT", "ttft_s", statistic) for statistic in ("mean", *PERCENTILES)),
    _measured("TPOT", "tpot_s", "mean"),
    *(_measured("ITL", "itl_s", statistic) for statistic in PERCENTILES),
    _counted("preemptions", "preemptions"),
    _counted("recomputed tokens", "recomputed_tokens"),
    _counted("batches", "num_batches"),
    Column("certified excess", lambda row, _: excess(row.excess), lambda row, _: row.excess.at_least),
)


def header(comparison: Comparison) -> list[str]:
    """Names of the columns; the last one says of which objective."""
    names = [column.name for column in COLUMNS]
    return [*names[:-1], f"certified excess ({comparison.objective})"]


def rows(comparison: Comparison) -> list[list[str]]:
    """One row of text for each policy."""
    summaries = [(row, row.metrics.to_json()) for row in comparison.rows]
    return [[column.cell(row, summary) for column in COLUMNS] for row, summary in summaries]


def numbers(comparison: Comparison) -> list[list[float | None]]:
    """What the texts of `rows` stand for, so that they can be put in order; None where there is no number."""
    summaries = [(row, row.metrics.to_json()) for row in comparison.rows]
    return [[column.number(row, summary) for column in COLUMNS] for row, summary in summaries]


def bounds_row(comparison: Comparison) -> list[list[str]]:
    """A last row: what no schedule is below, in the columns that are bounded; none if there is none."""
    bounds = {
        f"{'latency' if objective is Objective.LATENCY else 'TTFT'} p{percent}": value_ns
        for objective, found in comparison.percentile_bounds_ns.items()
        for percent, value_ns in found.items()
    }
    if not bounds:
        return []
    shown = {name: seconds(value_ns / NS_PER_S, ROUND_FLOOR) for name, value_ns in bounds.items()}
    return [["no schedule is below", *(shown.get(column.name, "") for column in COLUMNS[1:])]]


def footnotes(comparison: Comparison) -> list[str]:
    """What the reference is, what was rejected, and what the reader must know."""
    notes = [
        reference_sentence(comparison),
        *cache_notes(comparison),
        *_ends(comparison),
        *arrival_note(comparison),
        CLAIRVOYANT,
    ]
    notes += [f"{comparison.arrivals}."] if comparison.arrivals else []
    notes += [f"Passed over: {failure.sentence}" for failure in comparison.reference.failures]
    notes += [f"Note: {warning}." for warning in comparison.warnings]
    notes.append(frontend_note(comparison))
    notes += [f"{comparison.provenance.line}."] if comparison.provenance else []
    if not comparison.limits.repeats:
        notes.append("A time limit was given: what another run finds depends on the clock.")
    if comparison.rejections:
        count, first = len(comparison.rejections), comparison.rejections[0].reason
        requests = "request is" if count == 1 else "requests are"
        notes.append(f"{count:,} {requests} rejected, the same for every policy; the first: {first}.")
    return notes


def frontend_note(comparison: Comparison) -> str:
    """What a client waits for around the schedule, which no column above has."""
    if comparison.frontend is None:
        return "Frontend off: times are the engine's, without HTTP and tokenisation."
    added = seconds(comparison.frontend.added_ns / NS_PER_S)
    return f"Frontend: a client's TTFT and latency are {added} more than above, {comparison.frontend.line}."


def reference_sentence(comparison: Comparison) -> str:
    """What the excess is measured against, in one sentence."""
    reference, requests = comparison.reference, len(comparison.instance.requests)
    what = comparison.objective.label
    best = comparison.objective.show(reference.best_known_ns, requests, ceil)
    bound = comparison.objective.show(reference.bound_ns, requests, floor)
    if reference.status is Status.OPTIMAL_UP_TO_ROUNDING:
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


def cache_notes(comparison: Comparison) -> list[str]:
    """What both ends owe to prefix cache hits; nothing where none are allowed."""
    cache, requests, show = comparison.cache, len(comparison.instance.requests), comparison.objective.show
    if cache is None:
        return []
    free = percent(cache.findable_tokens / cache.prompt_tokens)
    without = show(cache.bound_without_ns, requests, floor)
    found = f"{cache.found_tokens:,} tokens come" if cache.found_tokens is not None else "tokens may come"
    notes = [
        "Prefix cache hits are allowed. In the lower end a block that prompts share is computed once, for "
        f"the first request that has it, so {cache.findable_tokens:,} of {cache.prompt_tokens:,} prompt "
        f"tokens ({free}) are free; in the upper end's schedule {found} out of the cache."
    ]
    if cache.share is not None:
        notes.append(
            f"No schedule without hits is below {without} (certificate {cache.certificate_without}): "
            f"{percent(cache.share)} of the interval is due to the cache, for hits may be worth that much; "
            "the rest would be there without it."
        )
    return notes


def _ends(comparison: Comparison) -> list[str]:
    """The excesses at the ends of the cost model's error band, and what they are measured against."""
    return [
        f"If all batches are {end}, the certified excess is "
        f"{', '.join(f'{row.policy} {excess(row.excess)}' for row in one.rows)}. {reference_sentence(one)}"
        for end, one in comparison.ends.items()
    ]


def arrival_note(comparison: Comparison) -> list[str]:
    """A warning where the makespan says little, because the last arrivals decide it."""
    last_s = int(comparison.instance.columns.arrival_ns.max()) / NS_PER_S
    best_s = comparison.reference.best_known_ns / NS_PER_S
    if comparison.objective is not Objective.MAKESPAN or last_s < ARRIVAL_DOMINATED * best_s:
        return []
    return [
        f"The last request arrives at {seconds(last_s)} of {seconds(best_s)}: the makespan is decided by the "
        "arrivals and says little about a policy; try --objective latency."
    ]


def markdown(comparison: Comparison) -> str:
    """Table and footnotes in Markdown."""
    body = [*rows(comparison), *bounds_row(comparison)]
    lines = [header(comparison), ["---", *["---:"] * (len(COLUMNS) - 1)], *body]
    table = "\n".join("| " + " | ".join(map(_escaped, cells)) + " |" for cells in lines)
    return table + "\n\n" + "\n".join(f"- {note}" for note in footnotes(comparison)) + "\n"


def html(comparison: Comparison) -> str:
    """Table and footnotes as a piece of HTML, for notebooks."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header(comparison))
    lines = [*rows(comparison), *bounds_row(comparison)]
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
    notes = "".join(f"<li>{escape(note)}</li>" for note in footnotes(comparison))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><ul>{notes}</ul>"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def seconds(value: float, rounding: str = ROUND_HALF_EVEN) -> str:
    """A time in the unit that fits it, with four significant digits or to a tenth of a second.

    Parameters
    ----------
    rounding
        A mode of `decimal`: down for a bound that nothing is below.
    """
    exact = Decimal(repr(float(value)))
    if value >= 1e3:
        return f"{exact.quantize(Decimal('0.1'), rounding):,} s"
    rounded = float(exact.quantize(Decimal(1).scaleb(exact.adjusted() - 3), rounding))
    unit, scale = next((pair for pair in UNITS if rounded >= pair[1]), UNITS[-1])
    return f"{f'{rounded / scale:#.4g}'.rstrip('.')} {unit}" if value else "0 s"


def excess(ends: Excess) -> str:
    """An excess as a percentage, or as an interval where the optimum is not known.

    The lower end is rounded down and the upper end up, so that what is read is proven, too.
    """
    least, most = ends
    if least is None or most is None:
        return "no share of 0" if least is None else f"at least {percent(least, ROUND_FLOOR)}"
    if ends.is_exact:
        return percent(least)
    return f"{percent(least, ROUND_FLOOR)} to {percent(most, ROUND_CEILING)}"


def between(ends: Excess) -> str:
    """An excess in the words of a sentence, each end with its direction."""
    least, most = ends
    if least is None:
        return "by no share of 0"
    if ends.is_exact:
        return f"by {percent(least)}"
    upper = "" if most is None else f" and at most {percent(most, ROUND_CEILING)}"
    return f"by at least {percent(least, ROUND_FLOOR)}{upper}"
