"""`cspsched validate` and `profile fit --from-run`: what they print, write and refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cspsched.costs.frontend import load_frontend
from cspsched.costs.presets import load_cost
from tests.support.command_line import invoke
from tests.support.schemas import validate

HEADER = (
    "run,stage,model,device,rate_rps,concurrency,duration_s,requests,prompt_tokens,output_tokens,"
    "ttft_s_median,latency_s_mean,other:latency_mean"
)
ROWS = ("a,0,llama-3.1-8b,H100,20,,2,40,100,8,0.05,0.2,-0.03", "a,1,llama-3.1-8b,H100,,4,,30,100,8,0.05,0.2,")


@pytest.fixture
def stages(tmp_path: Path) -> Path:
    """An open and a closed stage."""
    path = tmp_path / "stages.csv"
    path.write_text("\n".join([HEADER, *ROWS]) + "\n")
    return path


def test_errors_are_printed(stages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row for each stage and metric, the peer's error, the deployment, and that no frontend is added."""
    outcome = invoke(capsys, "validate", stages, "--seeds", 1)

    assert outcome.code == 0
    assert "4 in flight" in outcome.out
    assert "absolute error of latency over 2 rows: mean" in outcome.out
    assert "other on a 0: latency mean -3.0 % (here" in outcome.out
    assert "llama-3.1-8b on h100, cost model h100-llama-3.1-8b, vllm:async_scheduling=true" in outcome.out
    assert "frontend off: the times are the engine's" in outcome.out
    assert "simulating: 0/1, a, seed 0" in outcome.err


def test_json_follows_its_schema(stages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the frontend that was added, and the same twice."""
    outcome = invoke(capsys, "validate", stages, "--seeds", 1, "--frontend", "7ms", "--json")
    data = json.loads(outcome.out)
    again = invoke(capsys, "validate", stages, "--seeds", 1, "--frontend", "7ms", "--json")

    validate(data, "measured-runs")
    assert data["rows"][0]["deployment"]["frontend"]["request_ns"] == 7_000_000
    assert data["rows"][1]["is_stable"] is None
    assert again.out == outcome.out


def test_picture_and_table_are_written(
    stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A PNG and a table of Markdown."""
    plot, table = tmp_path / "errors.png", tmp_path / "out" / "errors.md"
    outcome = invoke(capsys, "validate", stages, "--seeds", 1, "--plot", plot, "--markdown", table)

    assert outcome.code == 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert table.read_text().count("\n| a | ") == 4


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "no run is named; give a stages CSV"),
        (("none.csv",), 1, "none.csv does not exist"),
        (("stages.csv", "--plot", "errors.svg"), 2, "expected a name that ends in .png"),
        (("stages.csv", "--kv-tokens", "64"), 4, "needs 7 KV blocks, the device offers 4"),
        (("stages.csv", "--frontend", "soon"), 2, "unknown frontend 'soon'"),
        (("stages.csv", "--frontend", "cost"), 1, "has no part [frontend]"),
    ],
)
def test_nonsense_is_told(
    arguments: tuple[str, ...],
    code: int,
    message: str,
    stages: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In a line, with the exit code of its kind."""
    monkeypatch.chdir(stages.parent)
    outcome = invoke(capsys, "validate", *arguments)

    assert outcome.code == code
    assert message in outcome.err


def test_a_frontend_is_fitted_aloud(stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is told from how many requests and stages, and written as a part of the cost model."""
    path = tmp_path / "cost.toml"
    outcome = invoke(capsys, "profile", "fit", stages, "--from-run", "--output", path)

    assert outcome.code == 0, outcome.err
    assert "70 requests of 2 runs or stages" in outcome.out
    part = load_frontend("cost", path)
    assert f"request_ns = {part.request_ns}" in outcome.out
    assert 0 < part.request_ns < 50_000_000
    assert load_cost(path) == load_cost("h100-llama-3.1-8b")


def test_a_profile_needs_its_model(stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only a run may go without --model."""
    outcome = invoke(capsys, "profile", "fit", stages, "--output", tmp_path / "cost.toml")

    assert outcome.code == 2
    assert "--model" in outcome.err
