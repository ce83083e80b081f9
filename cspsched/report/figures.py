"""Pictures of schedules and comparisons, as matplotlib figures that nobody but the caller holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.figure import Figure

from cspsched.problem.history import History
from cspsched.problem.referee import occupied_blocks
from cspsched.units import NS_PER_S

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cspsched.compare import Comparison
    from cspsched.problem.metrics import Metrics

MOST_COLOURED_REQUESTS = 20
MOST_COLOURED_BATCHES = 400
BINS = 400
PREFILL, DECODE, LINE = "#c44e52", "#4c72b0", "#333333"

FloatArray = npt.NDArray[np.float64]


def batch_figure(history: History, title: str) -> Figure:
    """Tokens processed in every batch over time: c_ij by request where few, else by phase."""
    figure, axes = _figure(f"Batch composition: {title}", "tokens in the batch (c)")
    if is_small(history):
        _stack_by_request(axes, history, _matrix(history, history.schedule.tokens, keep=False))
        axes.set_ylabel("tokens in the batch (c)")
        _mark_prefills(axes, history)
    else:
        _plot_phases(axes, history)
    _legend(axes)
    return figure


def memory_figure(history: History, title: str) -> Figure:
    """KV cache over time: m_ij by request where few, else all blocks; the line is the capacity."""
    figure, axes = _figure(f"KV cache: {title}", "KV entries on the device (m)")
    limits = history.instance.limits
    if is_small(history):
        _stack_by_request(axes, history, _matrix(history, history.kv_after, keep=True))
    else:
        middle, (highest,) = _binned(history, np.maximum, occupied_blocks(history) * limits.block_tokens)
        axes.fill_between(middle, highest, step="mid", color=DECODE, alpha=0.6, label="occupied, highest")
        axes.set_ylabel("tokens of occupied KV blocks")
    high = axes.get_ylim()[1]
    if limits.kv_tokens <= 4 * high:
        axes.axhline(limits.kv_tokens, color=LINE, linestyle="--", label=f"capacity {limits.kv_tokens:,}")
    else:
        axes.set_title(axes.get_title() + f"  (capacity {limits.kv_tokens:,} tokens)")
    _legend(axes)
    return figure


def excess_figure(comparison: Comparison) -> Figure:
    """Certified excess of each policy: the interval from the best known schedule to the bound."""
    figure, axes = _figure(f"Certified excess over the optimal {comparison.objective}", "")
    for position, row in enumerate(comparison.rows):
        low, high = (100 * value for value in row.excess)
        axes.barh(position, low, color=PREFILL, label="certain" if position == 0 else None)
        label = "possible (the optimum is not known exactly)" if position == 0 and high > low else None
        axes.barh(position, high - low, left=low, color=PREFILL, alpha=0.35, label=label)
        text = f" {low:.2f} %" if high - low < 5e-3 else f" {low:.2f} to {high:.2f} %"
        axes.text(high, position, text, va="center", ha="left")
    axes.set_yticks(range(len(comparison.rows)), [row.policy for row in comparison.rows])
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.set_xlim(left=0)
    axes.set_xlabel("worse than the best possible schedule by [%]")
    _legend(axes)
    return figure


def latency_figure(metrics: Mapping[str, Metrics]) -> Figure:
    """Cumulative distribution of end-to-end latency and of time to first token, by policy."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2, sharey=True), ("latency", "TTFT"), strict=True):
        for policy, measured in metrics.items():
            times = measured.latency_ns if name == "latency" else measured.ttft_ns
            ordered = np.sort(times) / NS_PER_S
            axes.step(ordered, np.arange(1, len(ordered) + 1) / len(ordered), where="post", label=policy)
        axes.set_xlabel(f"{name} [s]")
        axes.set_xscale("log")
        axes.grid(visible=True, alpha=0.3)
    figure.axes[0].set_ylabel("share of requests")
    figure.axes[0].legend(frameon=False)
    figure.suptitle("Latency and time to first token")
    return figure


def is_small(history: History) -> bool:
    """Whether every request gets a colour of its own."""
    return (
        len(history.instance.requests) <= MOST_COLOURED_REQUESTS
        and history.schedule.num_batches <= MOST_COLOURED_BATCHES
    )


def _figure(title: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    axes.set_xlabel("time [s]")
    axes.set_ylabel(ylabel)
    axes.grid(visible=True, alpha=0.3)
    axes.set_axisbelow(True)
    return figure, axes


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize="small")


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
        name = history.instance.requests[i].request_id
        axes.bar(
            starts, row, widths, bottom=bottom, align="edge", color=colours(i % 20), edgecolor="white",
            linewidth=0.3, label=name,
        )  # fmt: skip
        bottom += row


def _mark_prefills(axes: Axes, history: History) -> None:
    """A tick above every batch that carries a prefill or refill, a cross where somebody was evicted."""
    schedule, features = history.schedule, history.features
    starts = schedule.start_ns / NS_PER_S
    prefilling = features.num_prefills > 0
    axes.plot(
        starts[prefilling], features.tokens[prefilling], "v", color=LINE, markersize=4, label="has a prefill"
    )
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
