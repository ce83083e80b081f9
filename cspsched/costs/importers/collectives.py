"""Collectives between the ranks of a model: of measured tables, or of the link between devices by formula."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from cspsched.costs.devices import Link
from cspsched.costs.importers.source import US_PER_MS, Source
from cspsched.costs.models import LlmModel
from cspsched.costs.parallelism import Parallelism
from cspsched.costs.rows import make_rows
from cspsched.errors import InputError
from cspsched.problem.cost import IntArray

if TYPE_CHECKING:
    import pandas as pd

HALF_BYTES = 2
"""Of an element. Both tables of collectives count elements: NCCL takes as long for twice as many of one byte,
and beyond vLLM's own kernel both tables have the same times."""
CUSTOM_KERNEL = "vLLM_custom_graph"
"""vLLM's all-reduce inside a CUDA graph; outside one a launch of about 15 us is added."""
CUSTOM_MOST_BYTES = 8 * 2**20
"""Up to which vLLM takes its own kernel (`CustomAllreduce`, default `max_size`), and NCCL beyond."""
SIZES = 2.0 ** np.arange(9, 31)
"""Bytes of the messages at which formulas are evaluated."""
PROJECT, DERIVED = "aiconfigurator", "derived"


def measured_collectives(tables: Mapping[str, Source], ranks: int) -> pd.DataFrame:
    """Rows over so many ranks: NCCL's, but vLLM's own all-reduce up to the size that it takes.

    Parameters
    ----------
    tables
        `custom` and `nccl`, as far as they are there.

    Raises
    ------
    InputError
        If there is no table of them, or no all-reduce over so many ranks.
    """
    import pandas as pd

    parts = []
    if "custom" in tables:
        parts.append(_messages("custom", tables["custom"], "all_reduce", ranks, (0, CUSTOM_MOST_BYTES)))
    if "nccl" in tables:
        nccl, above = tables["nccl"], CUSTOM_MOST_BYTES if parts else 0
        parts.append(_messages("nccl", nccl, "all_reduce", ranks, (above, 2**62)))
        parts += [_messages("nccl", nccl, name, ranks) for name in ("all_gather", "reduce_scatter")]
    found = [part for part in parts if len(part)]
    if not any((part["op"] == "all_reduce").all() for part in found):
        paths = " and ".join(str(table.path) for table in tables.values()) or "no nccl table"
        raise InputError(f"{paths}: no all-reduce over {ranks} ranks")
    return pd.concat(found, ignore_index=True)


def measured_sending(nccl: Source, ranks: int) -> pd.DataFrame:
    """Rows of a message to the next pipeline stage, each of which has so many ranks.

    As long as an all-gather over two ranks of twice the bytes, in which each sends its half to the other.
    """
    pairs = _messages("nccl", nccl, "all_gather", 2)
    how = "half of an NCCL all_gather over two ranks"
    return pairs.assign(op="send_recv", bytes=pairs["bytes"] // 2, tp=ranks, kernel_impl=how)


def link_sending(link: Link, ranks: int) -> pd.DataFrame:
    """The same by formula: the latency of a link, and all bytes over its bandwidth."""
    return _link_rows(link, "send_recv", ranks, steps=1, step_bytes=SIZES)


def link_collectives(link: Link, ranks: int) -> pd.DataFrame:
    """Rows by the ring algorithms' formulas over a link of some latency and bandwidth.

    p ranks and n bytes in all: p - 1 steps of a p-th of the bytes for an all-gather and a reduce-scatter,
    both of them for an all-reduce (Thakur, Rabenseifner and Gropp, Optimization of collective communication
    operations in MPICH, IJHPCA 2005, sections 3.1 and 3.5).
    """
    import pandas as pd

    steps_of = {"all_reduce": 2 * (ranks - 1), "all_gather": ranks - 1, "reduce_scatter": ranks - 1}
    parts = [_link_rows(link, name, ranks, steps, SIZES / ranks) for name, steps in steps_of.items()]
    return pd.concat(parts, ignore_index=True)


def _link_rows(
    link: Link, operator: str, ranks: int, steps: int, step_bytes: np.typing.NDArray[np.floating]
) -> pd.DataFrame:
    """Rows of an operator that sends so many bytes over the link in each of its steps."""
    bandwidth, latency_us = link.bandwidth_bytes_per_s, link.latency_ns / 1000
    times_us = steps * (latency_us + 1e6 * step_bytes / bandwidth)
    how = f"formula, {bandwidth / 1e9:g} GB/s and {latency_us:g} us"
    names = {"op": operator, "tp": ranks, "kernel_impl": how, "backend": DERIVED}
    return make_rows({"bytes": SIZES, "t_us": times_us, **names})


def exchange(
    network: pd.DataFrame, model: LlmModel, parallelism: Parallelism, tokens: IntArray
) -> pd.DataFrame:
    """Rows of what brings the tokens of all groups to the experts of a layer, and their results back.

    vLLM gathers the hidden features over the groups and scatters their sums (its default all-to-all backend,
    `allgather_reducescatter`); collectives count what all groups have together.

    Parameters
    ----------
    network
        Collectives over the groups.
    tokens
        Of one group, at which rows are made as far as the collectives reach.

    Raises
    ------
    InputError
        If a collective is missing.
    """
    import pandas as pd

    bytes_per_token = parallelism.data * model.hidden_size * model.dtype_bytes
    parts = []
    for operator, collective in (("dispatch", "all_gather"), ("combine", "reduce_scatter")):
        measured = network[network["op"] == collective].sort_values("bytes")
        if measured.empty:
            raise InputError(f"{parallelism.title} needs {collective} over {parallelism.data} ranks")
        within = tokens[tokens * bytes_per_token <= measured["bytes"].max()]
        times_us = np.interp(within * bytes_per_token, measured["bytes"], measured["t_us"])
        names = {name: measured[name].iloc[0] for name in ("kernel_impl", "backend")}
        columns = {"op": operator, "num_tokens": within, "t_us": times_us, "tp": parallelism.tensor}
        parts.append(make_rows(columns | names))
    return pd.concat(parts, ignore_index=True)


def _messages(
    kind: str, source: Source, operator: str, ranks: int, within: tuple[int, int] = (0, 2**62)
) -> pd.DataFrame:
    """Rows of one collective, for messages of more bytes than the first and at most the second."""
    size = HALF_BYTES * source.counts("message_size", 1)
    keep = (source.text("op_name") == operator) & (source.counts("num_gpus") == ranks)
    keep &= (size > within[0]) & (size <= within[1])
    if kind == "custom":
        keep &= source.text("kernel_source") == CUSTOM_KERNEL
    rows = source.where(keep)
    how = "NCCL" if kind == "nccl" else "vLLM custom all-reduce in a CUDA graph"
    columns = {
        "op": operator,
        "bytes": size[keep],
        "tp": ranks,
        "t_us": rows.times_us("latency", US_PER_MS),
    }
    return make_rows(columns | {"kernel_impl": how, "backend": PROJECT})
