"""Every command takes every trace: formats, archives, standard input, and options that say how to read it."""

from __future__ import annotations

import gzip
import io
import json
import sys

import pytest

from tests.support.command_line import ALL_COMMANDS, invoke
from tests.support.places import DATA
from tests.support.trace_samples import SAMPLES

TRIED = DATA / "tried"
needs_data = pytest.mark.skipif(not TRIED.is_dir(), reason="the tried inputs are not beside the checkout")
READING = {"--format", "--columns", "--dejitter", "--limit", "--window", "--scale-rate"}
(MOONCAKE,) = (one for one in SAMPLES if one.format == "mooncake")


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_all_commands_that_read_a_trace_have_the_options():
    """Whoever takes `--limit` takes `--format`, `--columns` and `--dejitter`."""
    for name, command in ALL_COMMANDS.items():
        options = {option for one in command.params for option in one.opts} & READING
        if "--window" in options:
            assert options == READING, name


COMMANDS = {
    "simulate": (),
    "compare": ("--time-limit", "1s"),
    "bound": (),
    "solve": ("--time-limit", "1s"),
    "improve": ("--time-limit", "1s"),
    "bracket": ("--time-limit", "1s"),
    "trace describe": (),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_reads_a_packed_trace_of_another_format(command, tmp_path, capsys):
    """And tells on stderr what it took it for."""
    (tmp_path / "trace.gz").write_bytes(gzip.compress(MOONCAKE.content))
    outcome = invoke(capsys, *command.split(), "trace.gz", "--dejitter", "uniform", *COMMANDS[command])

    assert outcome.code == 0, outcome.err
    assert "note: read as mooncake by its columns timestamp, input_length, output_length" in outcome.err


def test_standard_input_behind_a_list_of_policies(monkeypatch, capsys):
    """`-` ends the list as a trace does."""
    text = b"time_ms,input_tokens,output_tokens\n0,5,3\n5,7,2\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    outcome = invoke(capsys, "simulate", "--heuristics", "vllm", "-", "--json")

    assert outcome.code == 0, outcome.err
    assert "note: columns are guessed by their names" in outcome.err


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet", "gz", "zst", "tsv"])
def test_a_missing_trace_behind_policies_is_called_missing(suffix, capsys):
    """A name that ends as traces do is no policy."""
    outcome = invoke(capsys, "compare", "--heuristics", "vllm", "sarathi", f"missing.{suffix}")

    assert f"error: missing.{suffix} does not exist" in outcome.err


def test_options_that_make_no_sense_are_usage_errors(tmp_path, capsys):
    """Exit code 2, before anything is computed."""
    (tmp_path / "trace.jsonl").write_bytes(MOONCAKE.content)
    for option, value in (("--format", "x"), ("--columns", "x"), ("--dejitter", "x")):
        outcome = invoke(capsys, "trace", "describe", "trace.jsonl", option, value)
        assert (outcome.code, outcome.out) == (2, "")
        assert outcome.err.count("\n") == 1


@needs_data
def test_images_are_named_by_compare(capsys):
    """2 images in 1 of 2 requests."""
    outcome = invoke(capsys, "compare", TRIED / "05_azure_multimodal.csv", "--time-limit", "5s")

    assert outcome.code == 0
    assert "NumImages (2 images in 1 of 2 requests) is not simulated" in outcome.err + outcome.out


@needs_data
@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("03_mooncake_three_lines.jsonl", (3, 27.482, 1982 / 3, 130 / 3)),
        ("04_burstgpt_four_rows.csv", (3, 113.0, 600.0, 520 / 3)),
        ("05_azure_multimodal.csv", (2, 1.1, 640.0, 100.0)),
        ("10_splitwise_sim.csv", (2, 4.5, 385.0, 76.5)),
        ("11_vllm_bench_detailed.json", (2, 0.25, 281.0, 24.5)),
        ("17_azure_tabs.csv", (1, 0.0, 2162.0, 5.0)),
    ],
)
def test_the_inputs_that_were_tried(name, figures, capsys):
    """Requests, span and mean lengths."""
    data = json.loads(invoke(capsys, "trace", "describe", TRIED / name, "--json").out)
    means = [data[column]["mean"] for column in ("prompt_tokens", "output_tokens")]

    assert (data["num_requests"], data["span_s"], *means) == pytest.approx(figures)


@needs_data
def test_tabs_are_told(capsys):
    """The columns are read, and it is said how they are separated."""
    outcome = invoke(capsys, "trace", "describe", TRIED / "17_azure_tabs.csv")

    assert "note: columns are separated by tabs" in outcome.err
