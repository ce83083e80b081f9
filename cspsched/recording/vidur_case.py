"""A recorded run of Vidur: `config.json`, `requests.csv`, `batches.csv` and the tables it was priced with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from cspsched.costs.vidur_memory import VidurReplica
from cspsched.costs.vidur_tables import KV_MULTIPLE, VidurModel
from cspsched.errors import InputError
from cspsched.problem.json_io import read_json
from cspsched.problem.request import Request
from cspsched.recording.engines import NotSimulatedError
from cspsched.recording.vidur_machine import FS_PER_S
from cspsched.trace.cells import token_count
from cspsched.trace.delimited import delimited_table
from cspsched.trace.source import read_source
from cspsched.trace.table import Table

CONFIG, BATCHES, REQUESTS = "config.json", "batches.csv", "requests.csv"
TABLE_FOLDER = "cost_tables"
TIMES_OF_REQUEST = (
    "scheduled_at", "prefill_completed_at", "completed_at", "execution_time", "preempted_time",
)  # fmt: skip
REMEDY = "record the run again"
MAX_TIME_S = 3600
"""Longest run: in femtoseconds it fits into 64 bits."""
REPLICA = "cluster_config.replica_config"
SCHEDULER = "cluster_config.replica_scheduler_config"
ROUTERS = ("round_robin", "lor")
"""Global schedulers that can be replayed; Vidur's `random` has no seed."""
PREDICTOR = "execution_time_predictor_config"

Value = TypeVar("Value", int, float, str, bool)
Cell = TypeVar("Cell")


class BatchRow(NamedTuple):
    """What is compared of a batch: {request: tokens} in order, how many are prefill, and femtoseconds."""

    entries: tuple[tuple[str, int], ...]
    prefill_tokens: int
    scheduled_fs: int
    completed_fs: int


class RequestRow(NamedTuple):
    """What is compared of a request. Femtoseconds."""

    num_restarts: int
    scheduled_fs: int
    prefill_completed_fs: int
    completed_fs: int
    execution_fs: int
    preempted_fs: int


class VidurConfig:
    """Values of a `config.json` by their path, such as `cluster_config.num_replicas`."""

    def __init__(self, data: Any, where: str) -> None:
        self._data = data
        self._where = where

    @classmethod
    def read(cls, path: Path) -> VidurConfig:
        """A file; raises InputError if it is no JSON."""
        return cls(read_json(path), str(path))

    def get(self, path: str, kind: type[Value]) -> Value:
        """A value of a type; whole numbers are numbers.

        Raises
        ------
        InputError
            If it is missing or of another type.
        """
        value = self.get_any(path)
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise InputError(f"{self._where}: {path} is {value!r}, expected a value of type {kind.__name__}")
        return kind(value)

    def count(self, path: str) -> int:
        """A whole number of at least 1.

        Raises
        ------
        InputError
            If it is missing or something else.
        """
        value = self.get(path, int)
        if value < 1:
            raise InputError(f"{self._where}: {path} is {value}, expected at least 1")
        return value

    def get_any(self, path: str) -> Any:
        """A value, or None if there is none."""
        value = self._data
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value

    @property
    def router(self) -> str:
        """Name of the global scheduler; raises InputError if there is none."""
        return self.get("cluster_config.global_scheduler_config.name", str)

    def replica(self) -> VidurReplica:
        """Sizes for the memory planner."""
        model = f"{REPLICA}.model_config"
        return VidurReplica(
            num_layers=self.count(f"{model}.num_layers"),
            num_q_heads=self.count(f"{model}.num_q_heads"),
            num_kv_heads=self.count(f"{model}.num_kv_heads"),
            embedding_dim=self.count(f"{model}.embedding_dim"),
            mlp_hidden_dim=self.count(f"{model}.mlp_hidden_dim"),
            use_gated_mlp=self.get(f"{model}.use_gated_mlp", bool),
            total_memory_gb=self.count(f"{REPLICA}.device_config.total_memory_gb"),
            memory_margin_fraction=self.get(f"{REPLICA}.memory_margin_fraction", float),
            tensor_parallel_size=self.count(f"{REPLICA}.tensor_parallel_size"),
            num_pipeline_stages=self.count(f"{REPLICA}.num_pipeline_stages"),
        )

    def model(self) -> VidurModel:
        """What the composition of a batch time needs."""
        replica = self.replica()
        return VidurModel(
            num_layers=replica.num_layers,
            tensor_parallel=replica.tensor_parallel_size,
            pipeline_stages=replica.num_pipeline_stages,
            is_gqa=replica.num_kv_heads < replica.num_q_heads,
            has_post_norm=self.get(f"{REPLICA}.model_config.post_attn_norm", bool),
            decode_overhead=self.get(f"{PREDICTOR}.attention_decode_batching_overhead_fraction", float),
            prefill_overhead=self.get(f"{PREDICTOR}.attention_prefill_batching_overhead_fraction", float),
            launch_ms=self.get(f"{PREDICTOR}.nccl_cpu_launch_overhead_ms", float),
            skew_ms=self.get(f"{PREDICTOR}.nccl_cpu_skew_overhead_per_device_ms", float),
        )

    def require_simulated(self) -> None:
        """Refuse what a replay would not follow.

        Raises
        ------
        NotSimulatedError
            If something is switched on that is not simulated.
        """
        if self.count("cluster_config.num_replicas") > 1 and self.router not in ROUTERS:
            raise NotSimulatedError(f"replicas routed by {self.router!r} (only {', '.join(ROUTERS)})")
        for path, neutral in (
            ("time_limit", 0),
            (f"{PREDICTOR}.skip_cpu_overhead_modeling", True),
            (f"{PREDICTOR}.kv_cache_prediction_granularity", KV_MULTIPLE),
        ):
            if self.get_any(path) != neutral:
                raise NotSimulatedError(f"{path}={self.get_any(path)} (only {neutral})")


