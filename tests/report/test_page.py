"""The page of a comparison as text: what it holds, that it is escaped, and that its data is the schedules."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from cspsched.problem.excess import Excess
from cspsched.referee.rules import occupied_blocks
from cspsched.report import table
from cspsched.report.html import Band, Section, lanes, page, write_page
from cspsched.report.html.curves import Distribution, curves_json, distributions
from cspsched.report.html.template import TEMPLATES
from cspsched.report.html.verdict import bars, certainty_rows, verdict
from cspsched.studies.compare import Comparison
from tests.support.comparisons import long_comparison, tight_comparison
from tests.support.pages import code_blocks

ODD = "</script><script>alert(1)</script>&amp;{{ 7 * 7 }}'\""


@pytest.fixture(scope="module")
def tight() -> Comparison:
    """Five requests in three KV blocks: evictions, and an optimum that is not known."""
    return tight_comparison()


@pytest.fixture(scope="module")
def text(tight: Comparison) -> str:
    """Its page."""
    return page(tight)


def data_of(text: str) -> dict[str, Any]:
    """What the page's script reads."""
    found = re.search(r'id="data">([^<]*)</script>', text)
    assert found is not None
    return json.loads(zlib.decompress(base64.b64decode(found[1])))


class Document(HTMLParser):
    """Texts by tag, attributes, and whether all tags are closed."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.append((self.open[-1], data))

    def of(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


def entries_of(one: dict[str, Any]) -> dict[tuple[int, int], tuple[int, bool]]:
    """Tokens and phase by batch and request, from the runs of the page."""
    request, first = np.cumsum(one["run_request"]), np.cumsum(one["run_first"])
    found = {}
    for k, length in enumerate(one["run_length"]):
        for step in range(length):
            key = int(first[k]) + step, int(request[k])
            assert key not in found
            found[key] = one["run_tokens"][k], bool(one["run_decodes"][k])
    return found


@pytest.mark.parametrize("row", [0, 1])
def test_lanes_are_the_schedule(tight, text, row):
    """Of both policies c_ij, phases, times, KV blocks and evictions are those of the judged schedule."""
    history = tight.rows[row].metrics.history
    schedule = history.schedule
    (one,) = (one for one in data_of(text)["timeline"]["schedules"] if one["name"] == tight.rows[row].policy)
    batch = schedule.batch_of_entry.tolist()
    columns = (schedule.request.tolist(), schedule.tokens.tolist(), history.decodes.tolist())
    length_ns = np.cumsum(one["length_ns"])
    end_ns = np.cumsum(length_ns + one["idle_ns"])

    assert entries_of(one) == {(j, i): (c, d) for j, i, c, d in zip(batch, *columns, strict=True)}
    assert end_ns.tolist() == schedule.end_ns.tolist()
    assert (end_ns - length_ns).tolist() == schedule.start_ns.tolist()
    assert np.cumsum(one["occupied_blocks"]).tolist() == occupied_blocks(history).tolist()
    assert one["evicted_batch"] == schedule.evicted_batch.tolist()
    assert one["evicted_request"] == schedule.evicted_request.tolist()


def test_limits_bind_in_the_page_where_the_study_says(tight, text):
    """Batches between two changes are those in which the limit binds; some limit binds somewhere."""
    drawn = lanes.drawn_schedules(tight)
    told = data_of(text)["timeline"]["schedules"]

    for one, data in zip(drawn, told, strict=True):
        for name, binds in one.binding.columns.items():
            changes = np.zeros(len(binds) + 1, dtype=np.int64)
            changes[data["binding"][name]] = 1
            assert (np.cumsum(changes)[:-1] % 2 == 1).tolist() == binds.tolist()
    assert any(binds.any() for one in drawn for binds in one.binding.columns.values())


def test_best_known_schedule_stands_first_unless_a_policy_has_it(tight, text):
    """The reference's schedule is drawn once: by itself, or as the policy whose schedule it is."""
    schedules = data_of(text)["timeline"]["schedules"]
    own = replace(tight.reference, schedule=tight.rows[1].metrics.history.schedule)
    row = replace(tight.rows[1], value_ns=own.best_known_ns)
    shared = data_of(page(replace(tight, reference=own, rows=(tight.rows[0], row))))["timeline"]["schedules"]
    unknown = data_of(page(replace(tight, reference=replace(own, schedule=None))))["timeline"]["schedules"]

    assert [(one["name"], one["is_policy"]) for one in schedules] == [
        ("best known", False),
        ("vllm", True),
        ("sarathi:chunk=16", True),
    ]
    assert any(one["evicted_batch"] for one in schedules)
    assert [one["name"] for one in shared] == [one["name"] for one in unknown] == ["vllm", "sarathi:chunk=16"]


