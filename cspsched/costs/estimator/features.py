"""What the terms of a cost model are fitted to: rows of a profile as measured batches of a whole model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cspsched.costs.estimator.tables import ExpertTable, MonotoneTable
from cspsched.costs.fit import FloatArray, Measurements, batch_features
from cspsched.costs.models import LlmModel
from cspsched.costs.rows import OPERATORS, numbers
from cspsched.errors import InputError
from cspsched.problem.cost import BatchFeatures, IntArray, triangle

if TYPE_CHECKING:
    import pandas as pd

Backends = Mapping[str, Sequence[str]]
"""Implementations of operators, best first."""
NS_PER_US = 1000.0
LEAST_CONTEXT = 63
"""Shorter contexts fit into one tile of a kernel and behave otherwise; serving hardly sees those."""
MOST_REQUESTS = 1024
"""No engine runs more requests in a batch by default."""
NOISY_WEIGHT = 0.25
"""How much a measurement that is flagged as noisy counts beside others."""
EXPERT_OPERATORS = (
    "router", "experts", "shared_expert", "shared_gate_up", "shared_silu_mul", "shared_down", "dispatch",
    "combine",
)  # fmt: skip
MLP_OPERATORS = ("gate_up", "silu_mul", "down")
"""Token operators of the layers with experts, and of those with an MLP."""
POINT = ["num_tokens", "chunk", "kv", "n_seq", "kv_total", "batch_spec", "bytes"]
"""Columns that say at what point a row was measured."""


def one_backend(rows: pd.DataFrame, preferred: Backends | None = None) -> pd.DataFrame:
    """Rows of each operator from one implementation.

    That is the first preferred one that was measured (a profile names first what its decoder runs), or else
    the one that was measured at most points, or of those the fastest, by the median of its times over the
    least at each point.

    Parameters
    ----------
    preferred
        Implementations of an operator, best first.
    """
    import pandas as pd

    kept = []
    for operator, group in rows.groupby("op", sort=False):
        if group["backend"].nunique() > 1:
            measured = set(group["backend"])
            wanted = [name for name in (preferred or {}).get(str(operator), ()) if name in measured]
            group = group[group["backend"] == (wanted[0] if wanted else _widest(group))]
        kept.append(group)
    return pd.concat(kept, ignore_index=True)


def _widest(group: pd.DataFrame) -> str:
    """The implementation with the most points, of several the fastest, of several the first by name."""
    least = group.groupby(POINT, dropna=False)["t_us"].transform("min")
    slowness = (group["t_us"] / least).groupby(group["backend"]).median()
    points = group.drop_duplicates(["backend", *POINT]).groupby("backend").size()
    return str(min(points.index, key=lambda name: (-points[name], slowness[name], name)))


def row_weights(rows: pd.DataFrame) -> FloatArray:
    """How much each row counts, shape (num_rows,): those flagged as noisy less."""
    return np.where(rows["noisy"].fillna(0).to_numpy(np.float64) > 0, NOISY_WEIGHT, 1.0)


def of_operator(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Rows of one operator."""
    return rows[rows["op"] == name]


