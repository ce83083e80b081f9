"""Runs a profile: points in their order, rows to disk as they come, until all are done or the time is up."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cspsched.costs.models import LlmModel
from cspsched.errors import InputError, LimitError
from cspsched.profiler.attention import PAGE_TOKENS
from cspsched.profiler.backends import operator_backends
from cspsched.profiler.collectives import measure_collectives
from cspsched.profiler.grids import Grid, Planned, plan_points
from cspsched.profiler.machine import device_state, machine_facts, utc_now
from cspsched.profiler.points import Point
from cspsched.profiler.rows import Row, RowContext, RowKey, make_row, point_key, row_keys
from cspsched.profiler.sentinel import Sentinel, ceilings
from cspsched.profiler.shapes import rank_shape
from cspsched.profiler.store import Meta, ProfileFolder
from cspsched.profiler.timing import CpuTimer, CudaTimer, Timer, measure
from cspsched.profiler.workbench import Workbench

WRITE_EVERY_S = 5.0
ID_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What is measured, and for how long.

    Attributes
    ----------
    tensor_parallel
        Degrees whose shards are measured, on a single device.
    time_budget_s
        When no further point is begun; None for never.
    """

    model: LlmModel
    tensor_parallel: tuple[int, ...]
    device: str
    grid: Grid
    output: Path
    seed: int
    time_budget_s: float | None = None
    repeats: int = 15
    resume: bool = False


class Progress(NamedTuple):
    """Where a run is."""

    done: int
    total: int
    point: Point
    t_us: float


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """What came of a run.

    Attributes
    ----------
    num_planned, num_before
        Points of the grid, and those of them that the folder had already.
    num_measured, num_noisy
        Rows of this run, and those of them whose spread stayed large.
    num_left
        Points that the time did not suffice for.
    failed
        Points that torch could not run, with its message.
    notes
        What else to know.
    """

    num_planned: int
    num_before: int
    num_measured: int
    num_noisy: int
    num_left: int
    failed: dict[str, str]
    notes: tuple[str, ...]
    wall_s: float


def run_profile(
    settings: RunSettings,
    on_row: Callable[[Progress], None],
    clock: Callable[[], float] = time.monotonic,
) -> RunOutcome:
    """Measure a grid and write it to a folder; an interrupted run leaves its rows and can be resumed.

    Raises
    ------
    UsageError
        If torch or the device is missing, or a degree of parallelism does not divide the heads.
    InputError
        If the folder holds a profile and `resume` is off, or one of another model or machine.
    LimitError
        If a point broke the device; its rows until then are kept, and `resume` leaves the point out.
    """
    for degree in settings.tensor_parallel:
        rank_shape(settings.model, degree)
    folder = ProfileFolder(settings.output, resume=settings.resume)
    return _Run(settings, folder, clock).execute(on_row)


