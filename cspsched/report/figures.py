"""Pictures of schedules and comparisons, as matplotlib figures that nobody but the caller holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from cspsched.problem.history import History
from cspsched.problem.referee import occupied_blocks
from cspsched.report.table import UNITS, excess
from cspsched.units import NS_PER_S

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cspsched.compare import Comparison
    from cspsched.problem.metrics import Metrics

MOST_COLOURED_REQUESTS = 20
MOST_COLOURED_BATCHES = 400
BINS = 400
MOST_LEGEND_ENTRIES = 22
MOST_LABEL_LETTERS = 32
MOST_TITLE_LETTERS = 90
ROW_INCHES = 0.45
MANY_DECADES = 100
DASHES = ("-", "--", "-.", ":")
PREFILL, DECODE, LINE = "#c44e52", "#4c72b0", "#333333"

FloatArray = npt.NDArray[np.float64]


def batch_figure(history: History, title: str) -> Figure:
    """Tokens processed in every batch over time: c_ij by request where few, else by phase."""
    figure, axes = _figure(f"Batch composition: {title}")
    if is_small(history):
        _stack_by_request(axes, history, _matrix(history, history.schedule.tokens, keep=False))
        axes.set_ylabel("tokens in the batch (c)")
        _mark_batches(axes, history)
    else:
        _plot_phases(axes, history)
    _scale(axes, history)
    _legend(axes)
    return figure


def memory_figure(history: History, title: str) -> Figure:
    """KV cache over time: m_ij by request where few, else all blocks; the line is the capacity."""
    figure, axes = _figure(f"KV cache: {title}")
    limits = history.instance.limits
    if is_small(history):
        _stack_by_request(axes, history, _matrix(history, history.kv_after, keep=True))
        axes.set_ylabel("KV entries on the device (m)")
    else:
        middle, (highest,) = _binned(history, np.maximum, occupied_blocks(history) * limits.block_tokens)
        axes.fill_between(middle, highest, step="mid", color=DECODE, alpha=0.6, label="occupied, highest")
        axes.set_ylabel("tokens of occupied KV blocks")
    high = axes.get_ylim()[1]
    if limits.kv_tokens <= 4 * high:
        axes.axhline(limits.kv_tokens, color=LINE, linestyle="--", label=f"capacity {limits.kv_tokens:,}")
    else:
        axes.set_title(axes.get_title() + f"  (capacity {limits.kv_tokens:,} tokens)")
    _scale(axes, history)
    _legend(axes)
    return figure


def excess_figure(comparison: Comparison) -> Figure:
    """Certified excess of each policy: the interval from the best known schedule to the bound."""
    height = 1.6 + ROW_INCHES * len(comparison.rows)
    figure, axes = _figure(f"Certified excess over the optimal {comparison.objective}", height=height)
    low, high = 100 * np.array([row.excess for row in comparison.rows]).T
    positions = np.arange(len(comparison.rows))
    axes.barh(positions, low, height=0.6, color=PREFILL, label="certain")
    if np.any(high > low):
        axes.barh(
            positions, high - low, height=0.6, left=low, color=PREFILL, alpha=0.35,
            label="possible: the optimum is not known exactly",
        )  # fmt: skip
        figure.legend(frameon=False, loc="outside lower right", ncols=2)
    for position, row in enumerate(comparison.rows):
        axes.text(high[position], position, f" {excess(row.excess)}", va="center", ha="left")
    axes.set_yticks(positions, [_shown(row.policy) for row in comparison.rows])
    axes.set_ylim(len(comparison.rows) - 0.5, -0.5)
    # Room for the text at the end of the longest bar; a perfect score still gets an axis.
    axes.set_xlim(0, 1.3 * high.max() or 1)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("worse than the best possible schedule by [%]")
    return figure


def latency_figure(metrics: Mapping[str, Metrics]) -> Figure:
    """Cumulative distribution of end-to-end latency and of time to first token, by policy."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2, sharey=True), ("latency", "TTFT"), strict=True):
        for position, (policy, measured) in enumerate(metrics.items()):
            times = measured.latency_ns if name == "latency" else measured.ttft_ns
            ordered = np.sort(times)[[0, *range(len(times))]] / NS_PER_S
            # Every policy has its own dashes, so that equal curves do not hide each other.
            axes.step(
                ordered, np.arange(len(ordered)) / len(times), where="post", label=_shown(policy),
                linestyle=DASHES[position % len(DASHES)], alpha=0.9,
            )  # fmt: skip
        axes.set_xlabel(f"{name} [s]")
        _scale_logarithmically(axes)
        axes.grid(visible=True, alpha=0.3)
    figure.axes[0].set_ylabel("share of requests")
    _legend(figure.axes[-1])
    figure.suptitle("Latency and time to first token")
    return figure


def is_small(history: History) -> bool:
    """Whether every request gets a colour of its own."""
    return (
        len(history.instance.requests) <= MOST_COLOURED_REQUESTS
        and history.schedule.num_batches <= MOST_COLOURED_BATCHES
    )


