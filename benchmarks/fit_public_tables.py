"""Fit the shipped cost models to the public operator tables of aiconfigurator.

Usage: python benchmarks/fit_public_tables.py DATA_FOLDER [--out FOLDER]

DATA_FOLDER holds `prof_aic_{h100,h200,a100}_*` (GEMM and attention tables of ai-dynamo/aiconfigurator) and
`prof_llmservingsim_RTX4090_llama8b_dense.csv` (floor of the elementwise kernels). Writes one TOML a device
and prints how well each operator was met, in sample and on batches held out of the fit.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from cspsched.costs.aic_tables import (
    context_attention,
    elementwise_ns,
    gemm_times_ms,
    generation_attention,
    head_gemm,
    read_attention,
    read_gemms,
    read_launch_ns,
    token_linear,
)
from cspsched.costs.fit import Measurements, RelativeErrors, Terms, fit_terms, price_terms, relative_errors
from cspsched.costs.models import load_device, load_model
from cspsched.problem.cost import COST_SCHEMA, PiecewiseLinear

MODEL = "llama-3.1-8b"
NUM_FOLDS = 10
SOURCE = (
    "ai-dynamo/aiconfigurator 095f58a (Apache-2.0), aic-core systems/data, {tables}: bf16 GEMMs and "
    "FlashAttention (32 query heads, 8 KV heads, head_dim 128); GEMM shapes missing there are interpolated "
    "in n and k, the head (n = 128256) is scaled from the largest n. Floor of elementwise kernels: "
    "casys-kaist/LLMServingSim (MIT), RTX 4090 dense table. Written by benchmarks/fit_public_tables.py"
)
LEAVES_OUT = (
    "CPU work between batches, sampler, embedding lookup, final norm, kernel launches outside CUDA graphs; "
    "what reading a chunk's earlier context costs beyond its attention work; interference of prefill and "
    "decode in one kernel. Elementwise kernels (norms, rotary, activation, KV write) are derived from the "
    "memory bandwidth, not measured"
)


@dataclass(frozen=True)
class Target:
    """A device whose tables are fitted: its name in the tables and in the facts, and what they are called."""

    table: str
    device: str
    tables: str
    token_knots: tuple[int, ...]
    caveat: str = ""


@dataclass(frozen=True)
class Operator:
    """An operator: what was measured, and the terms that price it."""

    name: str
    measured: Measurements
    constants: tuple[str, ...]
    knots: dict[str, tuple[int, ...]]

    def fit(self, measured: Measurements) -> Terms:
        """Terms fitted to some of the measurements."""
        return fit_terms(measured, constants=self.constants, knots=self.knots)


HOPPER_KNOTS = (0, 64, 128, 192, 256, 512, 1024, 2048)
AMPERE_KNOTS = (0, 64, 128, 160, 256, 512, 1024, 2048)
AMPERE_CAVEAT = (
    ". For the same token operators the A100 table of microsoft/vidur 7d47513 is slower: this fit is 18 % "
    "below it on average, 1 % above at 1 token and 21 % below at 2048"
)
TARGETS = (
    Target("h100", "h100", "h100_sxm vLLM 0.24.0", HOPPER_KNOTS),
    Target("h200", "h200", "h200_sxm vLLM 0.24.0", HOPPER_KNOTS),
    Target("a100", "a100-80", "a100_sxm vLLM 0.14.0", AMPERE_KNOTS, AMPERE_CAVEAT),
)


def operators(folder: Path, target: Target) -> list[Operator]:
    """Operators of a device, each on the batches that it is fitted to."""
    model = load_model(MODEL)
    gemms = read_gemms(folder, target.table)
    elementwise = elementwise_ns(model, load_device(target.device), read_launch_ns(folder))
    context, generation = (
        read_attention(folder, target.table, phase, model) for phase in ("context", "generation")
    )
    # Kernels behave differently on contexts shorter than a tile; serving hardly sees those.
    served = generation[(generation["step"] >= 63) & (generation["batch_size"] <= 1024)]
    head = head_gemm(gemms, model)
    return [
        Operator(
            "tokens",
            token_linear(gemms, model, elementwise),
            ("step",),
            {"tokens": target.token_knots},
        ),
        Operator("head", head.subset(head.features.num_generating <= 1024), (), {"head": (0, 1, 64, 256)}),
        Operator(
            "prefill_attention",
            context_attention(context, model),
            ("prefill_batch", "prefill_request"),
            {"prefill_attention": (0,), "prefill_tokens": (0, 256, 1024, 4096)},
        ),
        Operator(
            "decode_attention",
            generation_attention(served, model),
            ("decode_batch", "decode_request"),
            {"decode_context": (0, 8192, 32768, 131072)},
        ),
    ]


def held_out_errors(operator: Operator) -> RelativeErrors:
    """Errors on batches that the fit has not seen: shuffled folds, each predicted from the others."""
    measured = operator.measured
    order = np.random.default_rng(0).permutation(len(measured.times_ns))
    predicted = np.empty(len(order))
    for fold in np.array_split(order, NUM_FOLDS):
        seen = np.ones(len(order), dtype=bool)
        seen[fold] = False
        unseen = measured.subset(~seen)
        predicted[~seen] = price_terms(operator.fit(measured.subset(seen)), unseen.features)
    return relative_errors(predicted, measured.times_ns)


def shape_errors(folder: Path, target: Target) -> RelativeErrors:
    """Errors of interpolated GEMM shapes: every n from 1024 on predicted from its neighbours, k = 4096."""
    gemms = read_gemms(folder, target.table)
    gemms = gemms[(gemms["k"] == load_model(MODEL).hidden_size) & (gemms["n"] >= 1024)]
    predicted, measured = [], []
    for n in sorted(gemms["n"].unique())[1:-1]:
        predicted.append(gemm_times_ms(gemms[gemms["n"] != n], n, load_model(MODEL).hidden_size))
        measured.append(gemm_times_ms(gemms, n, load_model(MODEL).hidden_size))
    return relative_errors(np.concatenate(predicted), np.concatenate(measured))


def whole_decode_errors(folder: Path, target: Target, terms: Terms) -> RelativeErrors:
    """Errors on all decode batches, those too short or too many to be fitted included."""
    model = load_model(MODEL)
    measured = generation_attention(read_attention(folder, target.table, "generation", model), model)
    decode = {name: terms[name] for name in ("decode_batch", "decode_request", "decode_context")}
    return relative_errors(price_terms(decode, measured.features), measured.times_ns)


def describe(errors: RelativeErrors) -> str:
    """Errors in percent."""
    return f"MAPE {errors.mean:.1%}, p95 {errors.p95:.1%}, bias {errors.bias:+.1%}"


def cost_file(name: str, title: str, target: Target, terms: Terms, fit_error: dict[str, str]) -> str:
    """Text of a cost file: description, constants, then one table a function."""
    lines = ["# Written by benchmarks/fit_public_tables.py; do not edit."]
    described = {
        "schema": COST_SCHEMA, "name": name, "title": title, "model": MODEL, "device": target.device,
        "source": SOURCE.format(tables=target.tables), "leaves_out": LEAVES_OUT + target.caveat,
    }  # fmt: skip
    lines += [f'{key} = "{text}"' for key, text in described.items()]
    lines += ["tensor_parallel = 1"]
    lines += [f'{key}_ns = "{term}"' for key, term in terms.items() if isinstance(term, Fraction)]
    for key, term in terms.items():
        if isinstance(term, PiecewiseLinear):
            lines += ["", f"[{key}]", f"knots = {list(term.knots)}", f"slopes_ns = {decimals(term.slopes)}"]
    lines += ["", "[fit_error]", *(f'{key} = "{text}"' for key, text in fit_error.items())]
    return "\n".join(lines) + "\n"


def decimals(slopes: Sequence[Fraction]) -> str:
    """Slopes as a TOML list of decimal text."""
    return "[" + ", ".join(f'"{float(slope):.10g}"' for slope in slopes) + "]"


def fit_target(folder: Path, target: Target) -> tuple[str, str, dict[str, str]]:
    """Name, file text and errors of the cost model of one device."""
    terms: Terms = {}
    fit_error = {"gemm_shapes": f"interpolated shapes {describe(shape_errors(folder, target))}"}
    for operator in operators(folder, target):
        fitted = operator.fit(operator.measured)
        terms |= fitted
        seen = relative_errors(price_terms(fitted, operator.measured.features), operator.measured.times_ns)
        unseen = held_out_errors(operator)
        fit_error[operator.name] = f"in sample {describe(seen)}; held out {describe(unseen)}"
    fit_error["decode_attention_whole_table"] = describe(whole_decode_errors(folder, target, terms))
    name = f"{target.device}-{MODEL}"
    title = f"Llama 3.1 8B on one {load_device(target.device).title}, bf16, fitted to measured kernels"
    return name, cost_file(name, title, target, terms, fit_error), fit_error


def main() -> None:
    """Fit every device and write its file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("models/costs"))
    arguments = parser.parse_args()
    for target in TARGETS:
        name, text, fit_error = fit_target(arguments.data_folder, target)
        (arguments.out / f"{name}.toml").write_text(text)
        print(name)
        for operator, errors in fit_error.items():
            print(f"  {operator:28} {errors}")


if __name__ == "__main__":
    main()
