"""A trace as a picture: arrivals over time, lengths, how they go together, and what prompts share."""

from __future__ import annotations

import warnings
from io import BytesIO
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from cspsched.problem.columns import RequestColumns, columns_of
from cspsched.trace.sharing import shared_with_earlier
from cspsched.trace.trace import Trace
from cspsched.units import NS_PER_S

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg")
DPI = 110
PROMPT, OUTPUT, LINE, GRID = "#c44e52", "#4c72b0", "#333333", "#dddddd"
BINS = 120
CELLS = 48
_LATER = 1.02
"""Room beyond the longest."""
_LEGEND = 1.3
"""Room above, for a legend."""


def trace_figure(trace: Trace) -> Figure:
    """Three panels, and a fourth if requests share prefixes."""
    columns = columns_of(trace.requests)
    figure = Figure(figsize=(11, 7), layout="constrained")
    figure.suptitle(f"{trace.name}: {len(columns):,} requests".replace("$", r"\$"))
    has_prefix = columns.prefix is not None
    panels = figure.subplot_mosaic("AP;LJ" if has_prefix else "AA;LJ")
    _plot_arrivals(panels["A"], columns)
    _plot_lengths(panels["L"], columns)
    _plot_joint(panels["J"], columns)
    if has_prefix:
        _plot_prefix(panels["P"], columns)
    return figure


def trace_picture(trace: Trace, suffix: str) -> bytes:
    """The picture as the bytes of a file with one of `SUFFIXES`; the same bytes every time."""
    buffer = BytesIO()
    with warnings.catch_warnings(), mpl.rc_context({"svg.hashsalt": "cspsched", "svg.fonttype": "none"}):
        # A name in a script that the font lacks shows as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        metadata = {"Date": None} if suffix == ".svg" else None
        trace_figure(trace).savefig(buffer, format=suffix.removeprefix("."), dpi=DPI, metadata=metadata)
    return buffer.getvalue()


def _plot_arrivals(axes: Axes, columns: RequestColumns) -> None:
    """Requests per second in bins, and their mean."""
    times_s = columns.arrival_ns / NS_PER_S
    span_s = float(times_s[-1] - times_s[0])
    axes.set(title="arrivals", xlabel="time (s)")
    if not span_s:
        axes.bar([0.0], [len(columns)], color=OUTPUT, width=0.1)
        axes.set(ylabel="requests, all at once")
        return
    counts, edges = np.histogram(times_s, bins=min(BINS, max(len(columns) // 4, 1)))
    width_s = float(edges[1] - edges[0])
    axes.stairs(counts / width_s, edges, fill=True, color=OUTPUT, alpha=0.6, label=f"in {width_s:.3g} s")
    rate = len(columns) / span_s
    axes.axhline(rate, color=LINE, linestyle="--", label=f"mean {rate:.3g}/s")
    axes.set(
        ylabel="requests per second", xlim=(edges[0], edges[-1]), ylim=(0, _LEGEND * counts.max() / width_s)
    )
    axes.legend(loc="upper right")


def _plot_lengths(axes: Axes, columns: RequestColumns) -> None:
    """Share of the requests with at most so many tokens, and medians."""
    fields = (("prompt", columns.prompt_tokens, PROMPT), ("output", columns.output_tokens, OUTPUT))
    for name, tokens, colour in fields:
        share = np.arange(1, len(tokens) + 1) / len(tokens)
        label = f"{name}, median {np.median(tokens):,.6g}"
        axes.step(np.sort(tokens), share, where="post", color=colour, label=label)
    longest = max(int(tokens.max()) for _, tokens, _ in fields)
    axes.set(title="lengths", xlabel="tokens", ylabel="share of requests up to")
    axes.set(xscale="log", xlim=(1, longest * _LATER + 1), ylim=(0, _LATER))
    axes.grid(color=GRID)
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.legend(loc="best")


def _plot_joint(axes: Axes, columns: RequestColumns) -> None:
    """Number of requests by prompt and output tokens, both on logarithmic scales."""
    prompts, outputs = columns.prompt_tokens, columns.output_tokens
    edges = [np.geomspace(tokens.min() * 0.9, tokens.max() + 1, CELLS + 1) for tokens in (prompts, outputs)]
    counts, *_ = np.histogram2d(prompts, outputs, bins=edges)
    shown = np.ma.masked_equal(counts.T, 0)
    mesh = axes.pcolormesh(*edges, shown, norm="log", cmap="viridis", rasterized=True)
    axes.set(title="prompt and output", xlabel="prompt tokens", ylabel="output tokens")
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(_thousands))
    assert axes.figure is not None
    axes.figure.colorbar(mesh, ax=axes, label="requests")


def _plot_prefix(axes: Axes, columns: RequestColumns) -> None:
    """Share of the prompt tokens that stand in an earlier prompt, in parts of the trace and so far."""
    assert columns.prefix is not None
    shared = np.array(
        [tokens for tokens, _ in shared_with_earlier(columns.arrival_ns.tolist(), columns.prefix)]
    )
    prompts = columns.prompt_tokens
    parts = np.array_split(np.arange(len(prompts)), min(BINS, len(prompts)))
    starts = [int(part[0]) for part in parts]
    edges = [*starts, len(prompts)]
    in_part = np.add.reduceat(shared, starts) / np.add.reduceat(prompts, starts)
    axes.stairs(in_part, edges, fill=True, color=PROMPT, alpha=0.4, label=f"in {len(parts[0]):,} requests")
    so_far = np.cumsum(shared) / np.cumsum(prompts)
    axes.plot(np.arange(1, len(prompts) + 1), so_far, color=LINE, label=f"so far, {so_far[-1]:.1%} of all")
    axes.set(title="prefix sharing", xlabel="requests", ylabel="prompt tokens seen before")
    axes.set(xlim=(0, len(prompts)), ylim=(0, _LEGEND))
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.legend(loc="upper left")


def _thousands(value: float, _: int) -> str:
    return f"{value:,.6g}"
