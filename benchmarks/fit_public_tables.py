"""Fit the shipped cost models to public operator tables.

Usage: python benchmarks/fit_public_tables.py DATA_FOLDER [--out FOLDER] [--only NAME]

DATA_FOLDER holds `prof_aic_*` (ai-dynamo/aiconfigurator), `prof_vidur_*_dgx_allreduce.csv` (microsoft/vidur)
and `prof_llmservingsim_RTXPRO6000_*` (casys-kaist/LLMServingSim). Writes one TOML a model, device and degree
of tensor parallelism and prints how well each kind of work was met. The RTX 4090 has a script of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cspsched.costs.estimator import FittedProfile, fit_profile
from cspsched.costs.estimator.profile import Engine
from cspsched.costs.estimator.write import cost_text
from cspsched.costs.importers.aiconfigurator import AicTables
from cspsched.costs.importers.llmservingsim import import_llmservingsim
from cspsched.costs.importers.vidur import import_vidur
from cspsched.costs.models import load_device, load_model, usual_name

SCRIPT = "benchmarks/fit_public_tables.py"
DENSE_LEAVES_OUT = (
    "CPU work between batches, sampler, embedding lookup, kernel launches outside CUDA graphs; what reading "
    "a chunk's earlier context costs beyond its attention work; interference of prefill and decode in one "
    "kernel. Elementwise kernels (norms, rotary, activation, KV write) are derived from the memory "
    "bandwidth, not measured"
)
RANKS_LEAVE_OUT = "; gathering the logits of several ranks, and all-reduce kernels that overlap or fuse"
MOE_LEAVES_OUT = "; routing other than the power law 1.01 that the table was measured with"
AMPERE_LEAVES_OUT = (
    ". For the same token operators the A100 table of microsoft/vidur 7d47513 is slower by about a fifth"
)
UNIFIED_LEAVES_OUT = (
    "CPU work between batches, kernel launches outside CUDA graphs. vLLM's unified attention kernel makes "
    "decodes dearer beside a prefill chunk: the terms for that know how many decodes there are and what they "
    "read together, not how the longest of them compares with the rest, and their error band is wide"
)
AIC = (
    "ai-dynamo/aiconfigurator 095f58a (Apache-2.0), aic-core systems/data, {tables}: bf16 GEMMs and "
    "FlashAttention"
)
FILLED = "; GEMM shapes missing there are linear between those around ({error} on shapes held out)"
VIDUR = "; all-reduce: microsoft/vidur 7d47513 (MIT), {tables}"
LSS = (
    "casys-kaist/LLMServingSim (MIT), profiler/perf, RTX PRO 6000, vLLM 0.19, bf16: dense, per_sequence, "
    "attention and skew tables"
)


@dataclass(frozen=True)
class System:
    """A device: its name in the tables and in the facts, where it is from, and its all-reduce."""

    table: str
    device: str
    tables: str
    network: str = ""
    leaves_out: str = ""


SYSTEMS = (
    System("h100", "h100", "h100_sxm vLLM 0.24.0", "h100"),
    System("h200", "h200", "h200_sxm vLLM 0.24.0 (experts vLLM 0.22.0), NCCL 2.29.2"),
    System("a100", "a100-80", "a100_sxm vLLM 0.14.0", "a100", AMPERE_LEAVES_OUT),
)
RANKS = {
    "llama-3.1-8b": (1, 2, 4, 8), "mistral-7b": (1, 2, 4, 8), "qwen2.5-7b": (1, 2, 4),
    "llama-3.1-70b": (2, 4, 8), "qwen3-30b-a3b": (1, 2, 4, 8),
}  # fmt: skip
"""Degrees of tensor parallelism of each model: those that share its heads and whose weights fit."""
WITH_EXPERTS = {"h200": ("qwen3-30b-a3b",)}
"""Experts were measured on one device only."""


@dataclass(frozen=True)
class Case:
    """One cost file to write."""

    model: str
    device: str
    ranks: int
    rows: pd.DataFrame
    source: str
    leaves_out: str
    engine: Engine = "split"


def cases(folder: Path) -> Iterator[Case]:
    """Every model on every device, as far as the tables allow."""
    for system in SYSTEMS:
        tables = AicTables.read(sorted(folder.glob(f"prof_aic_{system.table}_*")))
        for model, ranks in RANKS.items():
            if load_model(model).moe is None or model in WITH_EXPERTS.get(system.device, ()):
                yield from (aic_case(folder, system, tables, model, number) for number in ranks)
    yield Case(
        "llama-3.1-8b",
        "rtx-pro-6000",
        1,
        import_llmservingsim(sorted(folder.glob("*RTXPRO6000_llama8b_*.csv")), load_model("llama-3.1-8b")),
        LSS,
        UNIFIED_LEAVES_OUT,
        "unified",
    )


def aic_case(folder: Path, system: System, tables: AicTables, name: str, ranks: int) -> Case:
    """A model on so many ranks of a device with tables of aiconfigurator."""
    model = load_model(name)
    network, source = None, AIC.format(tables=system.tables)
    if ranks > 1 and system.network:
        path = folder / f"prof_vidur_{system.network}_dgx_allreduce.csv"
        network = import_vidur([path], model)
        source += VIDUR.format(tables=f"{system.network} DGX")
    rows = tables.rows(model, load_device(system.device), ranks, network)
    if (rows["kernel_impl"] == "filled in").any():
        source += FILLED.format(error=f"{abs(tables.gemm_grid().held_out_errors()).mean():.1%}")
    heads = rows[rows["op"] == "attn_decode"]["kernel_impl"].iloc[0]
    if heads != "measured":
        source += f"; attention interpolated {heads}"
    moe = MOE_LEAVES_OUT if model.moe is not None else ""
    leaves_out = DENSE_LEAVES_OUT + (RANKS_LEAVE_OUT if ranks > 1 else "") + moe + system.leaves_out
    return Case(name, system.device, ranks, rows, source, leaves_out)


def write(case: Case, out: Path) -> FittedProfile:
    """Fit a case and write its file."""
    model, device = load_model(case.model), load_device(case.device)
    name = usual_name(case.model, case.device, case.ranks)
    fitted = fit_profile(case.rows, model, case.ranks, name=name, engine=case.engine)
    number = "one" if case.ranks == 1 else str(case.ranks)
    described: dict[str, str | int] = {
        "title": f"{model.title} on {number} {device.title}, bf16, fitted to measured kernels",
        "model": case.model, "device": case.device, "source": case.source, "leaves_out": case.leaves_out,
        "tensor_parallel": case.ranks,
    }  # fmt: skip
    (out / f"{name}.toml").write_text(cost_text(fitted, described, SCRIPT), encoding="utf-8")
    return fitted


def main() -> None:
    """Fit every case and write its file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("models/costs"))
    parser.add_argument("--only", default="", help="write only files whose name contains this")
    arguments = parser.parse_args()
    for case in cases(arguments.data_folder):
        name = usual_name(case.model, case.device, case.ranks)
        if arguments.only in name:
            print(name)
            for work, errors in write(case, arguments.out).fit_error.items():
                print(f"  {work:20} {errors}")


if __name__ == "__main__":
    main()
