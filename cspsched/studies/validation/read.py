"""Reads measured runs: load stages (CSV), times of requests (JSON lines), or a TOML file that names them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from cspsched.costs.facts import read_toml
from cspsched.errors import InputError, UsageError
from cspsched.problem.json_io import read_json, read_text, require_keys
from cspsched.problem.request import Request
from cspsched.serving import Serving
from cspsched.studies.validation.cells import Row
from cspsched.studies.validation.deployment import engine_of, merged, serving_of
from cspsched.studies.validation.nouns import (
    METRICS,
    STATISTICS,
    Arrivals,
    Figures,
    Lengths,
    MeasuredRun,
    Stage,
    Times,
)
from cspsched.units import seconds_to_ns

DESCRIBED = (
    "stages", "requests", "name", "policy", "frontend", "peers", "model", "device", "tensor_parallel",
    "data_parallel", "cost", "kv_tokens", "kv_blocks", "block_tokens", "max_batch_tokens",
    "max_batch_requests", "max_model_len", "gpu_memory_utilization",
)  # fmt: skip
"""Keys of a file that describes a run."""
PARTS = {"stages.csv": "stages", "requests.jsonl": "requests"}
"""What a folder without a description may hold."""
DESCRIPTION, ENGINE_FILE = "run.toml", "meta.json"
COLUMNS = {
    "prompt": ("prompt_tokens", "input_toks"),
    "output": ("output_tokens", "output_toks"),
    "arrival": ("arrival_s", "arrival_time"),
    "first": ("first_token_s", "first_token_ts"),
    "last": ("last_token_s", "last_token_ts"),
    "ttft": ("ttft_s",),
    "latency": ("latency_s",),
    "queued": ("queued_s", "queued_ts"),
}
"""Names of what a request's row may have, ours and those of LLMServingSim's benchmark."""


def read_runs(paths: Sequence[Path]) -> list[MeasuredRun]:
    """Measured runs of files and folders, in order.

    Raises
    ------
    UsageError
        If nothing is named.
    InputError
        If a file cannot be read, or holds no run; names file, line and column.
    """
    if not paths:
        raise UsageError("no run is named; give a stages CSV, a requests.jsonl, a folder or a run.toml")
    return [run for path in paths for run in _runs(path)]


def _runs(path: Path) -> list[MeasuredRun]:
    if path.is_dir():
        return _runs(_part_of(path))
    if path.suffix in (".toml", ".json"):
        return _described(path)
    if path.suffix == ".csv":
        return _stage_runs(path)
    if path.suffix == ".jsonl":
        return [_request_run(path)]
    raise InputError(f"{path}: expected a name that ends in .csv, .jsonl, .toml or .json, or a folder")


def _part_of(folder: Path) -> Path:
    for name in (DESCRIPTION, *PARTS):
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{folder} holds no {DESCRIPTION}, {' or '.join(PARTS)}; name the file itself")


def _described(path: Path) -> list[MeasuredRun]:
    """Runs of the file that a description names, with what it states on top."""
    data = read_json(path) if path.suffix == ".json" else read_toml(path)
    require_keys(data, str(path), required=(), optional=DESCRIBED)
    parts = [key for key in PARTS.values() if key in data]
    if len(parts) != 1:
        raise InputError(f"{path}: expected one of stages and requests, the file that was measured")
    stated = serving_of(
        Row(str(path), {key: value for key, value in data.items() if key not in PARTS.values()})
    )
    peers = _peers(data.get("peers", {}), f"{path}: peers")
    runs = _runs(path.parent / str(data[parts[0]]))
    return [
        replace(
            run,
            name=str(data.get("name", run.name)) if len(runs) == 1 else run.name,
            serving=merged(stated, run.serving),
            policy=data.get("policy", run.policy),
            frontend=data.get("frontend", run.frontend),
            peers=peers or run.peers,
        )
        for run in runs
    ]


def _peers(data: Any, where: str) -> dict[str, Figures]:
    """Relative errors that peers publish, such as `latency_mean = -0.02`."""
    if not isinstance(data, dict) or not all(isinstance(one, dict) for one in data.values()):
        raise InputError(
            f"{where}: expected a table for each peer, such as [peers.NAME] with latency_mean = -0.02"
        )
    return {
        name: _by_metric(
            {key: Row(where, errors).number(key, least=-1.0) for key in errors}, f"{where}: {name}"
        )
        for name, errors in data.items()
    }


def _by_metric(values: dict[str, float], where: str) -> Figures:
    """Values of names such as `ttft_p99`, by metric and statistic."""
    found: dict[str, dict[str, float]] = {}
    for name, value in values.items():
        metric, _, statistic = name.partition("_")
        if metric not in METRICS or statistic not in STATISTICS:
            raise InputError(
                f"{where}: {name!r} is no metric with a statistic, such as latency_mean or ttft_p99 "
                f"({', '.join(METRICS)}; {', '.join(STATISTICS)})"
            )
        found.setdefault(metric, {})[statistic] = value
    return found


def _stage_runs(path: Path) -> list[MeasuredRun]:
    """Runs of a CSV with a row a stage; rows of one run follow each other on one server."""
    reader = csv.DictReader(StringIO(read_text(path)))
    rows = [Row(f"{path} line {reader.line_num}", cells) for cells in reader]
    if not rows:
        raise InputError(f"{path} has no rows; expected a header and a row for each stage")
    for row in rows:
        if None in row.cells or None in row.cells.values():
            raise InputError(f"{row.where}: another number of cells than the header has; correct the row")
    by_run: dict[str, list[Row]] = {}
    for row in rows:
        by_run.setdefault(row.text("run") if row.has("run") else path.stem, []).append(row)
    return [_stage_run(path, name, stages) for name, stages in by_run.items()]


def _stage_run(path: Path, name: str, rows: list[Row]) -> MeasuredRun:
    first = serving_of(rows[0])
    for row in rows[1:]:
        if serving_of(row) != first:
            raise InputError(
                f"{row.where}: run {name!r} has another model, device or limit than in its first row; "
                "give the row another name of a run"
            )
    stages = tuple(_stage(row, number) for number, row in enumerate(rows))
    return MeasuredRun(name=name, file=path, serving=first, stages=stages)


def _stage(row: Row, number: int) -> Stage:
    if row.has("rate_rps") == row.has("concurrency"):
        raise InputError(f"{row.where}: expected one of rate_rps and concurrency, the load of the stage")
    rate = row.number("rate_rps") if row.has("rate_rps") else None
    duration = row.number("duration_s") if row.has("duration_s") else None
    if rate == 0:
        raise InputError(f"{row.where}: rate_rps is 0, expected more; take the row out")
    requests = row.optional_count("requests")
    if requests is None and (rate is None or duration is None or int(rate * duration) < 1):
        raise InputError(f"{row.where}: requests is missing; give how many the stage had")
    lengths = _lengths(row)
    return Stage(
        name=row.text("stage") if row.has("stage") else str(number),
        num_requests=requests or int((rate or 0) * (duration or 0)),
        lengths=lengths,
        measured=_measured(row, lengths),
        rate_rps=rate,
        concurrency=row.optional_count("concurrency"),
        duration_s=duration,
        prompts=row.optional_count("prompts", least=0),
        arrivals=_arrivals(row),
        peers=_stage_peers(row),
    )


def _arrivals(row: Row) -> Arrivals | None:
    if not row.has("arrivals"):
        return None
    text = row.text("arrivals")
    if text not in list(Arrivals):
        raise InputError(f"{row.where}: arrivals is {text!r}, expected one of {', '.join(Arrivals)}")
    return Arrivals(text)


def _lengths(row: Row) -> Lengths:
    mean = row.number("prompt_tokens_mean" if row.has("prompt_tokens_mean") else "prompt_tokens", least=1)
    least = row.optional_count("prompt_tokens_min") or max(round(mean), 1)
    most = row.optional_count("prompt_tokens_max") or max(round(mean), 1)
    if not least <= mean <= most and row.has("prompt_tokens_min") and row.has("prompt_tokens_max"):
        raise InputError(
            f"{row.where}: prompt_tokens_mean is {mean:g}, expected it between prompt_tokens_min {least} and "
            f"prompt_tokens_max {most}; correct one of them"
        )
    system = row.optional_count("system_prompt_tokens", least=0) or 0
    return Lengths(
        prompt_mean=mean,
        prompt_least=least,
        prompt_most=most,
        output=row.count("output_tokens"),
        system_prompt=min(system, least),
        system_prompts=row.optional_count("system_prompts", least=0) or 0,
    )


def _measured(row: Row, lengths: Lengths) -> Figures:
    """Times of a stage; the mean TPOT follows from those of TTFT and latency where it is not given."""
    found: dict[str, dict[str, float]] = {}
    for metric in METRICS:
        for statistic in STATISTICS:
            names = [f"{metric}_s_{statistic}"] + [f"{metric}_s_median"] * (statistic == "p50")
            for name in names:
                if row.has(name):
                    found.setdefault(metric, {})[statistic] = row.number(name)
    if not found:
        raise InputError(
            f"{row.where}: no measured time; expected columns such as latency_s_mean or ttft_s_p99"
        )
    if "tpot" not in found and lengths.output > 1 and all("mean" in found.get(m, {}) for m in METRICS[::2]):
        decoding = found["latency"]["mean"] - found["ttft"]["mean"]
        found["tpot"] = {"mean": decoding / (lengths.output - 1)}
    return found


def _stage_peers(row: Row) -> dict[str, Figures]:
    """Columns such as `NAME:latency_mean`, a peer's relative error."""
    found: dict[str, dict[str, float]] = {}
    for column in row.cells:
        name, colon, figure = str(column).partition(":")
        if colon and row.has(column):
            found.setdefault(name, {})[figure] = row.number(column, least=-1.0)
    return {name: _by_metric(values, f"{row.where}: {name}") for name, values in found.items()}