@dataclass(frozen=True, slots=True, kw_only=True)
class VidurCase:
    """A recorded run.

    Attributes
    ----------
    name
        Name of its folder.
    requests
        In the order in which they are dispatched: by arrival (femtoseconds), then as in the file.
    outcomes
        What was recorded of each request, by name.
    batches
        What was recorded of the batches of each replica, in the order in which they were formed.
    tables
        File of the tables.
    """

    name: str
    config: VidurConfig
    requests: tuple[Request, ...]
    outcomes: Mapping[str, RequestRow]
    batches: tuple[list[BatchRow], ...]
    tables: Path

    @classmethod
    def read(cls, folder: Path, tables: Path | None = None) -> VidurCase:
        """A folder of a recorded run.

        Parameters
        ----------
        tables
            File of the tables. Default: the one in `cost_tables` beside the folder that the folder is named
            after.

        Raises
        ------
        InputError
            If a file is missing or holds a wrong value.
        """
        config = VidurConfig.read(folder / CONFIG)
        requests, outcomes = _read_requests(folder / REQUESTS)
        return cls(
            name=folder.name,
            config=config,
            requests=requests,
            outcomes=outcomes,
            batches=_read_batches(folder / BATCHES, config.count("cluster_config.num_replicas")),
            tables=tables or _tables_beside(folder),
        )


def is_vidur_case(folder: Path) -> bool:
    """Whether a folder holds a recorded run of Vidur."""
    return all((folder / name).is_file() for name in (CONFIG, BATCHES, REQUESTS))


def find_vidur_cases(folder: Path) -> list[Path]:
    """The folder itself, or those right below it, that hold a recorded run; by name."""
    if is_vidur_case(folder):
        return [folder]
    return sorted(path for path in folder.iterdir() if is_vidur_case(path)) if folder.is_dir() else []


def _tables_beside(folder: Path) -> Path:
    """Tables are named MODEL_DEVICE_PARALLELISM, a run so, too, and then what else it is about."""
    tables = folder.resolve().parent / TABLE_FOLDER
    name = folder.resolve().name
    found = [path for path in tables.glob("*.npz") if name == path.stem or name.startswith(f"{path.stem}_")]
    if not found:
        raise InputError(f"{tables} holds no .npz file after which {name} is named; name the tables")
    return max(found, key=lambda path: len(path.stem))


def _read_requests(path: Path) -> tuple[tuple[Request, ...], dict[str, RequestRow]]:
    table = delimited_table(read_source(path))
    names = _column(table, "request_id", str.strip)
    arrivals = _column(table, "arrived_at", _femtoseconds)
    prompts = _column(table, "num_prefill_tokens", token_count)
    outputs = _column(table, "num_decode_tokens", token_count)
    requests = [
        Request(request_id=name, arrival_ns=arrival_fs, prompt_tokens=prompt, output_tokens=output)
        for name, arrival_fs, prompt, output in zip(names, arrivals, prompts, outputs, strict=True)
    ]
    columns = [_column(table, "num_restarts", _count)]
    columns += [_column(table, name, _femtoseconds) for name in TIMES_OF_REQUEST]
    outcomes = dict(zip(names, map(RequestRow._make, zip(*columns, strict=True)), strict=True))
    return tuple(sorted(requests, key=lambda request: request.arrival_ns)), outcomes


def _read_batches(path: Path, num_replicas: int) -> tuple[list[BatchRow], ...]:
    table = delimited_table(read_source(path))
    rows = zip(
        _column(table, "batch_id", _count),
        _column(table, "replica_id", _count),
        _column(table, "request_tokens", _entries),
        _column(table, "num_prefill_tokens", _count),
        _column(table, "scheduled_at", _femtoseconds),
        _column(table, "completed_at", _femtoseconds),
        strict=True,
    )
    batches: tuple[list[BatchRow], ...] = tuple([] for _ in range(num_replicas))
    for _, replica, *row in sorted(rows, key=lambda row: row[0]):
        if replica >= num_replicas:
            raise InputError(f"{path}: replica_id {replica}, expected less than {num_replicas} ({REMEDY})")
        batches[replica].append(BatchRow._make(row))
    return batches


def _column(table: Table, name: str, parse: Callable[[str], Cell]) -> list[Cell]:
    if name not in table.header:
        raise InputError(f"{table.source}: column {name} is missing; is it a recorded run of Vidur?")
    return table.parse(name, parse, table.all_rows, remedy=REMEDY)


def _femtoseconds(text: str) -> int:
    try:
        seconds = Decimal(text.strip())
    except InvalidOperation:
        raise ValueError("expected a time in seconds") from None
    if not 0 <= seconds <= MAX_TIME_S:
        raise ValueError(f"expected 0 to {MAX_TIME_S} seconds")
    return int((seconds * FS_PER_S).to_integral_value(rounding=ROUND_HALF_EVEN))


def _count(text: str) -> int:
    if not text.strip().isdecimal():
        raise ValueError("expected a whole number >= 0")
    return int(text)


def _entries(text: str) -> tuple[tuple[str, int], ...]:
    """Requests and their tokens from `0:395 1:368`."""
    pairs = (part.rpartition(":") for part in text.split())
    return tuple((name, token_count(tokens)) for name, _, tokens in pairs)