class _Run:
    """State of one call of `run_profile`."""

    def __init__(self, settings: RunSettings, folder: ProfileFolder, clock: Callable[[], float]) -> None:
        self._settings, self._folder, self._clock = settings, folder, clock
        self._start_s = clock()
        self._bench = Workbench(settings.model, settings.device, seed=settings.seed)
        torch = self._bench.torch
        self._timer: Timer = CudaTimer(torch) if settings.device == "cuda" else CpuTimer()
        facts = machine_facts(torch, settings.device)
        self._meta = _merged_meta(folder, settings, facts)
        self._meta.setdefault("ceilings", ceilings(torch, settings.device, self._timer))
        self._meta["features"] = self._bench.features.to_json()
        self._sentinel = Sentinel(torch, settings.device, self._timer, self._meta["sentinel"], clock)
        self._context = RowContext(
            profile_id=_profile_id(settings, facts), model=settings.model, page_size=PAGE_TOKENS
        )
        self._pending: list[Row] = []
        self._written_s = self._start_s
        self._num_noisy = self._num_measured = 0

    def execute(self, on_row: Callable[[Progress], None]) -> RunOutcome:
        """Measure what is missing, and merge whatever there is, come what may."""
        settings = self._settings
        backends = operator_backends(settings.model, self._bench.features)
        self._meta["backends"] = {name: list(names) for name, names in backends.items()}
        plan = plan_points(
            settings.grid, settings.model, settings.tensor_parallel, backends, seed=settings.seed
        )
        have = row_keys(self._folder.rows())
        broke = set(self._meta["broke"])
        todo = [
            planned
            for planned in plan
            if self._key(planned.point) not in have and str(self._key(planned.point)) not in broke
        ]
        before, num_tried, notes = len(plan) - len(todo), 0, []
        self._meta["runs"].append(self._run_record(len(plan)))
        self._sentinel.measure()
        try:
            with self._bench.torch.inference_mode():
                num_tried = self._measure_all(todo, before, on_row)
            notes = self._collectives(have)
            self._close_interval()
        finally:
            self._write()
            record = self._meta["runs"][-1]
            record |= {"wall_s": round(self._elapsed_s(), 1), "after": device_state(settings.device)}
            record["num_measured"] = self._num_measured
            self._folder.finish(self._meta)
        return RunOutcome(
            num_planned=len(plan),
            num_before=before,
            num_measured=self._num_measured,
            num_noisy=self._num_noisy,
            num_left=len(todo) - num_tried,
            failed=dict(self._meta["failed"]),
            notes=tuple(notes),
            wall_s=self._elapsed_s(),
        )

    def _measure_all(self, todo: list[Planned], before: int, on_row: Callable[[Progress], None]) -> int:
        """Number of points that were tried before the time was up."""
        for position, (_, point) in enumerate(todo):
            if self._is_late():
                return position
            row = self._measure(point)
            if row is not None:
                self._take(row)
                on_row(Progress(before + position + 1, before + len(todo), point, row["t_us"]))
            if self._sentinel.is_due:
                self._close_interval()
        return len(todo)

    def _measure(self, point: Point) -> Row | None:
        """Row of a point; None where this torch or this device cannot do it, which is noted."""
        shape = self._bench.shape(point.tensor_parallel)
        try:
            sample = measure(self._timer, self._bench.calls(point), repeats=self._settings.repeats)
        except Exception as error:  # noqa: BLE001
            # No memory, no kernel for these sizes, no compiler: torch raises many kinds. One point less.
            self._note_failure(point, error)
            return None
        return make_row(point, shape, self._context, sample, self._bench.kernel_impl(point))

    def _note_failure(self, point: Point, error: Exception) -> None:
        """Note why a point has no row; one after which nothing works any more is not tried again."""
        name = f"{point.operator} tp={point.tensor_parallel} {point.backend}"
        reason = str(error).partition("\n")[0] or type(error).__name__
        self._meta["failed"].setdefault(name, reason)
        try:
            self._bench.require_device()
        except LimitError:
            self._meta["broke"].append(str(self._key(point)))
            raise

    def _take(self, row: Row) -> None:
        self._pending.append(row)
        self._num_measured += 1
        self._num_noisy += row["noisy"]
        if self._clock() - self._written_s >= WRITE_EVERY_S:
            self._write()

    def _write(self) -> None:
        self._folder.append(self._pending, self._sentinel.interval)
        self._pending = []
        self._written_s = self._clock()
        self._folder.write_meta(self._meta)

    def _close_interval(self) -> None:
        """Measure the sentinel; rows over which it drifted are flagged."""
        self._write()
        interval = self._sentinel.interval
        if self._sentinel.has_drifted(self._sentinel.measure()):
            self._folder.mark_noisy(interval)

    def _collectives(self, have: set[RowKey]) -> list[str]:
        """Measure between GPUs, where there are enough of them; else say that nothing was."""
        notes = []
        devices = self._bench.torch.cuda.device_count() if self._settings.device == "cuda" else 0
        for degree in (degree for degree in self._settings.tensor_parallel if degree > 1):
            if devices < degree:
                notes.append(f"no collectives measured for {degree} ranks: {devices} GPUs here")
                continue
            if self._is_late():
                continue
            shape = self._bench.shape(degree)
            counts = [*self._settings.grid.tokens.coarse, *self._settings.grid.tokens.fine]
            for point, sample in measure_collectives(degree, "nccl", sorted(counts), shape):
                if self._key(point) not in have:
                    self._take(make_row(point, shape, self._context, sample, "torch.distributed"))
        return notes

    def _key(self, point: Point) -> RowKey:
        return point_key(point, self._settings.model.name)

    def _is_late(self) -> bool:
        budget_s = self._settings.time_budget_s
        return budget_s is not None and self._elapsed_s() >= budget_s

    def _elapsed_s(self) -> float:
        return self._clock() - self._start_s

    def _run_record(self, num_planned: int) -> dict[str, Any]:
        settings = self._settings
        return {
            "started": utc_now(),
            "grid": settings.grid.name,
            "grid_sha256": settings.grid.digest,
            "seed": settings.seed,
            "tensor_parallel": list(settings.tensor_parallel),
            "time_budget_s": settings.time_budget_s,
            "num_planned": num_planned,
            "before": device_state(settings.device),
        }


def _merged_meta(folder: ProfileFolder, settings: RunSettings, facts: dict[str, Any]) -> Meta:
    """Provenance to go on with; a profile of another model, machine or torch is refused."""
    meta: Meta = {
        "model": settings.model.name, "machine": facts, "runs": [], "sentinel": [], "failed": {}, "broke": [],
    }  # fmt: skip
    earlier = folder.meta()
    if not earlier:
        return meta
    for name in ("device_name", "torch"):
        if earlier["machine"][name] != facts[name]:
            raise InputError(
                f"{folder.path} was measured with {name} {earlier['machine'][name]!r}, this is "
                f"{facts[name]!r}; give another --output"
            )
    if earlier["model"] != settings.model.name:
        raise InputError(
            f"{folder.path} is a profile of {earlier['model']}, not of {settings.model.name}; "
            "give another --output"
        )
    return {**meta, **earlier, "machine": facts}


def _profile_id(settings: RunSettings, facts: dict[str, Any]) -> str:
    parts = (settings.model.name, facts["device_name"], facts["torch"], settings.grid.digest, settings.seed)
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:ID_DIGITS]