def _figure(title: str, height: float = 4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(10, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(_shown(title, MOST_TITLE_LETTERS))
    axes.grid(visible=True, alpha=0.3)
    axes.set_axisbelow(True)
    return figure, axes


def _scale(axes: Axes, history: History) -> None:
    """From 0 to the end of the last batch in a unit that fits, and whole tokens with room above them."""
    end = history.schedule.end_ns[-1] / NS_PER_S
    unit, seconds = next((pair for pair in UNITS if end >= pair[1]), UNITS[-1])
    axes.set_xlabel(f"time [{unit}]")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / seconds:,.6g}")
    axes.set_xlim(-0.01 * end, 1.01 * end)
    axes.set_ylim(0, 1.08 * axes.dataLim.y1)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter("{x:,.0f}")


def _scale_logarithmically(axes: Axes) -> None:
    """Plain numbers at 1, 2 and 5 of every decade, or at 1 where there are many decades."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < MANY_DECADES * low else (1,)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    left_out = len(labels) - MOST_LEGEND_ENTRIES
    title = f"and {left_out} more" if left_out > 0 else None
    if handles:
        axes.legend(
            handles[:MOST_LEGEND_ENTRIES], labels[:MOST_LEGEND_ENTRIES], title=title, frameon=False,
            loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize="small",
        )  # fmt: skip


def _shown(name: str, most_letters: int = MOST_LABEL_LETTERS) -> str:
    """A name as text: no formula, no label that matplotlib hides, and short enough to leave room."""
    short = name if len(name) <= most_letters else name[: most_letters - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return (" " + short if short.startswith("_") else short).replace("$", r"\$")


def _matrix(history: History, column: npt.NDArray[np.int64], *, keep: bool) -> FloatArray:
    """Column of the entries as (num_requests, num_batches); `keep` holds a value until it is released."""
    schedule = history.schedule
    matrix = np.zeros((len(history.instance.requests), schedule.num_batches))
    evicted = set(zip(schedule.evicted_request.tolist(), schedule.evicted_batch.tolist(), strict=True))
    finished = set(schedule.request[history.finishes].tolist())
    last = {i: int(schedule.batch_of_entry[schedule.request == i].max()) for i in finished}
    entries = {
        (i, j): value
        for i, j, value in zip(
            schedule.request.tolist(), schedule.batch_of_entry.tolist(), column.tolist(), strict=True
        )
    }
    for i, row in enumerate(matrix):
        held = 0
        for j in range(schedule.num_batches):
            held = 0 if not keep or (i, j) in evicted or j > last.get(i, j) else held
            held = entries.get((i, j), held)
            row[j] = held
    return matrix


def _stack_by_request(axes: Axes, history: History, matrix: FloatArray) -> None:
    schedule = history.schedule
    starts, widths = schedule.start_ns / NS_PER_S, (schedule.end_ns - schedule.start_ns) / NS_PER_S
    bottom = np.zeros(schedule.num_batches)
    colours = colormaps["tab20"]
    for i, row in enumerate(matrix):
        name = _shown(history.instance.requests[i].request_id)
        axes.bar(
            starts, row, widths, bottom=bottom, align="edge", color=colours(i % 20), edgecolor="white",
            linewidth=0.3, label=name,
        )  # fmt: skip
        bottom += row


def _mark_batches(axes: Axes, history: History) -> None:
    """A mark above every batch that carries a prefill or refill, a cross where somebody was evicted."""
    schedule, features = history.schedule, history.features
    starts = schedule.start_ns / NS_PER_S
    middle = (starts + schedule.end_ns / NS_PER_S) / 2
    prefilling = features.num_prefills > 0
    axes.plot(
        middle[prefilling], 1.02 * features.tokens[prefilling], "v", color=LINE, markersize=4,
        label="has a prefill",
    )  # fmt: skip
    evicting = np.unique(schedule.evicted_batch)
    if len(evicting):
        axes.plot(
            starts[evicting], np.zeros(len(evicting)), "X", color="red", markersize=7,
            label="eviction before", clip_on=False, zorder=5,
        )  # fmt: skip


def _plot_phases(axes: Axes, history: History) -> None:
    features = history.features
    decodes = features.num_decodes
    middle, (prefill, decode, count) = _binned(
        history, np.add, features.prefill_tokens, decodes, np.ones_like(decodes)
    )
    batches = np.maximum(count, 1)
    axes.stackplot(
        middle, decode / batches, prefill / batches, labels=["decode", "prefill and refill"],
        colors=[DECODE, PREFILL], step="mid",
    )  # fmt: skip
    axes.set_ylabel("tokens per batch, mean over the bin")


def _binned(
    history: History, combine: np.ufunc, *columns: npt.NDArray[np.int64]
) -> tuple[FloatArray, list[FloatArray]]:
    """Middle of each time bin in seconds, and columns of batches combined by the bin of their start."""
    starts = history.schedule.start_ns / NS_PER_S
    edges = np.linspace(0, history.schedule.end_ns[-1] / NS_PER_S, BINS + 1)
    position = np.clip(np.searchsorted(edges, starts, side="right") - 1, 0, BINS - 1)
    combined = []
    for column in columns:
        values = np.zeros(BINS)
        combine.at(values, position, column)
        combined.append(values)
    return (edges[:-1] + edges[1:]) / 2, combined
