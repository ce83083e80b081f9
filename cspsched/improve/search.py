"""The search for better list schedules: starts, then shapes, then keys and delays, whole or in windows.

One step is one or few runs of the compiled list scheduler. What a step does depends on nothing but the state
(`SearchState`), so that a search that was written down and resumed goes on as if it had not been stopped.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from cspsched.improve.list_scheduler import Checkpoint, ListScheduler
from cspsched.improve.moves import Moves, mean_wait_ns, plan_of, ranked, start_shapes
from cspsched.improve.pauses import may_pause
from cspsched.improve.plan import Plan, Shape
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import Objective

RESHAPINGS = 300
"""Steps spent on shapes."""
HISTORY = 50
"""A move is kept if it is no worse than the plan was so many steps before (late acceptance)."""
WINDOWS_FROM = 400
"""So many requests are improved in windows; fewer are changed together."""
WINDOW, WINDOW_STEPS, LOOKAHEAD = 50, 250, 2
"""Requests of a window, steps spent on it, and how many windows count, itself included."""


@dataclass(kw_only=True, eq=False)
class SearchState:
    """Where a search is. Values in nanoseconds; plans of requests in order of arrival."""

    rng: np.random.Generator
    steps: int = 0
    best_ns: int | None = None
    best: Plan | None = None
    found_by: str = ""
    shape: Shape | None = None
    """The best shape."""
    shape_ns: int = 0
    local: LocalState | None = None


@dataclass(kw_only=True, eq=False)
class LocalState:
    """A walk from plan to plan, over all requests or those of a window."""

    plan: Plan
    value_ns: int
    best: Plan
    best_ns: int
    anchor: Plan
    """Of the whole trace, where the walk began."""
    history_ns: list[int] = field(default_factory=list)
    window: int = 0
    steps: int = 0


class Search:
    """Steps through a search; `state` is all that it remembers."""

    def __init__(self, instance: Instance, objective: Objective, state: SearchState) -> None:
        self.state = state
        self.scheduler = ListScheduler(instance, objective)
        self._objective = objective
        self._starts = list(start_shapes(self.scheduler, instance.limits, objective))
        pauses = self.num_windows == 1 and may_pause(instance)
        chunks = instance.switches.chunked_prefill
        self._moves = Moves(self.scheduler, instance.limits, objective, pauses=pauses, chunks=chunks)
        self._checkpoint: Checkpoint | None = None

    @property
    def num_windows(self) -> int:
        """Windows of requests that are improved one after another; 1 if all are changed together."""
        count, arrival_ns = self.scheduler.num_requests, self.scheduler.arrival_ns
        if (
            self._objective is Objective.MAKESPAN
            or count < WINDOWS_FROM
            or arrival_ns[WINDOWS_FROM // 2] == arrival_ns[0]
        ):
            return 1
        return -(-count // WINDOW)

    def step(self) -> None:
        """Try one change."""
        state = self.state
        if state.steps < len(self._starts):
            self._try_shape(self._starts[state.steps], "start")
        elif state.steps < len(self._starts) + RESHAPINGS:
            assert state.shape is not None
            self._try_shape(self._moves.reshape(state.shape, state.rng), "shape search")
        else:
            self._walk()
        state.steps += 1

    def _try_shape(self, shape: Shape, how: str) -> None:
        state, plan = self.state, plan_of(shape, self.scheduler)
        value_ns = self.scheduler.value_ns(plan)
        if state.shape is None or value_ns <= state.shape_ns:
            state.shape, state.shape_ns = shape, value_ns
        self._note(plan, value_ns, f"{how}: {shape}")

    def _note(self, plan: Plan, value_ns: int, found_by: str) -> None:
        state = self.state
        if state.best_ns is None or value_ns < state.best_ns:
            state.best_ns, state.best, state.found_by = value_ns, plan, found_by

    def _walk(self) -> None:
        """One move of the walk; where its steps are used up, the next walk begins."""
        state = self.state
        if state.local is None:
            assert state.best is not None
            state.local = self._begin(ranked(state.best), window=0)
        local = state.local
        first, end = self._touched(local.window)
        scale_ns = mean_wait_ns(state.best_ns or 0, self.scheduler.num_requests, self._objective)
        plan = self._moves.change(local.plan, state.rng, (first, end), scale_ns)
        value_ns = self._scoped_value_ns(plan, local)
        slot = local.steps % len(local.history_ns)
        if value_ns <= max(local.value_ns, local.history_ns[slot]):
            local.plan, local.value_ns = plan, value_ns
        if local.value_ns < local.best_ns:
            local.best, local.best_ns = local.plan, local.value_ns
            if self.num_windows == 1:
                what = (
                    "order, delays, chunks and preemptions"
                    if local.best.pauses
                    else "order, delays and chunks"
                )
                self._note(local.best, local.best_ns, f"local search on {what}")
        local.history_ns[slot] = local.value_ns
        local.steps += 1
        if self.num_windows > 1 and local.steps >= WINDOW_STEPS:
            self._end_window(local)

    def _touched(self, window: int) -> tuple[int, int]:
        """First request of a window, and the one after the last."""
        count = self.scheduler.num_requests
        if self.num_windows == 1:
            return 0, count
        return window * WINDOW, min((window + 1) * WINDOW, count)

    def _begin(self, plan: Plan, window: int) -> LocalState:
        """A walk on a window from a plan of the whole trace."""
        local = LocalState(plan=plan, value_ns=0, best=plan, best_ns=0, anchor=plan, window=window)
        self._checkpoint = None
        local.value_ns = local.best_ns = self._scoped_value_ns(plan, local)
        local.history_ns = [local.value_ns] * HISTORY
        return local

    def _scoped_value_ns(self, plan: Plan, local: LocalState) -> int:
        """Value over the window and its lookahead, or over all."""
        if self.num_windows == 1:
            return self.scheduler.value_ns(plan)
        first = local.window * WINDOW
        if self._checkpoint is None:
            stop_ns = int(self.scheduler.arrival_ns[first])
            self._checkpoint = self.scheduler.checkpoint(local.anchor, stop_ns)
        count = min(first + LOOKAHEAD * WINDOW, self.scheduler.num_requests)
        return self.scheduler.value_of_first_ns(plan, self._checkpoint, count)

    def _end_window(self, local: LocalState) -> None:
        """Keep what the window gained if the whole trace gains, and go on with the next."""
        state = self.state
        value_ns = self.scheduler.value_ns(local.best)
        self._note(local.best, value_ns, "local search on order, delays and chunks")
        assert state.best is not None
        kept = local.best if state.best is local.best else local.anchor
        state.local = self._begin(kept, window=(local.window + 1) % self.num_windows)


def new_state(seed: int) -> SearchState:
    """A search at its beginning."""
    return SearchState(rng=np.random.default_rng(seed))