def token_work(rows: pd.DataFrame, model: LlmModel, num_layers: int, ranks: int) -> Measurements:
    """Everything that depends on the tokens of a batch: operators of all layers, collectives, what runs once.

    Operators are tables over their own grids; they are added up at every count that any of them was measured
    at, as far as all reach.

    Raises
    ------
    InputError
        If no operator of a layer was measured, or the collectives of several ranks are missing.
    """
    tables: list[tuple[MonotoneTable | ExpertTable, float]] = []
    found = set(rows["op"])
    for name in sorted(found):
        operator = OPERATORS[name]
        if operator.feature == "tokens":
            once = operator.per_step if not (name == "rmsnorm" and "final_norm" in found) else 0
            layers = num_layers * share_of_layers(name, model)
            tables.append((_token_table(of_operator(rows, name)), layers * operator.per_layer + once))
    if not any(calls >= num_layers for _, calls in tables):
        raise InputError(f"the profile of {model.name} has no operator that depends on the tokens of a batch")
    reach = min(table.largest for table, _ in tables)
    x: IntArray = np.unique(np.concatenate([table.x for table, _ in tables]))
    x = x[(x > 0) & (x <= reach)]
    parts = np.array([calls * _times(table, x, model) for table, calls in tables])
    weights = np.array([np.interp(x, table.x, table.weights) for table, _ in tables])
    total = parts.sum(axis=0) + message_times(rows, "all_reduce", x, model, ranks) * (
        num_layers * OPERATORS["all_reduce"].per_layer
    )
    return Measurements(
        features=batch_features(tokens=x),
        times_ns=total * NS_PER_US,
        weights=(parts * weights).sum(axis=0) / parts.sum(axis=0),
    )


def share_of_layers(operator: str, model: LlmModel) -> float:
    """Share of the layers that have a token operator: those with experts, those with an MLP, or all."""
    of_experts = model.num_expert_layers / model.num_layers
    if operator in EXPERT_OPERATORS:
        return of_experts
    return 1 - of_experts if operator in MLP_OPERATORS else 1


def message_times(
    rows: pd.DataFrame, operator: str, tokens: IntArray, model: LlmModel, ranks: int
) -> FloatArray:
    """Microseconds of a collective on the hidden activations of some tokens; 0 for a single rank.

    Raises
    ------
    InputError
        If it is needed and was not measured.
    """
    if ranks == 1:
        return np.zeros(len(tokens))
    measured = of_operator(rows, operator)
    if measured.empty:
        raise InputError(
            f"{model.name} over {ranks} ranks needs {operator}, and the profile has no rows of it; "
            "measure it on several GPUs or bring in a table of the network"
        )
    return _message_table(measured)(tokens * model.hidden_size * model.dtype_bytes)


def _message_table(rows: pd.DataFrame) -> MonotoneTable:
    """Microseconds of a collective by the bytes of its message."""
    sizes = numbers(rows["bytes"], "profile", "bytes").astype(np.int64)
    return MonotoneTable(sizes, rows["t_us"].to_numpy(np.float64), row_weights(rows))


def head_work(rows: pd.DataFrame, model: LlmModel, ranks: int) -> Measurements | None:
    """Head and sampler by requests that get a token; None if neither was measured.

    Where the vocabulary is spread over ranks, its logits are gathered, by a table of `all_gather` over the
    bytes of all ranks together; a profile without that table leaves it out.
    """
    tables = [
        MonotoneTable(
            part["num_tokens"].to_numpy(np.int64), part["t_us"].to_numpy(np.float64), row_weights(part)
        )
        for part in (of_operator(rows, name) for name in ("lm_head", "sampler"))
        if len(part)
    ]
    if not tables:
        return None
    x: IntArray = np.unique(np.concatenate([table.x for table in tables]))
    # Twice of what engines run, so that the last slope rests on data.
    x = x[(x > 0) & (x <= min(2 * MOST_REQUESTS, *(table.largest for table in tables)))]
    times = np.asarray(sum(table(x) for table in tables), dtype=np.float64)
    gathers = of_operator(rows, "all_gather")
    if ranks > 1 and len(gathers):
        times += _message_table(gathers)(x * model.vocab_size * model.dtype_bytes)
    weights = np.min([np.interp(x, table.x, table.weights) for table in tables], axis=0)
    return Measurements(
        features=batch_features(num_generating=x), times_ns=times * NS_PER_US, weights=weights
    )


def attention_work(rows: pd.DataFrame, num_layers: int, time: str = "t_us") -> Measurements:
    """Attention of all layers on the batches of some rows.

    Parameters
    ----------
    time
        The column of times; where it is empty, `t_us` stands for it.
    """
    times = rows[time].fillna(rows["t_us"]).to_numpy(np.float64)
    return Measurements(
        features=attention_features(rows),
        times_ns=times * num_layers * NS_PER_US,
        weights=row_weights(rows),
    )


