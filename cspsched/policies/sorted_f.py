"""Sorted-F (arXiv 2508.06133), with true output lengths (clairvoyant) or predicted ones.

The quality of a set X of requests is F(X) = sum of outputs / |X|^2: how much decoding it costs to have many
requests done. Phase 1 takes the set of least F among those that fit the device together when started
together, orders it by output length, and goes on with the rest. Phase 2 admits in that order what fits at
every future completion; the first that does not ends the round, and none is preempted.

Finding the least F is hard where prompts differ. Here it is exact in two cases: if the requests of shortest
output with the least F of all sizes fit, which they mostly do, or if at most `exact_requests` wait (branch
and bound). Else it is the best of two greedy fillings, by output and by prompt + output, in the place of the
paper's local search; the constant-factor guarantee is then not claimed.

The paper has all requests at 0. Here, after an arrival or a preemption, what still waits is ordered anew
(its variant of a receding horizon). Token budgets and chunks are those of `mc-sf`, which differs in the order
only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cspsched.compiled.jit import inner, merged, outer
from cspsched.policies.batching import Configured, queue_rules
from cspsched.policies.expected import PredictionSettings, predicted_tokens
from cspsched.policies.settings import require_at_least
from cspsched.problem.instance import Instance
from cspsched.simulate.aggregated.columns import AT_END, BEST, BY_PEAK, CHOSEN, ENDS, HELD_TOKENS, IS_BEST
from cspsched.simulate.aggregated.loops import clear_batch, conclude
from cspsched.simulate.aggregated.parts import parts_step
from cspsched.simulate.aggregated.queues import submit_arrivals
from cspsched.simulate.aggregated.state import Admit, Gate
from cspsched.simulate.kernel.actions import blocks_of, known_tokens
from cspsched.simulate.kernel.layout import FINISHED, HEAP, LOG_FULL, Kernel
from cspsched.simulate.kernel.progress import goes_on, has_room
from cspsched.simulate.kernel.rules import Order, Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class SortedFSettings(PredictionSettings):
    """How output lengths are known, and how hard the best set is searched."""

    exact_requests: int = 10
    """Most waiting requests among which the set of least F is found exactly, whatever it takes."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, "exact_requests", policy="sorted-f")
        self.require_prediction("sorted-f")


@dataclass(frozen=True, slots=True)
class SortedF(Configured):
    """Sorted-F (arXiv 2508.06133): sets of many requests with little output first; clairvoyant by default."""

    settings: SortedFSettings = SortedFSettings()
    name: ClassVar[str] = "sorted-f"
    settings_type: ClassVar[type[SortedFSettings]] = SortedFSettings

    def kernel_rules(self, instance: Instance) -> Rules:
        """Rules under an instance's limits: those of MC-SF in this order."""
        return queue_rules(
            instance,
            run=run_quality,
            order=Order.QUALITY,
            order_columns=AT_END + 1,
            gate=Gate.NOT_AFTER_EVICTION,
            admit=Admit.FUTURE,
            exact_requests=self.settings.exact_requests,
            expected_tokens=predicted_tokens(instance, self.settings, self.name),
        )


# The queue stands in a column, next to be served last: those without a place yet, then those with one.


@outer
def run_quality(k: Kernel) -> int:
    """Run `Order.QUALITY` until all is done, a log is full, or something is wrong."""
    while goes_on(k):
        if not has_room(k):
            return LOG_FULL
        submit_arrivals(k)
        _place_waiting(k)
        clear_batch(k)
        parts_step(k)
        answer = conclude(k)
        if answer != FINISHED:
            return answer
    return FINISHED


@merged
def _place_waiting(k: Kernel) -> None:
    """Give places to as many as this step can admit."""
    now = k.now
    while k.own.num_unplaced and k.own.queue_back - k.own.num_unplaced < now.max_running - now.num_running:
        place_next(k)


