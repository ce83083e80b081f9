"""Drives the packing search: its tables, quick descents, then best first until proven or stopped."""

from __future__ import annotations

import numpy as np

from cspsched.compiled.jit import compiled
from cspsched.exact.packing.heuristic import fill_tables
from cspsched.exact.packing.space import PackingSpace
from cspsched.exact.packing.starts import Starting, advance_packing, new_bench, rest_of
from cspsched.exact.parts.label_store import Nodes
from cspsched.exact.states.best_first import OPEN
from cspsched.exact.states.search import (
    MOST_LABELS,
    NO_TALK,
    StateOutcome,
    StateSearch,
    Talk,
    outcome_of,
)
from cspsched.problem.result import StopReason

PACKING_SEARCH = "packing search"
VALUE_S = 2e-8
"""What a deterministic clock counts for a value of the tables."""


def search_packing(packing: PackingSpace, talk: Talk, *, most_labels: int = MOST_LABELS) -> StateOutcome:
    """Search until the optimum is proven, time or room runs out, or Ctrl-C."""
    return outcome_of(_PackingSearch(packing, talk, most_labels), proves=True)


def compile_packing(packing: PackingSpace) -> None:
    """Compile what the search calls; that takes seconds, once after an installation."""
    _PackingSearch(packing, NO_TALK, 1).compile()


class _PackingSearch(StateSearch):
    """A state search with a tabled heuristic, whose batches are those of requests that run to completion."""

    def __init__(self, packing: PackingSpace, talk: Talk, most_labels: int) -> None:
        super().__init__(packing.space, talk, most_labels)
        self._packing, self._bench = packing, new_bench(packing.rests.outputs)

    def compile(self) -> None:
        """Call all that is compiled once, with nothing to do."""
        compiled(fill_tables)(self._packing.rests, 0, 0)
        super().compile()

    def prove(self) -> StopReason:
        """Fill the tables, then descents and the search that proves; the tables are sharp enough by then."""
        if not self._packing.fill(self._has_time):
            return StopReason.TIME_LIMIT
        self._raise_bound(self._rest_of_all())
        return self._finish(OPEN)

    def _has_time(self, num_values: int) -> bool:
        self._talk.spend(num_values * VALUE_S)
        return self._talk.time_left() > 0

    def _advance(self, nodes: Nodes, num_labels: int, weight: int) -> int:
        space = self._space
        tables = (space.shape, space.prices, self._packing.rests, space.heuristic_tables, nodes, self._bench)
        return compiled(advance_packing)(Starting(*tables, self._upper, weight), self._goal, num_labels)

    def _rest_of_all(self) -> int:
        shape, rests, tables = self._space.shape, self._packing.rests, self._space.heuristic_tables
        return compiled(rest_of)(shape, rests, tables, np.zeros_like(shape.outputs), self._bench)
