"""How values are read: several after one option, times with units, windows, bundled traces."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from cspsched.cli.options import Duration, ManyValuesCommand, Window
from tests.support.command_line import invoke


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test works in a folder of its own, with a trace of one request in it."""
    monkeypatch.chdir(tmp_path)
    text = "request_id,arrival_s,prompt_tokens,output_tokens\nr0,0,20,3\n"
    Path("trace.csv").write_text(text, encoding="utf-8")
    Path("requests").write_text(text, encoding="utf-8")


def parsed(*arguments: str) -> tuple[tuple[str, ...], str | None, bool]:
    """Policies, trace and flag that a command of the same shape as `compare` reads."""

    @click.command("demo", cls=ManyValuesCommand)
    @click.argument("trace", required=False)
    @click.option("--heuristics", multiple=True, default=("vllm",))
    @click.option("--json", "as_json", is_flag=True)
    def demo(trace: str | None, heuristics: tuple[str, ...], as_json: bool) -> object:  # noqa: FBT001
        return heuristics, trace, as_json

    return demo.main(args=list(arguments), standalone_mode=False)


TWO = ("vllm", "sarathi")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", (("vllm",), None, False)),
        ("trace.csv", (("vllm",), "trace.csv", False)),
        ("--heuristics vllm sarathi", (TWO, None, False)),
        ("--heuristics vllm sarathi trace.csv", (TWO, "trace.csv", False)),
        ("--heuristics vllm sarathi requests", (TWO, "requests", False)),
        ("--heuristics vllm sarathi tiny-12", (TWO, "tiny-12", False)),
        ("--heuristics vllm sarathi missing.csv", (TWO, "missing.csv", False)),
        ("--heuristics vllm sarathi folder/requests", (TWO, "folder/requests", False)),
        ("trace.csv --heuristics vllm sarathi", (TWO, "trace.csv", False)),
        ("--heuristics vllm sarathi --json trace.csv", (TWO, "trace.csv", True)),
        ("--heuristics vllm sarathi --json", (TWO, None, True)),
        ("--heuristics=vllm sarathi", (TWO, None, False)),
        ("--heuristics=vllm", (("vllm",), None, False)),
        ("--heuristics vllm --heuristics sarathi trace.csv", (TWO, "trace.csv", False)),
        ("--heuristics=vllm --heuristics=sarathi", (TWO, None, False)),
        (
            "trace.csv --heuristics vllm sarathi:chunk=512 x",
            (("vllm", "sarathi:chunk=512", "x"), "trace.csv", False),
        ),
        (
            "--heuristics vllm:table=a/b.toml sarathi:x=1",
            (("vllm:table=a/b.toml", "sarathi:x=1"), None, False),
        ),
        ("--heuristics vllm plug:file=a/b.toml", (("vllm", "plug:file=a/b.toml"), None, False)),
    ],
)
def test_several_values_after_one_option(arguments, expected):
    """The policies end at the next option or at what looks like a trace, wherever the option stands."""
    assert parsed(*arguments.split()) == expected


@pytest.mark.parametrize(
    "arguments",
    [
        "--heuristics vllm sarathi:chunk=16 trace.csv",
        "trace.csv --heuristics vllm sarathi:chunk=16",
        "--heuristics=vllm sarathi:chunk=16 --time-limit 0s trace.csv",
        "--heuristics vllm --heuristics sarathi:chunk=16 trace.csv",
    ],
)
def test_compare_reads_the_same_policies_in_every_form(arguments, capsys):
    """The command itself gets both policies and the trace, whatever the order."""
    outcome = invoke(capsys, "compare", *arguments.split(), "--json")

    data = json.loads(outcome.out)
    assert [row["policy"] for row in data["policies"]] == ["vllm", "sarathi:chunk=16"]
    assert data["num_requests"] == 1


