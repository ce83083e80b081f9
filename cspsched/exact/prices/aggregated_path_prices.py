"""Prices that no path of aggregated states beats: a bound for many or long requests.

The prices of a request's later tokens lie on a line, and what an eviction costs is piecewise linear in the KV
tokens that it frees: some dozens of numbers in place of thousands. They are found by cutting planes: a linear
program proposes the best numbers in a box around the best known ones that no cycle found so far forbids
(GLOP), a point on the way to them is settled, and either more cycles are added, or it is the new centre.
Only prices that were settled in integers are used. Source of the relaxation: state-space relaxation,
Christofides, Mingozzi and Toth 1981; of the box: Marsten, Hogan and Blankenship 1975.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from cspsched.compiled.jit import compiled
from cspsched.errors import InternalError
from cspsched.exact.prices.aggregated_decodes import NEVER, Lines, best_patterns
from cspsched.exact.prices.aggregated_paths import (
    DECODE,
    AggregatedMoves,
    AggregatedPrices,
    CycleTally,
    Levels,
    Offers,
    follow_cycle,
    new_levels,
    settle,
)
from cspsched.problem.cost import IntArray

EVICTION_KNOTS = 8
MOST_ROUNDS = 30
"""Cycles taken over at a time."""
CLOSE = 5e-4
"""Part of the best known total that the linear program may promise beyond it when it is given up."""
FIRST_BOX, LEAST_BOX, MOST_BOX = 0.2, 0.02, 20.0
"""Half the width of the box, in units of what its numbers are like at the start."""
EASY, HARD = 2, 10
"""Failures in a row up to which the box is widened after a success, and beyond which it is narrowed."""
STEP, LATE_STEP, LATE = 0.3, 0.1, 3
"""How far to go to the proposal, and after how many failures in a row less far."""
Vector = npt.NDArray[np.float64]


def aggregated_path_prices(moves: AggregatedMoves, go_on: Callable[[int, int], bool]) -> AggregatedPrices:
    """The prices that prove the most, of those that were found.

    Parameters
    ----------
    go_on
        Told what they prove, and how many steps were taken since it was last asked; whether there is reason
        and time for another try.

    Raises
    ------
    InternalError
        If the prices to start from do not hold.
    """
    search = CycleSearch(moves)
    centre = search.forms.volume_prices()
    prices = search.forms.prices(centre)
    rounds = search.settle(prices)
    if rounds:
        raise InternalError("a path of aggregated states beats the KV volume; please report this instance")
    program = _Program(search.forms)
    box, failures = FIRST_BOX, 0
    while go_on(total := proven_by(moves, prices), search.steps_taken()):
        proposal = program.solve(centre, box)
        if proposal is None:
            break
        promised, at_edge = proposal
        if search.forms.total(promised) - total <= CLOSE * total:
            if not at_edge or box >= MOST_BOX:
                break
            box *= 4
            continue
        trial = centre + (STEP if failures < LATE else LATE_STEP) * (promised - centre)
        trial_prices = search.forms.prices(trial)
        rounds = search.settle(trial_prices)
        for way, cost in rounds:
            program.add(way, cost)
        if rounds:
            failures += 1
            if failures > HARD:
                box, failures = max(LEAST_BOX, box / 2), 0
            continue
        if failures <= EASY:
            box = min(MOST_BOX, box * 1.5)
        failures = 0
        if proven_by(moves, trial_prices) > total:
            centre, prices = trial, trial_prices
    return prices


def proven_by(moves: AggregatedMoves, prices: AggregatedPrices) -> int:
    """What prices say from the start: the sum over all tokens and all who finish."""
    return int(token_prices(moves, prices).sum() + prices.finishes.sum())


def token_prices(moves: AggregatedMoves, prices: AggregatedPrices) -> IntArray:
    """Prices of all tokens, shape (requests, tokens); 0 behind the last of a request."""
    behind = np.arange(moves.refill.shape[1]) - 1
    table = prices.later.second[:, None] + prices.later.slope[:, None] * behind
    table[:, 0] = prices.first
    return np.where(behind + 1 < moves.outputs[:, None], table, 0)


class _Forms:
    """How a vector of numbers makes prices: knots of the requests, who finishes, knots of the evictions."""

    def __init__(self, moves: AggregatedMoves) -> None:
        self.moves = moves
        count = len(moves.prompts)
        sizes = np.arange(int((moves.prompts + moves.outputs).max()))
        knots = np.linspace(int(moves.prompts.min()), len(sizes) - 1, EVICTION_KNOTS)
        ramps = [np.interp(sizes, knots, corner) for corner in np.eye(EVICTION_KNOTS)]
        self._evictions = np.stack(ramps) if moves.preemptive else np.zeros((0, len(sizes)))
        # Of each token, how far it is from the second to the last of its request.
        behind = np.arange(moves.refill.shape[1]) - 1
        along = np.clip(behind / np.maximum(1, moves.outputs - 2)[:, None], 0, 1)
        later = (behind >= 0) & (behind + 1 < moves.outputs[:, None])
        self._ramps = np.stack([np.where(later, 1 - along, 0), np.where(later, along, 0)])
        self.num_tokens = 3 * count
        self.weights = np.concatenate(
            [np.ones(count), *self._ramps.sum(axis=2), np.ones(count), np.zeros(len(self._evictions))]
        )

    def prices(self, numbers: Vector) -> AggregatedPrices:
        """Prices of a vector, rounded down; numbers of tokens are at least 0, and so are their prices."""
        count = len(self.moves.prompts)
        rounded = np.floor(numbers[: 4 * count]).astype(np.int64)
        first, second, last, finishes = rounded.reshape(4, count)
        slope = (last - second) // np.maximum(1, self.moves.outputs - 2)
        return AggregatedPrices(
            first=first,
            later=Lines(second, np.maximum(slope, -(second // np.maximum(1, self.moves.outputs - 2)))),
            finishes=finishes,
            evictions=np.floor(numbers[4 * count :] @ self._evictions).astype(np.int64),
        )

    def total(self, numbers: Vector) -> float:
        """What a vector seems to prove."""
        return float(self.weights @ numbers)

    def earned(self, way: CycleTally) -> Vector:
        """What a cycle earns of each number."""
        return np.concatenate(
            [
                way.emitted[:, 0],
                *(self._ramps * way.emitted).sum(axis=2),
                way.finished,
                -(self._evictions @ way.evicted),
            ]
        )

    def volume_prices(self) -> Vector:
        """Prices in proportion to KV tokens, which no batch beats."""
        moves = self.moves
        rate = int(moves.batch.min()) / moves.capacity
        peaks = moves.prompts + np.maximum(1, moves.outputs - 1)
        known = np.concatenate([moves.prompts, moves.prompts + 1, peaks])
        return np.concatenate([rate * known, np.zeros(len(self.weights) - self.num_tokens)])

    def scales(self) -> Vector:
        """What numbers are like: those of the KV volume for tokens, three batches for the others."""
        tokens = self.volume_prices()[: self.num_tokens]
        others = np.full(len(self.weights) - self.num_tokens, 3.0 * int(self.moves.batch[DECODE]))
        return np.concatenate([np.maximum(tokens, tokens.mean() / 5), others])


class CycleSearch:
    """Search for cycles that earn more than they cost; values are kept from the last prices that held."""

    def __init__(self, moves: AggregatedMoves) -> None:
        self.moves, self.forms = moves, _Forms(moves)
        self._levels = new_levels(moves)
        self._steps = 0

    def steps_taken(self) -> int:
        """Inner steps since it was last asked."""
        steps, self._steps = self._steps, 0
        return steps

    def settle(self, prices: AggregatedPrices) -> list[tuple[CycleTally, int]]:
        """Cycles that earn too much under prices, each with what it costs; none if the prices hold."""
        moves = self.moves
        most = len(moves.least) - 1
        best = compiled(best_patterns)(moves.prompts, moves.outputs, prices.later, most, moves.capacity)
        offers = _offers(moves, prices, best[-1])
        levels = Levels(self._levels.value.copy(), self._levels.choice)
        cycles = np.zeros((MOST_ROUNDS, 3), dtype=np.int64)
        found, sweeps = compiled(settle)(moves, prices, offers, levels, cycles)
        self._steps += (most + 1) * moves.capacity * sweeps * len(prices.evictions)
        if not found:
            self._levels = levels
        rounds = []
        for cycle in cycles[:found]:
            sizes = (moves.refill, moves.prompts, prices.evictions)
            way = CycleTally(*(np.zeros_like(table) for table in sizes))
            cost = compiled(follow_cycle)(moves, offers, prices.later, best, levels, cycle, way)
            rounds.append((way, int(cost)))
        return rounds


def _offers(moves: AggregatedMoves, prices: AggregatedPrices, best: IntArray) -> Offers:
    """What prices make of decodes and prefills."""
    emitting = token_prices(moves, prices)
    admit = np.full(int((moves.prompts + moves.outputs).max()), NEVER)
    admitted = np.zeros(len(admit), dtype=np.int64)
    for i, (prompt, count) in enumerate(zip(moves.prompts.tolist(), moves.outputs.tolist(), strict=True)):
        tokens = np.arange(count if moves.preemptive else 1)
        earned = emitting[i, tokens] - moves.refill[i, tokens]
        # A request that was evicted had held all but the token that it now emits.
        earned[1:] += prices.evictions[prompt + tokens[1:] - 1]
        better = earned > admit[prompt + tokens]
        admit[prompt + tokens[better]] = earned[better]
        admitted[prompt + tokens[better]] = i * emitting.shape[1] + tokens[better]
    admit_order = np.argsort(-admit, kind="stable")
    evict_order = np.argsort(prices.evictions, kind="stable")
    return Offers(
        exact=best,
        within=np.maximum.accumulate(best, axis=1),
        admit=admit,
        admitted=admitted,
        admit_order=admit_order[admit[admit_order] != NEVER],
        evict_order=evict_order[evict_order > 0] if moves.preemptive else evict_order[:0],
    )


class _Program:
    """The linear program: numbers that prove the most, with a row for every cycle that is known."""

    def __init__(self, forms: _Forms) -> None:
        from ortools.linear_solver import pywraplp

        self._forms, self._scales = forms, forms.scales()
        # In parts of a batch the numbers of the program are near 1.
        self._unit = float(max(1, forms.moves.batch[DECODE]))
        self._solver = pywraplp.Solver.CreateSolver("GLOP")
        self._numbers = [self._solver.NumVar(0.0, 0.0, "") for _ in forms.weights]
        self._objective = self._solver.Objective()
        self._objective.SetMaximization()
        for number, weight in zip(self._numbers, forms.weights, strict=True):
            self._objective.SetCoefficient(number, float(weight))

    def add(self, way: CycleTally, cost: int) -> None:
        """Add a cycle, which is not to earn more than it costs."""
        row = self._solver.Constraint(-self._solver.infinity(), cost / self._unit)
        earned = self._forms.earned(way)
        for k in np.flatnonzero(earned).tolist():
            row.SetCoefficient(self._numbers[k], float(earned[k]))

    def solve(self, centre: Vector, box: float) -> tuple[Vector, bool] | None:
        """The best numbers in a box, and whether any is at its edge; None if GLOP gives up."""
        low, high = centre - box * self._scales, centre + box * self._scales
        low[: self._forms.num_tokens] = np.maximum(0, low[: self._forms.num_tokens])
        for k, number in enumerate(self._numbers):
            number.SetBounds(float(low[k]) / self._unit, float(high[k]) / self._unit)
        if self._solver.Solve() != self._solver.OPTIMAL:
            return None
        numbers = np.array([number.solution_value() for number in self._numbers]) * self._unit
        inside = abs(numbers - centre) < (1 - 1e-6) * box * self._scales
        return numbers, not inside.all()
