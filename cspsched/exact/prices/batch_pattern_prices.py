"""Prices of tokens that no batch beats: the dual of the pattern linear program, made integer and checked.

A pattern is a set of tokens that one batch can emit: at most one of each request, and their KV blocks fit.
Let every token have a price such that the prices in a pattern, less what decoding or refilling a token costs
beyond its unavoidable work, never exceed the constant cost of a batch of its kind. Then every batch lasts at
least as long as the prices and the unavoidable work of its tokens, so prices summed over the tokens to come
bound the time that is left, and q_i = prices of request i are processing times of a single machine that every
schedule contains.

The best prices are found by column generation in floating point (GLOP; the most violated pattern by a
knapsack over the KV blocks), then rounded down, and scaled until the same knapsack in integers finds no
pattern that violates them. Source: Gilmore and Gomory 1961; the scaling is Farley's bound (1990).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cspsched.compiled.jit import compiled, outer
from cspsched.problem.cost import IntArray

MOST_ROUNDS = 120
"""Patterns are generated at most so often; prices of an unfinished run are weaker and as valid."""
MOST_KNAPSACK = 3_000_000
"""Steps of one knapsack beyond which prices are not worth their time."""
NEVER = -(2**61)
Amounts = npt.NDArray[Any]
"""int64 or float64, shape (requests, tokens)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokens:
    """What every token needs. Times in parts of a nanosecond; arrays have shape (requests, tokens)."""

    blocks: IntArray
    """KV blocks resident in the batch that emits the token."""
    counts: IntArray
    """Tokens of each request that count, shape (requests,)."""
    capacity: int
    decode_batch: int
    """Constant cost of a batch of decodes."""
    prefill_batch: int
    """Constant cost of a batch of prefills."""
    hybrid_batch: int
    decode_extra: IntArray
    """What a decode costs beyond the unavoidable work of its token."""
    refill_extra: IntArray
    """What a refill costs beyond it."""
    refills: bool
    """Whether a later token may come from a refill."""

    @property
    def is_priced(self) -> bool:
        """Whether a knapsack over the blocks is affordable."""
        return self.capacity * int(self.counts.sum()) <= MOST_KNAPSACK


def token_prices(tokens: Tokens, weights: IntArray, *, credit: bool) -> IntArray:
    """Prices that maximise a weighted sum over all tokens, integers >= 0, shape (requests, tokens).

    Parameters
    ----------
    weights
        Weight of each request's tokens, shape (requests,).
    credit
        Whether the prices leave out what a refill costs, so that it may be added wherever one is certain.
    """
    kinds = _kinds(tokens, credit=credit)
    prices = np.floor(_solve(tokens, kinds, weights)).astype(np.int64)
    while (ratio := _worst(tokens, kinds, prices)) is not None:
        batch, total = ratio
        prices = prices * batch // total
    return prices


@dataclass(frozen=True, eq=False)
class _Kind:
    """A kind of batch: its constant cost, and what a token costs beyond its work (2^61: it cannot be)."""

    batch: int
    extra: IntArray


def _kinds(tokens: Tokens, *, credit: bool) -> list[_Kind]:
    never = np.full_like(tokens.blocks, -NEVER)
    # Without refills, and for the first token, there is no choice.
    refill = np.zeros_like(never) if credit else tokens.refill_extra.copy()
    decode = tokens.decode_extra.copy()
    if not tokens.refills:
        refill[:, 1:] = never[:, 1:]
    refill[:, 0] = 0
    decode[:, 0] = never[:, 0]
    return [
        _Kind(tokens.decode_batch, decode),
        _Kind(tokens.prefill_batch, refill),
        _Kind(tokens.hybrid_batch, np.minimum(decode, refill)),
    ]


def _worst(tokens: Tokens, kinds: list[_Kind], prices: IntArray) -> tuple[int, int] | None:
    """(cost, prices) of the batch that its prices exceed by the largest factor; None if there is none."""
    found = []
    for kind in kinds:
        total = int(_best_pattern(tokens.blocks, tokens.counts, tokens.capacity, prices - kind.extra)[0])
        if total > kind.batch:
            found.append((kind.batch, total))
    return max(found, key=lambda pair: pair[1] / max(1, pair[0])) if found else None


def _solve(tokens: Tokens, kinds: list[_Kind], weights: IntArray) -> npt.NDArray[np.float64]:
    """Dual values of the pattern linear program, in floating point, by column generation."""
    from ortools.linear_solver import pywraplp

    solver = pywraplp.Solver.CreateSolver("GLOP")
    rows = {
        (i, k): solver.Constraint(float(weights[i]), solver.infinity())
        for i, count in enumerate(tokens.counts)
        for k in range(count)
    }
    objective = solver.Objective()
    objective.SetMinimization()
    # In parts of the dearest batch the numbers of the program are near 1.
    unit = float(max(1, *(kind.batch for kind in kinds)))

    def add_column(cost: float, members: list[tuple[int, int]]) -> None:
        variable = solver.NumVar(0.0, solver.infinity(), "")
        objective.SetCoefficient(variable, cost / unit)
        for member in members:
            rows[member].SetCoefficient(variable, 1.0)

    for i, k in rows:
        kind = kinds[1 if k == 0 else 0]
        add_column(float(kind.batch + kind.extra[i, k]), [(i, k)])
    prices = np.zeros(tokens.blocks.shape)
    for _ in range(MOST_ROUNDS):
        solver.Solve()
        for (i, k), row in rows.items():
            prices[i, k] = max(0.0, row.dual_value()) * unit
        improved = False
        for kind in kinds:
            values = prices - kind.extra
            total, chosen = _best_pattern(tokens.blocks, tokens.counts, tokens.capacity, values)
            if total > kind.batch * (1 + 1e-7):
                members = [(i, int(k)) for i, k in enumerate(chosen) if k >= 0]
                add_column(float(kind.batch + sum(int(kind.extra[member]) for member in members)), members)
                improved = True
        if not improved:
            break
    return prices


def _best_pattern(
    blocks: IntArray, counts: IntArray, capacity: int, values: Amounts
) -> tuple[float, IntArray]:
    """Largest sum of values of a pattern, and the token of each request in it or -1."""
    n = len(counts)
    best = np.zeros((n + 1, capacity + 1), dtype=values.dtype)
    taken = np.full((n, capacity + 1), -1, dtype=np.int32)
    compiled(_fill_rooms)(blocks, counts, values, best, taken)
    chosen, room = np.full(n, -1, dtype=np.int64), capacity
    for i in range(n - 1, -1, -1):
        chosen[i] = taken[i, room]
        if chosen[i] >= 0:
            room -= int(blocks[i, chosen[i]])
    return best[n, capacity].item(), chosen


@outer
def _fill_rooms(
    blocks: IntArray, counts: IntArray, values: Amounts, best: Amounts, taken: npt.NDArray[np.int32]
) -> None:
    """Knapsack: the largest sum for the first i requests in each room, and the token of the last or -1.

    Nothing is allocated here and no row copied at once, which would take far longer to compile.
    """
    capacity = best.shape[1] - 1
    for i in range(len(counts)):
        for room in range(capacity + 1):
            best[i + 1, room] = best[i, room]
        for k in range(counts[i]):
            value, size = values[i, k], blocks[i, k]
            if value <= 0:
                continue
            for room in range(size, capacity + 1):
                if best[i, room - size] + value > best[i + 1, room]:
                    best[i + 1, room] = best[i, room - size] + value
                    taken[i, room] = k
