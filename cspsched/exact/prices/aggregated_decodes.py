"""Best sets of decodes by how many they are and how many KV tokens they hold together, compiled.

A knapsack with a count: of each request at most one token. What the tokens of a request are worth lies on a
line, so the best of them for a given room is the largest of a sliding window. The table over the first k
requests is kept for each k, so that a set can be read off.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cspsched.compiled.jit import allocating
from cspsched.problem.cost import IntArray

NEVER = -(2**61)
"""Value of a set that does not exist."""


class Lines(NamedTuple):
    """What the tokens behind the first are worth, shape (requests,) each."""

    second: IntArray
    """The second one."""
    slope: IntArray
    """How much more each later one is."""


@allocating
def best_patterns(prompts: IntArray, outputs: IntArray, lines: Lines, most: int, capacity: int) -> IntArray:
    """Largest value of d tokens that hold w KV tokens, shape (requests + 1, most + 1, capacity + 1).

    Parameters
    ----------
    most
        Tokens of a set at most. The token behind g holds prompt + g; g >= 1.
    """
    count = len(prompts)
    best = np.full((count + 1, most + 1, capacity + 1), NEVER)
    best[0, 0, 0] = 0
    window = np.empty(capacity + 1, dtype=np.int64)
    for i in range(count):
        best[i + 1] = best[i]
        smallest, slope = prompts[i] + 1, lines.slope[i]
        for d in range(1, min(i + 1, most) + 1):
            source, target = best[i, d - 1], best[i + 1, d]
            first, end = 0, 0
            for held in range(smallest, capacity + 1):
                # The rest of the set holds `rest`; what is worth less and leaves the window earlier goes.
                rest = held - smallest
                if outputs[i] > 1 and source[rest] != NEVER:
                    worth = source[rest] - slope * rest
                    while end > first and source[window[end - 1]] - slope * window[end - 1] <= worth:
                        end -= 1
                    window[end] = rest
                    end += 1
                while end > first and window[first] < rest - (outputs[i] - 2):
                    first += 1
                if end > first:
                    value = source[window[first]] + lines.second[i] + slope * (rest - window[first])
                    target[held] = max(target[held], value)
    return best


@allocating
def trace_pattern(
    prompts: IntArray,
    outputs: IntArray,
    lines: Lines,
    best: IntArray,
    decodes: int,
    held: int,
    emitted: IntArray,
) -> None:
    """Count the tokens of a best set of so many decodes that hold so much."""
    for i in range(len(prompts) - 1, -1, -1):
        if best[i + 1, decodes, held] == best[i, decodes, held]:
            continue
        for g in range(1, outputs[i]):
            rest = held - prompts[i] - g
            if rest < 0 or best[i, decodes - 1, rest] == NEVER:
                continue
            value = lines.second[i] + lines.slope[i] * (g - 1)
            if best[i, decodes - 1, rest] + value == best[i + 1, decodes, held]:
                emitted[i, g] += 1
                decodes, held = decodes - 1, rest
                break
