"""Which measured points of servers can be expressed, and as what; nothing is simulated here."""

from __future__ import annotations

import sys
from collections import Counter
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pandas as pd
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "silicon_rows.py"
LLAMA = {
    "model_path": "meta-llama/Llama-3.1-70B", "system": "h100_sxm", "mode": "agg", "tp_size": 2.0,
    "pp_size": 1.0, "attention_dp_size": 1.0, "moe_ep_size": 1.0, "batch_size": 8.0,
    "gemm_quant_mode": "fp8", "isl": 1024, "osl": 100, "backend_version": "0.19.0",
    "silicon_data_source": "db-dump/2026-04-27",
    "silicon_ttft_ms": 50.0,
    "silicon_tpot_ms": 20.0,
}  # fmt: skip


@pytest.fixture(name="script")
def _script(monkeypatch):
    spec = spec_from_file_location("silicon_rows", SCRIPT)
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "silicon_rows", module)
    spec.loader.exec_module(module)
    return module


def test_a_row_is_a_deployment_under_a_closed_loop(script):
    """Model, format of the weights, ranks, requests in flight; a client that draws lengths is known."""
    (row,), left = script.rows_of(pd.DataFrame([LLAMA]))

    assert (row.model, row.tensor_parallel, row.concurrency) == ("llama-3.1-70b-fp8", 2, 8)
    assert (row.isl, row.osl, row.ttft_ms, row.tpot_ms) == (1024, 100, 50.0, 20.0)
    assert row.is_drawn
    assert not row.expert_parallel
    assert left == Counter()


@pytest.mark.parametrize(
    ("changes", "model", "is_expert_parallel"),
    [
        ({"model_path": "openai/gpt-oss-120b", "gemm_quant_mode": "nvfp4"}, "gpt-oss-120b", False),
        ({"model_path": "Qwen/Qwen3-235B-A22B-FP8", "moe_ep_size": 2.0}, "qwen3-235b-a22b-fp8-block", True),
        (
            {"model_path": "Qwen/Qwen3-32B", "gemm_quant_mode": float("nan"), "moe_ep_size": 0.0},
            "qwen3-32b",
            False,
        ),
    ],
)
def test_formats_follow_the_checkpoint(script, changes, model, is_expert_parallel):
    """GPT-OSS has its own; Qwen's FP8 has blocks; a row that does not say has the checkpoint's."""
    (_, row), _ = script.rows_of(pd.DataFrame([LLAMA, LLAMA | changes]))

    assert (row.model, row.expert_parallel) == (model, is_expert_parallel)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mode": "disagg"}, "prefill and decode on servers of their own"),
        ({"model_path": "a/b"}, "model a/b"),
        ({"system": "mi300x"}, "device mi300x"),
        ({"pp_size": 2.0}, "pipeline stages or data-parallel attention"),
        ({"attention_dp_size": 4.0}, "pipeline stages or data-parallel attention"),
        ({"moe_ep_size": 4.0}, "experts over some of the ranks"),
        ({"batch_size": 1024.0}, "more than 256 requests in flight"),
        ({"gemm_quant_mode": "int8"}, "weights int8"),
    ],
)
def test_what_cannot_be_expressed_is_counted_by_its_reason(script, changes, reason):
    """Nothing is left out silently."""
    rows, left = script.rows_of(pd.DataFrame([LLAMA, LLAMA | changes]))

    assert len(rows) == 1
    assert left == {reason: 1}
