"""Prices of tokens that no path of resident states beats: a bound that sees requests grow together.

Let every token have a price, and let no cycle of resident states earn more prices than it costs. Then the
time that a schedule still takes is at least the prices of all tokens to come plus the cheapest path from its
resident state to the end, prices taken off: whatever the schedule does from there is such a path. The value
of the cheapest path is 0 if no request is on the device, and negative where a KV cache saves prefills.

The best prices are found by column generation: a linear program over cycles proposes prices, a point
between them and the best known ones is tried, and either the cycles that earn too much are added, or
the best prices have got better (in-out separation, Ben-Ameur and Neto 2007). Only prices that were settled in
integers are used. Source of the relaxation: state-space relaxation, Christofides, Mingozzi and Toth 1981.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cspsched.compiled.jit import compiled
from cspsched.errors import InternalError
from cspsched.exact.prices.resident_paths import DECODE, HYBRID, PREFILL, Moves, new_paths, settle
from cspsched.exact.prices.resident_states import Residents
from cspsched.problem.cost import IntArray

MOST_CYCLES = 100
"""Cycles taken over at a time."""
CLOSE = 5e-4
"""Part of the bound that the linear program may promise beyond it when it is given up."""
FIRST_STEP, LEAST_STEP, MOST_STEP = 0.3, 0.15, 0.9
"""How far to go from the best prices to those of the linear program."""
SHRINK, GROW = 0.95, 1.3


@dataclass(frozen=True, kw_only=True, eq=False)
class ResidentPathPrices:
    """Prices, shape (requests, tokens), and the cheapest paths under them, shape (states,)."""

    prices: IntArray
    value: IntArray


def resident_path_prices(
    moves: Moves,
    residents: Residents,
    start: IntArray,
    go_on: Callable[[int, int], bool],
    *,
    waits: bool,
) -> ResidentPathPrices:
    """The prices that prove the most, of those that were found.

    Parameters
    ----------
    waits
        Whether they are to bound the sum of the times at which requests finish, not the time of the last.
    start
        Prices that are known to hold.
    go_on
        Told what they prove, and how many states were visited since it was last asked; whether there is
        reason and time for another try.

    Raises
    ------
    InternalError
        If the prices to start from do not hold.
    """
    paths, program = new_paths(len(residents.codes)), _Program(moves, waits=waits)
    emitted = np.zeros((MOST_CYCLES, *moves.blocks.shape), dtype=np.int64)
    costs = np.zeros(MOST_CYCLES, dtype=np.int64)
    found, sweeps = compiled(settle)(moves, residents, paths, start, emitted, costs)
    if found:
        raise InternalError(
            "the prices to start from are beaten by a path of resident states; please report this instance"
        )
    program.add_order(start)
    best, step = ResidentPathPrices(prices=start, value=paths.value.copy()), FIRST_STEP
    while go_on(total := proven_by(best.prices, waits=waits), sweeps * len(residents.codes)):
        proposal = program.solve()
        if proposal is None or proposal[1] - total <= CLOSE * total:
            break
        proposed, _ = proposal
        prices = np.floor(step * proposed + (1 - step) * best.prices).astype(np.int64)
        found, sweeps = compiled(settle)(moves, residents, paths, prices, emitted, costs)
        for k in range(found):
            program.add(emitted[k], int(costs[k]))
        if found:
            step = max(LEAST_STEP, step * SHRINK)
            continue
        news = program.add_order(prices)
        if proven_by(prices, waits=waits) > total:
            best, step = (
                ResidentPathPrices(prices=prices, value=paths.value.copy()),
                min(MOST_STEP, step * GROW),
            )
        elif not news:
            break
    return best


def proven_by(prices: IntArray, *, waits: bool) -> int:
    """What prices say from the start: their sum, or the k smallest sums of a request's prices, over all k."""
    own = np.sort(prices.sum(axis=1))
    return int((own.cumsum() if waits else own).sum())


class _Program:
    """The linear program: every token is emitted as often as it weighs, by cycles.

    Where waits are summed, the weights are a mixture of those of orders in which requests finish: the first
    of n delays n of them. Its prices then prove the most for the worst order there is.
    """

    def __init__(self, moves: Moves, *, waits: bool) -> None:
        from ortools.linear_solver import pywraplp

        self._solver = pywraplp.Solver.CreateSolver("GLOP")
        least = 0.0 if waits else 1.0
        self._rows = {
            (i, g): self._solver.Constraint(least, self._solver.infinity())
            for i, count in enumerate(moves.counts.tolist())
            for g in range(count)
        }
        self._mixture = self._solver.Constraint(1.0, 1.0) if waits else None
        self._orders: set[tuple[int, ...]] = set()
        self._shape = moves.blocks.shape
        self._objective = self._solver.Objective()
        self._objective.SetMinimization()
        # In parts of the dearest batch the numbers of the program are near 1.
        self._unit = float(max(1, moves.batch[HYBRID]))
        for i, count in enumerate(moves.counts):
            own = np.zeros(self._shape, dtype=np.int64)
            own[i, :count] = 1
            decodes = moves.batch[DECODE] * (count - 1) + moves.decode[i, 1:count].sum()
            self.add(own, int(moves.batch[PREFILL] + moves.prefill[i, 0] + decodes))

    def add_order(self, prices: IntArray) -> bool:
        """Where waits are summed, add the worst order under some prices; whether it is a new one."""
        order = tuple(np.argsort(prices.sum(axis=1), kind="stable").tolist())
        if self._mixture is None or order in self._orders:
            return False
        self._orders.add(order)
        variable = self._solver.NumVar(0.0, self._solver.infinity(), "")
        self._mixture.SetCoefficient(variable, 1.0)
        for (i, _), row in self._rows.items():
            row.SetCoefficient(variable, -float(len(order) - order.index(i)))
        return True

    def add(self, emitted: IntArray, cost: int) -> None:
        """Add a cycle by how often it emits each token and what it costs."""
        variable: Any = self._solver.NumVar(0.0, self._solver.infinity(), "")
        self._objective.SetCoefficient(variable, cost / self._unit)
        for token, row in self._rows.items():
            if emitted[token]:
                row.SetCoefficient(variable, float(emitted[token]))

    def solve(self) -> tuple[npt.NDArray[np.float64], float] | None:
        """Prices proposed, and what they seem to prove, which none exceed; None if GLOP gives up."""
        if self._solver.Solve() != self._solver.OPTIMAL:
            return None
        prices = np.zeros(self._shape)
        for token, row in self._rows.items():
            prices[token] = max(0.0, row.dual_value()) * self._unit
        return prices, float(self._objective.Value() * self._unit)