@merged
def place_next(k: Kernel) -> None:
    """Give the set of least quality among those without a place the next places, shortest output first."""
    waiting, best = k.orders[:, HEAP], k.orders[:, BEST]
    num_waiting = k.own.num_unplaced
    _sort(k, HEAP, num_waiting)
    count = _ideal(k, num_waiting)
    if _holds(k, HEAP, count):
        _copy(k, HEAP, BEST, count)
    else:
        count = _best_filling(k, num_waiting)
        if num_waiting <= k.own.exact_requests:
            count = _search(k, num_waiting, count)
        _sort(k, BEST, count)
    for place in range(count):
        k.orders[best[place], IS_BEST] = 1
    kept = 0
    for place in range(num_waiting):
        if not k.orders[waiting[place], IS_BEST]:
            waiting[kept] = waiting[place]
            kept += 1
    for place in range(count):
        k.orders[best[place], IS_BEST] = 0
        waiting[num_waiting - 1 - place] = best[place]
    k.own.num_unplaced = kept


@inner
def _to_come(k: Kernel, request: int) -> int:
    """Output tokens that a waiting request is expected to generate yet, at least the next."""
    return max(int(k.requests[request].expected_tokens) - int(k.requests[request].generated), 1)


@inner
def _goes_before(k: Kernel, request: int, other: int, by_peak: bool) -> bool:  # noqa: FBT001
    """Order by tokens at the end if that is asked for, then by output, known tokens and position."""
    output, others_output = _to_come(k, request), _to_come(k, other)
    held, others_held = known_tokens(k, request), known_tokens(k, other)
    if by_peak and output + held != others_output + others_held:
        return output + held < others_output + others_held
    if output != others_output:
        return output < others_output
    return held < others_held if held != others_held else request < other


