"""Pictures of schedules and comparisons, as matplotlib figures that nobody but the caller holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from cspsched.referee.history import History
from cspsched.referee.rules import occupied_blocks
from cspsched.report.table import UNITS, excess
from cspsched.units import NS_PER_S

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cspsched.referee.metrics import Metrics
    from cspsched.studies.compare import Comparison

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
ENLARGED_SHARE = 0.2
"""Of the KV capacity: what less is occupied is too flat to be read."""
MARGIN = 1.1
"""Room above what is drawn."""
SIZES = ((0.01, "#55a868", "below 1 %"), (0.1, "#dd8452", "1 to 10 %"), (np.inf, "#c44e52", "10 % and more"))
"""Excesses below a share with their colour: nobody need be alarmed by less than 1 %."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What the pictures of several schedules share, so that they can be compared by eye."""

    end_s: float
    """End of the last batch of any of them."""
    tokens: float
    """Most tokens that any of them shows in a batch."""
    kv_tokens: int
    """Most tokens of KV blocks that any of them occupies."""
    by_request: bool
    """Whether every request gets a colour of its own, in all of them."""


def frame_of(histories: Sequence[History]) -> Frame:
    """The frame into which all of some schedules fit."""
    end_s = max(int(history.schedule.end_ns[-1]) for history in histories) / NS_PER_S
    by_request = all(map(is_small, histories))
    tokens = [
        history.features.tokens if by_request else np.add(*phase_means(history, end_s)[1])
        for history in histories
    ]
    kv_tokens = [
        int(occupied_blocks(history).max()) * history.instance.limits.block_tokens for history in histories
    ]
    return Frame(
        end_s=end_s, tokens=float(max(map(np.max, tokens))), kv_tokens=max(kv_tokens), by_request=by_request
    )


def batch_figure(history: History, title: str, frame: Frame | None = None) -> Figure:
    """Tokens processed in every batch over time: c_ij by request where few, else by phase."""
    figure, (axes,) = _figure(f"Batch composition: {title}")
    frame = frame or frame_of([history])
    if frame.by_request:
        _stack_by_request(axes, history, _matrix(history, history.schedule.tokens, keep=False))
        axes.set_ylabel("tokens in the batch (c)")
        _mark_batches(axes, history)
    else:
        _plot_phases(axes, history, frame.end_s)
    _scale(axes, frame.end_s, frame.tokens)
    _legend(axes)
    return figure


def memory_figure(history: History, title: str, frame: Frame | None = None) -> Figure:
    """KV cache over time, up to the capacity: m_ij by request where few, else all blocks.

    Where little of the capacity is used the lower part is drawn once more, enlarged, below.
    """
    frame = frame or frame_of([history])
    capacity = history.instance.limits.kv_tokens
    share = frame.kv_tokens / capacity
    figure, panels = _figure(f"KV cache: {title}", num_panels=2 if share < ENLARGED_SHARE else 1)
    for axes in panels:
        _plot_memory(axes, history, frame)
    # Entries that requests share by prefix caching count for each of them, and may exceed the capacity.
    highest = max(float(capacity), panels[0].dataLim.y1)
    panels[0].axhline(capacity, color=LINE, linestyle="--", label=f"capacity {capacity:,}")
    _scale(panels[0], frame.end_s, highest)
    for axes in panels[1:]:
        axes.set_title(
            f"enlarged: the lowest {100 * MARGIN * share:.2g} % of the capacity", fontsize="medium"
        )
        _scale(axes, frame.end_s, frame.kv_tokens)
    _legend(panels[0])
    return figure


def _plot_memory(axes: Axes, history: History, frame: Frame) -> None:
    limits = history.instance.limits
    if frame.by_request:
        _stack_by_request(axes, history, _matrix(history, history.kv_after, keep=True))
        axes.set_ylabel("KV entries on the device (m)")
    else:
        occupied = occupied_blocks(history) * limits.block_tokens
        middle, (highest,) = binned(history, frame.end_s, np.maximum, occupied)
        most = int(occupied.max())
        label = f"occupied, at most {most:,} ({most / limits.kv_tokens:.1%})".replace("%", " %")
        axes.fill_between(middle, highest, step="mid", color=DECODE, alpha=0.6, label=label)
        axes.set_ylabel("tokens of occupied KV blocks")


