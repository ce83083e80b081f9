"""What goes wrong is one line; the traceback is there for who asks for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cspsched.problem.instance import Instance
from tests.support.command_line import invoke


@pytest.mark.parametrize("debug", [False, True])
def test_a_bug_of_ours_is_a_line_with_a_request_to_report_it(
    debug: bool,  # noqa: FBT001
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Exit code 1 and no raw traceback; type, message, file and line are named."""

    def broken(self: object, instance: Instance) -> None:
        raise RuntimeError("of\nours")

    monkeypatch.setattr("cspsched.policies.vllm_v1.VllmV1.kernel_rules", broken)
    outcome = invoke(capsys, "simulate", "tiny-12", *(["--debug"] if debug else []))
    last = outcome.err.splitlines()[-1]

    assert (outcome.code, outcome.out) == (1, "")
    assert last.startswith("error: internal error: RuntimeError: of ours (test_debug.py:")
    assert last.endswith("); please report it, --debug shows the traceback")
    assert outcome.err.startswith("Traceback" if debug else "error: ")


@pytest.mark.parametrize(
    ("call", "variable", "shown"),
    [
        ("solve nowhere.csv", None, False),
        ("solve nowhere.csv", "0", False),
        ("solve nowhere.csv", "off", False),
        ("solve nowhere.csv", "1", True),
        ("--debug solve nowhere.csv", None, True),
        ("solve --debug nowhere.csv", None, True),
        ("solve nowhere.csv --debug", None, True),
        ("trace describe --debug nowhere.csv", None, True),
    ],
)
def test_the_traceback_is_shown_where_it_is_asked_for(
    call: str,
    variable: str | None,
    shown: bool,  # noqa: FBT001
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before the command, after it, or from outside; the line and the exit code stay."""
    if variable is not None:
        monkeypatch.setenv("CSPSCHED_DEBUG", variable)
    outcome = invoke(capsys, *call.split())

    assert outcome.code == 1
    assert (
        outcome.err.splitlines()[-1]
        == "error: nowhere.csv does not exist (bundled: burst-6, chat-2000, tiny-12)"
    )
    assert outcome.err.startswith("Traceback (most recent call last):\n") == shown
    assert (outcome.err.count("\n") > 1) == shown


def test_what_stands_behind_two_dashes_is_no_flag(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trace may be called so."""
    monkeypatch.chdir(tmp_path)

    assert (
        invoke(capsys, "solve", "--", "--debug").err
        == "error: --debug does not exist (bundled: burst-6, chat-2000, tiny-12)\n"
    )


def test_help_and_success_are_as_without_it(capsys: pytest.CaptureFixture[str]) -> None:
    """The help names both ways."""
    with_flag, without = (invoke(capsys, *flag, "models") for flag in (["--debug"], []))
    told = " ".join(invoke(capsys, "--help").out.split())

    assert with_flag == without
    assert "--debug Show the traceback of an error; here or after the command, or by CSPSCHED_DEBUG=1" in told
