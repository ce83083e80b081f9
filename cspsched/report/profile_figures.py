"""Pictures of a fitted profile: each kind of work as measured and as fitted, and what is left over."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cspsched.costs.estimator.profile import FittedProfile
from cspsched.costs.estimator.quality import Group
from cspsched.costs.fit import predicted_ns
from cspsched.problem.cost import IntArray
from cspsched.report.output import write_files
from cspsched.units import NS_PER_S

DPI = 110
MEASURED, FITTED, LINE = "#c44e52", "#4c72b0", "#333333"
MS_PER_NS = 1000 / NS_PER_S
MAIN_FEATURE = {
    "tokens": ("tokens", "tokens in the batch (N)"),
    "head": ("num_generating", "requests that get a token"),
    "prefill_attention": ("prefill_tokens", "prefill tokens (P)"),
    "decode_attention": ("decode_context", "KV entries that decodes read (K)"),
    "mixed_attention": ("decode_context", "KV entries that decodes read beside a prefill (K)"),
    "steps": ("tokens", "tokens in the batch (N)"),
}
"""What each kind of work is drawn over."""


def write_profile_figures(fitted: FittedProfile, folder: Path) -> list[Path]:
    """One PNG a kind of work, named after it; returns the files.

    Raises
    ------
    InputError
        If the folder cannot be written.
    """
    files: dict[str, str | bytes] = {}
    for group in fitted.groups:
        buffer = BytesIO()
        fit_figure(group, fitted).savefig(buffer, format="png", dpi=DPI)
        files[f"{group.name}.png"] = buffer.getvalue()
    return write_files(folder, files)


def fit_figure(group: Group, fitted: FittedProfile) -> Figure:
    """Measured and fitted times above, relative residuals below; the dashed line ends what was measured."""
    feature, label = MAIN_FEATURE[group.name]
    x: IntArray = getattr(group.measured.features, feature)
    terms = group.fit(group.measured)
    predicted = predicted_ns(terms, group.measured)
    figure = Figure(figsize=(9, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    above.plot(x, group.measured.times_ns * MS_PER_NS, ".", color=MEASURED, label="measured", markersize=5)
    above.plot(x, predicted * MS_PER_NS, "x", color=FITTED, label="fitted", markersize=4)
    residuals = 100 * (predicted / group.measured.times_ns - 1)
    below.plot(x, residuals, ".", color=FITTED, markersize=4)
    below.axhline(0, color=LINE, linewidth=0.8)
    largest = fitted.domain.largest.get(feature, int(x.max()))
    for axes in (above, below):
        axes.axvline(largest, color=LINE, linestyle="--", linewidth=0.8)
        axes.set_xscale("symlog" if np.any(x == 0) else "log")
        axes.grid(alpha=0.3)
    above.set_yscale("log")
    above.set_ylabel("ms, all layers")
    above.set_title(f"{fitted.cost.name}: {group.name.replace('_', ' ')}")
    above.legend(frameon=False)
    below.set_ylabel("fitted over measured, %")
    below.set_xlabel(f"{label}; dashed: largest measured")
    return figure
