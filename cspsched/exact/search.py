"""Runs CP-SAT on a model: complete hints, live progress, Ctrl-C, and values only when there are some."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from ortools.sat.python import cp_model

from cspsched.errors import InternalError
from cspsched.exact.model import Decisions, ExactModel
from cspsched.problem.result import StopReason
from cspsched.problem.schedule import Schedule

EXACT_FLOAT = 2**53
"""Integers up to here are exact in the solver's floating-point bound."""
MOST_CHOSEN_WORKERS = 4
"""With more threads CP-SAT's own portfolio is wide enough; with one it alternates by itself."""
IMPOSSIBLE = (cp_model.INFEASIBLE, cp_model.MODEL_INVALID)


@dataclass(frozen=True, kw_only=True)
class SearchLimits:
    """How long a solve may take, model building included, and with what CP-SAT searches."""

    time_limit_s: float = 60.0
    num_workers: int = 2
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One live line. Values in nanoseconds."""

    elapsed_s: float
    best_ns: int
    bound_ns: int


@dataclass(frozen=True, kw_only=True)
class SearchOutcome:
    """What CP-SAT found; None where it found nothing. `bound_ns` holds within the model's horizon."""

    decisions: Decisions | None
    bound_ns: int | None
    stop_reason: StopReason


class Watch:
    """The clock of a solve, and the best value and bound known so far, told to whoever listens."""

    def __init__(
        self, limits: SearchLimits, best_ns: int, bound_ns: int, listener: Callable[[Progress], None] | None
    ) -> None:
        self._started = time.monotonic()
        self._limit_s = limits.time_limit_s
        self._best_ns = best_ns
        self._bound_ns = bound_ns
        self._listener = listener
        self._lock = threading.Lock()

    @property
    def remaining_s(self) -> float:
        """Seconds left of the time limit."""
        return max(0.0, self._limit_s - (time.monotonic() - self._started))

    def tell(self, *, best_ns: int | None = None, bound_ns: int | None = None) -> None:
        """Take note of a value or a bound, and pass the state on."""
        with self._lock:
            self._best_ns = self._best_ns if best_ns is None else min(self._best_ns, best_ns)
            self._bound_ns = self._bound_ns if bound_ns is None else max(self._bound_ns, bound_ns)
            if self._listener is not None:
                elapsed = time.monotonic() - self._started
                self._listener(Progress(elapsed_s=elapsed, best_ns=self._best_ns, bound_ns=self._bound_ns))


def complete_hint(model: ExactModel, schedule: Schedule, time_limit_s: float) -> tuple[int, list[int]] | None:
    """Value of a schedule in the model, and a value for every variable; None if that takes too long.

    The decisions are fixed in a copy of the model and CP-SAT completes them.

    Raises
    ------
    InternalError
        If the model refuses the schedule.
    KeyboardInterrupt
        At Ctrl-C.
    """
    fixed = model.model.clone()
    for variable, value in model.assignment(schedule):
        fixed.add(fixed.get_int_var_from_proto_index(variable.index) == value)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_time_in_seconds = time_limit_s
    status, interrupted = _solve_interruptibly(solver, fixed)
    if interrupted:
        raise KeyboardInterrupt
    if status in IMPOSSIBLE:
        raise InternalError(
            f"the {model.name} model refuses a feasible schedule; please report this instance"
        )
    if status != cp_model.OPTIMAL:
        return None
    return round(solver.objective_value), list(solver.response_proto.solution)


def add_hint(model: ExactModel, values: list[int]) -> None:
    """Hint every variable once."""
    for index, value in enumerate(values):
        model.model.add_hint(model.model.get_int_var_from_proto_index(index), value)


def search(model: ExactModel, limits: SearchLimits, watch: Watch) -> SearchOutcome:
    """Minimise until proven, the time limit, or Ctrl-C; the best solution is kept in every case."""
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = limits.num_workers
    if 1 < limits.num_workers <= MOST_CHOSEN_WORKERS:
        solver.parameters.num_workers = max(limits.num_workers, len(model.subsolvers))
        solver.parameters.subsolvers.extend(model.subsolvers)
    solver.parameters.max_time_in_seconds = watch.remaining_s
    solver.parameters.random_seed = limits.seed
    solver.best_bound_callback = lambda bound: watch.tell(bound_ns=_safe_bound(bound))
    status, interrupted = _solve_interruptibly(solver, model.model, _SolutionTeller(watch))
    if status in IMPOSSIBLE:
        raise InternalError(f"the {model.name} model has no solution, but a schedule is known; please report")
    reason = StopReason.INTERRUPTED if interrupted else StopReason.TIME_LIMIT
    found = status in (cp_model.OPTIMAL, cp_model.FEASIBLE)
    return SearchOutcome(
        decisions=model.decisions(solver.value) if found else None,
        bound_ns=_safe_bound(solver.best_objective_bound),
        stop_reason=StopReason.PROVEN if status == cp_model.OPTIMAL else reason,
    )


def _safe_bound(bound: float) -> int | None:
    """Integer bound from the solver's float, rounded down where floats are no longer exact."""
    if not math.isfinite(bound):
        return None
    if abs(bound) < EXACT_FLOAT:
        return math.ceil(bound - 1e-3)
    return math.floor(math.nextafter(bound, -math.inf))


class _SolutionTeller(cp_model.CpSolverSolutionCallback):
    """Passes the value of every solution on."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def on_solution_callback(self) -> None:
        self._watch.tell(best_ns=round(self.objective_value))


def _solve_interruptibly(
    solver: cp_model.CpSolver, model: cp_model.CpModel, callback: _SolutionTeller | None = None
) -> tuple[cp_model.CpSolverStatus, bool]:
    """Solve in a thread, so that Ctrl-C reaches Python at once and stops the search instead of losing it."""
    solver.parameters.catch_sigint_signal = False
    interrupted = False
    with ThreadPoolExecutor(max_workers=1) as executor:
        future = executor.submit(solver.solve, model, callback)
        while True:
            try:
                while True:
                    if interrupted:
                        # Again and again, for a search that has not begun yet cannot be stopped.
                        solver.stop_search()
                    with suppress(TimeoutError):
                        return future.result(timeout=0.1), interrupted
            except KeyboardInterrupt:
                interrupted = True
