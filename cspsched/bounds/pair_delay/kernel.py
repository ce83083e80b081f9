"""Compiled: which requests are surely there when one arrives, and what that costs."""

from __future__ import annotations

from typing import NamedTuple

from cspsched.bounds.pair_delay.details import Pairs, ShortArray
from cspsched.compiled.jit import inner, outer
from cspsched.problem.cost import IntArray

MOST_CHUNKS = 256
OWN, ADDED, ALONE, TAIL = range(4)
"""Rows of what is known about 1, 2, ... chunks of a prompt: their lone time, their growth, the lone time of
the prompt in them less refunds, and the least of that for so many or more."""
NUM_ROWS = 4
MUCH = 2**62


class Times(NamedTuple):
    """Lone times by arrival; int64, shape (num_requests,) unless said otherwise."""

    arrivals: IntArray
    first: IntArray
    last: IntArray
    prompts_ns: IntArray
    ends: IntArray
    """When each would end alone."""
    later_ns: IntArray
    """Running sum of the lone times of later tokens, shape (longest + 1,)."""


@outer
def fill_pairs(times: Times, most: int, there: IntArray, pairs: Pairs, partners: IntArray) -> None:
    """Fill `pairs`, at most so many for each younger request, and count those in which both decode later.

    `there` is room for the numbers of those that have not ended.
    """
    count = size = 0
    for j in range(len(times.arrivals)):
        arrival = times.arrivals[j]
        if j > 0 and arrival > times.arrivals[j - 1]:
            kept = 0
            for k in range(size):
                if times.ends[there[k]] > arrival:
                    there[kept] = there[k]
                    kept += 1
            size = kept
        pairs.starts[j] = begin = count
        k = size - 1
        while k >= 0 and count - begin < most:
            i = there[k]
            left = times.last[i] - times.first[i] + 1 - _begun(times, i, arrival)
            if left > 0:
                pairs.older[count], pairs.left[count] = i, left
                count += 1
                if left > 1 and times.last[j] > times.first[j]:
                    partners[i] += 1
                    partners[j] += 1
            k -= 1
        # The latest came first.
        for k in range((count - begin) // 2):
            a, b = begin + k, count - 1 - k
            pairs.older[a], pairs.older[b] = pairs.older[b], pairs.older[a]
            pairs.left[a], pairs.left[b] = pairs.left[b], pairs.left[a]
        there[size] = j
        size += 1
    pairs.starts[len(times.arrivals)] = count


@inner
def _begun(times: Times, i: int, arrival: int) -> int:
    """Tokens of a request whose batches may have started: each after the lone time of those before."""
    since = arrival - times.arrivals[i] - times.prompts_ns[i]
    if arrival <= times.arrivals[i]:
        return 0
    if since <= 0:
        return 1
    low, high = times.first[i], times.last[i] + 1
    later = times.later_ns[low] + since
    while low < high:
        middle = (low + high) // 2
        if times.later_ns[middle] < later:
            low = middle + 1
        else:
            high = middle
    return int(1 + low - times.first[i])


class Crowds(NamedTuple):
    """How many others are surely there from which batch after a request's arrival on."""

    together: IntArray
    """In the first batch, shape (num_requests,)."""
    starts: IntArray
    """Where the changes of each request begin, and the end of the last; shape (num_requests + 1,)."""
    batches: ShortArray
    """From which batch on there are fewer, rising for each request."""
    present: ShortArray
    """How many there are then."""


class Prompts(NamedTuple):
    """What prompts cost beside those that are there; int64."""

    tokens: IntArray
    """That its own chunks process at least, shape (num_requests,)."""
    prompts_ns: IntArray
    refunds: IntArray
    """What each chunk gives back to the pairs, shape (num_requests,)."""
    crowds: Crowds
    corners: IntArray
    """Of the convex function below the growth by a chunk."""
    heights: IntArray
    lone_corners: IntArray
    """Of the one below its lone time."""
    lone_heights: IntArray
    scalars: IntArray
    """Time of the head, alpha, and what a batch without the request costs it."""


@outer
def fill_prompts(given: Prompts, which: IntArray, apart: IntArray, rows: IntArray, found: IntArray) -> None:
    """Fill `found` with the least cost of some prompts: own batches, what they add to others', and waiting.

    Parameters
    ----------
    which
        The requests, best by rising prompts: chunks of one length are looked up once.
    apart
        Batches that each sits out at least, but for those with chunks of the prompt that emit nothing.
    rows
        Room for NUM_ROWS rows of MOST_CHUNKS + 2 numbers.
    """
    head_ns, alpha, waiting = given.scalars[0], given.scalars[1], given.scalars[2]
    crowds, known = given.crowds, -1
    for k in range(len(which)):
        j = which[k]
        if given.tokens[j] != known:
            known = given.tokens[j]
            convex_sums(given.lone_corners, given.lone_heights, known, head_ns, rows, OWN)
            convex_sums(given.corners, given.heights, known, 0, rows, ADDED)
        lone, refund, rest = given.prompts_ns[j], given.refunds[j], apart[k] + 1
        # More chunks than that: at least alpha for each, and the lone time. A refund is less than alpha.
        refunded = -(-lone * refund // alpha) if refund else 0
        best = max((MOST_CHUNKS + 1) * (alpha - refund), lone - refunded)
        rows[TAIL, MOST_CHUNKS + 1] = MUCH
        for count in range(MOST_CHUNKS, 0, -1):
            rows[ALONE, count] = max(rows[OWN, count], lone) - count * refund
            rows[TAIL, count] = min(rows[TAIL, count + 1], rows[ALONE, count])
        place, end, present = crowds.starts[j], crowds.starts[j + 1], crowds.together[j]
        for count in range(1, MOST_CHUNKS + 1):
            if rows[TAIL, count] >= best:
                break
            alone, added = rows[ALONE, count], rows[ADDED, count]
            while place < end and crowds.batches[place] <= count:
                present = crowds.present[place]
                place += 1
            best = min(best, alone + present * added + waiting * max(rest - count, 0))
            # Or it waits until some more of them have left.
            for later in range(place, end):
                wait = waiting * max(crowds.batches[later] - count, rest - count)
                if alone + wait >= best:
                    break
                best = min(best, alone + crowds.present[later] * added + wait)
        found[k] = best


@outer
def convex_sums(
    corners: IntArray, heights: IntArray, total: int, more: int, rows: IntArray, row: int
) -> None:
    """Fill a row with `more` and the least sums of a hull's values at 1, 2, ... numbers of a given total.

    Rounded down. Where so few numbers would be too large it is the value at the end; values must not fall.
    """
    k = len(corners) - 2
    for count in range(1, MOST_CHUNKS + 1):
        if len(corners) == 1:
            rows[row, count] = count * heights[0] + more
            continue
        while k > 0 and corners[k] > total // count:
            k -= 1
        across, up = corners[k + 1] - corners[k], heights[k + 1] - heights[k]
        rest = min(max(total - count * corners[k], 0), count * across)
        rows[row, count] = count * heights[k] + rest * up // across + more


class Decodes(NamedTuple):
    """What the later tokens of pairs add to each other's batches; int64."""

    first: IntArray
    last: IntArray
    caps: IntArray
    """The most that an entry of each request may add in one pair."""
    capped_from: IntArray
    """Resident tokens from which on the growth of each is above its cap."""
    growth: IntArray
    """Running sum of the growth by later tokens, shape (longest + 1,)."""


@outer
def fill_decodes(given: Decodes, pairs: Pairs, found: IntArray) -> None:
    """Fill `found` with the sum over the pairs of each younger request."""
    growth = given.growth
    for j in range(len(found)):
        found[j] = 0
        mine, end = given.last[j] - given.first[j], growth[given.last[j]]
        if mine == 0:
            continue
        for k in range(pairs.starts[j], pairs.starts[j + 1]):
            i, left = pairs.older[k], pairs.left[k]
            if left > 1:
                # The request that ends first has all its tokens from then on in the other's stay.
                older_first = growth[given.last[i]] - growth[given.last[i] - left + 1]
                older_first += _capped(given, j, min(left, mine))
                younger_first = end - growth[given.first[j]]
                younger_first += _capped(given, i, min(mine + 1, given.last[i] - given.first[i]))
                found[j] += min(older_first, younger_first)


@inner
def _capped(given: Decodes, i: int, count: int) -> int:
    """Growth by the first so many later tokens of a request, each at most its cap."""
    start, end = given.first[i], given.first[i] + count
    below = min(max(given.capped_from[i], start), end)
    return int(given.growth[below] - given.growth[start] + (end - below) * given.caps[i])
