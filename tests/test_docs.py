"""The documentation is about the code that is there: names, fields, figures and examples."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import re
import tomllib
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import cspsched
from cspsched.bounds import certificates
from cspsched.cli.group import cspsched_group, run
from cspsched.exact.model import rules, start_model, timeline
from cspsched.exact.solver import solve_exactly
from cspsched.exact.watch import SearchLimits
from cspsched.problem.cost import COST_SCHEMA, CostModel
from cspsched.problem.objectives import Objective
from cspsched.problem.result import Status, StopReason
from cspsched.referee import rules as referee
from cspsched.trace import read_trace
from cspsched.trace.cells import TimeUnit
from cspsched.trace.formats import FORMATS
from cspsched.trace.shipped import shipped_trace_path
from tests.support.instances import three_equal
from tests.support.pages import (
    code_blocks,
    sections,
    text_of,
    undocumented,
)
from tests.support.places import DOCS, ROOT

DOTTED_NAME = re.compile(r"`((?:[a-z_]+\.)+\w+)`")
LINK = re.compile(r"\]\(([^)#:]+)\)")


def functions_of(module: ModuleType, prefix: str) -> set[str]:
    """Dotted names (below cspsched) of the functions of a module with a prefix."""
    return {
        f"{module.__name__.removeprefix('cspsched.')}.{name}"
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if name.startswith(prefix) and function.__module__ == module.__name__
    }


def resolve(dotted: str) -> Any:
    """What a dotted name below cspsched stands for: a part, a module, or something in one."""
    found: Any = cspsched
    path = "cspsched"
    for part in dotted.split("."):
        path += f".{part}"
        try:
            found = importlib.import_module(path) if inspect.ismodule(found) else getattr(found, part)
        except ModuleNotFoundError:
            found = getattr(found, part)
    return found


# Links


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_links_lead_somewhere(page):
    """Every link of a page to a file leads to one."""
    assert [link for link in LINK.findall(text_of(page)) if not (DOCS / link).exists()] == []


# The model


def test_every_function_named_in_the_model_page_exists():
    """Names such as `exact.model.rules.add_budget` are those of the code, whatever they were renamed to."""
    named = {name.removeprefix("cspsched.") for name in DOTTED_NAME.findall(text_of("model.md"))}

    assert len(named) > 40
    for name in sorted(named):
        assert resolve(name) is not None


@pytest.mark.parametrize(
    ("module", "prefix"),
    [(referee, "check_"), (rules, "add_"), (timeline, "add_"), (start_model, "add_")],
    ids=["referee", "batch-indexed", "timeline", "run-to-completion"],
)
def test_every_rule_is_in_the_model_page(module, prefix):
    """No check of the referee and no rule of a model is missing."""
    named = set(DOTTED_NAME.findall(text_of("model.md")))

    assert functions_of(module, prefix) - named == set()


def test_every_verdict_is_explained():
    """Every status, stop reason and certificate is named."""
    page = text_of("model.md")
    instance = three_equal()
    names = {one.name for objective in Objective for one in certificates(instance, objective)}

    assert [word for word in (*Status, *StopReason, *names) if f"`{word}`" not in page] == []


# Formats


def test_every_field_of_a_result_is_documented():
    """Result, instance, schedule and cost: no field is missing in the formats page."""
    result = solve_exactly(three_equal(), Objective.MAKESPAN, SearchLimits(time_limit_s=20))
    data = json.loads(json.dumps(result.to_json()))

    assert {"provenance", "schedule", "instance"} <= set(data)
    assert data["provenance"]["model"]
    assert list(undocumented(data)) == []


def test_the_check_of_fields_finds_what_is_missing():
    """An undescribed field is found, at any depth."""
    data = {"schema": "cspsched/result/2", "gap": 0, "provenance": [{"colour": 1}], "mass": 2}

    assert list(undocumented(data)) == ["cspsched/result/2: colour", "cspsched/result/2: mass"]


TINY = ("tiny-12", "--limit", "2", "--kv-tokens", "100")


@pytest.mark.parametrize(
    "arguments",
    [
        ("compare", *TINY, "--time-limit", "0s"),
        ("gate", *TINY, "--excess-at-most", "1%"),
        ("explain", *TINY, "--request", "r1"),
        ("simulate", *TINY),
        ("solve", *TINY, "--time-limit", "1s", "--out", "solved"),
        ("bound", *TINY),
        ("bound", *TINY, "--objective", "latency"),
        ("check", "broken.json"),
        ("trace", "describe", "tiny-12"),
        ("trace", "describe", "tiny-12", "--device", "h100"),
        ("trace", "generate", "--requests", "2", "--out", "made.csv"),
        ("trace", "sample", "tiny-12", "--requests", "2", "--output", "made.csv"),
        ("trace", "fit", "chat-2000", "--output", "made.json"),
        ("trace", "fetch"),
        ("trace", "list"),
        ("trace", "convert", "tiny-12", "made.parquet"),
        ("capacity",),
        ("policies",),
        ("models",),
        ("devices",),
        ("costs",),
        ("costs", "h100-llama-3.1-8b"),
    ],
    ids=" ".join,
)
def test_every_field_of_the_output_is_documented(arguments, tmp_path, monkeypatch, capsys):
    """`--json` of every command has a schema with a section of its own, and every field is in it."""
    monkeypatch.chdir(tmp_path)
    if arguments[0] == "check":
        run(cspsched_group, ["simulate", *TINY, "--save", "broken.json"])
        saved = json.loads(Path("broken.json").read_text())
        saved["schedule"]["end_ns"][0] += 1
        Path("broken.json").write_text(json.dumps(saved))
        capsys.readouterr()
    run(cspsched_group, [*arguments, "--json"])
    data = json.loads(capsys.readouterr().out)

    assert data["schema"] in sections()
    assert list(undocumented(data)) == []


def test_every_schema_of_the_code_has_a_section():
    """Whatever `cspsched/NAME/1` the package writes is described."""
    sources = (path.read_text() for path in Path(cspsched.__file__).parent.rglob("*.py"))
    used = {schema for text in sources for schema in re.findall(r'"(cspsched/[a-z-]+/\d)"', text)}

    assert COST_SCHEMA in used
    assert used == set(sections())


def test_every_column_of_a_trace_is_documented():
    """The name and the columns of each format, and the times that are given as examples are read."""
    page = text_of("traces.md")
    columns = {column for one in FORMATS for column in (one.name, *one.required_columns, *one.known_columns)}

    assert [column for column in columns if f"`{column}`" not in page] == []
    for time in ("2023-11-16 18:17:03.9799600", "2024-05-10 00:00:00.009930+00:00"):
        assert f"`{time}`" in page
        assert TimeUnit.UTC.parse(time) > 0


def test_the_cost_file_of_the_formats_page_is_read():
    """The TOML example is a cost model with the numbers that it shows."""
    (example,) = code_blocks("formats.md", "toml")
    cost = CostModel.from_json(tomllib.loads(example))

    assert cost.step == 5_000_000
    assert cost.tokens.slopes[1] == Fraction("15000.5")


def test_the_refusal_shown_is_the_one_given(tmp_path):
    """The message in the formats page is what the reader says."""
    shown = re.search(r"`trace\.csv (line 17: prompt_tokens is .*?)`", text_of("formats.md"))
    path = tmp_path / "trace.csv"
    rows = [f"r{k},0,{-3 if k == 15 else 1},1" for k in range(20)]
    path.write_text("\n".join(["request_id,arrival_s,prompt_tokens,output_tokens", *rows]))

    with pytest.raises(cspsched.CspschedError) as refusal:
        read_trace(path)

    assert shown is not None
    assert str(refusal.value) == f"{path} {shown[1]}"


# Limits


@pytest.mark.parametrize("path", sorted((ROOT / "models/costs").glob("*.toml")), ids=lambda path: path.stem)
def test_cost_page_quotes_what_a_cost_model_says_of_itself(path):
    """What it leaves out and each of its fit errors stand in the page word for word."""
    page, facts = text_of("cost_models.md"), tomllib.loads(path.read_text(encoding="utf-8"))

    left_out = [line for line in page.splitlines() if line.startswith(f"| {facts['leaves_out']} |")]

    assert any(f"`{facts['name']}`" in line for line in left_out)
    for work, error in facts.get("fit_error", {}).items():
        assert f"| `{facts['name']}` | {work.replace('_', ' ')} | {error} |" in page


def test_cost_page_is_up_to_date():
    """The page is what the script writes; run `python docs/generate_cost_page.py` if it is not."""
    spec = importlib.util.spec_from_file_location("generate_cost_page", DOCS / "generate_cost_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    assert text_of("cost_models.md") == module.page()


# Python


def test_python_page_runs(tmp_path, monkeypatch, capsys):
    """The code blocks of the Python page run one after another, and print something."""
    monkeypatch.chdir(tmp_path)
    session: dict[str, Any] = {}
    blocks = code_blocks("python_api.md", "python")
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"python_api.md block {number}", "exec"), session)

    assert len(blocks) >= 8
    assert "sarathi:chunk=256" in capsys.readouterr().out


def test_first_example_is_five_lines():
    """The README promises five lines."""
    first = code_blocks("python_api.md", "python")[0]

    assert len([line for line in first.splitlines() if line]) <= 5


def test_bounds_page_example_runs():
    """The code block of the bounds page runs on an instance."""
    session: dict[str, Any] = {"instance": three_equal(), "Objective": Objective}
    for block in code_blocks("bounds.md", "python"):
        exec(compile(block, "bounds.md", "exec"), session)

    assert session["certificate"].value_ns > 0


def test_shipped_traces_are_those_of_their_page():
    """Each name in the table of traces/README.md is a shipped trace."""
    names = re.findall(r"^\| `([\w-]+)` \|", (ROOT / "traces/README.md").read_text(), flags=re.MULTILINE)

    assert names
    assert all(shipped_trace_path(name).is_file() for name in names)


# Command line


@pytest.fixture(scope="module")
def generator():
    """The script that writes the page of the command line."""
    spec = importlib.util.spec_from_file_location("generate_cli_page", DOCS / "generate_cli_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_cli_page_is_up_to_date(generator):
    """The page is what the script writes; run `python docs/generate_cli_page.py` if it is not."""
    assert text_of("cli.md") == generator.page()


def test_cli_page_has_every_option(generator):
    """Every command has a section, and every option and argument is in it."""
    parts = re.split(r"^## ", text_of("cli.md"), flags=re.MULTILINE)[1:]
    by_heading = {part.partition("\n")[0]: part for part in parts}
    for words, command in generator.commands(cspsched_group, ("cspsched",)):
        section = by_heading[" ".join(words)]
        for parameter in command.params:
            for name in (*parameter.opts, *parameter.secondary_opts):
                assert (f"`{name}`" if name.startswith("-") else name.upper()) in section
