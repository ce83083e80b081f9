"""Tables for the packing search: when it applies, and what batches of one or two requests cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, combinations
from math import floor

import numpy as np

from cspsched.bounds.parts.minorant import Minorant, minorants
from cspsched.compiled.jit import compiled
from cspsched.exact.heuristics.list_schedule import share
from cspsched.exact.packing.heuristic import Rests, fill_tables, list_thirds
from cspsched.exact.states.space import StateSpace
from cspsched.problem.cost import BatchFeatures, CostModel, IntArray
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import Objective
from cspsched.problem.request import Request

MOST_REQUESTS = 16
"""A mask has that many bits at most."""
MOST_BYTES = 2**29
"""Of all tables."""
KIND = np.int16
"""What a value is kept in; two bytes tell enough apart, and half the memory is half the time."""
MASKS_AT_ONCE = 64
"""Between two looks at the clock while tables are filled."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PackingSpace:
    """What the search reads; the values of `rests` hold once `fill` has returned True."""

    space: StateSpace
    rests: Rests

    @property
    def num_values(self) -> int:
        """Size of the tables."""
        return int(self.rests.none.size + self.rests.one.size + self.rests.two.size)

    def fill(self, go_on: Callable[[int], bool]) -> bool:
        """Fill in the tables, some masks at a time; whether it got to the end.

        Parameters
        ----------
        go_on
            Asked before each step of so many values whether there is time for it.
        """
        count = len(self.rests.none)
        for first in range(0, count, MASKS_AT_ONCE):
            last = min(first + MASKS_AT_ONCE, count)
            if not go_on(self.num_values * (last - first) // count):
                return False
            compiled(fill_tables)(self.rests, first, last)
        return True


def build_packing_space(space: StateSpace, upper_ns: int) -> PackingSpace | None:
    """Tables without their values; None if requests need not run to completion, or are too many or too long.

    Parameters
    ----------
    upper_ns
        Value of the best schedule known; nothing dearer is told apart.
    """
    instance, outputs = space.instance, space.shape.outputs
    n, longest = len(outputs), int(outputs.max())
    if not instance.switches.run_to_completion or not 2 <= n <= MOST_REQUESTS:
        return None
    offsets, num_pairs = _offsets(outputs)
    num_values = (num_pairs << (n - 2)) + ((n * longest + 1) << n)
    if num_values * np.dtype(KIND).itemsize > MOST_BYTES:
        return None
    prices = _Prices(instance, space.objective)
    alone = [prices.alone(request) for request in instance.requests]
    one = [prices.excess(batches) for batches in alone]
    two = [prices.excess(_beside(first, second)) for first, second in combinations(alone, 2)]
    own = np.array([prices.own(batches, longest) for batches in alone])
    amounts = np.concatenate([part for excess in (*one, *two) for part in excess])
    unit, cap = _unit(amounts, upper_ns - int(own[:, 0].sum()))
    rests = Rests(
        outputs=outputs,
        blocks=space.shape.blocks,
        kv_blocks=space.shape.kv_blocks,
        own=own,
        unit=unit,
        cap=cap,
        offsets=offsets,
        one_waiting=_padded([waiting for waiting, _ in one], longest) // unit,
        one_excess=_padded([besides for _, besides in one], longest) // unit,
        two_waiting=np.concatenate([waiting for waiting, _ in two]) // unit,
        two_excess=np.concatenate([besides for _, besides in two]) // unit,
        thirds=np.zeros(num_pairs, dtype=np.int64),
        none=np.zeros(1 << n, dtype=KIND),
        one=np.zeros((1 << n, n, longest), dtype=KIND),
        two=np.zeros(num_pairs << (n - 2), dtype=KIND),
    )
    compiled(list_thirds)(rests, np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.int64))
    return PackingSpace(space=space, rests=rests)


def _offsets(outputs: IntArray) -> tuple[IntArray, int]:
    """Where the states of each pair begin, and how many there are."""
    offsets, total = np.zeros((len(outputs), len(outputs)), dtype=np.int64), 0
    for i, j in combinations(range(len(outputs)), 2):
        offsets[i, j] = total
        total += int(outputs[i] * outputs[j])
    return offsets, total


