"""How accurate the estimator is on public tables, beside a forest as Vidur trains it, in the same run.

Usage: python benchmarks/estimator_accuracy.py DATA_FOLDER [--json FILE]

Every figure is of points that were held out: ten shuffled folds, whole GEMM shapes, or sizes beyond the fit.
The forest has Vidur's features and the middle of its grid (500 trees of depth 16).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestRegressor

from cspsched.costs.devices import load_device
from cspsched.costs.estimator.features import attention_work, head_work, of_operator, token_work
from cspsched.costs.estimator.quality import Group
from cspsched.costs.estimator.tables import MonotoneTable
from cspsched.costs.estimator.trees import CorrectedByTrees
from cspsched.costs.fit import FloatArray, Measurements, batch_features, price_terms
from cspsched.costs.importers.aiconfigurator import AicTables
from cspsched.costs.importers.attention_heads import attention_of_heads
from cspsched.costs.importers.vidur import import_vidur
from cspsched.costs.models import load_model
from cspsched.costs.presets import load_cost
from cspsched.problem.cost import BatchFeatures, triangle

NUM_FOLDS = 10
TOKEN_TABLES = (
    ("A100 Llama-3 8B TP1", "prof_vidur_a100_Meta-Llama-3-8B_mlp.csv", "llama-3.1-8b", 1),
    ("A100 Llama-3 70B TP4", "prof_vidur_a100_Meta-Llama-3-70B_mlp.csv", "llama-3.1-70b", 4),
    ("H100 Llama-2 7B TP1", "prof_vidur_h100_Llama-2-7b-hf_mlp.csv", "llama-2-7b", 1),
    ("H100 Llama-2 70B TP4", "prof_vidur_h100_Llama-2-70b-hf_mlp.csv", "llama-2-70b", 4),
)
DEVICES = {"h200": "h200", "h100": "h100", "a100": "a100-80"}
HEADS = ((4, 1), (8, 1), (8, 2), (16, 2), (16, 4), (32, 4), (32, 8), (40, 8), (64, 8))
MOST_DECODES, LEAST_LENGTH = 256, 127
NEAR_TOKENS = 2048
NUM_BATCHES = 2000
Predict = Callable[[FloatArray], FloatArray]


def mape(predicted: FloatArray, measured: FloatArray) -> float:
    """Mean absolute percentage error."""
    return float(np.abs(predicted / measured - 1).mean()) * 100


def folds(number: int) -> Iterator[np.typing.NDArray[np.bool_]]:
    """Masks of the points that are held out, each point once."""
    fold = np.random.default_rng(0).permutation(number) % NUM_FOLDS
    return (fold == held for held in range(NUM_FOLDS))


def forest(x: FloatArray, times: FloatArray) -> Predict:
    """A forest as Vidur's: raw features, raw times."""
    trees = RandomForestRegressor(500, max_depth=16, min_samples_split=2, random_state=0, n_jobs=1)
    return trees.fit(x, times).predict


def token_operators(folder: Path) -> Iterator[dict[str, Any]]:
    """Sum of the token operators of a layer, by tokens: in range (to 4096) and at twice the range."""
    for name, file, model_name, ranks in TOKEN_TABLES:
        model = load_model(model_name)
        rows = import_vidur([folder / file], model)
        rows = rows[(rows["tp"] == ranks) & (rows["num_tokens"] <= 2 * NEAR_TOKENS)]
        measured = token_work(rows, model, model.num_layers, 1)
        x, y = measured.features.tokens, measured.times_ns
        ours, theirs = np.empty(len(y)), np.empty(len(y))
        for held in folds(len(y)):
            ours[held] = MonotoneTable(x[~held], y[~held])(x[held])
            theirs[held] = forest(x[~held, None].astype(float), y[~held])(x[held, None].astype(float))
        near = x <= NEAR_TOKENS
        beyond = MonotoneTable(x[near], y[near])(x[~near])
        forest_beyond = forest(x[near, None].astype(float), y[near])(x[~near, None].astype(float))
        yield {
            "what": f"token operators, {name}", "ours": mape(ours, y), "forest": mape(theirs, y),
            "ours beyond": mape(beyond, y[~near]), "forest beyond": mape(forest_beyond, y[~near]),
        }  # fmt: skip


