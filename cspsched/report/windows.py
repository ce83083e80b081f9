"""Exact windows: the distribution of a policy's local excess, in sentences and as a picture."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cspsched.problem.excess import Excess
from cspsched.report.table import excess
from cspsched.studies.windows.study import SAMPLE_NOT_BOUND, WindowStudy
from cspsched.units import percent

LOW, HIGH, MEAN = "#4c72b0", "#c44e52", "#333333"
NO_EXCESS = 1e-9


def text(study: WindowStudy) -> str:
    """The study in sentences: the mean first, then the distribution, then what was not proven."""
    lines = [
        f"{len(study.windows)} windows of {study.policy} at random among {study.num_batches:,} batches; "
        f"at most {study.shape.size} requests and {study.shape.output_tokens} output tokens of each",
    ]
    if len(study.excesses):
        lines += [_mean(study), _distribution(study), _proofs(study)]
    if study.num_without_room:
        lines.append(
            f"{study.num_without_room} windows are not judged: the other residents leave no KV cache, token "
            "or seat"
        )
    if study.stopped:
        lines.append("stopped by Ctrl-C: these are the windows judged before")
    return "\n".join([*lines, SAMPLE_NOT_BOUND])


def picture(study: WindowStudy) -> bytes:
    """Share of windows up to each excess, as PNG."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    low, high = (np.sort(100 * study.excesses[:, end]) for end in (0, 1))
    if study.num_unproven:
        _steps(axes, high, HIGH, "over the bound (not all are proven)", width=3.0)
    _steps(axes, low, LOW, "over the best schedule" if study.num_unproven else "over the optimum", width=1.5)
    first, last = (100 * end for end in study.confidence)
    axes.axvspan(first, last, color=MEAN, alpha=0.12, label="mean, 95 % confidence")
    axes.set_xlim(left=min(0.0, float(low[0])))
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(f"local excess in {study.objective.label} [%]")
    axes.set_ylabel("share of windows")
    axes.set_title(f"{study.policy}: {len(study.judged)} exact windows (a sample, not a bound)")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()


def _steps(axes: Axes, values: np.ndarray, colour: str, label: str, *, width: float) -> None:
    """Empirical distribution function, from 0 % on."""
    shares = np.arange(len(values) + 1) / len(values)
    places = np.concatenate((values[:1].clip(max=0), values))
    axes.step(places, shares, where="post", color=colour, linewidth=width, label=label)
    axes.plot([values[-1], max(values[-1] * 1.05, 0.1)], [1, 1], color=colour, linewidth=width)


def _mean(study: WindowStudy) -> str:
    low, high = study.confidence
    return (
        f"mean local excess in {study.objective.label}: {excess(Excess(*study.mean_excess))} (95 % "
        f"confidence of the mean {percent(low)} to {percent(high)}, bootstrap)"
    )


def _distribution(study: WindowStudy) -> str:
    values = study.excesses[:, 0]
    shown = ", ".join(
        f"{name} {percent(float(np.percentile(values, q)))}"
        for name, q in (("median", 50), ("p90", 90), ("max", 100))
    )
    best = int((values <= NO_EXCESS).sum())
    return f"over the best schedule found: {shown}; no better schedule found in {best} of {len(values)}"


def _proofs(study: WindowStudy) -> str:
    proven = len(study.judged) - study.num_unproven
    told = f"optimum proven in {proven} of {len(study.judged)} windows"
    if not study.num_unproven:
        return told
    open_ones = [one.excess for one in study.judged if not one.proven]
    return f"{told}; not proven: {', '.join(map(excess, open_ones))}"
