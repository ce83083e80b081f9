"""Ctrl-C: the best schedule so far is written, and the exit code is 130."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.command_line import invoke

LONG = [
    *("tiny-12", "--limit", "5", "--scale-rate", "100", "--kv-tokens", "48", "--block-tokens", "1"),
    *("--objective", "latency", "--time-limit", "10min"),
]


def interrupted(folder: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and stdout of a command that gets Ctrl-C once its live line shows."""
    command = [sys.executable, "-m", "cspsched", *arguments]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert any("best" in line for line in process.stderr)
        # The line is printed as the search starts; Ctrl-C is to come during the search.
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    return process.returncode, out


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
def test_interrupted_solve_keeps_its_incumbent(tmp_path, capsys):
    """Solve exits 130 after Ctrl-C; its schedule is written, says why it stopped, and passes the referee."""
    code, out = interrupted(tmp_path, "solve", *LONG)
    written = tmp_path / "cspsched-solve" / "schedule.json"

    assert code == 130
    assert "stopped: interrupted" in out
    assert json.loads(written.read_text(encoding="utf-8"))["stop_reason"] == "interrupted"
    assert invoke(capsys, "check", written).code == 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
def test_interrupted_compare_reports_what_it_knows(tmp_path):
    """Compare exits 130 after Ctrl-C and prints the excess against the bound that it has by then."""
    code, out = interrupted(tmp_path, "compare", *LONG)

    assert code == 130
    assert "the search was interrupted" in out


def test_interrupt_before_anything_is_known_is_one_word(monkeypatch, capsys):
    """Ctrl-C while a trace is read exits 130 without a traceback."""

    def interrupt(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cspsched.trace.read_trace", interrupt)
    outcome = invoke(capsys, "simulate", "tiny-12")

    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err.strip() == "interrupted"
