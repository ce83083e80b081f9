"""Runs CP-SAT on a model: complete hints, live progress, Ctrl-C, and values only when there are some."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from ortools.sat.python import cp_model
from ortools.sat.python.cp_model_helper import FlatIntExpr

from cspsched.errors import InternalError
from cspsched.exact.model.exact_model import ExactModel
from cspsched.exact.watch import SearchLimits, Watch
from cspsched.problem.result import StopReason
from cspsched.problem.schedule import Schedule

EXACT_FLOAT = 2**53
"""Integers up to here are exact in the solver's floating-point bound."""
MOST_CHOSEN_WORKERS = 4
"""With more threads CP-SAT's own portfolio is wide enough; with one it alternates by itself."""
FOUND = (cp_model.OPTIMAL, cp_model.FEASIBLE)
"""Only then are there values to read."""
ROUNDINGS = 4
"""How often the solver's floating-point bound is rounded, at most: inner bound, offset, their sum."""


class InvalidModelError(InternalError):
    """CP-SAT refuses to read a model, which says nothing about whether it has a solution."""


@dataclass(frozen=True, kw_only=True)
class SearchOutcome:
    """What CP-SAT found; None where it found nothing. `bound_ns` holds within the model's horizon."""

    schedule: Schedule | None
    bound_ns: int | None
    stop_reason: StopReason


def complete_hint(
    model: ExactModel, schedule: Schedule, time_limit_s: float, *, deterministic: bool = False
) -> tuple[int, list[int]] | None:
    """Value of a schedule in the model, and a value for every variable; None if that takes too long.

    The decisions are fixed in a copy of the model and CP-SAT completes them.

    Raises
    ------
    InternalError
        If the model refuses the schedule, or CP-SAT the model.
    KeyboardInterrupt
        At Ctrl-C.
    """
    fixed = model.model.clone()
    for variable, value in model.assignment(schedule):
        fixed.add(fixed.get_int_var_from_proto_index(variable.index) == value)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    _limit(solver, time_limit_s, deterministic=deterministic)
    status, interrupted = _solve_interruptibly(solver, fixed)
    if interrupted:
        raise KeyboardInterrupt
    if status == cp_model.INFEASIBLE:
        raise InternalError(
            f"the {model.name} model refuses a feasible schedule; please report this instance"
        )
    if status != cp_model.OPTIMAL:
        return None
    # The solver's own value of the objective is a float.
    return solver.value(model.objective), list(solver.response_proto.solution)


def add_hint(model: ExactModel, values: list[int]) -> None:
    """Hint every variable once."""
    for index, value in enumerate(values):
        model.model.add_hint(model.model.get_int_var_from_proto_index(index), value)


def search(
    model: ExactModel, limits: SearchLimits, watch: Watch, *, count_bound: bool = True
) -> SearchOutcome:
    """Minimise until proven, the time limit, Ctrl-C, or until another member has closed the gap.

    The best solution is kept in every case. `count_bound` says whether the model's bound holds for the
    problem, so that others may rely on it.
    """
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = limits.num_workers
    if 1 < limits.num_workers <= MOST_CHOSEN_WORKERS:
        solver.parameters.num_workers = max(limits.num_workers, len(model.subsolvers))
        solver.parameters.subsolvers.extend(model.subsolvers)
    _limit(solver, watch.remaining_s, deterministic=limits.deterministic)
    solver.parameters.random_seed = limits.seed
    if count_bound:
        solver.best_bound_callback = lambda bound: watch.tell(
            bound_ns=safe_bound(bound, model.worst_sum), bound_by=model.name
        )
    teller = _SolutionTeller(watch, model)
    status, interrupted = _solve_interruptibly(solver, model.model, teller, watch)
    watch.spend(solver.response_proto.deterministic_time)
    if status == cp_model.INFEASIBLE:
        raise InternalError(f"the {model.name} model has no solution, but a schedule is known; please report")
    reason = StopReason.INTERRUPTED if interrupted else StopReason.TIME_LIMIT
    return SearchOutcome(
        schedule=model.schedule(solver.value) if status in FOUND else None,
        bound_ns=_bound_of(solver, model, status),
        stop_reason=StopReason.PROVEN if status == cp_model.OPTIMAL else reason,
    )


