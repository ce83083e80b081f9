"""`cspsched gate` as a repository's CI runs it: planted regressions are caught and named in every output."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import cmarkgfm
import pandas
import pytest
from cmarkgfm.cmark import Options
from junitparser import JUnitXml

from tests.support.command_line import invoke
from tests.support.gate_cases import write_checkout
from tests.support.schemas import validate

CERTAIN = "1000 %"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Head is the working directory, base lies beside it."""
    (tmp_path / "head").mkdir()
    monkeypatch.chdir(tmp_path / "head")
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    write_checkout(Path("../base"))


REGRESSIONS = {
    "reversed victim rule": {"victim": "self.running[::-1]"},
    "a seat limit": {"seats": 1},
}


@pytest.mark.parametrize("change", REGRESSIONS.values(), ids=REGRESSIONS)
def test_a_regression_is_caught_and_named_in_every_output(change, capsys):
    """Exit code 3; cell and reason stand in terminal, JSON, Markdown, JUnit, tables and annotations."""
    write_checkout(Path(), **change)
    arguments = ("gate", "--base-dir", "../base", "--out", "report", "--annotations")

    outcome = invoke(capsys, *arguments)
    data = json.loads(Path("report/gate.json").read_text())
    failed = [cell for cell in data["cells"] if cell["verdict"] == "failed"]

    assert outcome.code == 3
    assert failed
    assert {reason["kind"] for cell in failed for reason in cell["reasons"]} == {"regression"}
    text = failed[0]["reasons"][0]["text"]
    assert "above base's" in text
    assert f"FAIL  burst, mean {failed[0]['objective']}, mine" in outcome.out
    assert f"      {text}" in outcome.out.splitlines()
    assert outcome.out.count("::error file=scheduler.py,title=cspsched gate") == len(failed)
    assert text in Path("report/gate.md").read_text().replace("\\", "")
    assert text in Path("report/cells.csv").read_text()
    assert text.replace("'", "&#39;") in Path("report/gate.html").read_text()
    suite = JUnitXml.fromfile("report/junit.xml")
    assert (suite.tests, suite.failures, suite.errors) == (2, len(failed), 0)
    assert any(text in (one.text or "") for cases in suite for case in cases for one in case.result)
    assert json.loads(Path("report/badge.json").read_text())["message"] == "gate failed"


def test_a_seat_limit_of_four_is_caught(capsys, monkeypatch):
    """By options, without a file: six requests at once, and head seats four of them."""
    monkeypatch.setattr("cspsched.studies.reference.SMALL_CELLS", 0)
    call = ("gate", "burst-6", "--heuristics", "vllm:max_num_seqs=4", "--base", "vllm", "--steps", "1")
    outcome = invoke(capsys, *call)

    assert outcome.code == 3
    assert "FAIL  burst-6, mean latency, vllm:max_num_seqs=4" in outcome.out
    assert "above base's, and the tolerance is 0.00 %" in outcome.out
    assert invoke(capsys, *call, "--regression-at-most", "100%").code == 0


def test_a_reordering_of_equal_requests_passes(capsys):
    """The first two of every round are equal: whose turn is first changes no value."""
    orders = ("[0, 1, 2, 3]", "[1, 0, 2, 3]")
    same, swap = (f"self.waiting.sort(key=lambda i: (i // 4, {order}.index(i % 4)))" for order in orders)
    write_checkout(Path("../base"), schedule=same)
    write_checkout(Path(), schedule=swap)

    outcome = invoke(capsys, "gate", "--base-dir", "../base", "--json")
    cells = json.loads(outcome.out)["cells"]

    assert outcome.code == 0
    assert [cell["change"] for cell in cells] == [0.0, 0.0]
    assert cells[0]["head"]["policy"] != cells[0]["base"]["policy"]


