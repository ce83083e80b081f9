"""Closed loops on the command line: users, sessions, and what is said of arrivals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cspsched.cli.group import cspsched_group, run

SESSIONS = (
    "request_id,arrival_s,prompt_tokens,output_tokens,session_id,think_time_s\n"
    "a1,0,20,4,a,\na2,0,28,4,a,2\nb,0.1,30,2,,\n"
)
PLAIN = "request_id,arrival_s,prompt_tokens,output_tokens\nr0,0,20,4\nr1,0,20,8\nr2,0,20,4\n"


@pytest.fixture
def sessions(tmp_path: Path) -> str:
    path = tmp_path / "chats.csv"
    path.write_text(SESSIONS, encoding="utf-8")
    return str(path)


@pytest.fixture
def plain(tmp_path: Path) -> str:
    path = tmp_path / "plain.csv"
    path.write_text(PLAIN, encoding="utf-8")
    return str(path)


def test_simulate_counts_from_when_a_user_sends(plain, capsys):
    """One at a time no request waits for another; all at once the last does."""
    assert run(cspsched_group, ["simulate", plain, "--max-concurrency", "1", "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert run(cspsched_group, ["simulate", plain, "--json"]) == 0
    together = json.loads(capsys.readouterr().out)

    assert alone["ttft_s"]["max"] < together["ttft_s"]["max"]
    assert alone["makespan_s"] > 1.5 * together["makespan_s"]
    assert alone["arrivals"].startswith(
        "Arrivals came about under vllm in a closed loop (1 at a time, 0 of 3 requests follow another of "
    )
    assert together["arrivals"] is None


def test_simulate_says_that_arrivals_came_about(sessions, capsys, tmp_path):
    """The text ends with it; what is saved has the arrivals, and the check agrees."""
    saved = tmp_path / "saved.json"
    assert run(cspsched_group, ["simulate", sessions, "--save", str(saved)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "Arrivals came about under vllm in a closed loop (1 of 3 requests follow another of their session); "
        "they are frozen for the referee, the metrics, the bounds and the excess."
    )
    requests = json.loads(saved.read_text(encoding="utf-8"))["instance"]["requests"]
    assert requests[1]["arrival_ns"] > 2 * 10**9
    assert "session_id" not in requests[1]
    assert run(cspsched_group, ["check", str(saved)]) == 0


def test_compare_has_a_comparison_of_each_policy(sessions, capsys, tmp_path):
    """Each on its own arrivals: text, JSON, Markdown and pages."""
    arguments = ["compare", sessions, "--heuristics", "vllm", "sarathi:chunk=8", "--steps", "0"]
    assert run(cspsched_group, [*arguments, "--json", "--out", str(tmp_path / "out")]) == 0
    data = json.loads(capsys.readouterr().out)
    first, second = data["comparisons"]

    assert data["schema"] == "cspsched/comparisons/1"
    assert [[row["policy"] for row in one["policies"]] for one in (first, second)] == [
        ["vllm"],
        ["sarathi:chunk=8"],
    ]
    assert first["arrivals"].startswith("Arrivals came about under vllm in a closed loop (1 of 3")
    assert first["fingerprint"] != second["fingerprint"]
    assert [one["provenance"]["policies"][0]["label"] for one in (first, second)] == [
        "vllm",
        "sarathi:chunk=8",
    ]
    for number, one in enumerate((first, second), 1):
        folder = tmp_path / "out" / f"policy-{number}"
        assert (
            json.loads((folder / "comparison.json").read_text(encoding="utf-8"))["arrivals"]
            == one["arrivals"]
        )
        assert "in a closed loop" in (folder / "report.html").read_text(encoding="utf-8")


def test_others_take_the_arrivals_as_they_stand(sessions, capsys):
    """And say so."""
    assert run(cspsched_group, ["bound", sessions]) == 0
    told = capsys.readouterr()

    assert "are turns of sessions, whose arrivals are taken as they stand here" in told.err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            ["--uncertainty"],
            "--uncertainty prices other batch times, with which a closed loop has other arrivals",
        ),
        (["--schedule", "a=b.json"], "--schedule has arrivals of its own, --max-concurrency makes others"),
        (["--heuristics", "vllm", "vllm"], "name at least one policy, and each once"),
    ],
)
def test_what_does_not_go_with_a_loop_is_refused(plain, capsys, option, message):
    """In a sentence, before anything runs."""
    assert run(cspsched_group, ["compare", plain, "--max-concurrency", "2", *option]) == 2
    assert message in capsys.readouterr().err


def test_a_loop_has_a_user_at_least(plain, capsys):
    """Zero is refused."""
    assert run(cspsched_group, ["simulate", plain, "--max-concurrency", "0"]) == 2
    assert "0 is not in the range x>=1" in capsys.readouterr().err
