"""A bracket around the optimum: its picture, and the sentences that say what each end rests on."""

from __future__ import annotations

from math import ceil, floor
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cspsched.errors import InputError
from cspsched.improve.bracket import Bracket
from cspsched.improve.curve import Curve
from cspsched.improve.ends import why_open
from cspsched.problem.objectives import Mixture, Objective
from cspsched.report.table import between, excess
from cspsched.studies.compare import CLAIRVOYANT
from cspsched.units import NS_PER_S, percent

BAND, POINT, LINE = "#4c72b0", "#c44e52", "#333333"
ROW_INCHES = 0.4
WIDE_RATIO = 20.0
"""From this ratio of the worst policy to the bound on the axis is logarithmic."""


def text(bracket: Bracket) -> str:
    """The bracket in sentences, and a table of the policies."""
    table = [header(bracket), *rows(bracket)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [f"{name:{widths[0]}}  {value:>{widths[1]}}  {over:>{widths[2]}}" for name, value, over in table]
    return "\n".join([*sentences(bracket), "", *lines])


def header(bracket: Bracket) -> list[str]:
    """Names of the columns."""
    return ["policy", bracket.improvement.objective.label, "certified excess"]


def rows(bracket: Bracket) -> list[list[str]]:
    """One row of text for each policy."""
    found = bracket.improvement
    count = len(found.instance.requests)
    return [
        [rival.policy, found.objective.show(rival.value_ns, count), excess(bracket.excess(rival))]
        for rival in found.rivals
    ]


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
    """Both ends, what gave them, what is left between them, and what the reader must know."""
    found = bracket.improvement
    count = len(found.instance.requests)
    low, high = (
        found.objective.show(bracket.low_ns, count, floor),
        found.objective.show(bracket.high_ns, count, ceil),
    )
    ratio = "" if bracket.ratio is None else f", U/L {bracket.ratio:.4f}"
    told = [
        f"optimal {found.objective.label} in [{low}, {high}]: gap {percent(found.gap)}{ratio}",
        f"L by certificate {found.bound.name}; U by {found.found_by} ({found.steps:,} steps, "
        f"stopped: {found.stop_reason}), {percent(found.gain)} below {found.best_policy.policy}",
    ]
    if bracket.high_ns > bracket.low_ns:
        told.append(f"between them: {why_open(found.objective)}")
    if bracket.curve is not None:
        told += [lateness(bracket.curve, policy) for policy in bracket.curve.policies_ns]
    told.append(CLAIRVOYANT)
    if found.rejections:
        told.append(f"{len(found.rejections):,} requests rejected; the first: {found.rejections[0].reason}")
    return told


def lateness(curve: Curve, policy: str) -> str:
    """By how much a policy is late at the end, and at the moment where most is proven if not there."""
    late = curve.excess(policy)
    worst = max(range(len(late)), key=lambda k: late[k].at_least or 0.0)
    whole = f"{policy} is above the optimum {between(late[-1])} on all {curve.num_requests[-1]:,} requests"
    if late[worst] == late[-1]:
        return whole
    return (
        f"{whole}; most is proven about the {curve.num_requests[worst]:,} that have arrived by "
        f"{curve.times_ns[worst] / NS_PER_S:,.1f} s: {between(late[worst])}"
    )


def curve_figure(curve: Curve) -> Figure:
    """What policies and bound make over time; below, the interval of each policy's excess."""
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    values, late = figure.subplots(2, 1, sharex=True)
    times_s = [time_ns / NS_PER_S for time_ns in curve.times_ns]
    is_sum = curve.objective is Objective.LATENCY
    shares = [NS_PER_S * (count if is_sum else 1) for count in curve.num_requests]
    for policy, column in curve.policies_ns.items():
        name = policy.replace("$", r"\$")
        (line,) = values.plot(
            times_s, [v / share for v, share in zip(column, shares, strict=True)], ".-", label=name
        )
        least, most = np.array(curve.excess(policy), dtype=np.float64).T * 100
        late.plot(times_s, least, ".-", color=line.get_color(), label=name)
        late.fill_between(times_s, least, most, color=line.get_color(), alpha=0.15, linewidth=0)
    bound = [value / share for value, share in zip(curve.bounds_ns, shares, strict=True)]
    values.plot(times_s, bound, color=LINE, linestyle="--", label="bound: no schedule is below")
    values.set_ylabel("mean latency [s]" if is_sum else "all finished at [s]")
    values.set_title("Requests that have arrived by each moment: policies and bound")
    late.set_ylabel("above the optimum [%]")
    late.set_title("at least (line) to at most (top of the band)", fontsize="medium")
    late.set_xlabel("time [s]")
    late.set_ylim(bottom=0)
    for axes in (values, late):
        axes.grid(visible=True, alpha=0.3)
    figure.legend(*values.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=3)
    return figure


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
    if 0 < WIDE_RATIO * low < max(values):
        axes.set_xscale("log")
    # Room for the text beside the worst policy; a bracket that is closed has some width, too.
    room = 0.3 * (max(values) - low) or 1.0
    axes.set_xlim(right=max(values) + room)
    counts = isinstance(found.objective, Mixture) and found.objective.counts
    axes.set_xlabel(f"{found.objective.label} [{'requests' if counts else 's'}]")
    axes.set_title(f"Bracket around the optimal {found.objective.label}, {count:,} requests")
    axes.grid(visible=True, axis="x", alpha=0.3)
    figure.legend(frameon=False, loc="outside lower right", ncols=3)
    return figure