def test_the_same_bytes_twice(capsys):
    """JSON and every file repeat to the byte, whatever folder they are written to."""
    write_checkout(Path(), seats=2)
    first = invoke(capsys, "gate", "--base-dir", "../base", "--json", "--out", "one")
    second = invoke(capsys, "gate", "--base-dir", "../base", "--json", "--out", "two")

    assert first.out == second.out
    names = sorted(path.name for path in Path("one").iterdir())
    assert {
        "gate.json",
        "gate.md",
        "junit.xml",
        "badge.json",
        "cells.csv",
        "cells.parquet",
        "gate.html",
    } <= set(names)
    for name in names:
        assert (Path("one") / name).read_bytes() == (Path("two") / name).read_bytes()


@pytest.mark.parametrize("side", ["head", "base"])
def test_a_side_that_raises_is_its_own_failure(side, capsys):
    """The exception is named, the other cells are decided, and the exit code is that of a failed gate."""
    write_checkout(Path())
    broken = Path() if side == "head" else Path("../base")
    write_checkout(broken, schedule="raise KeyError('seat')")
    with Path("gate.toml").open("a") as file:
        file.write('\n[[policies]]\nname = "vllm"\nhead = "vllm"\n')

    outcome = invoke(capsys, "gate", "--base-dir", "../base", "--json", "--junit", "junit.xml")
    cells = {cell["policy"]: cell for cell in json.loads(outcome.out)["cells"]}
    suite = JUnitXml.fromfile("junit.xml")

    assert outcome.code == 3
    assert cells["mine"]["verdict"] == "error"
    assert [reason["kind"] for reason in cells["mine"]["reasons"]] == [f"{side}-failed"]
    assert "KeyError: 'seat' (" in cells["mine"]["reasons"][0]["text"]
    assert cells["vllm"]["verdict"] == "passed"
    assert (suite.errors, suite.failures) == (2, 0)


def test_a_head_that_cannot_be_imported_is_its_own_failure(capsys):
    """A syntax error in the scheduler fails its cells, not the gate's file."""
    write_checkout(Path())
    Path("scheduler.py").write_text("class Mine(:")

    outcome = invoke(capsys, "gate", "--json")
    cell = json.loads(outcome.out)["cells"][0]

    assert outcome.code == 3
    assert cell["reasons"][0]["kind"] == "head-failed"
    assert "cannot be imported" in cell["head"]["failure"]


def test_a_stored_result_is_base(capsys):
    """On the same instance its values are exact; on another one the intervals of the excess decide."""
    write_checkout(Path())
    invoke(capsys, "gate", "--out", "stored")
    write_checkout(Path(), seats=1)
    call = ("gate", "--base-result", "stored/gate.json", "--json")

    worse = json.loads(invoke(capsys, *call).out)["cells"]
    Path("trace.csv").write_text(Path("trace.csv").read_text().replace("0.05,3,5", "0.05,3,4"))
    other = json.loads(invoke(capsys, *call).out)["cells"]

    assert {reason["kind"] for cell in worse for reason in cell["reasons"]} == {"regression"}
    assert all(cell["change"] > 0 for cell in worse)
    assert [cell["change"] for cell in other] == [None, None]
    for cell in other:
        least, most = cell["head"]["excess_at_least"], cell["base"]["excess_at_most"]
        kinds = [reason["kind"] for reason in cell["reasons"]]
        assert kinds == (["excess-regression"] if least > most else [])


def test_the_excess_has_to_be_proven_within_its_limit(capsys):
    """A limit at the upper end passes, one below it fails, with the certain part told."""
    write_checkout(Path(), excess=CERTAIN)
    cell = json.loads(invoke(capsys, "gate", "--json").out)["cells"][0]
    most = 100 * cell["head"]["excess_at_most"]

    write_checkout(Path(), excess=f"{most + 0.001:.6f} %")
    passed = json.loads(invoke(capsys, "gate", "--json").out)["cells"][0]
    write_checkout(Path(), excess=f"{most - 0.001:.6f} %")
    failed = json.loads(invoke(capsys, "gate", "--json").out)["cells"][0]

    assert passed["verdict"] == "passed"
    assert [reason["kind"] for reason in failed["reasons"]] == ["excess"]


