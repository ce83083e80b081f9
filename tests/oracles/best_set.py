"""Sorted-F's best set (arXiv 2508.06133) by plain search, and the memory that requests need at their peak."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import accumulate
from operator import itemgetter
from typing import NamedTuple

from cspsched.units import ceil_div


def peak_blocks(profile: Iterable[tuple[int, int]], block_tokens: int) -> int:
    r"""Largest number of KV blocks that requests occupy together until the last has finished.

    $\max_k \sum_{j \le k} \lceil (a_j + b_k) / B \rceil$ over requests in descending order of b: memory only
    grows until the next request finishes, so the peak lies at one of the ends.

    Parameters
    ----------
    profile
        For each request the tokens that it holds (a) and those that it will still add (b), one a batch.
    block_tokens
        B: tokens of a KV block.
    """
    full_blocks = peak = 0
    rests = [0] * block_tokens
    for alive, (held, to_come) in enumerate(sorted(profile, key=itemgetter(1), reverse=True), start=1):
        blocks, rest = divmod(held, block_tokens)
        full_blocks += blocks
        rests[rest] += 1
        steps, extra = divmod(to_come, block_tokens)
        # Beside its full blocks a request needs one for its rest and the extra tokens: none if both are 0,
        # two if they are more than a block.
        partial_blocks = alive - (0 if extra else rests[0]) + sum(rests[block_tokens - extra + 1 :])
        peak = max(peak, full_blocks + alive * steps + partial_blocks)
    return peak


class Candidate(NamedTuple):
    """A waiting request; sorts by output."""

    output_tokens: int
    held_tokens: int
    """Known tokens, all of which it holds once it is started."""
    request: int

    @property
    def peak_tokens(self) -> int:
        """Tokens that it holds at its end."""
        return self.held_tokens + self.output_tokens - 1


class Device(NamedTuple):
    """What a set must fit."""

    kv_blocks: int
    block_tokens: int

    def holds(self, chosen: Sequence[Candidate]) -> bool:
        """Whether requests that start together fit until the last has finished."""
        profile = [(candidate.held_tokens, candidate.output_tokens - 1) for candidate in chosen]
        if sum(held for held, _ in profile) > self.kv_blocks * self.block_tokens:
            return False
        return peak_blocks(profile, self.block_tokens) <= self.kv_blocks


def quality(outputs: int, count: int) -> Fraction:
    """F of a set: its output tokens over the square of its size (at least 1)."""
    return Fraction(outputs, count * count)


def best_set(waiting: Sequence[Candidate], device: Device, exact_requests: int) -> list[Candidate]:
    """Set of least F that fits the device, by output; of equals the larger. Each request fits alone.

    Exact if the shortest outputs fit or at most `exact_requests` wait, else the best greedy filling.
    """
    by_output = sorted(waiting)
    ideal = _least_prefix(by_output)
    if device.holds(ideal):
        return ideal
    by_peak = sorted(waiting, key=lambda candidate: (candidate.peak_tokens, candidate))
    fillings = (_filling(order, device) for order in (by_output, by_peak))
    best = min(fillings, key=_rank_of)
    if len(waiting) <= exact_requests:
        best = _search(by_output, device, [], 0, best)
    return sorted(best)


def _rank_of(chosen: Sequence[Candidate]) -> tuple[Fraction, int]:
    """Least F first, of equals the larger set."""
    return quality(sum(candidate.output_tokens for candidate in chosen), len(chosen)), -len(chosen)


def _least_prefix(order: Sequence[Candidate]) -> list[Candidate]:
    """The first of an order, as many as give the least F; of equals the most. Whole numbers are compared."""
    total = best = best_total = 0
    for count, candidate in enumerate(order, start=1):
        total += candidate.output_tokens
        if not best or total * best * best <= best_total * count * count:
            best, best_total = count, total
    return list(order[:best])


def _filling(order: Sequence[Candidate], device: Device) -> list[Candidate]:
    """What fits of an order, up to where F is least."""
    started = StartedSet(device)
    return _least_prefix([candidate for candidate in order if started.add_if_fits(candidate)])


class StartedSet:
    """Requests that start together and fit until the last has finished; asks of one more whether it does.

    The same answers as `Device.holds`, which sees the whole set anew each time.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._ends: list[int] = []
        """Tokens after which each finishes, ascending."""
        self._held: list[int] = []
        """Tokens that each of them starts with, in the same order."""
        self._blocks: list[int] = []
        """KV blocks that all take just before each of these ends."""

    def add_if_fits(self, candidate: Candidate) -> bool:
        """Add a request if the set still fits with it; whether it does."""
        most, size = self._device
        held, end = candidate.held_tokens, candidate.output_tokens - 1
        place = bisect_left(self._ends, end)
        later = bisect_right(self._ends, end, place)
        # Memory is shortest where most are alive, mostly: at the first ends.
        for others_end, blocks in zip(self._ends[:later], self._blocks, strict=False):
            if blocks + ceil_div(held + others_end, size) > most:
                return False
        at_end = ceil_div(held + end, size)
        at_end += sum(ceil_div(others + end, size) for others in self._held[place:])
        if at_end > most:
            return False
        for position in range(later):
            self._blocks[position] += ceil_div(held + self._ends[position], size)
        self._ends.insert(place, end)
        self._held.insert(place, held)
        self._blocks.insert(place, at_end)
        return True


def _search(
    by_output: Sequence[Candidate], device: Device, chosen: list[Candidate], start: int, best: list[Candidate]
) -> list[Candidate]:
    """The best of `best` and all sets that add to `chosen` some of `by_output[start:]`."""
    if chosen:
        best = min(best, chosen, key=_rank_of)
    total, bound = sum(candidate.output_tokens for candidate in chosen), _rank_of(best)
    for position in range(start, len(by_output)):
        # The next of shortest output give the least F of any size, whether they fit or not.
        sums = accumulate(candidate.output_tokens for candidate in by_output[position:])
        reachable = [
            (quality(total + more, len(chosen) + count), -len(chosen) - count)
            for count, more in enumerate(sums, start=1)
        ]
        if min(reachable) >= bound:
            break
        larger = [*chosen, by_output[position]]
        if device.holds(larger):
            best = _search(by_output, device, larger, position + 1, best)
            bound = _rank_of(best)
    return best
