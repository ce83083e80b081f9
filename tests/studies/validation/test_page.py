"""The page of measured servers shows what the command finds."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from cspsched.costs.frontend import load_frontend
from cspsched.report.validation import section
from cspsched.studies.validation import Settings, read_runs, validate_runs
from tests.support.places import DATA, DOCS

RUNS = DATA / "real_runs"
pytestmark = pytest.mark.skipif(not RUNS.is_dir(), reason=f"the measured runs are not at {RUNS}")


def on_page(name: str) -> str:
    """What stands between the marks of a run."""
    found = re.search(rf"(?s)<!-- {name} -->\n(.*?)<!-- end -->", (DOCS / "validation.md").read_text())
    assert found is not None
    return found[1]


def test_the_run_with_a_shipped_cost_model_is_what_the_command_finds() -> None:
    """To the letter; mean latency and TTFT within 1 %."""
    found = validate_runs(read_runs([RUNS / "rtx4090_llama-3.1-8b_vllm-0.19"]))
    (row,) = found.rows

    assert on_page("rtx4090") == section(found)
    for metric in ("ttft", "latency", "tpot"):
        assert abs(row.error(metric, "mean") or 1) < 0.01
    assert row.is_stable is row.was_stable is False


def test_every_stage_is_on_the_page() -> None:
    """With what was measured; each was stable, and the median TTFT within 20 % or 10 ms."""
    page = on_page("h100").splitlines()
    for run in read_runs([RUNS / "h100_vllm_stages"]):
        for stage in run.stages:
            start = f"| {run.name} | {stage.name} | {stage.load} | "
            rows = [line.split(" | ") for line in page if line.startswith(start)]
            assert [cells[3] for cells in rows] == ["TTFT", "TPOT", "latency"]
            assert {cells[-1] for cells in rows} == {"stable |"}
            ttft = rows[0]
            assert abs(float(ttft[8].removesuffix(" %"))) < 20 or abs(float(ttft[6].removesuffix(" ms"))) < 10


def test_the_shipped_frontend_is_the_one_of_the_page() -> None:
    """One constant for all stages."""
    frontend = load_frontend("vllm-openai", "unit")

    assert frontend.line in on_page("h100")
    assert 0 < frontend.request_ns < 20_000_000


def test_a_composed_cost_model_meets_a_stage() -> None:
    """The first 50 s of one: TTFT and latency near what was measured."""
    pytest.importorskip("aiconfigurator_core")
    run = next(
        run for run in read_runs([RUNS / "h100_vllm_stages"]) if run.name == "codellama-34b-tp2-general"
    )
    short = replace(run.stages[0], num_requests=400, duration_s=50.0)
    found = validate_runs([replace(run, stages=(short,))], Settings(seeds=1, frontend="vllm-openai"))
    (row,) = found.rows

    assert abs(row.error("latency", "mean") or 1) < 0.1
    assert abs(row.difference_s("ttft", "p50") or 1) < 0.010