def test_solve_takes_several_heuristics_too(capsys):
    """`solve trace.csv --heuristics vllm sarathi` works to the letter."""
    outcome = invoke(capsys, "solve", "trace.csv", "--heuristics", "vllm", "sarathi")

    assert outcome.code == 0
    assert outcome.out.startswith("OPTIMAL")


def test_no_trace_takes_the_bundled_one(capsys):
    """Without a trace the 2,000 requests of chat-2000 are described."""
    outcome = invoke(capsys, "trace", "describe", "--json")

    assert json.loads(outcome.out)["num_requests"] == 2000


def test_bundled_trace_is_found_by_name_unless_a_file_has_it(capsys):
    """`tiny-12` is the bundled trace; a file of that name in the folder comes first."""
    bundled = invoke(capsys, "trace", "describe", "tiny-12", "--json")
    Path("tiny-12").write_bytes(Path("trace.csv").read_bytes())
    own = invoke(capsys, "trace", "describe", "tiny-12", "--json")

    assert json.loads(bundled.out)["num_requests"] == 12
    assert json.loads(own.out)["num_requests"] == 1


@pytest.mark.parametrize(
    ("text", "seconds"), [("60s", 60), ("5min", 300), ("500ms", 0.5), ("2h", 7200), ("0s", 0), ("1.5s", 1.5)]
)
def test_duration_has_a_unit(text, seconds):
    """Hours, minutes, seconds and milliseconds, with a fraction or without."""
    assert Duration().convert(text, None, None) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["-5s", "s", "5 minutes", "1e3s", "", "nans"])
def test_what_is_no_duration_is_refused(text):
    """The sentence shows how it is written."""
    with pytest.raises(click.BadParameter, match="is no time, such as 60s, 5min, 500ms or 60"):
        Duration().convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "window"),
    [("60:120", (60, 120)), (":300", (0, 300)), ("5:", (5, float("inf"))), ("0.5:1.5", (0.5, 1.5))],
)
def test_window_is_two_times(text, window):
    """Start and end in seconds; what is left out is open."""
    assert Window().convert(text, None, None) == window


@pytest.mark.parametrize("text", ["x", "5", "a:b", "1:2:3"])
def test_window_that_is_none_is_refused(text):
    """Anything but two numbers with a colon is refused with an example."""
    with pytest.raises(click.BadParameter, match="is no window in seconds, such as 60:120 or :300"):
        Window().convert(text, None, None)


def test_selection_reaches_the_trace(capsys):
    """--limit, --window and --scale-rate select from the trace before anything is computed."""
    limited = json.loads(invoke(capsys, "trace", "describe", "tiny-12", "--limit", "3", "--json").out)
    window = json.loads(invoke(capsys, "trace", "describe", "tiny-12", "--window", "0:0.01", "--json").out)
    slow = json.loads(invoke(capsys, "trace", "describe", "tiny-12", "--json").out)
    fast = json.loads(invoke(capsys, "trace", "describe", "tiny-12", "--scale-rate", "10", "--json").out)

    assert limited["num_requests"] == 3
    assert window["num_requests"] == 2
    assert fast["span_s"] == pytest.approx(slow["span_s"] / 10)


@pytest.mark.parametrize(
    ("option", "switch"),
    [
        ("--no-chunking", {"chunked_prefill": False}),
        ("--no-hybrid", {"hybrid_batches": False}),
        ("--no-holding", {"holding": False}),
        ("--reservation", {"reservation": True}),
        ("--preemption=none", {"preemption": "none"}),
    ],
)
def test_switch_reaches_the_instance(option, switch, capsys):
    """Each switch of `solve` changes its own rule in the instance that is solved, and no other."""
    defaults = {
        "chunked_prefill": True,
        "hybrid_batches": True,
        "holding": True,
        "preemption": "recompute",
        "reservation": False,
    }

    outcome = invoke(capsys, "solve", "trace.csv", option, "--time-limit", "0s")
    written = json.loads(Path("cspsched-solve/schedule.json").read_text(encoding="utf-8"))

    assert outcome.code == 0
    assert written["instance"]["switches"] == {**defaults, **switch}
