"""One vocabulary of options, numbers and names as people write them; a word at least every two seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import click
import pytest

import cspsched.cli.console
from cspsched.cli.console import Talk
from cspsched.cli.options import Count, Duration, Size
from cspsched.costs.models import model_name
from cspsched.policies.base import split_policies
from tests.support.command_line import ALL_COMMANDS, invoke

TIGHT = ("burst-6", "--cost", "infermax-70b", "--kv-tokens", "64", "--block-tokens", "1")


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Duration(), "30", 30.0),
        (Duration(), "1.5 MIN", 90.0),
        (Duration(), "500ms", 0.5),
        (Count(), "64k", 64_000),
        (Count(), "64Ki", 65_536),
        (Count(), "1.5K", 1_500),
        (Count(), "27,806", 27_806),
        (Size(), "4gib", 2**32),
        (Size(), "4 GIB", 2**32),
    ],
)
def test_numbers_are_understood(kind, text, value):
    """With units in upper and lower case; a bare time is in seconds."""
    assert kind.convert(text, None, None) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [(Duration(), "soon"), (Count(), "0"), (Count(), "1.5"), (Count(), "1,5k"), (Size(), "4")],
)
def test_what_is_no_number_is_refused(kind, text):
    """The sentence shows how it is written."""
    with pytest.raises(click.BadParameter, match="such as"):
        kind.convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "policies"),
    [
        ("vllm,sarathi", ["vllm", "sarathi"]),
        ("sarathi:chunk=512,max_num_seqs=64,vllm", ["sarathi:chunk=512,max_num_seqs=64", "vllm"]),
        ("vllm:max_num_seqs=4,sarathi:chunk=8", ["vllm:max_num_seqs=4", "sarathi:chunk=8"]),
        ("base=a.py:P,head=b.py:P", ["base=a.py:P", "head=b.py:P"]),
    ],
)
def test_policies_are_separated_by_commas_too(text, policies):
    """A setting stays with the policy before it."""
    assert split_policies(text) == policies


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("meta-llama/Meta-Llama-3.1-70B", "llama-3.1-70b"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b"),
        ("Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-7b"),
        ("neuralmagic/Meta-Llama-3.1-8B-Instruct-FP8", "llama-3.1-8b-fp8"),
        ("some-one/Unheard-Of-9B-FP8", "some-one/Unheard-Of-9B-FP8"),
    ],
)
def test_models_have_the_names_of_the_hub(text, name):
    """Variants of the same shape are the model; the format of the weights stays as the last word."""
    assert model_name(text) == name


def test_a_model_that_is_too_large_says_which_degrees_fit(capsys):
    """In one line, without a table of everything that was measured."""
    outcome = invoke(capsys, "bound", "tiny-12", "--model", "llama-3.1-70b")

    assert outcome.code == 2
    assert "does not fit on one h100: give --tensor-parallel 2, 4 or 8" in outcome.err


@pytest.mark.parametrize("name", sorted(ALL_COMMANDS))
def test_files_are_output_and_folders_are_out(name):
    """A file is written to --output or by its format, a folder to --out; policies are --heuristics."""
    for option in ALL_COMMANDS[name].params:
        if not isinstance(option, click.Option) or not isinstance(option.type, click.Path):
            continue
        shown = [one for one in option.opts if one not in getattr(option, "aliases", ())]
        assert option.type.file_okay or option.type.exists or shown == ["--out"], shown
        assert option.type.dir_okay is False or "--output" not in shown, shown
    names = {one for option in ALL_COMMANDS[name].params for one in option.opts}
    assert "--policy" not in names or "--heuristics" in names


@pytest.mark.parametrize(
    "command", ["solve", "compare", "explain", "simulate", "bound", "improve", "bracket", "windows"]
)
def test_objectives_are_the_same_everywhere(command):
    """The default is latency, and every measure is known."""
    (option,) = [one for one in ALL_COMMANDS[command].params if "--objective" in one.opts]

    assert option.default in ("latency", ("latency",))
    assert option.type.convert("mean-tpot", None, None) == "mean-tpot"
    assert {"--ttft-slo", "--tpot-slo"} <= {
        one for param in ALL_COMMANDS[command].params for one in param.opts
    }


@pytest.mark.parametrize("objective", ["mean-tpot", "max-itl", "misses", "latency+2*max-itl"])
def test_compare_takes_every_objective(objective, capsys):
    """Also those of which the optimum may be 0: then an end is no share of it."""
    arguments = ("--objective", objective, "--ttft-slo", "150ms", "--json")
    outcome = invoke(capsys, "compare", *TIGHT, "--limit", "3", *arguments)
    data = json.loads(outcome.out)

    assert outcome.code == 0
    assert data["objective"] == objective
    assert data["reference"]["bound_ns"] <= data["reference"]["best_known_ns"]


def test_old_names_still_work(capsys, tmp_path):
    """--policy, --save and --out FILE do what they did, and the help does not show them."""
    old = invoke(capsys, "simulate", *TIGHT, "--policy", "mc-sf", "--save", tmp_path / "a.json", "--json")
    new = invoke(
        capsys, "simulate", *TIGHT, "--heuristics", "mc-sf", "--output", tmp_path / "b.json", "--json"
    )
    made = invoke(capsys, "trace", "generate", "--requests", "3", "--out", tmp_path / "t.csv")

    assert (old.code, made.code) == (0, 0)
    assert old.out == new.out
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()
    assert "--save" not in invoke(capsys, "simulate", "--help").out


def test_help_is_a_command_and_near_names_are_suggested(capsys):
    """`help COMMAND` is COMMAND --help; a bundled trace that is misspelt is named."""
    assert (
        invoke(capsys, "help", "trace", "generate").out == invoke(capsys, "trace", "generate", "--help").out
    )
    assert "did you mean the bundled trace 'burst-6'" in invoke(capsys, "bound", "burst6").err
    assert "burst-6" in invoke(capsys, "trace", "list").out
    assert invoke(capsys, "trace", "list", "--json").code == 0


def test_nothing_is_silent_for_two_seconds(monkeypatch, capfd):
    """What takes long is said again and again, with how long it has taken."""
    monkeypatch.setattr(cspsched.cli.console, "MOST_SILENCE_S", 0.2)
    with Talk() as talk:
        talk.begin("counting grains of sand")
        talk.tell("a remark")
        time.sleep(1.2)
    lines = capfd.readouterr().err.splitlines()

    assert lines[:2] == ["a remark", "counting grains of sand: 0 s"]
    assert len(lines) >= 3
    assert all(line.startswith("counting grains of sand: ") for line in lines[1:])


@pytest.mark.parametrize("limit", [(), ("--limit", "3")])
def test_compare_repeats_to_the_byte(limit):
    """In two processes with other hash seeds, by a search and by the exact solver."""
    command = [sys.executable, "-m", "cspsched", "compare", *TIGHT, *limit, "--json"]
    outputs = [
        subprocess.run(
            command, capture_output=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    ]

    assert outputs[0] == outputs[1]
    assert json.loads(outputs[0])["repeats"] is True
