"""A decode step in parts, beside what the device's bandwidth allows at best.

    python benchmarks/decode_steps.py --model llama-3.1-70b --device h100 --tensor-parallel 4

Needs the extra `aic`. Parts are tables as measured, before anything is fitted to them; the composed cost
model and the limit stand beside their sum. The limit: all weights of a rank and the KV cache of all requests
are read once, at the peak bandwidth.
"""

from __future__ import annotations

from collections.abc import Iterator

import click
import numpy as np
import pandas as pd

from cspsched.costs.compose import compose_cost
from cspsched.costs.devices import Device, load_device
from cspsched.costs.estimator.features import message_times, share_of_layers
from cspsched.costs.estimator.tables import MonotoneTable
from cspsched.costs.importers.aiconfigurator import AicTables, installed_tables
from cspsched.costs.kv_capacity import weight_bytes
from cspsched.costs.models import LlmModel, load_model
from cspsched.costs.parallelism import Parallelism
from cspsched.costs.presets import load_cost
from cspsched.costs.rows import OPERATORS
from cspsched.problem.cost import BatchFeatures

GEMMS = ("qkv_proj", "o_proj", "gate_up", "down", "router", "shared_gate_up", "shared_down", "experts")
COLUMNS = ("batch", "weights", "attention", "all-reduce", "head", "rest", "sum", "composed", "limit")


@click.command()
@click.option("--model", default="llama-3.1-70b", show_default=True)
@click.option("--device", default="h100", show_default=True)
@click.option("--tensor-parallel", default=4, show_default=True)
@click.option("--context", default=700, show_default=True, help="Tokens of each request.")
@click.option("--batch", "batches", multiple=True, type=int, default=(1, 32, 128), show_default=True)
def main(model: str, device: str, tensor_parallel: int, context: int, batches: tuple[int, ...]) -> None:
    """Print one line a batch, milliseconds."""
    facts, gpu = load_model(model), load_device(device)
    print("| " + " | ".join(COLUMNS) + " |\n|" + "--:|" * len(COLUMNS))
    for line in steps(facts, gpu, Parallelism(tensor=tensor_parallel), context, batches):
        print("| " + " | ".join(f"{x:.2f}" if isinstance(x, float) else str(x) for x in line) + " |")


def steps(
    model: LlmModel, device: Device, ranks: Parallelism, context: int, batches: tuple[int, ...]
) -> Iterator[list[float | int]]:
    """Batch size and milliseconds of each part, of the composed cost model, and of the limit."""
    rows = AicTables.read(installed_tables(device.operator_tables), checked=True).rows(model, device, ranks)
    cost = load_cost(compose_cost(model, device, ranks))
    for batch in batches:
        found = dict.fromkeys(("weights", "attention", "all-reduce", "head", "rest"), 0.0)
        for operator, part in rows.groupby("op"):
            kind, layers = OPERATORS[str(operator)], model.num_layers
            if kind.feature == "message":
                continue
            calls = layers * share_of_layers(str(operator), model) * kind.per_layer + kind.per_step
            name = "weights" if operator in GEMMS else "head" if operator == "lm_head" else "rest"
            if operator == "attn_decode":
                found["attention"] = layers * _attention_us(part, batch, context) / 1000
            elif kind.feature != "attention":
                table = MonotoneTable(
                    part["num_tokens"].to_numpy(np.int64), part["t_us"].to_numpy(np.float64)
                )
                found[name] += calls * float(table(np.array([batch]))[0]) / 1000
        reduce_us = message_times(rows, "all_reduce", np.array([batch]), model, ranks.tensor)
        found["all-reduce"] = 2 * model.num_layers * float(reduce_us[0]) / 1000
        features = BatchFeatures(
            tokens=batch, prefill_attention=0, prefill_tokens=0, prefill_context=0,
            decode_context=batch * context, num_generating=batch, num_prefills=0, num_decodes=batch,
        )  # fmt: skip
        weights = weight_bytes(model, ranks)
        read = sum(weights) - weights.embedding
        if model.moe is not None:  # experts that no token chooses, all being chosen alike, are not read
            read -= weights.mlp * (1 - model.moe.experts_per_token / model.moe.num_experts) ** batch
        read += batch * context * model.kv_bytes_per_token(ranks.tensor)
        limit_ms = 1000 * read / device.memory_bandwidth_bytes_per_s
        yield [batch, *found.values(), sum(found.values()), cost.batch_time_ns(features) / 1e6, limit_ms]


def _attention_us(rows: pd.DataFrame, batch: int, context: int) -> float:
    """Decode attention of one layer, between the measured contexts and numbers of requests."""
    by_number = {
        number: np.interp(context, part["kv"], part["t_us"])
        for number, part in rows.sort_values(["n_seq", "kv"]).groupby("n_seq")
    }
    return float(np.interp(batch, list(by_number), list(by_number.values())))


if __name__ == "__main__":
    main()
