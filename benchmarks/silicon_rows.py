"""Measured end-to-end points of NVIDIA's aiconfigurator, simulated (docs/validation.md).

Usage: python benchmarks/silicon_rows.py [--system h200_sxm] [--limit 20] [--json]

Needs the extra `aic`, whose `systems/silicon_sample.csv` holds the mean TTFT and TPOT of thousands of runs at
a number of requests in flight. Every row of vLLM that can be expressed is simulated as a closed loop on a
composed cost model. Beside it: the estimate of that package, `run_agg` of its vLLM backend, a prompt a step
(`ctx_tokens` = isl; with 8192 its TTFT of short prompts is several times as far off).
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd

from cspsched.costs.devices import device_names, load_device
from cspsched.errors import CspschedError
from cspsched.serving import Serving
from cspsched.studies.validation import MeasuredRun, Settings, validate_runs
from cspsched.studies.validation.nouns import Lengths, Stage

DEVICES = {load_device(name).operator_tables: name for name in device_names()}
NAMES = {
    "meta-llama/Llama-3.1-70B": "llama-3.1-70b",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "llama-3.1-8b",
    "Qwen/Qwen3-32B": "qwen3-32b",
    "Qwen/Qwen3-235B-A22B-FP8": "qwen3-235b-a22b",
    "openai/gpt-oss-120b": "gpt-oss-120b",
}
"""Models of the table; the format of their weights is a column of its own."""
FORMATS = {
    "fp8": "fp8", "fp8_block": "fp8-block", "bfloat16": None, "bf16": None, "nvfp4": "nvfp4",
}  # fmt: skip
UNSAID = {"pp_size": 1, "attention_dp_size": 1, "moe_ep_size": 1, "gemm_quant_mode": "bf16"}
"""What a row means that does not say: one rank, and the checkpoint with that name."""
BLOCKS = ("Qwen/",)
"""Whose FP8 checkpoints have a scale for each block."""
DRAWN = re.compile(r"db-dump|source_file=\d{4}-")
"""Sources whose client draws lengths evenly between 80 and 100 % of what the row says (SemiAnalysis
InferenceX, `--random-range-ratio 0.8`)."""
MOST_IN_FLIGHT = 256
"""A closed loop asks all requests in flight at every event, which takes minutes for more."""
WAVES = 10
"""So many times the requests in flight are sent, all of the first at once, as InferenceX's client does."""


@dataclass(frozen=True)
class Row:
    """A row that can be expressed."""

    at: int
    model: str
    system: str
    tensor_parallel: int
    expert_parallel: bool
    concurrency: int
    isl: int
    osl: int
    path: str
    is_drawn: bool
    version: str
    ttft_ms: float
    tpot_ms: float


def rows_of(frame: pd.DataFrame) -> tuple[list[Row], Counter[str]]:
    """Rows that can be expressed, and how many cannot be for which reason."""
    rows, left = [], Counter[str]()
    frame = frame.fillna(UNSAID)
    for at, row in frame.iterrows():
        reason = why_not(row)
        if reason is not None:
            left[reason] += 1
            continue
        name = NAMES[row["model_path"]]
        weights = FORMATS.get(str(row["gemm_quant_mode"])) if name != "gpt-oss-120b" else None
        if weights == "fp8" and row["model_path"].startswith(BLOCKS):
            weights = "fp8-block"
        rows.append(
            Row(
                at=int(at), model=name if weights is None else f"{name}-{weights}", system=row["system"],
                tensor_parallel=int(row["tp_size"]), expert_parallel=row["moe_ep_size"] > 1,
                concurrency=int(row["batch_size"]),
                isl=int(row["isl"]), osl=int(row["osl"]), path=row["model_path"],
                is_drawn=bool(DRAWN.search(row["silicon_data_source"])),
                version=str(row["backend_version"]),
                ttft_ms=float(row["silicon_ttft_ms"]), tpot_ms=float(row["silicon_tpot_ms"]),
            )
        )  # fmt: skip
    return rows, left