@inner
def _sort(k: Kernel, column: int, count: int) -> None:
    """Sort the first of a column of requests (heap sort: nothing is allocated)."""
    for parent in range(count // 2 - 1, -1, -1):
        _sift(k, column, parent, count)
    for end in range(count - 1, 0, -1):
        order = k.orders[:, column]
        order[0], order[end] = order[end], order[0]
        _sift(k, column, 0, end)


@inner
def _sift(k: Kernel, column: int, parent: int, end: int) -> None:
    """Let a request sink in a heap with the last of the order on top."""
    order, by_peak = k.orders[:, column], column == BY_PEAK
    request = order[parent]
    while 2 * parent + 1 < end:
        child = 2 * parent + 1
        if child + 1 < end and _goes_before(k, order[child], order[child + 1], by_peak):
            child += 1
        if not _goes_before(k, request, order[child], by_peak):
            break
        order[parent] = order[child]
        parent = child
    order[parent] = request


@inner
def _ideal(k: Kernel, num_waiting: int) -> int:
    """Number of shortest outputs that give the least quality, of equals the most."""
    total = best_total = best = 0
    for place in range(num_waiting):
        total += _to_come(k, k.orders[place, HEAP])
        if not best or _at_most(total, place + 1, best_total, best):
            best, best_total = place + 1, total
    return best


@inner
def _at_most(total: int, count: int, other_total: int, other_count: int) -> bool:
    """Whether total / count^2 <= other_total / other_count^2, by continued fractions: nothing overflows."""
    a, b, c, d = total, count * count, other_total, other_count * other_count
    while True:
        whole, others_whole = a // b, c // d
        if whole != others_whole:
            return whole < others_whole
        a, c = a - whole * b, c - others_whole * d
        if not a or not c:
            return not a
        a, b, c, d = d, c, b, a


@inner
def _is_better(total: int, count: int, other_total: int, other_count: int) -> bool:
    """Whether a set has less quality than another, or as much and more requests."""
    if not _at_most(other_total, other_count, total, count):
        return True
    return count > other_count and _at_most(total, count, other_total, other_count)


@inner
def _total(k: Kernel, column: int, count: int) -> int:
    """Output tokens to come of the first of a column."""
    total = 0
    for place in range(count):
        total += _to_come(k, k.orders[place, column])
    return total


@inner
def _holds(k: Kernel, column: int, count: int) -> bool:
    """Whether the first of a column, by output, fit until the last has finished if started together."""
    block, most = int(k.now.block_tokens), int(k.now.kv_blocks)
    held = 0
    for place in range(count):
        held += known_tokens(k, k.orders[place, column])
    if held > most * block:
        return False
    held = 0
    for place in range(count - 1, -1, -1):
        request, alive = k.orders[place, column], count - place
        held += known_tokens(k, request)
        steps = _to_come(k, request) - 1
        # Between full blocks throughout and a block cut into by each: the exact sum is seldom needed.
        if (held + alive * (steps + block - 1)) // block <= most:
            continue
        if held + alive * steps > most * block:
            return False
        blocks = 0
        for other in range(place, count):
            blocks += blocks_of(k, known_tokens(k, k.orders[other, column]) + steps)
        if blocks > most:
            return False
    return True


@merged
def _best_filling(k: Kernel, num_waiting: int) -> int:
    """Write the better of two greedy fillings to BEST, and return its size."""
    _copy(k, HEAP, BY_PEAK, num_waiting)
    _sort(k, BY_PEAK, num_waiting)
    count = _fill(k, HEAP, num_waiting, BEST)
    others = _fill(k, BY_PEAK, num_waiting, CHOSEN)
    if _is_better(_total(k, CHOSEN, others), others, _total(k, BEST, count), count):
        _copy(k, CHOSEN, BEST, others)
        return others
    return count


@inner
def _copy(k: Kernel, source: int, target: int, count: int) -> None:
    """Copy the first of a column to another."""
    for place in range(count):
        k.orders[place, target] = k.orders[place, source]


@inner
def _fill(k: Kernel, source: int, num_waiting: int, target: int) -> int:
    """Write what fits of an order to a column; return how many of these give the least quality."""
    total = best_total = best = count = 0
    for place in range(num_waiting):
        request = k.orders[place, source]
        if _add_if_fits(k, request, count):
            k.orders[count, target] = request
            count += 1
            total += _to_come(k, request)
            if not best or _at_most(total, count, best_total, best):
                best, best_total = count, total
    return best


@inner
def _add_if_fits(k: Kernel, request: int, count: int) -> bool:
    """Add a request to a set of so many that start together, if it still fits; whether it does.

    Of the set the tokens after which each finishes are known, ascending, with what it holds at the start and
    the KV blocks that all take just before.
    """
    ends, held_tokens, at_ends = k.orders[:, ENDS], k.orders[:, HELD_TOKENS], k.orders[:, AT_END]
    held, end, most = known_tokens(k, request), _to_come(k, request) - 1, k.now.kv_blocks
    place = 0
    while place < count and ends[place] <= end:
        if at_ends[place] + blocks_of(k, held + ends[place]) > most:
            return False
        place += 1
    at_end = blocks_of(k, held + end)
    for other in range(place, count):
        at_end += blocks_of(k, held_tokens[other] + end)
    # Those that end at the same time are alive just before it, too.
    other = place
    while other and ends[other - 1] == end:
        other -= 1
        at_end += blocks_of(k, held_tokens[other] + end)
    if at_end > most:
        return False
    for other in range(place):
        at_ends[other] += blocks_of(k, held + ends[other])
    for other in range(count, place, -1):
        ends[other], held_tokens[other] = ends[other - 1], held_tokens[other - 1]
        at_ends[other] = at_ends[other - 1]
    ends[place], held_tokens[place], at_ends[place] = end, held, at_end
    return True


@merged
def _search(k: Kernel, num_waiting: int, count: int) -> int:
    """Branch and bound over all sets that fit; the best one goes to BEST. Returns its size."""
    chosen, places = k.orders[:, CHOSEN], k.orders[:, ENDS]
    best_total = _total(k, BEST, count)
    place = depth = total = 0
    while True:
        if not _can_improve(k, place, num_waiting, total, depth, best_total, count):
            if not depth:
                return count
            depth -= 1
            place = places[depth] + 1
            total -= _to_come(k, chosen[depth])
            continue
        chosen[depth], places[depth] = k.orders[place, HEAP], place
        if _holds(k, CHOSEN, depth + 1):
            total += _to_come(k, chosen[depth])
            depth += 1
            if _is_better(total, depth, best_total, count):
                _copy(k, CHOSEN, BEST, depth)
                best_total, count = total, depth
        place += 1


@inner
def _can_improve(
    k: Kernel, place: int, num_waiting: int, total: int, depth: int, best_total: int, count: int
) -> bool:
    """Whether the chosen set with the next of shortest output, fit or not, can be better than the best."""
    for following in range(place, num_waiting):
        total += _to_come(k, k.orders[following, HEAP])
        depth += 1
        if _is_better(total, depth, best_total, count):
            return True
    return False