def _bound_of(solver: cp_model.CpSolver, model: ExactModel, status: cp_model.CpSolverStatus) -> int | None:
    """Bound of a search that has ended, from CP-SAT's integers where it tells them."""
    if status not in FOUND:
        return safe_bound(solver.best_objective_bound, model.worst_sum)
    constant = FlatIntExpr(cast(cp_model.LinearExpr, model.objective)).offset
    return int(solver.response_proto.inner_objective_lower_bound) + constant


def solve_briefly(
    model: cp_model.CpModel, work_limit: float, time_limit_s: float, watch: Watch
) -> tuple[cp_model.CpSolverStatus, Callable[[cp_model.IntVar], int] | None]:
    """Answer a question of feasibility with one thread: the status, and the values of a solution or None.

    Parameters
    ----------
    work_limit
        In CP-SAT's own measure, whose unit is about a second.

    Raises
    ------
    KeyboardInterrupt
        At Ctrl-C.
    """
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_deterministic_time = work_limit
    solver.parameters.max_time_in_seconds = max(0.0, time_limit_s)
    status, interrupted = _solve_interruptibly(solver, model, None, watch)
    if interrupted:
        raise KeyboardInterrupt
    watch.spend(solver.response_proto.deterministic_time)
    return status, solver.value if status in FOUND else None


def _limit(solver: cp_model.CpSolver, time_limit_s: float, *, deterministic: bool) -> None:
    """Limit a search by the clock, or by CP-SAT's own measure of work, whose unit is about a second."""
    if deterministic:
        solver.parameters.max_deterministic_time = time_limit_s
    else:
        solver.parameters.max_time_in_seconds = time_limit_s


def safe_bound(bound: float, largest: int) -> int | None:
    """Integer bound from the solver's float, rounded down where floats are not exact.

    Parameters
    ----------
    largest
        Largest value that the objective, or its parts, can take: a small bound may be a difference of them.
    """
    if not math.isfinite(bound):
        return None
    if max(abs(bound), largest) < EXACT_FLOAT:
        return math.ceil(bound - 1e-3)
    return math.floor(bound) - ROUNDINGS * math.ceil(math.ulp(max(abs(bound), largest)))


class _SolutionTeller(cp_model.CpSolverSolutionCallback):
    """Passes the value of every solution on."""

    def __init__(self, watch: Watch, model: ExactModel) -> None:
        super().__init__()
        self._watch, self._model = watch, model

    def on_solution_callback(self) -> None:
        self._watch.tell(best_ns=self.value(self._model.objective), best_by=self._model.name)


def _solve_interruptibly(
    solver: cp_model.CpSolver,
    model: cp_model.CpModel,
    callback: _SolutionTeller | None = None,
    watch: Watch | None = None,
) -> tuple[cp_model.CpSolverStatus, bool]:
    """Solve in a thread, so that Ctrl-C reaches Python at once and stops the search instead of losing it."""
    solver.parameters.catch_sigint_signal = False
    # Gaps are whole numbers; as floats, large ones would pass for closed.
    solver.parameters.absolute_gap_limit = 0.0
    interrupted = False
    with ThreadPoolExecutor(max_workers=1) as executor:
        future = executor.submit(solver.solve, model, callback)
        while True:
            try:
                while True:
                    if interrupted or (watch is not None and watch.is_over):
                        # Again and again, for a search that has not begun yet cannot be stopped.
                        solver.stop_search()
                    with suppress(TimeoutError):
                        return _readable(future.result(timeout=0.1), model), interrupted
            except KeyboardInterrupt:
                interrupted = True


def _readable(status: cp_model.CpSolverStatus, model: cp_model.CpModel) -> cp_model.CpSolverStatus:
    if status == cp_model.MODEL_INVALID:
        raise InvalidModelError(f"CP-SAT calls the model invalid: {model.validate()}; please report")
    return status