def why_not(row: pd.Series) -> str | None:
    """Why a row cannot be expressed; None if it can be."""
    if row["mode"] != "agg":
        return "prefill and decode on servers of their own"
    if row["model_path"] not in NAMES:
        return f"model {row['model_path']}"
    if row["system"] not in DEVICES:
        return f"device {row['system']}"
    if (row["pp_size"], row["attention_dp_size"]) != (1, 1):
        return "pipeline stages or data-parallel attention"
    if row["moe_ep_size"] not in (0, 1, row["tp_size"]):
        return "experts over some of the ranks"
    if row["batch_size"] > MOST_IN_FLIGHT:
        return f"more than {MOST_IN_FLIGHT} requests in flight"
    quantised = str(row["gemm_quant_mode"])
    if NAMES[row["model_path"]] != "gpt-oss-120b" and quantised not in FORMATS:
        return f"weights {quantised}"
    return None


def simulated(row: Row, frontend: str) -> dict[str, float] | str:
    """Errors of a row, or why it could not be simulated."""
    share = 0.9 if row.is_drawn else 1.0
    device = DEVICES[row.system]
    stage = Stage(
        name=str(row.at), num_requests=max(16, WAVES * row.concurrency), concurrency=row.concurrency,
        lengths=Lengths(
            prompt_mean=share * row.isl, prompt_least=round((2 * share - 1) * row.isl),
            prompt_most=row.isl, output=row.osl, output_least=round((2 * share - 1) * row.osl),
        ),
        measured={"ttft": {"mean": row.ttft_ms / 1000}, "tpot": {"mean": row.tpot_ms / 1000}}, prompts=0,
    )  # fmt: skip
    is_async = tuple(int(x) for x in re.findall(r"\d+", row.version)[:2]) >= (0, 14)
    run = MeasuredRun(
        name=str(row.at), file=Path("silicon_sample.csv"),
        serving=Serving(
            model=row.model, device=device, tensor_parallel=row.tensor_parallel,
            expert_parallel=row.expert_parallel,
        ),
        policy=f"vllm:async_scheduling={str(is_async).lower()}", stages=(stage,),
    )  # fmt: skip
    try:
        (found,) = validate_runs([run], Settings(seeds=1, frontend=frontend)).rows
    except CspschedError as error:
        return str(error)
    errors = {
        metric: error for metric in ("ttft", "tpot") if (error := found.error(metric, "mean")) is not None
    }
    return errors | peer(row)


def peer(row: Row) -> dict[str, float]:
    """Errors of the package's own estimate; empty where it has none."""
    logging.disable(logging.WARNING)
    from aiconfigurator_core.sdk.backends.factory import get_backend
    from aiconfigurator_core.sdk.common import GEMMQuantMode, KVCacheQuantMode
    from aiconfigurator_core.sdk.config import ModelConfig, RuntimeConfig
    from aiconfigurator_core.sdk.models import get_model
    from aiconfigurator_core.sdk.perf_database import get_database

    path = row.path.replace("meta-llama/Llama-3.1", "meta-llama/Meta-Llama-3.1")
    path = path.replace("nvidia/Llama-3.1-8B-Instruct-FP8", "meta-llama/Meta-Llama-3.1-8B")
    share = 0.9 if row.is_drawn else 1.0
    isl, osl = round(share * row.isl), round(share * row.osl)
    slices, groups = (1, row.tensor_parallel) if row.expert_parallel else (row.tensor_parallel, 1)
    config = ModelConfig(tp_size=row.tensor_parallel, moe_tp_size=slices, moe_ep_size=groups)
    if row.model.endswith(("-fp8", "-fp8-block")):
        mode = GEMMQuantMode.fp8 if row.model.endswith("-fp8") else GEMMQuantMode.fp8_block
        config.gemm_quant_mode, config.kvcache_quant_mode = mode, KVCacheQuantMode.bfloat16
    try:
        model = get_model(path, config, "vllm")
        load = RuntimeConfig(batch_size=row.concurrency, isl=isl, osl=osl)
        tables = get_database(row.system, "vllm", "0.24.0")
        times = get_backend("vllm").run_agg(model, tables, load, ctx_tokens=isl).get_summary_df().iloc[0]
    except Exception as error:  # noqa: BLE001 - whatever another program raises
        print(f"{row.at}: no estimate of the package: {error}", file=sys.stderr)
        return {}
    return {
        "peer_ttft": float(times["ttft"]) / row.ttft_ms - 1,
        "peer_tpot": float(times["tpot"]) / row.tpot_ms - 1,
    }