def excess_figure(comparison: Comparison) -> Figure:
    """Certified excess of each policy: the interval from the best known schedule to the bound.

    An end that is no share of 0 is not drawn; the text beside the bar says so.
    """
    height = 1.6 + ROW_INCHES * len(comparison.rows)
    figure, (axes,) = _figure(f"Certified excess over the optimal {comparison.objective}", height=height)
    least = [row.excess.at_least or 0.0 for row in comparison.rows]
    most = [max(row.excess.at_most or 0.0, low) for row, low in zip(comparison.rows, least, strict=True)]
    low, high = 100 * np.array([least, most])
    positions = np.arange(len(comparison.rows))
    colours = list(map(_colour, least))
    axes.barh(positions, low, height=0.6, color=colours)
    shown = [Patch(color=colour, label=size) for _, colour, size in SIZES if colour in colours]
    if np.any(high > low):
        axes.barh(positions, high - low, height=0.6, left=low, color=colours, alpha=0.35)
        shown.append(Patch(color=LINE, alpha=0.35, label="pale: possible, the optimum is not known"))
    figure.legend(handles=shown, frameon=False, loc="outside lower right", ncols=len(shown))
    for position, row in enumerate(comparison.rows):
        axes.text(high[position], position, f" {excess(row.excess)}", va="center", ha="left")
    axes.set_yticks(positions, [_shown(row.policy) for row in comparison.rows])
    axes.set_ylim(len(comparison.rows) - 0.5, -0.5)
    # Room for the text at the end of the longest bar; what is tiny looks tiny.
    axes.set_xlim(0, max(1.3 * high.max(), 1))
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("worse than the best possible schedule by [%]")
    return figure


def latency_figure(metrics: Mapping[str, Metrics]) -> Figure:
    """Cumulative distribution of end-to-end latency and of time to first token, by policy."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    names = ["latency", "TTFT"]
    if all(np.array_equal(measured.latency_ns, measured.ttft_ns) for measured in metrics.values()):
        # Every request ends with its first token.
        names = ["latency = TTFT"]
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        for position, (policy, measured) in enumerate(metrics.items()):
            times = measured.ttft_ns if name == "TTFT" else measured.latency_ns
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


def _figure(title: str, height: float = 4, num_panels: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure and its panels, one below the other, with the title above."""
    figure = Figure(figsize=(10, height + 2 * (num_panels - 1)), layout="constrained")
    panels: list[Axes] = list(figure.subplots(num_panels, 1, squeeze=False)[:, 0])
    for axes in panels:
        axes.grid(visible=True, alpha=0.3)
        axes.set_axisbelow(True)
    panels[0].set_title(_shown(title, MOST_TITLE_LETTERS))
    return figure, panels


def _colour(share: float) -> str:
    """Colour of an excess, by its size."""
    return next(colour for limit, colour, _ in SIZES if share < limit)


def _scale(axes: Axes, end_s: float, tokens: float) -> None:
    """From 0 to the end of the last batch in a unit that fits, and whole tokens with room above them."""
    unit, seconds = next((pair for pair in UNITS if end_s >= pair[1]), UNITS[-1])
    axes.set_xlabel(f"time [{unit}]")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / seconds:,.6g}")
    axes.set_xlim(-0.01 * end_s, 1.01 * end_s)
    axes.set_ylim(0, MARGIN * tokens)
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


def _plot_phases(axes: Axes, history: History, end_s: float) -> None:
    middle, means = phase_means(history, end_s)
    axes.stackplot(
        middle, *means, labels=["decode", "prefill and refill"], colors=[DECODE, PREFILL], step="mid"
    )
    axes.set_ylabel("tokens per batch, mean over the bin")


def phase_means(history: History, end_s: float) -> tuple[FloatArray, list[FloatArray]]:
    """Middle of each time bin, and its mean tokens of decodes and of prefills in a batch."""
    features = history.features
    decodes = features.num_decodes
    middle, (decode, prefill, count) = binned(
        history, end_s, np.add, decodes, features.prefill_tokens, np.ones_like(decodes)
    )
    batches = np.maximum(count, 1)
    return middle, [decode / batches, prefill / batches]


def binned(
    history: History, end_s: float, combine: np.ufunc, *columns: npt.NDArray[np.int64]
) -> tuple[FloatArray, list[FloatArray]]:
    """Middle of each time bin in seconds, and columns of batches combined over all bins in which they run."""
    schedule = history.schedule
    edges = np.linspace(0, end_s, BINS + 1)
    first = np.clip(np.searchsorted(edges, schedule.start_ns / NS_PER_S, side="right") - 1, 0, BINS - 1)
    last = np.clip(np.searchsorted(edges, schedule.end_ns / NS_PER_S, side="left") - 1, 0, BINS - 1)
    lengths = np.maximum(last - first, 0) + 1
    batch = np.repeat(np.arange(schedule.num_batches), lengths)
    position = first[batch] + np.arange(len(batch)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    combined = []
    for column in columns:
        values = np.zeros(BINS)
        combine.at(values, position, column[batch])
        combined.append(values)
    return (edges[:-1] + edges[1:]) / 2, combined
