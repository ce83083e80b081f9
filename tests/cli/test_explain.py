"""`cspsched explain`: tables, JSON and Markdown of one explanation, and errors that say what to do."""

from __future__ import annotations

import json

import pytest

from tests.support.command_line import invoke
from tests.support.schemas import validate

CROWD = (
    "chat-2000", "--limit", "16", "--scale-rate", "50", "--kv-blocks", "150", "--steps", "2",
    "--objective", "ttft",
)  # fmt: skip


@pytest.fixture(scope="module")
def crowd() -> tuple[str, ...]:
    """A call on few requests with little memory, by causes alone."""
    return ("explain", *CROWD, "--parts", "causes")


def test_tables_say_what_json_says(crowd, capsys, tmp_path):
    """The causes of each policy add up to its excess over the best known schedule, in every output."""
    page, html = tmp_path / "why.md", tmp_path / "why.html"
    shown = invoke(capsys, *crowd, "--markdown", page, "--html", html)
    told = json.loads(invoke(capsys, *crowd, "--json").out)

    assert shown.code == 0
    validate(told, "explanation")
    for policy in told["policies"]:
        above_ns = policy["value_ns"] - told["reference"]["best_known_ns"]
        assert sum(cause["saved_ns"] for cause in policy["causes"]) == above_ns
        assert f"{policy['policy']}: mean ttft" in shown.out
        assert f"## {policy['policy']}: mean ttft" in page.read_text()
        assert f'<th scope="row">{policy["policy"]}</th>' in html.read_text()
    assert "| decision | saves | of the excess | then | alone |" in page.read_text()
    assert html.read_text().count('<th scope="row">token budget</th>') == len(told["policies"])


def test_a_request_is_followed_under_every_policy(capsys):
    """Its spans come first, with reason and end of each wait."""
    outcome = invoke(capsys, "explain", *CROWD, "--parts", "causes", "--request", "r13")

    assert outcome.code == 0
    assert "r13 under vllm: " in outcome.out
    assert "r13 under sarathi: " in outcome.out


def test_old_and_new_name_of_the_option_for_policies(capsys):
    """`--policy` names policies as `--heuristics` does."""
    outcome = invoke(capsys, "explain", *CROWD, "--policy", "sjf", "--parts", "causes", "--json")

    assert [policy["policy"] for policy in json.loads(outcome.out)["policies"]] == ["sjf"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--request", "nobody"), "there is no request 'nobody'"),
        (("--parts", "reasons"), "'reasons' is not one of"),
        (("--policy", "vlm"), "unknown policy 'vlm', did you mean 'vllm'?"),
        (("--policy", "vllm:enable_prefix_caching=true"), "caches prefixes"),
    ],
)
def test_errors_are_one_line(arguments, message, capsys):
    """What was wrong, and what there is."""
    outcome = invoke(capsys, "explain", *CROWD, *arguments)

    assert outcome.code == 2
    assert message in outcome.err.splitlines()[-1]