@click.command()
@click.option("--system", "systems", multiple=True, default=("h100_sxm", "h200_sxm"), show_default=True)
@click.option("--only", default="", help="Models whose name contains this.")
@click.option("--limit", type=int, help="Every n-th row, so that about so many are left.")
@click.option("--frontend", default="off", show_default=True, help="As of cspsched validate.")
@click.option("--json", "as_json", is_flag=True)
def main(
    systems: tuple[str, ...],
    only: str,
    limit: int | None,
    frontend: str,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Print the distribution of errors by model and device, and what cannot be expressed."""
    spec = find_spec("aiconfigurator_core")
    if spec is None or spec.origin is None:
        raise click.ClickException("pip install 'cspsched[aic]'")
    frame = pd.read_csv(Path(spec.origin).parent / "systems" / "silicon_sample.csv")
    frame = frame[(frame["backend"] == "vllm") & frame["system"].isin(systems)]
    rows, left = rows_of(frame)
    rows = [row for row in rows if only in row.model]
    if limit is not None and len(rows) > limit:
        rows = rows[:: -(-len(rows) // limit)]
    rows.sort(key=lambda row: row.model)
    results: list[dict[str, Any]] = []
    with ProcessPoolExecutor(2) as pool:
        for row, errors in zip(rows, pool.map(partial(simulated, frontend=frontend), rows), strict=True):
            if isinstance(errors, str):
                left[errors[:100]] += 1
                continue
            results.append(vars(row) | {f"{metric}_error": error for metric, error in errors.items()})
            print(f"{len(results)}/{len(rows)} {row} {errors}", file=sys.stderr)
    if not results:
        raise click.ClickException(f"no row can be expressed; left out: {dict(left)}")
    show(pd.DataFrame(results), left, as_json=as_json)


def show(found: pd.DataFrame, left: Counter[str], *, as_json: bool) -> None:
    """The table, or everything as JSON."""
    if as_json:
        print(json.dumps({"rows": found.to_dict("records"), "left_out": dict(left)}, indent=1))
        return
    metrics = ("TPOT", "package's TPOT", "TTFT", "package's TTFT")
    print(
        "| model | device | rows | "
        + " | ".join(f"{name}: median abs, p90, median" for name in metrics)
        + " |"
    )
    print("|---|---|" + "--:|" * 5)
    groups = [*found.groupby(["model", "system"]), (("all", ""), found)]
    for (model, system), part in groups:
        cells = []
        for metric in ("tpot", "peer_tpot", "ttft", "peer_ttft"):
            errors = part[f"{metric}_error"].dropna().to_numpy(np.float64)
            sizes = np.abs(errors)
            figures = (np.median(sizes), np.quantile(sizes, 0.9), np.median(errors)) if len(sizes) else ()
            cells.append(", ".join(f"{x:.1%}" for x in figures) or "-")
        print(f"| {model} | {system} | {len(part)} | {' | '.join(cells)} |")
    for reason, number in left.most_common():
        print(f"- {number} rows left out: {reason}")


if __name__ == "__main__":
    main()
