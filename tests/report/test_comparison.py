"""Tables, sentences and pictures of a comparison."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from cspsched.errors import InputError
from cspsched.problem.excess import Excess
from cspsched.problem.objectives import Objective
from cspsched.problem.result import StopReason
from cspsched.report import figures, files, table
from cspsched.report.files import write_comparison, write_solution
from cspsched.report.output import require_writable, write_files
from cspsched.serving import make_instance
from cspsched.studies.compare import Comparison, compare_policies
from cspsched.studies.solving import solve
from cspsched.trace import read_trace
from cspsched.trace.shipped import shipped_trace_path
from cspsched.units import percent
from tests.support.comparisons import NO_SEARCH, compared, tight_comparison


@pytest.fixture(scope="module")
def tight() -> Comparison:
    """Five requests in three KV blocks: evictions, and an optimum that is not known."""
    return tight_comparison()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 s"),
        (1e-9, "1.000 ns"),
        (7.083e-9, "7.083 ns"),
        (1.5e-6, "1.500 us"),
        (0.0009999999, "1.000 ms"),
        (0.0445, "44.50 ms"),
        (0.99996, "1.000 s"),
        (59.999, "60.00 s"),
        (386.1098, "386.1 s"),
        (999.96, "1000 s"),
        (12345.678, "12,345.7 s"),
    ],
)
def test_time_has_four_digits_in_the_unit_that_fits(value, text):
    """No exponents, no thousand milliseconds, the same number of digits down a column."""
    assert table.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.00 %"), (1.08163, "108.16 %"), (0.0123, "1.23 %"), (0.000285, "0.028 %"), (1.1e-5, "0.0011 %")],
)
def test_percentage_keeps_two_digits_where_it_is_small(value, text):
    """A small excess is not rounded to zero: zero means proven to be none."""
    assert percent(value) == text


def test_excess_is_one_number_or_an_interval():
    """Where both ends read the same there is nothing to say twice."""
    assert table.excess(Excess(0.01, 0.01)) == "1.00 %"
    assert table.excess(Excess(0.0, 0.02)) == "0.00 % to 2.00 %"


def test_table_has_a_cell_for_every_column(tight):
    """Policy first, excess of the objective last, the numbers of the metrics between."""
    header, rows = table.header(tight), table.rows(tight)
    metrics = tight.rows[0].metrics.to_json()
    shown = dict(zip(header, rows[0], strict=True))

    assert (header[0], header[-1]) == ("policy", "certified excess (latency)")
    assert [row[0] for row in rows] == ["vllm", "sarathi:chunk=16"]
    assert shown["makespan"] == table.seconds(metrics["makespan_s"])
    assert shown["latency p99"] == table.seconds(metrics["latency_s"]["p99"])
    assert shown["preemptions"] == str(metrics["preemptions"])
    assert shown["recomputed tokens"] == str(metrics["recomputed_tokens"])
    assert shown["batches"] == str(metrics["num_batches"])


def test_requests_of_one_token_have_no_time_between_tokens():
    """With one output token each there is neither TPOT nor ITL: a dash, not 0 and not nan."""
    comparison = compared((20, 1), (7, 1))
    shown = dict(zip(table.header(comparison), table.rows(comparison)[0], strict=True))

    assert (shown["TPOT mean"], shown["ITL p99"]) == ("-", "-")


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (StopReason.TOO_LARGE, "too large for the exact solver"),
        (StopReason.TIME_LIMIT, "had no more time or work"),
        (StopReason.INTERRUPTED, "was interrupted"),
        (StopReason.FINISHED, "schedules of limited length only"),
    ],
)
def test_open_reference_says_why_it_is_open(tight, reason, words):
    """An interval comes with its two ends, both sources, and why the optimum is not known."""
    open_ended = replace(tight, reference=replace(tight.reference, stop_reason=reason))
    sentence = table.reference_sentence(open_ended)

    assert words in sentence
    assert tight.reference.certificate in sentence
    assert tight.reference.best_known_by in sentence
    assert f"{tight.reference.bound_ns // 5 / 1e9:.9f} s" in sentence


def test_optimal_reference_says_by_what(tight):
    """An optimum names who found it and what proves it."""
    closed = replace(tight.reference, bound_ns=tight.reference.best_known_ns)
    sentence = table.reference_sentence(replace(tight, reference=closed))

    assert sentence.startswith("Reference: the optimum, mean latency 0.")
    assert f"proven by {tight.reference.certificate}." in sentence


def test_footnotes_say_that_the_reference_is_clairvoyant_and_count_rejections():
    """Every report has the caveat; what was left out is counted with the first reason."""
    notes = table.footnotes(compared((20, 11), (70, 2), (80, 2), kv_tokens=48))

    assert any("clairvoyant" in note for note in notes)
    assert notes[-1].startswith("2 requests are rejected, the same for every policy; the first: request 'r1'")


def test_makespan_that_the_arrivals_decide_is_pointed_out():
    """If the last request arrives near the end, the makespan says little; times have a unit that fits."""
    trace = read_trace(shipped_trace_path("tiny-12"))
    late = compare_policies(make_instance(trace), ["vllm"], Objective.MAKESPAN, limits=NO_SEARCH)

    assert table.arrival_note(late)[0].startswith("The last request arrives at 373.7 ms of 399.1 ms: ")
    assert table.arrival_note(compared((20, 2), objective=Objective.MAKESPAN)) == []


def test_markdown_is_a_table_with_notes(tight):
    """Header, alignment, a row a policy, one of bounds, an empty line, and the footnotes as a list."""
    lines = table.markdown(tight).splitlines()

    assert lines[0].startswith("| policy | makespan |")
    assert lines[1].startswith("| --- | ---: |")
    assert [line.count("|") for line in lines[:5]] == [len(table.COLUMNS) + 1] * 5
    assert all(line.startswith("- ") for line in lines[6:])


def test_markdown_escapes_the_bar_in_a_name(tight):
    """A policy of another package may be called anything."""
    odd = replace(tight, rows=(replace(tight.rows[0], policy="a|b"),))

    assert "| a\\|b |" in table.markdown(odd)


def labels(figure: Figure) -> list[str]:
    legend = figure.axes[-1].get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def test_small_schedule_has_a_colour_for_every_request(tight):
    """c_ij and m_ij are stacked by request, with axes that say what and in which unit."""
    history = tight.rows[1].metrics.history
    batches, memory = figures.batch_figure(history, "x"), figures.memory_figure(history, "x")

    assert {"r0", "r1", "r2", "r3", "r4", "has a prefill", "eviction before"} == set(labels(batches))
    assert {"r0", "r1", "r2", "r3", "r4", "capacity 48"} == set(labels(memory))
    assert batches.axes[0].get_xlabel() == memory.axes[0].get_xlabel() == "time [ms]"
    assert batches.axes[0].get_ylabel() == "tokens in the batch (c)"
    assert memory.axes[0].get_ylabel() == "KV entries on the device (m)"


def test_bars_are_the_tokens_and_the_memory_of_the_schedule(tight):
    """The heights of the bars of a request are its tokens, and the stack never exceeds the capacity."""
    history = tight.rows[1].metrics.history
    axes = figures.batch_figure(history, "x").axes[0]
    heights = sum(bar.get_height() for bar in axes.patches)
    memory = figures.memory_figure(history, "x").axes[0]
    tops = [bar.get_y() + bar.get_height() for bar in memory.patches]

    assert heights == history.schedule.tokens.sum()
    assert max(tops) <= 48
    assert max(tops) <= memory.get_ylim()[1]


def test_large_schedule_is_drawn_by_phase():
    """Beyond 20 requests the tokens are split into prefill and decode, the memory is the highest of a bin."""
    many = compared(*[(20, 3)] * 21)
    history = many.rows[0].metrics.history
    batches, memory = figures.batch_figure(history, "x"), figures.memory_figure(history, "x")

    most = figures.occupied_blocks(history).max() * 16

    assert labels(batches) == ["decode", "prefill and refill"]
    assert [text.get_text() for text in memory.axes[0].get_legend().get_texts()] == [
        f"occupied, at most {most:,} ({100 * most / 444_896:.1f} %)", "capacity 444,896"
    ]  # fmt: skip


@pytest.mark.parametrize("count", [5, 21])
def test_memory_is_drawn_up_to_the_capacity(count):
    """By request and by phase alike the axis holds the capacity and its line, and a flat part is enlarged."""
    history = compared(*[(20, 3)] * count).rows[0].metrics.history
    whole, enlarged = figures.memory_figure(history, "x").axes
    (line,) = whole.lines

    assert set(line.get_ydata()) == {444_896}
    assert whole.get_ylim() == (0, pytest.approx(1.1 * 444_896))
    assert enlarged.lines[:] == []
    assert enlarged.get_ylim() == (0, pytest.approx(1.1 * 16 * figures.occupied_blocks(history).max()))
    assert enlarged.get_title().startswith("enlarged: the lowest ")


def test_full_memory_is_not_enlarged(tight):
    """Where much of the capacity is used one panel is enough."""
    (axes,) = figures.memory_figure(tight.rows[1].metrics.history, "x").axes

    assert axes.get_ylim() == (0, pytest.approx(1.1 * 48))


@pytest.mark.parametrize("count", [5, 21])
def test_policies_are_drawn_on_one_scale(count):
    """Time, tokens and memory have the same axes for every policy, whichever takes longest or has most."""
    histories = [row.metrics.history for row in compared(*[(20, 3)] * count).rows]
    frame = figures.frame_of(histories)
    for draw in (figures.batch_figure, figures.memory_figure):
        drawn = [draw(history, "x", frame).axes for history in histories]
        limits = [[(axes.get_xlim(), axes.get_ylim()) for axes in panels] for panels in drawn]
        assert limits[0] == limits[1]
        tops = [axes.dataLim.y1 for panels in drawn for axes in panels[:1]]
        assert max(tops) <= limits[0][0][1][1]
    assert len({int(history.schedule.end_ns[-1]) for history in histories}) == 2


def test_a_few_and_many_batches_are_drawn_in_one_way(tight, monkeypatch):
    """If one of the schedules is too long for colours by request, none has them."""
    histories = [row.metrics.history for row in tight.rows]
    numbers = sorted(history.schedule.num_batches for history in histories)
    assert numbers[0] < numbers[1]
    monkeypatch.setattr(figures, "MOST_COLOURED_BATCHES", numbers[0])
    frame = figures.frame_of(histories)

    assert {tuple(labels(figures.batch_figure(history, "x", frame))) for history in histories} == {
        ("decode", "prefill and refill")
    }


def test_a_long_batch_fills_all_bins_in_which_it_runs():
    """Twenty-odd batches cover 400 bins: none is empty, for memory is held and tokens run all the time."""
    history = compared(*[(20, 3)] * 21).rows[0].metrics.history
    assert history.schedule.num_batches < figures.BINS / 4
    end_s = int(history.schedule.end_ns[-1]) / 1e9
    _, (highest,) = figures.binned(history, end_s, np.maximum, history.features.tokens)
    _, means = figures.phase_means(history, end_s)

    assert highest.min() > 0
    assert sum(means).min() > 0
    assert highest.max() == history.features.tokens.max()


def test_excess_figure_tells_certain_from_possible(tight):
    """Two bars a policy, ended by the text of the table."""
    axes = figures.excess_figure(tight).axes[0]
    low = [bar.get_width() for bar in axes.patches[:2]]

    assert low == pytest.approx([100 * row.excess[0] for row in tight.rows])
    assert [text.get_text().strip() for text in axes.texts] == [
        table.excess(row.excess) for row in tight.rows
    ]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["vllm", "sarathi:chunk=16"]


@pytest.mark.parametrize(
    ("low", "high", "colour", "size"),
    [
        (0.0, 0.0002, "#55a868", "below 1 %"),
        (0.00999, 0.5, "#55a868", "below 1 %"),
        (0.01, 0.01, "#dd8452", "1 to 10 %"),
        (0.0999, 0.0999, "#dd8452", "1 to 10 %"),
        (0.1, 0.2, "#c44e52", "10 % and more"),
    ],
)
def test_the_colour_of_an_excess_is_its_size(tight, low, high, colour, size):
    """What is certain decides: less than 1 % is no alarm, and what is tiny is drawn tiny."""
    one = replace(tight, rows=(replace(tight.rows[0], excess=Excess(low, high)),))
    figure = figures.excess_figure(one)
    (axes,) = figure.axes
    told = [text.get_text() for text in figure.legends[0].get_texts()]

    assert {to_hex(bar.get_facecolor()) for bar in axes.patches} == {colour}
    assert told == [size] + ["pale: possible, the optimum is not known"] * (high > low)
    assert axes.get_xlim()[1] >= 1


def test_no_excess_has_no_picture(tight):
    """Bars of no length are not drawn; the table says so."""
    perfect = replace(tight, rows=tuple(replace(row, excess=Excess(0.0, 0.0)) for row in tight.rows))
    names = {name for name, _ in files.pictures_of(perfect)}

    assert names == {name for name, _ in files.pictures_of(tight)} - {"excess"}


def test_one_curve_where_latency_is_ttft():
    """If every request ends with its first token the two distributions are one."""
    short = compared((20, 1), (7, 1))
    figure = figures.latency_figure({row.policy: row.metrics for row in short.rows})

    assert [axes.get_xlabel() for axes in figure.axes] == ["latency = TTFT [s]"]


def test_perfect_score_still_has_an_axis(tight):
    """If no policy has any excess the figure is drawn all the same."""
    perfect = replace(tight, rows=tuple(replace(row, excess=Excess(0.0, 0.0)) for row in tight.rows))

    assert figures.excess_figure(perfect).axes[0].get_xlim() == (0, 1)


def test_latency_curves_go_from_none_to_all(tight):
    """Each curve starts at 0 and ends at 1; the dashes differ, so that of equal curves both show."""
    figure = figures.latency_figure({row.policy: row.metrics for row in tight.rows})

    for axes in figure.axes:
        assert all(line.get_ydata()[0] == 0 and line.get_ydata()[-1] == 1 for line in axes.lines)
        assert len({line.get_linestyle() for line in axes.lines}) == 2


@pytest.mark.parametrize("name", ["_hidden", "$x_{$", "请求", "é" * 300, "a\\b", "[x](y)"])
def test_any_name_can_be_drawn(name, tight, tmp_path):
    """Policies and requests may be called anything: no formula, no hidden label, no collapsed axes."""
    odd = replace(tight, rows=(replace(tight.rows[0], policy=name),))
    written = write_comparison(odd, tmp_path)

    assert all(path.stat().st_size > 0 for path in written)
    assert len(labels(figures.latency_figure({name: tight.rows[0].metrics}))) == 1


def test_hundreds_of_policies_are_drawn_legibly(tight, tmp_path, monkeypatch):
    """The excess has a line for each; legends and pictures of schedules are limited, and say so."""
    row = tight.rows[0]
    many = replace(tight, rows=tuple(replace(row, policy=f"vllm:max_num_seqs={k}") for k in range(1, 201)))

    assert len(figures.excess_figure(many).axes[0].get_yticklabels()) == 200
    legend = figures.latency_figure({one.policy: one.metrics for one in many.rows}).axes[-1].get_legend()
    assert legend is not None
    assert legend.get_title().get_text() == "and 178 more"
    monkeypatch.setattr("cspsched.report.files.MOST_PICTURED_POLICIES", 1)
    written = write_comparison(replace(many, rows=many.rows[:2]), tmp_path)
    assert len([path for path in written if path.name.startswith("batches-")]) == 1
    assert "drawn for the first 1 policies only" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_policies_whose_file_names_would_collide_get_pictures_of_their_own(tight, tmp_path):
    """Signs that do not belong into a file name are replaced without two policies becoming one."""
    rows = tuple(replace(tight.rows[0], policy=policy) for policy in ("a:b", "a=b", "a-b"))
    written = write_comparison(replace(tight, rows=rows), tmp_path)

    assert len(set(written)) == len(written)
    assert len(list(tmp_path.glob("batches-*.png"))) == 3


def test_solution_is_written_with_its_pictures(tmp_path):
    """schedule.json and two pictures; the same solution gives the same bytes."""
    result = solve(compared((20, 2)).instance).result

    first = [path.read_bytes() for path in write_solution(result, tmp_path / "a")]
    second = [path.read_bytes() for path in write_solution(result, tmp_path / "b")]

    assert [path.name for path in sorted((tmp_path / "a").iterdir())] == [
        "batches.png",
        "memory.png",
        "schedule.json",
    ]
    assert first == second


def test_place_is_tried_before_and_left_as_it_was(tmp_path):
    """A folder that could be made is accepted and not made; below a file it is refused."""
    (tmp_path / "file").touch()

    require_writable(tmp_path / "new" / "folder")

    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(InputError, match=r"file/below cannot be written: .*; choose another place"):
        require_writable(tmp_path / "file" / "below")


def test_file_that_cannot_be_written_is_named(tmp_path):
    """The message names the file, not just the folder."""
    (tmp_path / "taken").mkdir()

    with pytest.raises(InputError, match="taken cannot be written"):
        write_files(tmp_path, {"taken": "text"})

    assert write_files(Path(tmp_path / "a" / "b"), {"x": "é"})[0].read_bytes() == "é".encode()
