"""Writes the batch-indexed model as a file that CP-SAT, and any solver that reads its format, can solve."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cspsched.errors import InputError
from cspsched.exact.heuristics.list_schedule import list_schedules
from cspsched.exact.model.batch_model import BatchModel
from cspsched.exact.model.horizon import certified_horizon
from cspsched.exact.record import best_incumbent
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import AnyObjective
from cspsched.problem.result import unit_of
from cspsched.problem.schedule import Schedule

MOST_CELLS = 30_000
"""Requests times batches beyond which a file would only fill the disk."""
SUFFIXES = (".pb", ".txt", ".pbtxt")
"""Binary, and text twice: that is how CP-SAT tells them apart."""


@dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """What a model file holds."""

    path: Path
    objective: AnyObjective
    num_requests: int
    num_batches: int
    """Horizon: some optimal schedule has at most so many batches."""
    num_variables: int
    num_constraints: int
    size_bytes: int

    @property
    def sentence(self) -> str:
        """What the file holds and how large it is."""
        return (
            f"{self.path}: {self.objective} in {unit_of(self.objective)}, {self.num_requests} requests, "
            f"horizon of {self.num_batches} batches (certified), "
            f"{self.num_variables:,} variables, {self.num_constraints:,} constraints, "
            f"{self.size_bytes:,} bytes"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values with units in the names."""
        return {
            "file": str(self.path),
            "num_requests": self.num_requests,
            "horizon_batches": self.num_batches,
            "num_variables": self.num_variables,
            "num_constraints": self.num_constraints,
            "size_bytes": self.size_bytes,
        }


def export_model(
    instance: Instance,
    objective: AnyObjective,
    path: Path,
    *,
    candidates: Iterable[tuple[str, Schedule]] = (),
) -> ExportedModel:
    """Write the batch-indexed model of an instance, with its best known schedule as a hint.

    The objective is in nanoseconds (the makespan, or the sum over requests), or in the unit of a mixture. The
    horizon is certified, so the model's optimum is the instance's.

    Raises
    ------
    InputError
        If the name ends in none of .pb (binary), .txt and .pbtxt (text), the model would be too large or its
        sums could leave 64 bits, or the file cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: name the model {', '.join(f'*{suffix}' for suffix in SUFFIXES)}")
    incumbent = best_incumbent(instance, objective, [*list_schedules(instance), *candidates])
    horizon = max(certified_horizon(instance, objective, incumbent.value_ns), incumbent.schedule.num_batches)
    cells = horizon * len(instance.requests)
    if cells > MOST_CELLS:
        raise InputError(
            f"{path}: the model would have {len(instance.requests)} requests x {horizon} batches = {cells} "
            f"cells, more than {MOST_CELLS}; keep fewer requests (--limit)"
        )
    model = BatchModel(instance, objective, horizon)
    if not model.fits:
        raise InputError(f"{path}: sums of the model could leave 64 bits; keep fewer requests (--limit)")
    for variable, value in model.assignment(incumbent.schedule):
        model.model.add_hint(variable, value)
    named = f"cspsched {objective} in {unit_of(objective)}"
    model.model.name = f"{named}, {len(instance.requests)} requests, {horizon} batches"
    _write(model, path)
    return ExportedModel(
        path=path,
        objective=objective,
        num_requests=len(instance.requests),
        num_batches=horizon,
        num_variables=len(model.model.proto.variables),
        num_constraints=len(model.model.proto.constraints),
        size_bytes=path.stat().st_size,
    )


def _write(model: BatchModel, path: Path) -> None:
    try:
        # CP-SAT says only that it failed; opening the file says why.
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb"):
            pass
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None
    if not model.model.export_to_file(str(path)):
        raise InputError(f"{path} cannot be written; is the disk full?")