def test_limits_may_differ_between_objectives(capsys):
    """A table by objective; an objective that it does not name has no limit."""
    write_checkout(Path())
    text = (
        Path("gate.toml").read_text().replace('excess_at_most = "1000 %"', 'excess_at_most = {ttft = "0 %"}')
    )
    Path("gate.toml").write_text(text)
    cells = json.loads(invoke(capsys, "gate", "--json").out)["cells"]

    assert [cell["excess_at_most"] for cell in cells] == [None, 0.0]
    assert [cell["verdict"] for cell in cells] == ["passed", "failed"]


def test_json_is_what_the_schemas_say(capsys):
    """Gate and comparison validate, with a base, without one, and with a failure."""
    write_checkout(Path(), schedule="raise KeyError")
    failed = invoke(capsys, "gate", "--base-dir", "../base", "--json")
    write_checkout(Path())
    passed = invoke(capsys, "gate", "--json")
    band = ("--uncertainty", "--limit", "3", "--time-limit", "0s")
    compared = invoke(capsys, "compare", "tiny-12", *band, "--json")

    validate(json.loads(failed.out), "gate")
    validate(json.loads(passed.out), "gate")
    validate(json.loads(compared.out), "comparison")
    assert [passed.code, failed.code] == [0, 3]


def test_every_output_says_where_it_comes_from(capsys):
    """Trace, instance, model, cost model, limits, policies with checksums, date and command."""
    write_checkout(Path())
    invoke(capsys, "gate", "--base-dir", "../base", "--out", "report")
    data = json.loads(Path("report/gate.json").read_text())
    facts = data["comparisons"][0]["provenance"]
    told = [facts["fingerprint"], facts["date"], "llama-3.1-8b", "infermax-70b", "kv blocks 14"]
    told += [policy["file_sha256"] for policy in facts["policies"]]

    assert facts["command"] == "cspsched gate --base-dir ../base"
    assert len(facts["policies"]) == 2
    for name in ("gate.md", "junit.xml"):
        text = Path(f"report/{name}").read_text().replace("\\", "")
        assert [fact for fact in [*told, facts["command"]] if fact not in text] == []


def test_the_date_is_that_of_the_environment(capsys, monkeypatch):
    """SOURCE_DATE_EPOCH makes outputs repeat on another day; what is no number is refused."""
    write_checkout(Path())
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert json.loads(invoke(capsys, "gate", "--json").out)["date"] == "1970-01-02"

    monkeypatch.setenv("SOURCE_DATE_EPOCH", "today")
    outcome = invoke(capsys, "gate", "--json")
    assert outcome.code == 2
    assert "SOURCE_DATE_EPOCH is 'today'" in outcome.err


def test_markdown_is_what_github_renders(capsys):
    """One table with a row a cell, folded details, and names of policies that are no markup."""
    write_checkout(Path(), seats=1)
    gate = Path("gate.toml").read_text().replace('name = "mine"', 'name = "<b>*a|b*</b> @me"')
    Path("gate.toml").write_text(gate)
    invoke(capsys, "gate", "--excess-at-most", "0%", "--markdown", "gate.md")
    html = cmarkgfm.github_flavored_markdown_to_html(
        Path("gate.md").read_text(), options=Options.CMARK_OPT_UNSAFE
    )

    assert html.count("<table>") == 2
    assert html.count("<td>FAIL</td>") + html.count("<td><strong>FAIL</strong></td>") == 2
    assert "&lt;b&gt;*a|b*&lt;/b&gt; @me" in html
    assert "<b>" not in html
    assert re.search(r"<details><summary>\s*burst: reference and provenance</summary>", html)
    assert "</details>" in html


def test_the_page_links_to_a_page_for_each_comparison(capsys):
    """Every link leads to a file beside it; names of policies are escaped; nothing is loaded."""
    write_checkout(Path(), seats=1)
    gate = Path("gate.toml").read_text().replace('name = "mine"', 'name = "<script>me"')
    Path("gate.toml").write_text(gate)
    invoke(capsys, "gate", "--base-dir", "../base", "--out", "report")
    page = Path("report/gate.html").read_text()
    links = re.findall(r'<a href="([^#"]+)">', page)

    assert len(links) == 2
    assert all((Path("report") / link).is_file() for link in links)
    assert "&lt;script&gt;me" in page
    assert "<script>me" not in page
    assert not re.search(r'(src|href)="(https?:)?//', page)