def _unit(amounts: IntArray, most: int) -> tuple[int, int]:
    """Unit that amounts are counted in, and a cap for sums of them that fits into a value.

    It divides all of them if that is enough; else they are rounded down.
    """
    unit, limit = max(1, int(np.gcd.reduce(amounts))), int(np.iinfo(KIND).max)
    if most // unit >= limit:
        unit = -(-most // (limit - 1))
    return unit, max(0, most) // unit + 1


def _padded(rows: list[IntArray], width: int) -> IntArray:
    return np.array([np.pad(row, (0, width - len(row))) for row in rows])


@dataclass(frozen=True, kw_only=True, eq=False)
class _Batches:
    """Batches of the same requests in all their states, shape (states,) each."""

    features: BatchFeatures[IntArray]
    counted: IntArray
    """How many of the requests wait for this batch."""
    taken: IntArray
    """What those take anyway, in nanoseconds."""


def _beside(first: _Batches, second: _Batches) -> _Batches:
    """Batches of two requests: every state of the first with every state of the second."""

    def pairs(mine: IntArray, other: IntArray) -> IntArray:
        return np.add.outer(mine, other).ravel()

    return _Batches(
        features=BatchFeatures(*map(pairs, first.features, second.features)),
        counted=pairs(first.counted, second.counted),
        taken=pairs(first.taken, second.taken),
    )


class _Prices:
    """What requests take anyway, and what batches cost beyond it, for one objective.

    A request that waits takes at least what it takes alone. For the makespan batches are priced by a
    minorant: a constant for each kind of batch, and the work of each token, which is the request's own.
    """

    def __init__(self, instance: Instance, objective: Objective) -> None:
        self._cost, self._objective = instance.cost, objective
        self._minorant = max(minorants(instance), key=lambda one: self._total(one, instance.requests))

    def alone(self, request: Request) -> _Batches:
        """Batches of one request, by its tokens generated."""
        shares = [share(request, age) for age in range(request.output_tokens)]
        features = BatchFeatures(
            *(np.array(amounts, dtype=np.int64) for amounts in zip(*shares, strict=True))
        )
        counted = np.ones(request.output_tokens, dtype=np.int64)
        if self._objective is Objective.TTFT:
            counted[1:] = 0
        return _Batches(
            features=features, counted=counted, taken=counted * self._cost.batch_times_ns(features)
        )

    def own(self, alone: _Batches, width: int) -> IntArray:
        """What a request takes anyway from each g on, shape (width + 1,)."""
        if self._objective is Objective.MAKESPAN:
            states = [BatchFeatures(*map(int, state)) for state in zip(*alone.features, strict=True)]
            tokens = [_work(self._minorant, state) for state in reversed(states)]
            sums = [floor(total) for total in accumulate(tokens)]
        else:
            sums = list(accumulate(alone.taken[::-1].tolist()))
        return np.array(sums[::-1] + [0] * (width + 1 - len(sums)), dtype=np.int64)

    def excess(self, batches: _Batches) -> tuple[IntArray, IntArray]:
        """Nanoseconds beyond what is taken anyway: for each request that has not started, and besides."""
        if self._objective is Objective.MAKESPAN:
            kinds = _constants(self._minorant, self._cost)
            prefills, decodes = batches.features.num_prefills > 0, batches.features.num_decodes > 0
            besides = kinds[prefills.astype(np.int64), decodes.astype(np.int64)]
            return np.zeros_like(besides), besides
        times = self._cost.batch_times_ns(batches.features)
        return times, times * batches.counted - batches.taken

    def _total(self, minorant: Minorant, requests: Sequence[Request]) -> Fraction:
        """Guess of what the minorant says about all: as if each batch had two requests."""
        tokens = [share(request, age) for request in requests for age in range(request.output_tokens)]
        return minorant.batch * len(tokens) / 2 + sum(_work(minorant, token) for token in tokens)


def _work(minorant: Minorant, token: BatchFeatures[int]) -> Fraction:
    """Price of one request's token without the constants of its batch."""
    return minorant.at(token) - minorant.batch - (minorant.prefill_batch if token.num_prefills else 0)


def _constants(minorant: Minorant, cost: CostModel) -> IntArray:
    """Constants of a batch, rounded down: without and with prefill, of each without and with decode."""
    # The minorant's price of a batch has the cheaper of the two constants in it.
    bare = minorant.batch - min(cost.prefill_batch_ceil, cost.decode_batch_ceil)
    return np.array(
        [
            [floor(bare + prefill + decode) for decode in (0, cost.decode_batch_ceil)]
            for prefill in (0, cost.prefill_batch_ceil)
        ],
        dtype=np.int64,
    )