def _request_run(path: Path) -> MeasuredRun:
    """Requests with their times, and the engine's configuration if it lies beside them."""
    rows = list(_json_rows(path))
    times = _times(rows)
    engine = path.with_name(ENGINE_FILE)
    serving, policy = engine_of(read_json(engine), str(engine)) if engine.is_file() else (Serving(), None)
    order = np.argsort(times.arrival, kind="stable").tolist()
    requests = tuple(_request(rows[i], i, float(times.arrival[i])) for i in order)
    return MeasuredRun(
        name=path.parent.name or path.stem,
        file=path,
        serving=serving,
        policy=policy,
        requests=requests,
        has_two_clocks=_column(rows, "queued")[1],
        times=Times(
            arrival=times.arrival[order],
            first_token=times.first_token[order],
            last_token=times.last_token[order],
            outputs=times.outputs[order],
        ),
    )


def _json_rows(path: Path) -> Iterable[Row]:
    found = False
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        where, found = f"{path} line {number}", True
        try:
            cells = json.loads(line)
        except ValueError:
            raise InputError(f"{where}: no valid JSON; expected an object for each request") from None
        if not isinstance(cells, dict):
            raise InputError(f"{where}: expected an object with the times of a request, got {line[:40]!r}")
        yield Row(where, cells)
    if not found:
        raise InputError(f"{path} has no rows; expected a line of JSON for each request")