def gemm_shapes(folder: Path) -> Iterator[dict[str, Any]]:
    """Whole GEMM shapes (n, k) held out, up to 8192 rows."""
    for table in DEVICES:
        tables = AicTables.read(sorted(folder.glob(f"prof_aic_{table}_*gemm*")))
        grid = tables.gemm_grid()
        frame = tables.table("gemm").frame.groupby(["m", "n", "k"], as_index=False)["latency"].median()
        frame = frame[(frame["n"] >= 256) & (frame["k"] >= 256) & (frame["m"] <= 8192)]
        frame = frame.sample(min(8000, len(frame)), random_state=0)
        shape = frame["n"] * 100_000 + frame["k"]
        held = shape.isin(shape.drop_duplicates().sample(frac=0.2, random_state=0)).to_numpy()
        x, y = frame[["m", "n", "k"]].to_numpy(float), frame["latency"].to_numpy()
        theirs = forest(x[~held], y[~held])(x[held])
        yield {
            "what": f"GEMM shapes held out, {table}", "ours": 100 * float(abs(grid.held_out_errors()).mean()),
            "forest": mape(theirs, y[held]),
        }  # fmt: skip


def attention_points(folder: Path, table: str, phase: str) -> pd.DataFrame:
    """Every head count of a device in range: batch size, length, heads, time."""
    tables = AicTables.read(sorted(folder.glob(f"prof_aic_{table}_*attention*")))
    kind, length = ("generation", "step") if phase == "decode" else ("context", "isl")
    parts = []
    for heads, kv_heads in HEADS:
        grid, _ = attention_of_heads(tables.table(kind), length, heads, kv_heads, 128)
        parts.append(grid.rename(columns={length: "length"}).assign(heads=heads, kv_heads=kv_heads))
    points = pd.concat(parts, ignore_index=True)
    keep = points["length"] >= LEAST_LENGTH + (phase == "prefill")
    return points[keep & (points["batch_size"] <= MOST_DECODES)].reset_index(drop=True)


def as_measured(points: pd.DataFrame, phase: str) -> Measurements:
    """Points as batches of a cost model's terms."""
    size, length = points["batch_size"].to_numpy(np.int64), points["length"].to_numpy(np.int64)
    if phase == "decode":
        features = batch_features(tokens=size, decode_context=size * length, num_decodes=size)
    else:
        features = batch_features(
            tokens=size * length, prefill_tokens=size * length, prefill_attention=size * triangle(length),
            num_prefills=size,
        )  # fmt: skip
    return Measurements(features=features, times_ns=points["t_us"].to_numpy(np.float64) * 1000)


def tree_features(points: pd.DataFrame) -> FloatArray:
    """What the trees see of a point, heads included, so that head counts learn from each other."""
    size, length, heads, kv = (
        points[name].to_numpy(np.float64) for name in ("batch_size", "length", "heads", "kv_heads")
    )
    columns = [size, length, size * length * kv, size * length * heads, size * kv, size * heads, heads / kv]
    return np.stack(columns, axis=1)


def choose_terms(measured: Measurements, phase: str) -> Group:
    """Terms of one head count."""
    if phase == "decode":
        constants, most = ("decode_batch", "decode_request"), {"decode_context": 4}
    else:
        constants, most = ("prefill_batch", "prefill_request"), {"prefill_attention": 4, "prefill_tokens": 4}
    return Group.choose(f"{phase}_attention", measured, constants, most)


def fitted_terms(points: pd.DataFrame, seen: np.typing.NDArray[np.bool_], phase: str) -> FloatArray:
    """What terms fitted to the seen points of each head count say of all points."""
    fitted = np.empty(len(points))
    for pair in HEADS:
        of_pair = ((points["heads"] == pair[0]) & (points["kv_heads"] == pair[1])).to_numpy()
        measured = as_measured(points[of_pair], phase)
        train = measured.subset(seen[of_pair])
        fitted[of_pair] = price_terms(choose_terms(train, phase).fit(train), measured.features)
    return fitted


def attention(folder: Path) -> Iterator[dict[str, Any]]:
    """Decode and prefill attention: terms alone, terms times trees, and the forest."""
    for table in DEVICES:
        for phase in ("decode", "prefill"):
            points = attention_points(folder, table, phase)
            y, x = points["t_us"].to_numpy(np.float64) * 1000, tree_features(points)
            raw = vidur_features(points, phase)
            terms, ours, theirs = np.empty(len(y)), np.empty(len(y)), np.empty(len(y))
            for held in folds(len(y)):
                fitted = fitted_terms(points, ~held, phase)
                terms[held] = fitted[held]
                ours[held] = CorrectedByTrees(x[~held], fitted[~held], y[~held])(x[held], fitted[held])
                theirs[held] = forest(raw[~held], y[~held])(raw[held])
            near = points["length"].to_numpy() <= points["length"].max() / 4
            beyond = fitted_terms(points, near, phase)[~near]
            yield {
                "what": f"{phase} attention, {table}, {len(HEADS)} head counts", "ours": mape(ours, y),
                "terms alone": mape(terms, y), "forest": mape(theirs, y),
                "ours beyond": mape(beyond, y[~near]),
                "forest beyond": mape(forest(raw[near], y[near])(raw[~near]), y[~near]),
            }  # fmt: skip


