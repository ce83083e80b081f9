"""The pages on the tutorial and on workloads are what their commands print; the site builds strictly."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from cspsched.trace.shipped import shipped_trace_path
from tests.support.command_line import invoke
from tests.support.pages import code_blocks
from tests.support.places import ROOT

CELL = re.compile(r"[^\s│┃]+")
PAGES = ("tutorial.md", "workloads.md")
CONSOLE = [block.strip().splitlines() for page in PAGES for block in code_blocks(page, "console")]


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trace and the gate's file that the page speaks of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    shutil.copy(shipped_trace_path("chat-2000"), "trace.csv")
    (gate,) = code_blocks("tutorial.md", "toml")
    Path("gate.toml").write_text(gate)


@pytest.mark.parametrize("block", CONSOLE, ids=[block[0] for block in CONSOLE])
def test_a_page_shows_what_its_commands_print(block, capsys):
    """Every shown line is printed, but for the blanks and frames of tables."""
    command, *shown = block
    outcome = invoke(capsys, *shlex.split(command.removeprefix("$ cspsched ")))
    printed = [CELL.findall(line) for line in outcome.out.splitlines()]

    assert outcome.code == 0
    assert shown
    assert [line for line in shown if CELL.findall(line) not in printed] == []


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed")
def test_the_site_is_built_strictly(tmp_path):
    """No page is missing in the navigation, and no link leads nowhere."""
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        tmp_path / "site",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "tutorial" / "index.html").is_file()


def test_the_profile_of_the_page_on_workloads_draws_sessions(tmp_path, capsys):
    """The JSON that is shown is a profile; most of its prompts begin with an earlier one."""
    (profile,) = code_blocks("workloads.md", "json")
    Path("talks.json").write_text(profile)
    made = invoke(
        capsys, "trace", "generate", "--profile", "talks.json", "--requests", 500, "--output", "t.csv"
    )
    described = invoke(capsys, "trace", "describe", "t.csv")

    assert made.code == 0
    assert "of the prompt tokens stand in an earlier prompt" in described.out
