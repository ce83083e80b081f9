"""Tables of a run: one row a request, one row an iteration, as Parquet or CSV."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from cspsched.problem.cost import IntArray
from cspsched.problem.instance import Rejection
from cspsched.referee.metrics import Metrics
from cspsched.report.output import write_files
from cspsched.report.run import Run

RUN_SCHEMA = "cspsched/run/1"
REQUESTS_SCHEMA = "cspsched/requests/1"
ITERATIONS_SCHEMA = "cspsched/iterations/1"
ITL_PERCENTILES = (50, 90, 99)


class TableFormat(StrEnum):
    """How the tables are written; also the suffix of their files."""

    PARQUET = "parquet"
    CSV = "csv"


def write_run_tables(run: Run, folder: Path, table_format: TableFormat = TableFormat.PARQUET) -> list[Path]:
    """Write requests, iterations and run.json, which says of which run they are; returns the files.

    A Parquet file states schema, policy, fingerprint and versions in its own metadata too.

    Raises
    ------
    InputError, OSError
        If the folder or a file cannot be written.
    """
    provenance = run.provenance()
    tables = {REQUESTS_SCHEMA: request_table(run), ITERATIONS_SCHEMA: iteration_table(run)}
    files = {schema: folder / f"{schema.split('/')[1]}.{table_format}" for schema in tables}
    instance = run.history.instance
    listing = [
        {"file": files[schema].name, "schema": schema, "num_rows": table.num_rows}
        for schema, table in tables.items()
    ]
    summary = {
        "schema": RUN_SCHEMA,
        **provenance,
        "limits": asdict(instance.limits),
        "cost": instance.cost.name,
        "tables": listing,
        "rejected": [rejection.reason for rejection in run.rejections],
        "metrics": run.metrics.to_json(),
    }
    written = write_files(folder, {"run.json": json.dumps(summary, indent=1) + "\n"})
    for schema, table in tables.items():
        _write(table, files[schema], table_format, {"schema": schema, **provenance})
    return [*files.values(), *written]


def _write(table: pa.Table, path: Path, table_format: TableFormat, facts: dict[str, Any]) -> None:
    if table_format is TableFormat.PARQUET:
        stated = {key: fact if isinstance(fact, str) else json.dumps(fact) for key, fact in facts.items()}
        pa.parquet.write_table(table.replace_schema_metadata(stated), path)
        return
    with path.open("wb") as file:
        # pyarrow would put the names of the columns into quotes, whatever is asked for.
        file.write((",".join(table.column_names) + "\n").encode())
        plain = pa.csv.WriteOptions(include_header=False, quoting_style="needed")
        pa.csv.write_csv(table, file, plain)


def request_table(run: Run) -> pa.Table:
    """One row a request in the order of the instance, then one for each rejected request.

    Times are ns since the first arrival. What a request does not have is null: gaps and TPOT with one output
    token, all times of a rejected request.
    """
    history, metrics, requests = run.history, run.metrics, run.history.instance.requests
    scheduled = _first_start_ns(run)
    several = metrics.output_tokens > 1
    tpot = np.zeros(len(requests))
    tpot[several] = metrics.tpot_ns
    evicted = history.schedule.evicted_request
    to_host = history.kv_evicted - history.kv_lost
    columns = {
        "request_id": [request.request_id for request in requests],
        "status": ["finished"] * len(requests),
        "arrival_ns": metrics.arrival_ns,
        "scheduled_ns": scheduled,
        "first_token_ns": metrics.arrival_ns + metrics.ttft_ns,
        "finish_ns": metrics.arrival_ns + metrics.latency_ns,
        "prompt_tokens": [request.prompt_tokens for request in requests],
        "output_tokens": metrics.output_tokens,
        "queueing_ns": scheduled - metrics.arrival_ns,
        "ttft_ns": metrics.ttft_ns,
        "tpot_ns": pa.array(tpot, mask=~several),
        "latency_ns": metrics.latency_ns,
        **{name: pa.array(gap, mask=~several) for name, gap in _itl_columns(metrics).items()},
        "num_preemptions": np.bincount(evicted, minlength=len(requests)),
        "recomputed_tokens": _sum_by_request(run, evicted, history.kv_lost),
        "swapped_tokens": _sum_by_request(run, evicted, to_host),
        "cached_tokens": _sum_by_request(run, history.schedule.hit_request, history.schedule.hit_tokens),
    }
    served = pa.table(columns)
    return pa.concat_tables([served, _rejected_rows(run.rejections)], promote_options="default")


def _rejected_rows(rejections: tuple[Rejection, ...]) -> pa.Table:
    requests = [rejection.request for rejection in rejections]
    return pa.table(
        {
            "request_id": pa.array([request.request_id for request in requests], pa.string()),
            "status": pa.array(["rejected"] * len(requests), pa.string()),
            "arrival_ns": pa.array([request.arrival_ns for request in requests], pa.int64()),
            "prompt_tokens": pa.array([request.prompt_tokens for request in requests], pa.int64()),
            "output_tokens": pa.array([request.output_tokens for request in requests], pa.int64()),
        }
    )


def _first_start_ns(run: Run) -> IntArray:
    """Start of the first batch of every request, shape (num_requests,)."""
    schedule = run.history.schedule
    first = np.unique(schedule.request, return_index=True)[1]
    return schedule.start_ns[np.searchsorted(schedule.first_entry, first, side="right") - 1]


def _sum_by_request(run: Run, request: IntArray, amount: IntArray) -> IntArray:
    total = np.zeros(len(run.history.instance.requests), dtype=np.int64)
    np.add.at(total, request, amount)
    return total


def _itl_columns(metrics: Metrics) -> dict[str, npt.NDArray[np.float64] | IntArray]:
    """Percentiles (linear interpolation) and maximum of each request's gaps; 0 where it has none."""
    num_gaps = metrics.output_tokens - 1
    owner = np.repeat(np.arange(len(num_gaps)), num_gaps)
    ordered = metrics.itl_ns[np.lexsort((metrics.itl_ns, owner))]
    # One value behind the last, so that a request without gaps at the end has a place to look at.
    ordered = np.append(ordered, 0)
    first = np.cumsum(num_gaps) - num_gaps
    most = np.maximum(num_gaps - 1, 0)
    columns: dict[str, npt.NDArray[np.float64] | IntArray] = {}
    for percentile in ITL_PERCENTILES:
        below, fraction = np.divmod(most * percentile, 100)
        lower, upper = ordered[first + below], ordered[first + np.minimum(below + 1, most)]
        columns[f"itl_p{percentile}_ns"] = lower + (upper - lower) * (fraction / 100)
    columns["itl_max_ns"] = ordered[first + most]
    return columns


def iteration_table(run: Run) -> pa.Table:
    """One row an iteration (a batch) in order of execution. Times are ns since the first arrival.

    KV tokens are those on the device when the batch has run; blocks and requests are those during it.
    """
    history, schedule, features = run.history, run.history.schedule, run.history.features
    return pa.table(
        {
            "start_ns": schedule.start_ns,
            "end_ns": schedule.end_ns,
            "num_requests": np.diff(schedule.first_entry),
            "batch_tokens": features.tokens,
            "prefill_tokens": features.prefill_tokens,
            "prefill_context_tokens": features.prefill_context,
            "decode_context_tokens": features.decode_context,
            "num_prefills": features.num_prefills,
            "num_decodes": features.num_decodes,
            "generated_tokens": features.num_generating,
            "kv_blocks": run.held_blocks,
            "kv_tokens": run.kv_tokens,
            "host_kv_blocks": history.host_blocks,
            "moved_kv_blocks": history.moved_blocks,
            "num_running": run.num_running,
            "num_waiting": run.num_waiting,
            "num_preemptions": run.num_preemptions,
        }
    )
