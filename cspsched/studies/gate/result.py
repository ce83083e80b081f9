"""What a gate comes to: a matrix of cells, each with its reasons, and the comparisons behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cspsched.errors import InputError
from cspsched.policies.text import PolicyText
from cspsched.problem.json_io import read_json, require_int, require_keys, require_schema, require_text
from cspsched.problem.objectives import AnyObjective
from cspsched.problem.result import tool_versions, unit_of
from cspsched.studies.compare import Comparison
from cspsched.studies.gate.verdict import GateLimits, Reason, Side, Value, change, reasons
from cspsched.studies.provenance import today

if TYPE_CHECKING:
    from pandas import DataFrame

GATE_SCHEMA = "cspsched/gate/1"
CellName = tuple[str, str, str]
"""Trace, objective and policy."""


class Verdict(StrEnum):
    """Of a cell, and of the whole."""

    PASSED = "passed"
    FAILED = "failed"
    ERROR = "error"
    """A policy could not be run."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """One policy on one trace for one objective.

    Attributes
    ----------
    base
        None if there is nothing to compare with.
    """

    trace: str
    objective: AnyObjective
    num_requests: int
    policy: str
    head: Side
    base: Side | None
    limits: GateLimits

    @property
    def name(self) -> CellName:
        """What it is found by in a stored result."""
        return self.trace, self.objective.value, self.policy

    @property
    def head_file(self) -> Path | None:
        """File of the policy under test; None if it is a built-in one."""
        return PolicyText.read(self.head.policy).file

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Everything against it."""
        return reasons(self.head, self.base, self.limits)

    @property
    def verdict(self) -> Verdict:
        """Passed, failed, or an error where a policy could not be run."""
        if any(side and side.failure is not None for side in (self.head, self.base)):
            return Verdict.ERROR
        return Verdict.FAILED if self.reasons else Verdict.PASSED

    def to_json(self) -> dict[str, Any]:
        """Plain values; ratios as floats."""
        most, difference = self.limits.excess_at_most, change(self.head, self.base)
        return {
            "trace": self.trace,
            "objective": self.objective.value,
            "unit": unit_of(self.objective),
            "policy": self.policy,
            "verdict": self.verdict.value,
            "reasons": [{"kind": reason.kind.value, "text": reason.text} for reason in self.reasons],
            "excess_at_most": None if most is None else float(most),
            "regression_at_most": float(self.limits.regression_at_most),
            "change": None if difference is None else float(difference),
            "head": _side(self.head),
            "base": None if self.base is None else _side(self.base),
        }


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class GateResult:
    """The whole matrix, traces first, then objectives, then policies.

    Attributes
    ----------
    comparisons
        One for each trace and objective, with a row for every side that ran.
    is_interrupted
        Whether Ctrl-C left cells out.
    """

    cells: tuple[Cell, ...]
    comparisons: tuple[Comparison, ...]
    seed: int
    command: str | None
    is_interrupted: bool

    def __repr__(self) -> str:
        return f"<GateResult {self.verdict}: {len(self.reasons)} reasons in {len(self.cells)} cells>"

    @property
    def verdict(self) -> Verdict:
        """Passed only if every cell is."""
        found = {cell.verdict for cell in self.cells}
        return next((one for one in (Verdict.ERROR, Verdict.FAILED) if one in found), Verdict.PASSED)

    @property
    def reasons(self) -> list[tuple[Cell, Reason]]:
        """Everything against it, with the cell that it is about."""
        return [(cell, reason) for cell in self.cells for reason in cell.reasons]

    def to_frame(self) -> DataFrame:
        """A row a cell."""
        from pandas import DataFrame

        return DataFrame([_flat(cell.to_json()) for cell in self.cells])

    def to_json(self) -> dict[str, Any]:
        """Everything that outputs show, with a schema version and units in the names."""
        return {
            "schema": GATE_SCHEMA,
            "verdict": self.verdict.value,
            "is_interrupted": self.is_interrupted,
            "seed": self.seed,
            "versions": tool_versions(),
            "date": today(),
            "command": self.command,
            "cells": [cell.to_json() for cell in self.cells],
            "comparisons": [comparison.to_json() for comparison in self.comparisons],
        }


def _flat(data: Mapping[str, Any]) -> dict[str, Any]:
    """A cell as one row: its sides' values beside its own, its reasons as one text."""
    row = {key: value for key, value in data.items() if key not in ("head", "base", "reasons")}
    for name in ("head", "base"):
        row |= {f"{name}_{key}": value for key, value in (data[name] or dict.fromkeys(data["head"])).items()}
    return row | {"reasons": "; ".join(f"{one['kind']}: {one['text']}" for one in data["reasons"])}


def read_stored(path: Path) -> Mapping[CellName, Side]:
    """Heads of a stored result by cell, to be the base of another one; a head that failed is left out.

    Raises
    ------
    InputError
        If the file cannot be read, or is no result of a gate of this version.
    """
    where, data = str(path), read_json(path)
    require_schema(data, GATE_SCHEMA, where)
    if not isinstance(data.get("cells"), list):
        raise InputError(f"{where}: cells must be a list, got {type(data.get('cells')).__name__}")
    found = {}
    for number, cell in enumerate(data["cells"]):
        at = f"{where}: cells[{number}]"
        require_keys(cell, at, required=("trace", "objective", "policy", "head"))
        trace, objective, policy = (require_text(cell, key, at) for key in ("trace", "objective", "policy"))
        side = _stored_side(cell["head"], f"{at}: head")
        if side is not None:
            found[trace, objective, policy] = side
    return found


def _stored_side(data: Any, where: str) -> Side | None:
    require_keys(data, where, required=("policy", "fingerprint", "value_ns", "best_known_ns", "bound_ns"))
    if data["value_ns"] is None:
        return None
    value, best, bound = (require_int(data, key, where) for key in ("value_ns", "best_known_ns", "bound_ns"))
    if not 0 <= bound <= best <= value:
        raise InputError(
            f"{where}: expected bound_ns <= best_known_ns <= value_ns, got {bound}, {best}, {value}"
        )
    policy, fingerprint = (require_text(data, key, where) for key in ("policy", "fingerprint"))
    outcome = Value(value_ns=value, best_ns=best, bound_ns=bound)
    return Side(policy=policy, fingerprint=fingerprint, outcome=outcome)


def _side(side: Side) -> dict[str, Any]:
    value = side.value
    least, most = value.excess if value else (None, None)
    return {
        "policy": side.policy,
        "fingerprint": side.fingerprint,
        "value_ns": value and value.value_ns,
        "best_known_ns": value and value.best_ns,
        "bound_ns": value and value.bound_ns,
        "excess_at_least": least,
        "excess_at_most": most,
        "failure": side.failure,
    }
