"""An explanation as tables and sentences, for terminal and Markdown alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN

from cspsched.problem.objectives import AnyObjective, Mixture
from cspsched.report.html.sections import Section
from cspsched.report.html.template import render
from cspsched.report.table import between, excess, seconds
from cspsched.studies.compare import CLAIRVOYANT
from cspsched.studies.explain.causes import Cause
from cspsched.studies.explain.information import InformationLadder
from cspsched.studies.explain.prices import ShadowPrice
from cspsched.studies.explain.study import ExplainedPolicy, Explanation
from cspsched.studies.explain.waiting import Span, Timeline
from cspsched.units import NS_PER_S

MOST_SPANS = 40
"""Spans of a timeline that are shown; all of them are in the JSON."""
MOST_NAMES = 3
TIMELINE = ("doing", "from", "for", "batches", "until")
NO_CHANGE = "-"
ORDER_NOTE = (
    "Each line takes one more decision from the best known schedule, in this order; each schedule is "
    "simulated and judged. 'alone' replaces that decision only; those do not add up."
)
KNOWLEDGE_NOTE = (
    "'own': another built-in policy that knows as much does better. 'outputs': one that reads output lengths "
    "does better still. 'arrivals': so does the clairvoyant best known schedule, by arrivals or by what no "
    "online policy here does. 'open': from there to the proven bound."
)


def text(explanation: Explanation) -> str:
    """All sections with aligned columns."""
    return "\n\n".join(map(_plain, sections(explanation)))


def markdown(explanation: Explanation) -> str:
    """All sections with tables."""
    return "\n".join(map(_markdown, sections(explanation)))


def page(explanation: Explanation) -> str:
    """All sections as one HTML page that holds all it needs."""
    what = explanation.objective.label
    return render(
        "listing.html",
        title=f"Why {what} is above the optimum",
        label="Policies and their certified excess",
        header=("policy", what, "certified excess"),
        rows=[
            [one.policy, _amount(explanation, one.value_ns), excess(one.excess)]
            for one in explanation.policies
        ],
        notes=[f"Note: {warning}." for warning in explanation.warnings],
        images={},
        sections=list(sections(explanation)),
    )


def sections(explanation: Explanation) -> Iterator[Section]:
    """What was asked for, policy by policy, then all policies together."""
    for timeline in explanation.timelines:
        yield _timeline_section(timeline)
    for policy in explanation.policies:
        yield _causes_section(explanation, policy)
    if explanation.information:
        yield _information_section(explanation)
    if explanation.prices:
        yield _prices_section(explanation)
    notes = [_reference_sentence(explanation), CLAIRVOYANT]
    if not explanation.limits.repeats:
        notes.append("A time limit was given: what another run finds depends on the clock.")
    if explanation.interrupted:
        notes.append("Interrupted: what comes after is missing.")
    yield Section(title="Reference", notes=notes)
    if explanation.provenance is not None:
        rows = explanation.provenance.rows()
        yield Section(title="Where this comes from", notes=[f"{name}: {what}" for name, what in rows])


def _reference_sentence(explanation: Explanation) -> str:
    reference, objective = explanation.reference, explanation.objective
    best, bound = (
        _amount(explanation, value_ns, rounding)
        for value_ns, rounding in (
            (reference.best_known_ns, ROUND_CEILING), (reference.bound_ns, ROUND_FLOOR)
        )
    )  # fmt: skip
    if reference.is_optimum:
        return f"The optimal {objective.label} is {best}, by {reference.best_known_by}, proven."
    return (
        f"The optimal {objective.label} lies between {bound} (certificate {reference.certificate}) and "
        f"{best} (schedule of {reference.best_known_by})."
    )


def _causes_section(explanation: Explanation, policy: ExplainedPolicy) -> Section:
    reference = explanation.reference
    above_ns = policy.value_ns - reference.best_known_ns
    title = (
        f"{policy.policy}: {explanation.objective.label} {_amount(explanation, policy.value_ns)}, above the "
        f"optimum {between(policy.excess)}; {_amount(explanation, above_ns)} above the best known schedule"
    )
    if not policy.causes:
        return Section(title=title)
    if not above_ns:
        return Section(title=title, notes=["Nothing is to be explained."])
    rows = [_cause_row(explanation, cause, above_ns) for cause in policy.causes]
    total = ["all", _amount(explanation, above_ns), _share(above_ns, above_ns)]
    rows.append([*total, _amount(explanation, reference.best_known_ns), ""])
    header = ["decision", "saves", "of the excess", "then", "alone"]
    left = policy.causes[-1]
    notes = [
        ORDER_NOTE,
        f"Left unexplained ({left.decision}): {_share(left.saved_ns, above_ns)} of the excess.",
        *_better_note(explanation, policy),
    ]
    return Section(title=title, header=header, rows=rows, notes=notes)


def _better_note(explanation: Explanation, policy: ExplainedPolicy) -> list[str]:
    """A sentence where a schedule on the way is better than the one that was aimed at."""
    least_ns = min(cause.value_ns for cause in policy.causes)
    if least_ns >= explanation.reference.best_known_ns:
        return []
    return [
        f"A schedule on the way is better than the best known one ({_amount(explanation, least_ns)}): give "
        "the reference more (--steps, --time-limit)."
    ]


def _cause_row(explanation: Explanation, cause: Cause, above_ns: int) -> list[str]:
    alone = NO_CHANGE if cause.alone_ns is None else _amount(explanation, cause.alone_ns)
    if not cause.differs:
        return [cause.decision.value, NO_CHANGE, NO_CHANGE, NO_CHANGE, alone]
    saved, value = (_amount(explanation, one_ns) for one_ns in (cause.saved_ns, cause.value_ns))
    return [cause.decision.value, saved, _share(cause.saved_ns, above_ns), value, alone]


def _share(part_ns: int, whole_ns: int) -> str:
    """A share in percent, signed; nothing is no share of nothing."""
    if not whole_ns:
        return NO_CHANGE
    share = part_ns / whole_ns
    return f"{100 * share:.1f} %"


def _information_section(explanation: Explanation) -> Section:
    header = ["policy", "reads outputs", explanation.objective.label, "own", "outputs", "arrivals", "open"]
    rows = [_information_row(explanation, ladder) for ladder in explanation.information]
    by_reading = {ladder.reads_outputs: ladder for ladder in explanation.information}
    notes = [KNOWLEDGE_NOTE]
    unaware, aware = by_reading.get(False), by_reading.get(True)
    if unaware is not None:
        best = min(
            (ladder for ladder in explanation.information if ladder.reads_outputs is False),
            key=lambda ladder: ladder.same_ns,
        )
        value = _amount(explanation, best.same_ns)
        notes.append(f"The best that does not read output lengths: {best.same_by}, {value}.")
    if aware is not None:
        value = _amount(explanation, aware.lengths_ns)
        notes.append(f"The best online policy of all: {aware.lengths_by}, {value}.")
    notes += [f"{name} is left out: {reason}." for name, reason in explanation.skipped]
    return Section(title="What each policy's excess owes to ignorance", header=header, rows=rows, notes=notes)


def _information_row(explanation: Explanation, ladder: InformationLadder) -> list[str]:
    reads = {True: "yes", False: "no", None: "not known"}[ladder.reads_outputs]
    values_ns = (ladder.value_ns, ladder.own_ns, ladder.outputs_ns, ladder.arrivals_ns, ladder.open_ns)
    return [ladder.policy, reads, *(_amount(explanation, value_ns) for value_ns in values_ns)]


def _prices_section(explanation: Explanation) -> Section:
    names = [name for name, _ in explanation.prices[0].policies_ns]
    header = ["limit", "is", "more", *(f"saves {name}" for name in names), "saves the optimum"]
    rows = [_price_row(explanation, price) for price in explanation.prices]
    note = (
        "A policy's saving is simulated, so it is exact, and may be less than 0. The optimum's is certified: "
        "both ends were found again under the wider limit."
    )
    return Section(title="What 5 % more of a limit saves", header=header, rows=rows, notes=[note])


def _price_row(explanation: Explanation, price: ShadowPrice) -> list[str]:
    saved = [
        NO_CHANGE if saved_ns is None else _amount(explanation, saved_ns) for _, saved_ns in price.policies_ns
    ]
    least, most = (
        _amount(explanation, saved_ns, rounding)
        for saved_ns, rounding in ((price.least_ns, ROUND_FLOOR), (price.most_ns, ROUND_CEILING))
    )
    optimum = most if price.least_ns == price.most_ns else f"{least} to {most}"
    return [price.resource.value, f"{price.limit:,}", f"{price.more:,}", *saved, optimum]


def _timeline_section(timeline: Timeline) -> Section:
    arrival_ns, end_ns = timeline.spans[0].begin_ns, timeline.spans[-1].end_ns
    waited = [f"{doing} {_time(waited_ns)}" for doing, waited_ns in timeline.waited_ns.items()]
    title = (
        f"{timeline.request_id} under {timeline.policy}: {_time(end_ns - arrival_ns)} from its arrival at "
        f"{_time(arrival_ns)}; waited: {', '.join(waited) or 'never'}"
    )
    shown = timeline.spans[:MOST_SPANS]
    rows = [[_what(span), _time(span.begin_ns), _time(span.end_ns - span.begin_ns), _batches(span),
             _until(span)] for span in shown]  # fmt: skip
    left = len(timeline.spans) - len(shown)
    notes = [f"{left} more spans are in --json."] if left else []
    return Section(title=title, header=TIMELINE, rows=rows, notes=notes)


def _what(span: Span) -> str:
    doing = f"waits: {span.doing}" if span.doing.waits else f"{span.doing} of {span.tokens:,} tokens"
    return f"evicted; {doing}" if span.evicted else doing


def _batches(span: Span) -> str:
    if span.first_batch == span.last_batch:
        return f"{span.first_batch:,}"
    return f"{span.first_batch:,} to {span.last_batch:,}"


def _until(span: Span) -> str:
    """The event at the end of a wait, and who was served first."""
    if not span.doing.waits:
        return ""
    told = f"batch {span.last_batch:,} ends"
    if span.finished:
        told += f", {_names(span.finished)} finished"
    return f"{told}; {_names(span.passed)} first" if span.passed else told


def _names(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _time(time_ns: int) -> str:
    return seconds(time_ns / NS_PER_S)


def _amount(explanation: Explanation, value_ns: int, rounding: str = ROUND_HALF_EVEN) -> str:
    """A value or a difference of values, signed, as people read it."""
    return amount(explanation.objective, value_ns, len(explanation.instance.requests), rounding)


def amount(objective: AnyObjective, value_ns: int, num_requests: int, rounding: str = ROUND_HALF_EVEN) -> str:
    """A value or a difference of values of an objective, signed, with four digits.

    Parameters
    ----------
    rounding
        A mode of `decimal`.
    """
    if isinstance(objective, Mixture) and objective.counts:
        return objective.show(value_ns, num_requests)
    shown = seconds(abs(objective.mean_s(value_ns, num_requests)), rounding)
    return f"-{shown}" if value_ns < 0 else shown


def _plain(section: Section) -> str:
    lines = _lines(section)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([section.title, *(f"  {line}" for line in table), *section.notes])


def _markdown(section: Section) -> str:
    text = [f"## {section.title}", ""]
    if section.rows:
        rule = ["---", *["---:"] * (len(section.header) - 1)]
        table = [section.header, rule, *section.rows]
        text += ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in table]
        text.append("")
    return "\n".join([*text, *(f"- {note}" for note in section.notes)]) + "\n"


def _lines(section: Section) -> list[Sequence[str]]:
    """The table with its header; empty without rows."""
    return [section.header, *section.rows] if section.rows else []