def test_tables_have_a_row_for_each_cell(capsys):
    """CSV and Parquet hold the cells of the JSON."""
    write_checkout(Path())
    invoke(capsys, "gate", "--base-dir", "../base", "--out", "report")
    cells = json.loads(Path("report/gate.json").read_text())["cells"]
    rows = list(csv.DictReader(Path("report/cells.csv").read_text().splitlines()))
    frame = pandas.read_parquet("report/cells.parquet")

    assert [row["objective"] for row in rows] == ["latency", "ttft"] == list(frame["objective"])
    assert [int(row["head_value_ns"]) for row in rows] == [cell["head"]["value_ns"] for cell in cells]
    assert list(frame["head_value_ns"]) == [cell["head"]["value_ns"] for cell in cells]


LIMITED = 'policies = ["vllm"]\nlimits = {excess_at_most = "9%"}'
REFUSED = {
    'objectives = ["latency"': (1, "no valid TOML"),
    'traces = ["burst-6"]\npolicies = ["vllm"]\ncolour = "red"': (1, "colour: unknown key"),
    'traces = ["burst-6"]': (1, "policies: missing"),
    'traces = []\npolicies = ["vllm"]': (1, "traces: list should have at least 1 item"),
    'traces = ["burst-6"]\npolicies = ["vllm"]\nlimits = {excess_at_most = 40}': (1, "such as '2.5 %'"),
    'traces = ["burst-6"]\npolicies = [{name = "a"}]': (1, "policies.0.head: missing"),
    'traces = ["burst-6"]\npolicies = ["vllm"]': (2, "nothing is decided about policy 'vllm'"),
    'traces = ["burst-6"]\npolicies = ["vlm"]\nlimits = {excess_at_most = "9%"}': (2, "unknown policy 'vlm'"),
    'traces = ["gone.csv"]\npolicies = ["vllm"]\nlimits = {excess_at_most = "9%"}': (1, "gone.csv does not"),
    f'traces = ["burst-6", "burst-6"]\n{LIMITED}': (2, "named twice"),
    f'traces = ["burst-6"]\nserving = {{kv-token = 3}}\n{LIMITED}': (1, "unknown option 'kv-token'"),
    f'traces = ["burst-6"]\nserving = {{kv-tokens = "x"}}\n{LIMITED}': (1, "no whole number from 1 on"),
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_wrong_file_is_refused_in_a_line(text, capsys):
    """The message names the file or the entry, what was got and what was expected."""
    code, message = REFUSED[text]
    Path("gate.toml").write_text(text)
    outcome = invoke(capsys, "gate")

    assert outcome.code == code
    assert message in outcome.err.splitlines()[-1]


def test_options_beside_a_file_are_refused(capsys):
    """What the file says is not said again on the command line."""
    write_checkout(Path())
    outcome = invoke(capsys, "gate", "--heuristics", "vllm")

    assert outcome.code == 2
    assert "--heuristics is given beside gate.toml" in outcome.err


def test_the_seed_of_the_command_line_counts_more_than_that_of_the_file(capsys):
    """0 is a seed, too."""
    write_checkout(Path())
    Path("gate.toml").write_text("seed = 7\n" + Path("gate.toml").read_text())

    assert json.loads(invoke(capsys, "gate", "--json").out)["seed"] == 7
    assert json.loads(invoke(capsys, "gate", "--seed", "0", "--json").out)["seed"] == 0


def test_two_names_of_one_objective_are_refused(capsys):
    """`latency` and `mean-latency` are the same cells."""
    write_checkout(Path())
    Path("gate.toml").write_text(Path("gate.toml").read_text().replace('"ttft"', '"mean-latency"'))
    outcome = invoke(capsys, "gate")

    assert outcome.code == 2
    assert "latency, mean-latency are the same" in outcome.err


def test_base_is_given_once(capsys):
    """Two sources of base contradict each other."""
    write_checkout(Path())
    outcome = invoke(capsys, "gate", "--base-dir", "../base", "--base-result", "gate.json")

    assert outcome.code == 2
    assert "give one of them" in outcome.err
