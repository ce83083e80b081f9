"""Compiled: what a request pays at least under prices of memory, exactly and smoothed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cspsched.compiled.jit import outer, outer_roughly
from cspsched.problem.cost import IntArray

FloatArray = npt.NDArray[np.float64]
STAYS, LEAVES = 1, 2
"""Of `volume.Pause`."""
MUCH = 2**62
NEGLIGIBLE, SMALLEST_WEIGHT = 12.0, 1e-4
"""Ends that cost so many temperatures more than the best one do not count, nor do such small weights."""


class Runs(NamedTuple):
    """Distinct requests, as columns of `Residents`."""

    starts: IntArray
    outputs: IntArray
    chunks: IntArray
    counts: IntArray


@outer
def least_costs(
    shares: IntArray,
    prices: IntArray,
    runs: Runs,
    batch: int,
    pause: int,
    costs: IntArray,
    rows: IntArray,
) -> None:
    """Least of `batch` times the number of its last batch and the prices of its shares, of every request.

    One token after the other: rows[0, j] is the least cost of a way that has emitted the tokens so far up to
    batch j + 1, where the last of them is resident; rows[1, j] is what its shares cost in that batch.
    """
    least, priced = rows[0], rows[1]
    starts, outputs, chunks = runs.starts, runs.outputs, runs.chunks
    for i in range(len(outputs)):
        for k in range(outputs[i]):
            token = starts[i] + k
            priced[:] = 0
            for b in range(len(prices)):
                share = shares[b, token]
                if share:
                    for j in range(len(priced)):
                        priced[j] += share * prices[b, j]
            if k == 0:
                for j in range(len(least)):
                    least[j] = priced[j] if j + 1 >= chunks[i] else MUCH
            else:
                for j in range(len(least) - 1, 0, -1):
                    least[j] = least[j - 1] + priced[j] if least[j - 1] < MUCH else MUCH
                least[0] = MUCH
            if pause == LEAVES:
                for j in range(1, len(least)):
                    least[j] = min(least[j], least[j - 1])
            if pause == STAYS:
                for j in range(1, len(least)):
                    if least[j - 1] < MUCH:
                        least[j] = min(least[j], least[j - 1] + priced[j])
        costs[i] = MUCH
        for j in range(len(least)):
            if least[j] < MUCH:
                costs[i] = min(costs[i], least[j] + batch * (j + 1))


@outer_roughly
def smoothed_costs(
    shares: FloatArray,
    firsts: IntArray,
    prices: FloatArray,
    runs: Runs,
    temperature: float,
    gradient: FloatArray,
    buffer: FloatArray,
) -> float:
    """Soft minima over the ends of requests that never pause, summed; adds its gradient to `gradient`.

    `firsts` says which of a request's tokens is the first that has a share of each rule. `buffer` has a place
    for each batch with a price and for each token of the longest request after them. An empty `gradient` is
    left alone.
    """
    total, num_batches = 0.0, prices.shape[1]
    starts, outputs, chunks, counts = runs.starts, runs.outputs, runs.chunks, runs.counts
    for i in range(len(outputs)):
        start, length, first = starts[i], outputs[i], chunks[i] + outputs[i] - 2
        least, end = np.inf, num_batches + length
        for j in range(first, num_batches + length):
            cost, opening = j + 1.0, j - length + 1
            if cost > least + NEGLIGIBLE * temperature:
                end = j
                break
            for b in range(len(prices)):
                for k in range(firsts[b, i], min(length, num_batches - opening)):
                    cost += shares[b, start + k] * prices[b, opening + k]
            buffer[j] = cost
            least = min(least, cost)
        weights = 0.0
        for j in range(first, end):
            buffer[j] = np.exp((least - buffer[j]) / temperature)
            weights += buffer[j]
        total += counts[i] * (least - temperature * np.log(weights))
        for j in range(first, end if len(gradient) else first):
            weight, opening = counts[i] * buffer[j] / weights, j - length + 1
            if weight > SMALLEST_WEIGHT:
                for b in range(len(prices)):
                    for k in range(firsts[b, i], min(length, num_batches - opening)):
                        gradient[b, opening + k] += weight * shares[b, start + k]
    return total