def _column(rows: Sequence[Row], what: str) -> tuple[str, bool]:
    """Name of a column in the first row, and whether it is there."""
    for name in COLUMNS[what]:
        if rows[0].has(name):
            return name, True
    return COLUMNS[what][0], False


def _values(rows: Sequence[Row], what: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    name = _column(rows, what)[0]
    return np.array([row.number(name, least=0.0) for row in rows], dtype=np.float64)


def _times(rows: Sequence[Row]) -> Times:
    """Times since the first arrival.

    Where the engine has a clock of its own, the client's is set by its quickest request: that is queued at
    once.
    """
    arrival = _values(rows, "arrival")
    if _column(rows, "queued")[1]:
        arrival = arrival + (_values(rows, "queued") - arrival).min()
    if _column(rows, "first")[1]:
        first, last = _values(rows, "first"), _values(rows, "last")
    else:
        first, last = arrival + _values(rows, "ttft"), arrival + _values(rows, "latency")
    for row, came, one, end in zip(rows, arrival.tolist(), first.tolist(), last.tolist(), strict=True):
        if not came <= one <= end:
            raise InputError(
                f"{row.where}: arrival {came:.6f} s, first token {one:.6f} s, last token {end:.6f} s, "
                "expected them in this order; are they of one clock?"
            )
    start = arrival.min()
    outputs = np.array([row.count(_column(rows, "output")[0]) for row in rows], dtype=np.int64)
    return Times(arrival=arrival - start, first_token=first - start, last_token=last - start, outputs=outputs)


def _request(row: Row, number: int, arrival_s: float) -> Request:
    prefix: tuple[tuple[str, int], ...] = ()
    if row.has("prefix_id") and row.has("prefix_tokens"):
        prefix = ((row.text("prefix_id"), row.count("prefix_tokens")),)
    names = [
        next((name for name in COLUMNS[what] if row.has(name)), COLUMNS[what][0])
        for what in ("prompt", "output")
    ]
    return Request(
        request_id=row.text("request_id") if row.has("request_id") else f"r{number}",
        arrival_ns=seconds_to_ns(arrival_s),
        prompt_tokens=row.count(names[0]),
        output_tokens=row.count(names[1]),
        prefix=prefix,
    )