def vidur_features(points: pd.DataFrame, phase: str) -> FloatArray:
    """Vidur's: batch size and length of decodes; prefills by the sum of their squared lengths."""
    size, length = points["batch_size"].to_numpy(np.float64), points["length"].to_numpy(np.float64)
    heads = points[["heads", "kv_heads"]].to_numpy(np.float64)
    shape = np.stack([size, length], axis=1) if phase == "decode" else (size * length**2)[:, None]
    return np.hstack([heads, shape])


def whole_steps(folder: Path) -> Iterator[dict[str, Any]]:
    """Batches drawn at random: the piecewise-linear form beside tables and trees that nobody rounded."""
    model = load_model("llama-3.1-8b")
    for table, device in DEVICES.items():
        rows = AicTables.read(sorted(folder.glob(f"prof_aic_{table}_*"))).rows(model, load_device(device))
        cost, batches = load_cost(f"{device}-llama-3.1-8b"), drawn_batches()
        tokens = token_work(rows, model, model.num_layers, 1)
        head = head_work(rows, model, 1)
        assert head is not None
        unrounded = MonotoneTable(tokens.features.tokens, tokens.times_ns)(batches.tokens)
        unrounded += np.where(
            batches.num_generating > 0,
            MonotoneTable(head.features.num_generating, head.times_ns)(batches.num_generating),
            0,
        )
        for phase in ("decode", "prefill"):
            unrounded += unrounded_attention(rows, phase, batches)
        times = cost.batch_times_ns(batches).astype(float)
        kinds = {"decodes": batches.num_prefills == 0, "prefills": batches.num_decodes == 0}
        kinds["mixed"] = ~kinds["decodes"] & ~kinds["prefills"]
        yield {
            "what": f"whole steps, {device}", "ours": mape(times, unrounded),
            **{kind: mape(times[of], unrounded[of]) for kind, of in kinds.items()},
        }  # fmt: skip


def drawn_batches() -> BatchFeatures[np.typing.NDArray[np.int64]]:
    """Batches as a server sees them: decodes, prompts, both; contexts are lognormal around 1000 tokens."""
    generator = np.random.default_rng(0)
    decodes = np.where(np.arange(NUM_BATCHES) % 3 == 1, 0, generator.geometric(1 / 64, NUM_BATCHES))
    prompts = np.where(np.arange(NUM_BATCHES) % 3 == 0, 0, generator.integers(1, 5, NUM_BATCHES))
    decodes = np.minimum(decodes, MOST_DECODES)
    context = np.clip(generator.lognormal(7, 0.8, NUM_BATCHES), 128, 8192).astype(np.int64)
    prompt = np.clip(generator.lognormal(6, 0.8, NUM_BATCHES), 128, 2048).astype(np.int64)
    return BatchFeatures(
        tokens=decodes + prompts * prompt,
        prefill_attention=prompts * triangle(prompt),
        prefill_tokens=prompts * prompt,
        prefill_context=np.zeros(NUM_BATCHES, dtype=np.int64),
        decode_context=decodes * context,
        num_generating=decodes + prompts,
        num_prefills=prompts,
        num_decodes=decodes,
    )


def unrounded_attention(
    rows: pd.DataFrame, phase: str, batches: BatchFeatures[np.typing.NDArray[np.int64]]
) -> FloatArray:
    """Terms times trees of one head count, on the batches that have the phase."""
    measured = attention_work(of_operator(rows, f"attn_{phase}"), load_model("llama-3.1-8b").num_layers)
    is_decode = phase == "decode"
    number = "num_decodes" if is_decode else "num_prefills"
    total = "decode_context" if is_decode else "prefill_tokens"

    def features(of: BatchFeatures[np.typing.NDArray[np.int64]]) -> FloatArray:
        count = np.maximum(getattr(of, number), 1).astype(float)
        work = np.maximum(getattr(of, total), 1).astype(float)
        return np.stack([count, work / count, work], axis=1)

    group = choose_terms(measured, phase)
    terms = group.fit(measured)
    known = price_terms(terms, measured.features)
    trees = CorrectedByTrees(features(measured.features), known, measured.times_ns)
    fitted = price_terms(terms, batches)
    found = np.zeros(len(fitted))
    has = getattr(batches, number) > 0
    found[has] = trees(features(batches)[has], fitted[has])
    return found


def main() -> None:
    """Run all and print one line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_folder", type=Path)
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    results = []
    for part in (token_operators, whole_steps, gemm_shapes, attention):
        for result in part(arguments.data_folder):
            results.append(result)
            figures = "  ".join(f"{key} {value:.2f}" for key, value in result.items() if key != "what")
            print(f"{result['what']:46} {figures}", flush=True)
    if arguments.json:
        data = {"schema": "cspsched/estimator-accuracy/1", "rows": results}
        arguments.json.write_text(json.dumps(data, indent=1))


if __name__ == "__main__":
    main()
