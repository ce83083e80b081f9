"""Fit the shipped cost models to public operator tables.

Usage: python benchmarks/fit_public_tables.py DATA_FOLDER [--out FOLDER] [--only NAME]

DATA_FOLDER holds `prof_aic_*` (ai-dynamo/aiconfigurator) and `prof_llmservingsim_RTXPRO6000_*`
(casys-kaist/LLMServingSim). Writes one TOML a model and device and prints how well each kind of work was
met; those of several ranks are composed of the tables of the extra `aic` (`cspsched costs compose`). The
RTX 4090 has a script of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cspsched.costs.compose import composed_text
from cspsched.costs.devices import load_device
from cspsched.costs.estimator import FittedProfile, fit_profile
from cspsched.costs.estimator.profile import Engine
from cspsched.costs.estimator.write import cost_text
from cspsched.costs.importers.aiconfigurator import AicTables, installed_tables
from cspsched.costs.importers.llmservingsim import import_llmservingsim
from cspsched.costs.models import load_model, usual_name
from cspsched.costs.parallelism import Parallelism

SCRIPT = "benchmarks/fit_public_tables.py"
DENSE_LEAVES_OUT = (
    "CPU work between batches, sampler, embedding lookup, kernel launches outside CUDA graphs; what reading "
    "a chunk's earlier context costs beyond its attention work; interference of prefill and decode in one "
    "kernel. Elementwise kernels (norms, rotary, activation, KV write) are derived from the memory "
    "bandwidth, not measured"
)
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
LSS = (
    "casys-kaist/LLMServingSim (MIT), profiler/perf, RTX PRO 6000, vLLM 0.19, bf16: dense, per_sequence, "
    "attention and skew tables"
)


@dataclass(frozen=True)
class System:
    """A device: its name in the tables and in the facts, and where it is from."""

    table: str
    device: str
    tables: str
    leaves_out: str = ""


SYSTEMS = (
    System("h100", "h100", "h100_sxm vLLM 0.24.0"),
    System("h200", "h200", "h200_sxm vLLM 0.24.0 (experts vLLM 0.22.0)"),
    System("a100", "a100-80", "a100_sxm vLLM 0.14.0", AMPERE_LEAVES_OUT),
)
RANKS = {
    "llama-3.1-8b": (1, 2, 4, 8), "mistral-7b": (1, 2, 4, 8), "qwen2.5-7b": (1, 2, 4),
    "llama-3.1-70b": (2, 4, 8), "qwen3-30b-a3b": (1, 2, 4, 8),
}  # fmt: skip
"""Degrees of tensor parallelism of each model: those that share its heads and whose weights fit."""
WITH_EXPERTS = {"h200": ("qwen3-30b-a3b",)}
"""Experts were measured on one device only."""


COMMON = {
    "h100": {
        "llama-3.1-8b-fp8": (1,), "llama-3.1-70b-fp8": (2, 4), "qwen3-8b": (1,), "qwen3-32b": (2, 4),
        "qwen3-30b-a3b": (1, 2), "mixtral-8x7b": (2, 4), "gpt-oss-20b": (1,), "gpt-oss-120b": (1, 2, 4),
    },
    "h200": {
        "llama-3.1-8b-fp8": (1,), "llama-3.1-70b-fp8": (1, 2, 4), "qwen3-8b": (1,), "qwen3-32b": (1, 2),
        "gpt-oss-20b": (1,), "gpt-oss-120b": (1, 2, 4), "qwen3-235b-a22b-fp8-block": (4,),
    },
    "b200": {
        "llama-3.1-8b": (1,), "llama-3.1-70b": (1, 2, 4), "llama-3.1-70b-fp8": (1, 2),
        "gpt-oss-120b": (1, 2), "qwen3-32b": (1,),
    },
    "b300": {"llama-3.1-70b": (1, 2), "gpt-oss-120b": (1,)},
    "gb200": {"llama-3.1-70b": (1, 2, 4)},
    "l40s": {"llama-3.1-8b": (1, 2), "llama-3.1-8b-fp8": (1,), "qwen3-8b": (1,), "gpt-oss-20b": (1,)},
}  # fmt: skip
"""Pairs that many serve, composed too, so that they need no extra; degrees whose weights fit."""


@dataclass(frozen=True)
class Case:
    """One cost file to write."""

    model: str
    device: str
    rows: pd.DataFrame
    source: str
    leaves_out: str
    engine: Engine = "split"


def models_on(device: str) -> Iterator[tuple[str, int]]:
    """Models and degrees of tensor parallelism that ship for a device."""
    for model, ranks in RANKS.items():
        if load_model(model).moe is None or model in WITH_EXPERTS.get(device, ()):
            yield from ((model, number) for number in ranks)


def composed() -> Iterator[tuple[str, str, int]]:
    """Model, device and degree of what is composed: several ranks, and what many serve."""
    for system in SYSTEMS:
        yield from ((model, system.device, ranks) for model, ranks in models_on(system.device) if ranks > 1)
    for device, pairs in COMMON.items():
        yield from ((model, device, number) for model, ranks in pairs.items() for number in ranks)


def cases(folder: Path) -> Iterator[Case]:
    """Every model on one device, as far as the tables allow."""
    for system in SYSTEMS:
        tables = AicTables.read(sorted(folder.glob(f"prof_aic_{system.table}_*")))
        yield from (
            aic_case(system, tables, model) for model, ranks in models_on(system.device) if ranks == 1
        )
    yield Case(
        "llama-3.1-8b",
        "rtx-pro-6000",
        import_llmservingsim(sorted(folder.glob("*RTXPRO6000_llama8b_*.csv")), load_model("llama-3.1-8b")),
        LSS,
        UNIFIED_LEAVES_OUT,
        "unified",
    )


def aic_case(system: System, tables: AicTables, name: str) -> Case:
    """A model on one device with tables of aiconfigurator."""
    model = load_model(name)
    source = AIC.format(tables=system.tables)
    rows = tables.rows(model, load_device(system.device))
    if rows["kernel_impl"].str.endswith("between shapes").any():
        source += FILLED.format(error=f"{abs(tables.gemm_grid().held_out_errors()).mean():.1%}")
    heads = rows[rows["op"] == "attn_decode"]["kernel_impl"].iloc[0]
    if heads != "measured":
        source += f"; attention interpolated {heads}"
    moe = MOE_LEAVES_OUT if model.moe is not None else ""
    return Case(name, system.device, rows, source, DENSE_LEAVES_OUT + moe + system.leaves_out)


def write(case: Case, out: Path) -> FittedProfile:
    """Fit a case and write its file."""
    model, device = load_model(case.model), load_device(case.device)
    name = usual_name(case.model, case.device)
    fitted = fit_profile(case.rows, model, name=name, engine=case.engine)
    described: dict[str, str | int] = {
        "title": f"{model.title} on one {device.title}, bf16, fitted to measured kernels",
        "model": case.model, "device": case.device, "source": case.source, "leaves_out": case.leaves_out,
        "tensor_parallel": 1,
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
    for model, device, ranks in composed():
        parallelism = Parallelism(tensor=ranks)
        name = usual_name(model, device, parallelism)
        if arguments.only in name:
            print(name)
            facts = load_device(device)
            tables = installed_tables(facts.operator_tables)
            text = composed_text(load_model(model), facts, parallelism, tables)
            (arguments.out / f"{name}.toml").write_text(text, encoding="utf-8")
    for case in cases(arguments.data_folder):
        name = usual_name(case.model, case.device)
        if arguments.only in name:
            print(name)
            for work, errors in write(case, arguments.out).fit_error.items():
                print(f"  {work:20} {errors}")


if __name__ == "__main__":
    main()
