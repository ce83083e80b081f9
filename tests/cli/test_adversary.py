"""`cspsched adversary`: the files prove again what is claimed."""

from __future__ import annotations

import json
import shlex

from tests.support.command_line import invoke
from tests.support.pages import undocumented
from tests.support.schemas import validate

SMALL = (
    "adversary", "--requests", "3", "--most-prompt", "3", "--most-output", "4", "--most-arrival", "2",
    "--kv-blocks", "6", "--max-batch-tokens", "3", "--trials", "60",
)  # fmt: skip


def test_saved_trace_is_proven_again(capsys, tmp_path):
    """`check` accepts the schedule, and the printed `solve` solves the same instance to the same value."""
    found = invoke(capsys, *SMALL, "--policy", "vllm", "--out", tmp_path / "worst", "--json")
    worst = json.loads(found.out)["worst"]
    checked, solved = found.err.splitlines()[-2:]
    words = [*shlex.split(solved)[1:], "--out", str(tmp_path / "solved"), "--json"]
    again = json.loads(invoke(capsys, *words).out)

    assert found.code == 0
    assert worst["excess_at_least"] > 0
    assert invoke(capsys, *shlex.split(checked)[1:]).code == 0
    assert again["fingerprint"] == worst["fingerprint"]
    assert again["primal_ns"] == worst["optimum_ns"]
    assert {"trace.csv", "schedule.json", "adversary.json", "policy.png", "optimum.png"} == {
        path.name for path in (tmp_path / "worst").iterdir()
    }


def test_every_field_is_documented(capsys):
    """The formats page has the schema and all fields; so has the published JSON Schema."""
    data = json.loads(invoke(capsys, *SMALL, "--json").out)

    assert list(undocumented(data)) == []
    validate(data, "adversary")


def test_text_says_what_is_proven(capsys):
    """The verdict first, then the requests."""
    outcome = invoke(capsys, *SMALL, "--heuristics", "orca")

    assert outcome.out.startswith("orca is ")
    assert "above the optimum: mean latency" in outcome.out
    assert "arrival [s]  prompt  output" in outcome.out


def test_nothing_found_is_a_limit(capsys):
    """Where the policy is optimal on all traces there is nothing to show, exit code 5."""
    alike = ("--most-prompt", "1", "--most-output", "1", "--most-arrival", "0", "--trials", "5")
    outcome = invoke(capsys, *SMALL, *alike)

    assert outcome.code == 5
    assert "no trace was found" in outcome.err
