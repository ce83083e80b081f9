"""Runs CP-SAT on a model: complete hints, live progress, Ctrl-C, and values only when there are some."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ortools.sat.python import cp_model

from cspsched.errors import InternalError
from cspsched.exact.model import Decisions, ExactModel
from cspsched.problem.result import StopReason
from cspsched.problem.schedule import Schedule

EXACT_FLOAT = 2**53
"""Integers up to here are exact in the solver's floating-point bound."""
HINT_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class SearchLimits:
    """How long and with what CP-SAT searches."""

    time_limit_s: float = 60.0
    num_workers: int = 2
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One live line. Values in nanoseconds; None means not known."""

    elapsed_s: float
    best_ns: int | None
    bound_ns: int | None


@dataclass(frozen=True, kw_only=True)
class SearchOutcome:
    """What CP-SAT found. `bound_ns` holds for schedules within the model's horizon."""

    decisions: Decisions | None
    bound_ns: int | None
    proven: bool
    stop_reason: StopReason


def complete_hint(model: ExactModel, schedule: Schedule) -> tuple[int, list[int]] | None:
    """Value of a schedule in the model, and a value for every variable; None if that takes too long.

    The decisions are fixed in a copy of the model and CP-SAT completes them.

    Raises
    ------
    InternalError
        If the model refuses the schedule.
    """
    fixed = model.model.clone()
    for variable, value in model.assignment(schedule):
        fixed.add(fixed.get_int_var_from_proto_index(variable.index) == value)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_time_in_seconds = HINT_SECONDS
    status = solver.solve(fixed)
    if status in (cp_model.INFEASIBLE, cp_model.MODEL_INVALID):
        raise InternalError(
            f"the {model.name} model refuses a feasible schedule; please report this instance"
        )
    if status != cp_model.OPTIMAL:
        return None
    return round(solver.objective_value), list(solver.response_proto.solution)


def add_hint(model: ExactModel, values: list[int]) -> None:
    """Hint every variable once."""
    model.model.clear_hints()
    for index, value in enumerate(values):
        model.model.add_hint(model.model.get_int_var_from_proto_index(index), value)


def search(
    model: ExactModel, limits: SearchLimits, on_progress: Callable[[Progress], None] | None = None
) -> SearchOutcome:
    """Minimise until proven, the time limit, or Ctrl-C; the best solution is kept in every case."""
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = limits.num_workers
    solver.parameters.max_time_in_seconds = limits.time_limit_s
    solver.parameters.random_seed = limits.seed
    solver.parameters.catch_sigint_signal = False
    reporter = _Reporter(on_progress)
    solver.best_bound_callback = reporter.on_bound
    status, interrupted = _solve_interruptibly(solver, model.model, reporter)
    found = status in (cp_model.OPTIMAL, cp_model.FEASIBLE)
    if status in (cp_model.INFEASIBLE, cp_model.MODEL_INVALID):
        raise InternalError(f"the {model.name} model has no solution, but a schedule is known; please report")
    proven = status == cp_model.OPTIMAL
    reason = StopReason.INTERRUPTED if interrupted else StopReason.TIME_LIMIT
    return SearchOutcome(
        decisions=model.decisions(solver.value) if found else None,
        bound_ns=_safe_bound(solver.best_objective_bound) if found else reporter.bound_ns,
        proven=proven,
        stop_reason=StopReason.PROVEN if proven else reason,
    )


def _safe_bound(bound: float) -> int | None:
    """Integer bound from the solver's float, rounded down where floats are no longer exact."""
    if not math.isfinite(bound):
        return None
    if abs(bound) < EXACT_FLOAT:
        return math.ceil(bound - 1e-3)
    return math.floor(math.nextafter(bound, -math.inf))


class _Reporter(cp_model.CpSolverSolutionCallback):
    """Turns the solver's callbacks into live progress."""

    def __init__(self, on_progress: Callable[[Progress], None] | None) -> None:
        super().__init__()
        self._on_progress = on_progress
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self.best_ns: int | None = None
        self.bound_ns: int | None = None

    def on_solution_callback(self) -> None:
        with self._lock:
            self.best_ns = round(self.objective_value)
            self._report()

    def on_bound(self, bound: float) -> None:
        with self._lock:
            self.bound_ns = _safe_bound(bound)
            self._report()

    def _report(self) -> None:
        if self._on_progress is not None:
            elapsed = time.monotonic() - self._started
            self._on_progress(Progress(elapsed_s=elapsed, best_ns=self.best_ns, bound_ns=self.bound_ns))


def _solve_interruptibly(
    solver: cp_model.CpSolver, model: cp_model.CpModel, reporter: _Reporter
) -> tuple[cp_model.CpSolverStatus, bool]:
    """Solve in a thread, so that Ctrl-C reaches Python at once and stops the search instead of losing it."""
    statuses: list[cp_model.CpSolverStatus] = []
    worker = threading.Thread(target=lambda: statuses.append(solver.solve(model, reporter)), daemon=True)
    worker.start()
    interrupted = False
    while worker.is_alive():
        try:
            worker.join(timeout=0.1)
        except KeyboardInterrupt:
            interrupted = True
            solver.stop_search()
    return statuses[0], interrupted