def attention_features(rows: pd.DataFrame) -> BatchFeatures[IntArray]:
    """Features of the batches of attention rows, shape (num_rows,) each."""
    names = ("chunk", "kv", "n_seq", "kv_total")
    chunk, kv, number, total = (rows[name].fillna(0).to_numpy(np.int64) for name in names)
    op = rows["op"].to_numpy(object)
    is_decode = op == "attn_decode"
    prefills = np.where(is_decode, 0, np.where(op == "attn_mixed", 1, number))
    decodes = np.where(is_decode | (op == "attn_mixed"), number, 0)
    columns = {
        "prefill_attention": prefills * (triangle(kv + chunk) - triangle(kv)),
        "prefill_tokens": prefills * chunk,
        "prefill_context": prefills * kv,
        "decode_context": np.where(decodes > 0, total, 0),
        "num_prefills": prefills,
        "num_decodes": decodes,
    }
    _overwrite_ragged(rows, columns)
    return batch_features(tokens=columns["prefill_tokens"] + columns["num_decodes"], **columns)


def _overwrite_ragged(rows: pd.DataFrame, columns: dict[str, IntArray]) -> None:
    for at, (operator, spec) in enumerate(zip(rows["op"], rows["batch_spec"], strict=True)):
        chunks = _parsed(spec).get("chunks") if isinstance(spec, str) and "chunks" in spec else None
        if chunks is None:
            continue
        decodes = operator != "attn_prefill"
        prefills = [(c, n) for c, n in chunks if not decodes or c > 1 or n == 0]
        contexts = [n for c, n in chunks if decodes and c == 1 and n > 0]
        columns["prefill_attention"][at] = sum(triangle(n + c) - triangle(n) for c, n in prefills)
        columns["prefill_tokens"][at] = sum(c for c, _ in prefills)
        columns["prefill_context"][at] = sum(n for _, n in prefills)
        columns["decode_context"][at] = sum(contexts)
        columns["num_prefills"][at] = len(prefills)
        columns["num_decodes"][at] = len(contexts)


def served(measured: Measurements) -> Measurements:
    """Batches as serving sees them: no more requests than engines run, contexts longer than one tile.

    All of them if a small profile has too few of those to fit anything to.
    """
    features = measured.features
    mean_context = features.decode_context / np.maximum(features.num_decodes, 1)
    keep = (features.num_decodes == 0) | (mean_context >= LEAST_CONTEXT)
    keep &= features.num_decodes + features.num_prefills <= MOST_REQUESTS
    return measured.subset(keep) if keep.sum() >= len(keep) / 4 else measured


def _token_table(rows: pd.DataFrame) -> MonotoneTable | ExpertTable:
    tokens, times = rows["num_tokens"].to_numpy(np.int64), rows["t_us"].to_numpy(np.float64)
    specs = [_parsed(spec) for spec in rows["batch_spec"]]
    if rows["op"].iloc[0] == "experts" and all("active_experts" in spec for spec in specs):
        active = np.array([int(spec["active_experts"]) for spec in specs], dtype=np.int64)
        return ExpertTable(tokens, active, times, row_weights(rows))
    return MonotoneTable(tokens, times, row_weights(rows))


def _times(table: MonotoneTable | ExpertTable, x: IntArray, model: LlmModel) -> FloatArray:
    if isinstance(table, MonotoneTable):
        return table(x)
    if model.moe is None:
        raise InputError(f"the profile measured experts, and {model.name} has none")
    return table.at_expected(x, model.moe.num_experts, model.moe.experts_per_token)


def _parsed(spec: Any) -> dict[str, Any]:
    """A batch as JSON, which `check_rows` has looked at; empty where there is none."""
    data: dict[str, Any] = json.loads(spec) if isinstance(spec, str) and spec else {}
    return data
