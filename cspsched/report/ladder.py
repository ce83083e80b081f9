"""The gap ladder as a table, as sentences with their proof, as a picture, and as files."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN
from io import BytesIO
from math import ceil, floor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cspsched.report.html.template import render
from cspsched.report.output import write_files
from cspsched.report.table import UNITS, seconds
from cspsched.studies.ladder import AS_GIVEN, Ladder, Rung, Saving, saving
from cspsched.units import Whole, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADER = ("rung", "policy class", "best", "bound", "gap", "status", "saves", "found by", "proven by")
NEGLIGIBLE_SHARE = 1e-6
"""Of the optimum: what rounding to nanoseconds can leave open, and nobody can measure."""
DPI = 110
ROW_INCHES = 0.55
PROVEN, LINE = "#4c72b0", "#333333"


def rows(ladder: Ladder) -> list[list[str]]:
    """One row of text for each rung; `saves` is against the solved rung before."""
    saved = {one.to_rung: _share(one) for one in ladder.savings}
    return [_row(ladder, rung, saved.get(rung.name, "-")) for rung in ladder.rungs]


def _row(ladder: Ladder, rung: Rung, saved: str) -> list[str]:
    result = rung.result
    if result is None:
        return [rung.name, rung.policy_class, *["-"] * 3, "skipped", *["-"] * 3]
    bound_ns, value_ns = rung.interval_ns
    bound, value = _plain_seconds(ladder, bound_ns, floor), _plain_seconds(ladder, value_ns)
    named = [rung.name, rung.policy_class, value, bound, _percent(result.gap or 0.0)]
    return [*named, result.verdict, saved, result.found_by or "-", result.certificate or "-"]


def sentences(ladder: Ladder) -> list[str]:
    """What the rungs answer, each answer with its proof; then what was skipped and left out."""
    notes = [*_answers(ladder)]
    notes += [f"Skipped {rung.name!r}: {rung.skipped}." for rung in ladder.rungs if rung.skipped]
    if ladder.rejections:
        count, first = len(ladder.rejections), ladder.rejections[0].reason
        requests = "request is" if count == 1 else "requests are"
        notes.append(f"{count:,} {requests} left out of every rung; the first: {first}.")
    return notes


def _answers(ladder: Ladder) -> Iterator[str]:
    by_name = {rung.name: rung for rung in ladder.solved}
    if AS_GIVEN in by_name:
        for one in ladder.savings:
            yield _cost_sentence(ladder, one)
        return
    preemption = ladder.preemption
    if preemption is None:
        return
    yield f"Is preemption worth it here? {_verdict(ladder, preemption)}"
    if "reservation" in by_name:
        against = saving(by_name["reservation"], by_name[preemption.to_rung])
        yield f"Against reserving every peak at admission it saves {_amount(ladder, against)}."


def _verdict(ladder: Ladder, saved: Saving) -> str:
    what, most = _what(ladder), _percent(saved.most_share, ROUND_CEILING)
    narrow, wide = (
        next(rung for rung in ladder.solved if rung.name == name) for name in (saved.from_rung, saved.to_rung)
    )
    least = _plain_seconds(ladder, narrow.interval_ns[0], floor)
    best = _plain_seconds(ladder, wide.interval_ns[1], ceil)
    if saved.verdict == "no":
        return f"No: proven, without it the optimal {what} is the same, {best}."
    if saved.most_share < NEGLIGIBLE_SHARE:
        return f"No: proven, it saves at most {saved.most_ns} ns in total, not more than rounding."
    if saved.verdict == "yes":
        return (
            f"Yes: it saves {_amount(ladder, saved)} of the optimal {what}. "
            f"Proven: without it no schedule has less than {least}, with it one has {best}."
        )
    return (
        f"Not decided: it saves at most {most} of the optimal {what}, perhaps nothing. "
        f"Proven: without it no schedule has less than {least}; the best known with it has {best}. "
        "A longer --time-limit narrows this."
    )


def _cost_sentence(ladder: Ladder, cost: Saving) -> str:
    lifted = cost.to_rung.removeprefix("without ")
    if cost.most_share < NEGLIGIBLE_SHARE:
        return f"What {lifted} costs: nothing, proven (at most {cost.most_ns} ns in total)."
    return f"What {lifted} costs: {_amount(ladder, cost)} of the optimal {_what(ladder)}."


def _amount(ladder: Ladder, saved: Saving) -> str:
    """A saving as a share and as a time, each a number or an interval."""
    count = len(ladder.instance.requests)
    least, most = (ladder.objective.mean_s(value_ns, count) for value_ns in (saved.least_ns, saved.most_ns))
    return f"{_share(saved)} ({_interval(least, most, seconds)})"


def _share(saved: Saving) -> str:
    """A saving in percent, as an interval where the difference shows."""
    return _interval(saved.least_share, saved.most_share, _percent)


def _interval(least: float, most: float, show: Callable[..., str]) -> str:
    """Two ends where their difference shows, the lower rounded down and the upper up; else one number."""
    if show(least) == show(most):
        return show(most)
    return f"{show(least, ROUND_FLOOR)} to {show(most, ROUND_CEILING)}"


def _percent(share: float, rounding: str = ROUND_HALF_EVEN) -> str:
    """A share in percent; what rounding leaves open is nothing."""
    return percent(0.0 if share < NEGLIGIBLE_SHARE else share, rounding)


def _what(ladder: Ladder) -> str:
    return ladder.objective.label


def _plain_seconds(ladder: Ladder, value_ns: int, whole: Whole = round) -> str:
    return f"{ladder.objective.exact_s(value_ns, len(ladder.instance.requests), whole):,f} s"


def markdown(ladder: Ladder) -> str:
    """Table and sentences in Markdown."""
    lines = [list(HEADER), ["---", "---", *["---:"] * 3, *["---"] * 4], *rows(ladder)]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines)
    return table + "\n\n" + "\n".join(f"- {note}" for note in sentences(ladder)) + "\n"


def ladder_figure(ladder: Ladder) -> Figure:
    """A bar from 0 to the bound for each solved rung, paler up to the value; a line marks the value."""
    from matplotlib.figure import Figure

    solved, requests = ladder.solved, len(ladder.instance.requests)
    ends = [ladder.objective.mean_s(end, requests) for rung in solved for end in rung.interval_ns]
    unit, scale = next((pair for pair in UNITS if max(ends) >= pair[1]), UNITS[-1])
    bounds, values = np.array(ends).reshape(-1, 2).T / scale
    positions = np.arange(len(solved))
    figure = Figure(figsize=(10, 1.8 + ROW_INCHES * len(solved)), layout="constrained")
    axes = figure.subplots()
    axes.barh(positions, bounds, height=0.6, color=PROVEN, label="no schedule is better (bound)")
    if np.any(values > (1 + NEGLIGIBLE_SHARE) * bounds):
        axes.barh(
            positions, values - bounds, height=0.6, left=bounds, color=PROVEN, alpha=0.35,
            label="not decided: between bound and best schedule",
        )  # fmt: skip
    axes.vlines(values, positions - 0.3, positions + 0.3, color=LINE, label="best schedule")
    for position, (rung, value) in enumerate(zip(solved, values, strict=True)):
        axes.text(value, position, f" {_label(rung, value, unit)}", va="center", ha="left")
    axes.set_yticks(positions, [rung.name for rung in solved])
    axes.set_ylim(len(solved) - 0.5, -0.5)
    # Room for the text at the end of the longest bar.
    axes.set_xlim(0, 1.4 * values.max())
    axes.set_xlabel(f"{_what(ladder)} [{unit}]")
    axes.set_title("What each restriction costs: every rung may do what the one above it may")
    axes.grid(visible=True, axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(frameon=False, loc="outside lower right", ncols=3)
    return figure


def _label(rung: Rung, value: float, unit: str) -> str:
    assert rung.result is not None
    told = rung.result.verdict if rung.result.status.is_optimal else f"gap {percent(rung.result.gap or 0.0)}"
    return f"{value:#.4g} {unit}, {told}"


def write_ladder(ladder: Ladder, folder: Path) -> list[Path]:
    """Write ladder.html, .md, .json, .png and the result of every solved rung; returns the files.

    Raises
    ------
    InputError
        If the folder cannot be written.
    """
    buffer = BytesIO()
    ladder_figure(ladder).savefig(buffer, format="png", dpi=DPI)
    page = render(
        "listing.html",
        title=f"What each restriction costs: {_what(ladder)}",
        label="Every rung may do what the one above it may",
        header=HEADER,
        rows=rows(ladder),
        notes=sentences(ladder),
        images={"ladder": base64.b64encode(buffer.getvalue()).decode()},
    )
    files: dict[str, str | bytes] = {
        "ladder.html": page,
        "ladder.md": markdown(ladder),
        "ladder.json": json.dumps(ladder.to_json(), indent=1) + "\n",
        "ladder.png": buffer.getvalue(),
    }
    for number, rung in enumerate(ladder.rungs, start=1):
        if rung.result is not None:
            name = "-".join("".join(c if c.isalnum() else " " for c in rung.name).split())
            files[f"{number}-{name}.json"] = json.dumps(rung.result.to_json()) + "\n"
    return write_files(folder, files)
