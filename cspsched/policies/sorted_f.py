"""Sorted-F (arXiv 2508.06133), with true output lengths: clairvoyant.

The quality of a set X of requests is F(X) = sum of outputs / |X|^2: how much decoding it costs to have many
requests done. Phase 1 takes the set of least F among those that fit the device together when started
together, orders it by output length, and goes on with the rest. Phase 2 admits in that order whoever fits at
every future completion; the first that does not ends the round, and nobody is preempted.

Finding the least F is hard where prompts differ. Here it is exact in two cases: if the requests of shortest
output with the least F of all sizes fit, which they mostly do, or if at most `exact_requests` wait (branch
and bound). Else it is the best of two greedy fillings, by output and by prompt + output, in the place of the
paper's local search; the constant-factor guarantee is then not claimed.

The paper has all requests at 0. Here, after an arrival or a preemption, whoever still waits is ordered anew
(its variant of a receding horizon). Token budgets and chunks are those of `mc-sf`, which differs in the order
only.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate
from math import inf
from typing import ClassVar, NamedTuple

from cspsched.policies.batching import Compiled, Configured
from cspsched.policies.future_memory import peak_blocks
from cspsched.policies.mc_sf import RunToCompletion
from cspsched.policies.settings import require_at_least
from cspsched.problem.instance import Instance
from cspsched.problem.request import Request
from cspsched.simulate import Step
from cspsched.simulate.kernel.rules import KernelRules, Order
from cspsched.units import ceil_div


@dataclass(frozen=True, slots=True, kw_only=True)
class SortedFSettings:
    """How hard the best set is searched."""

    exact_requests: int = 10
    """Most waiting requests among which the set of least F is found exactly, whatever it takes."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, "exact_requests", policy="sorted-f")


@dataclass(frozen=True, slots=True)
class SortedF(Compiled, Configured):
    """Sorted-F (arXiv 2508.06133): sets with little output for many requests first; clairvoyant."""

    settings: SortedFSettings = SortedFSettings()
    name: ClassVar[str] = "sorted-f"
    settings_type: ClassVar[type[SortedFSettings]] = SortedFSettings

    def new_run(self, instance: Instance) -> SortedFRun:
        """Empty queues under the instance's limits."""
        return SortedFRun(instance, self.settings)


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


class SortedFRun(RunToCompletion):
    """Queues of one run; the key of a rank is the place in the order, infinite until there is one."""

    def __init__(self, instance: Instance, settings: SortedFSettings) -> None:
        super().__init__(instance, key=_no_place)
        self._device = Device(instance.limits.kv_blocks, instance.limits.block_tokens)
        self._exact_requests = settings.exact_requests
        self._num_placed = 0

    def kernel_rules(self) -> KernelRules | None:
        """Those of MC-SF in this order."""
        rules = super().kernel_rules()
        return rules and replace(rules, order=Order.QUALITY, exact_requests=self._exact_requests)

    def submit(self, request: int) -> None:
        """Queue an arrival; the order is to be made anew."""
        self._forget_places(request)
        super().submit(request)

    def requeue(self, request: int) -> None:
        """Queue an evicted request; the order is to be made anew."""
        self._forget_places(request)
        super().requeue(request)

    def _forget_places(self, request: int) -> None:
        """Take its place from a request that joins the queue and from all who wait."""
        for other in (*self.waiting, request):
            self.rank[other] = (inf, self.rank[other][1])
        self.waiting.sort(key=self.rank.__getitem__)

    def _admit(self, step: Step) -> bool:
        """Admit the head of the order, which is made as far as it is needed."""
        if self.rank[self.waiting[0]][0] == inf:
            self._place_next(step)
        return super()._admit(step)

    def _place_next(self, step: Step) -> None:
        """Give the next set its places; nobody who waits has one."""
        candidates = [
            Candidate(self.output_left(step, request), step.known_tokens[request], request)
            for request in self.waiting
        ]
        for candidate in best_set(candidates, self._device, self._exact_requests):
            self._num_placed += 1
            self.rank[candidate.request] = (self._num_placed, self.rank[candidate.request][1])
        self.waiting.sort(key=self.rank.__getitem__)


def _no_place(request: Request) -> float:
    return inf