def test_first_difference_is_the_first_batch_that_differs(tight):
    """Up to the batch that is named all entries are the same, whatever their order in a batch."""
    drawn = lanes.drawn_schedules(tight)
    for (a, b), found in lanes.first_differences(drawn).items():
        one, other = (_batches(drawn[k].schedule) for k in (a, b))
        assert found == next(j for j, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    assert set(lanes.first_differences([drawn[0], drawn[0]]).values()) == {None}


def _batches(schedule: Any) -> list[set[tuple[int, int]]]:
    ends = schedule.first_entry.tolist()
    entries = list(zip(schedule.request.tolist(), schedule.tokens.tolist(), strict=True))
    return [set(entries[ends[j] : ends[j + 1]]) for j in range(schedule.num_batches)]


def test_schedules_that_are_too_long_are_cut_or_left_out(tight, monkeypatch):
    """A page holds so many batches and runs, and says from when on it shows nothing; or none at all."""
    monkeypatch.setattr(lanes.cut_ns, "__defaults__", (20,))
    short = page(tight)
    cut = data_of(short)["timeline"]
    monkeypatch.setattr(lanes, "MOST_ENTRIES", 1)
    none = page(tight)

    assert sum(len(one["idle_ns"]) + len(one["run_first"]) for one in cut["schedules"]) <= 20 + 3
    for one, drawn in zip(cut["schedules"], lanes.drawn_schedules(tight), strict=False):
        whole = {key for key in entries_of(one) if key[0] < len(one["idle_ns"])}
        assert whole == set(entries_of(one)) <= set(entries_of(drawn.to_json(drawn.schedule.num_batches)))
    assert "is not drawn: the page would be too large" in short
    assert data_of(none)["timeline"] is None
    assert "2 policies are not drawn: too many, or too long." in none
    assert 'id="schedules"' not in none


def test_curves_are_the_distributions(tight):
    """Each point of a curve is the exact share of times up to it, from nothing to all."""
    measured = {row.policy: row.metrics for row in tight.rows}
    for name, curve in zip(("latency", "ttft", "itl"), curves_json(distributions(measured)), strict=True):
        x_ns = np.round(np.array(curve["x_s"]) * 1e9)
        for row, shares in zip(tight.rows, curve["shares"], strict=True):
            values = {
                "latency": row.metrics.latency_ns, "ttft": row.metrics.ttft_ns, "itl": row.metrics.itl_ns
            }[name]  # fmt: skip
            assert shares == pytest.approx([float(np.mean(values <= x)) for x in x_ns], abs=1e-6)
        assert all((shares[0], shares[-1]) == (0, 1) for shares in curve["shares"])


def test_percentile_of_a_distribution_is_a_time_that_was_measured():
    """So many percent do not exceed it, and fewer do not exceed any lesser time."""
    one = Distribution(value_ns=np.array([10, 20, 40]), num_so_far=np.array([1, 3, 4]))

    assert [one.at_share(percent) for percent in (1, 25, 26, 75, 76, 100)] == [10, 10, 20, 20, 40, 40]


def test_nothing_of_a_file_is_markup(tight):
    """Names with markup stand in the page as text, in tables, bars, facts, sections and the data alike."""
    request = replace(tight.instance.requests[0], request_id=ODD)
    instance = replace(tight.instance, requests=(request, *tight.instance.requests[1:]))
    rows = (replace(tight.rows[0], policy=ODD), tight.rows[1])
    section = Section(title=ODD, text=[ODD], header=[ODD], rows=[[ODD]])
    odd = page(replace(tight, instance=instance, rows=rows), facts=[(ODD, ODD)], sections=[section])
    document = Document(odd)

    assert ODD not in odd
    assert "49" not in document.of("h1")[0]
    assert document.open == []
    assert sum(ODD in text for _, text in document.texts) >= 10
    assert document.of("script").count("alert(1)") == 0
    assert ODD in data_of(odd)["timeline"]["requests"]["id"]


def test_page_loads_nothing(text):
    """No address of another place is in the page, and it forbids them; scripts are named by their hashes."""
    document = Document(text)
    loading = [(tag, name) for tag, name, _ in document.attributes if name in ("src", "srcset", "href")]
    policy = next(value for tag, name, value in document.attributes if value.startswith("default-src"))
    scripts = [one for kind, one in re.findall(r'<script type="(\S+?)">(.*?)</script>', text, re.DOTALL)]

    assert set(loading) == {("a", "href")}
    assert policy.startswith(
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-"
    )
    assert len(scripts) == 2
    for script in scripts:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert not re.search(r"\beval\(|new Function|innerHTML|document\.write", scripts[1])
    assert "@import" not in text
    assert "url(" not in text


def test_table_has_every_column_and_the_numbers_to_sort_by(tight, text):
    """Header, rows and the row of bounds are those of the table; beside each text stands its number."""
    document = Document(text)
    keys = [value for tag, name, value in document.attributes if name == "data-key"]
    numbers = [[row[-1], *row[1:-1]] for row in table.numbers(tight)]

    assert set(table.header(tight)) <= set(document.of("button"))
    for row in [*table.rows(tight), *table.bounds_row(tight)]:
        assert set(filter(None, row)) <= set(document.of("td")) | set(document.of("th"))
    assert keys == [str(number) for row in numbers for number in row]
    assert all(isinstance(number, int | float) for row in numbers for number in row)


def test_facts_and_sections_are_shown_where_they_are_given(tight, text):
    """Labels with values at the head; text, rows and bands of each section before the notes."""
    band = Band(label="vllm", at_least=[0.1, None], at_most=[0.2, 0.3])
    section = Section(title="Ladder", text=["Each step."], header=["knows", "s"], rows=[["all", "1"]])
    chart = Section(title="Curve", x=[1, 2], bands=[band], y_label="%")
    full = page(tight, facts=[("Trace", "made"), ("Seed", "0")], sections=[section, chart])
    document = Document(full)

    assert list(zip(document.of("dt"), document.of("dd"), strict=True)) == [("Trace", "made"), ("Seed", "0")]
    assert [head.strip() for head in document.of("h2")][-3:] == ["Ladder", "Curve", "Notes"]
    assert "Each step." in document.of("p")
    assert data_of(full)["bands"] == [
        None,
        {
            "x": [1, 2],
            "x_label": "time [s]",
            "y_label": "%",
            "bands": [{"label": "vllm", "least": [0.1, None], "most": [0.2, 0.3]}],
        },
    ]
    assert "What was compared" not in text
    assert data_of(text)["bands"] == []


def test_page_reads_without_eyes_and_without_scripts(tight, text):
    """Language, one h1, a caption a table, headings with scope, a name for every button and picture."""
    document = Document(text)
    attributes = document.attributes
    roles = [value for tag, name, value in attributes if tag == "canvas" and name == "role"]

    assert ("html", "lang", "en") in attributes
    assert len(document.of("h1")) == 1
    assert text.count("<caption>") == text.count("<table") == text.count('role="region"')
    assert sum(name == "scope" for tag, name, _ in attributes if tag == "th") == text.count("<th ")
    assert roles == ["img"] * text.count("<canvas")
    assert text.count("<canvas") == len(re.findall(r"<canvas[^>]*aria-label=", text))
    for note in table.footnotes(tight):
        assert note in document.of("li")
    assert verdict(tight) in document.of("p")


def test_verdict_is_one_sentence_about_the_best_and_the_worst(tight):
    """Each end with its direction; an optimal policy, a single one and equal ones are said so."""
    first, second = tight.rows
    good = replace(first, value_ns=100, excess=Excess(0.0, 0.0))
    bad = replace(second, value_ns=130, excess=Excess(0.25, 0.3))
    best = replace(second, value_ns=100, excess=Excess(0.0, 0.04))

    def said(*rows: Any) -> str:
        return verdict(replace(tight, rows=rows))

    assert said(good) == "vllm is optimal: no schedule has a lower mean latency."
    assert said(good, bad) == (
        "vllm is optimal: no schedule has a lower mean latency; "
        "sarathi:chunk=16 is above the optimum by at least 25.00 % and at most 30.00 %."
    )
    assert said(bad) == (
        "sarathi:chunk=16 is above the optimal mean latency by at least 25.00 % and at most 30.00 %."
    )
    assert said(good, good) == ("Each of the 2 policies is optimal: no schedule has a lower mean latency.")
    assert said(best, bad).startswith(
        "sarathi:chunk=16 has the best known schedule and is above the optimal mean latency by at most 4.00"
    )


def test_bars_tell_certain_from_open(tight):
    """Widths on one axis that ends at a round number; an end that is not proven runs to the end."""
    ends = [Excess(0.1, 0.3), Excess(0.0, 0.0), Excess(0.2, None)]
    rows = tuple(replace(tight.rows[0], excess=one) for one in ends)
    drawn, ticks = bars(replace(tight, rows=rows))

    assert [(bar.certain, bar.open, bar.is_endless) for bar in drawn] == [
        (pytest.approx(33.333), pytest.approx(66.667), False),
        (0, 0, False),
        (pytest.approx(66.667), pytest.approx(33.333), True),
    ]
    assert [text for _, text in ticks] == ["0 %", "10 %", "20 %", "30 %"]
    assert [row[2:] for row in certainty_rows(replace(tight, rows=rows))] == [
        ["10.00 %", "20.00 points", "30.00 %"],
        ["0.00 %", "nothing", "0.00 %"],
        ["20.00 %", "no end is proven", "not known"],
    ]


def test_same_comparison_same_bytes(tight, tmp_path):
    """Nothing of the page depends on when or where it was written; a comparison writes it, too."""
    one, other = write_page(tight, tmp_path / "a" / "page.html"), tight.to_html(tmp_path / "b.html")

    assert one.read_bytes() == other.read_bytes()


def test_example_of_the_documentation_runs(tmp_path, monkeypatch):
    """The code block of docs/page.md writes a page with its facts and sections."""
    monkeypatch.chdir(tmp_path)
    (example,) = code_blocks("page.md", "python")
    exec(compile(example, "page.md", "exec"), {})
    written = Document((tmp_path / "report.html").read_text(encoding="utf-8"))

    assert "faster-victim" in written.of("dd")
    assert {"Costs", "Since May"} <= set(written.of("h2"))


def test_page_of_many_requests_is_small():
    """300 requests of two policies and the best known schedule take less than 3 MB x 300 / 2,000."""
    assert len(page(long_comparison()).encode()) < 450_000


def test_the_library_is_the_file_of_the_notice():
    """The licence is beside the library, and every file has the checksum that the notice states."""
    vendor = TEMPLATES / "vendor"
    notice = (vendor / "NOTICE").read_text(encoding="utf-8")
    stated = dict(reversed(pair) for pair in re.findall(r"([0-9a-f]{64})  (\S+)", notice))

    assert set(stated) == {one.name for one in vendor.iterdir()} - {"NOTICE"}
    for name, digest in stated.items():
        assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == digest
    assert "MIT" in (vendor / "LICENSE.uPlot").read_text(encoding="utf-8")
