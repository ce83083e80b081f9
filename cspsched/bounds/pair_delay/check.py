"""Slow, plain twin of the `pair-delay` certificate: request by request, token by token, with rationals.

It rounds where the theorem's page says that the bound rounds, so that both reach the same integer, and shares
no arithmetic with the fast code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import accumulate, pairwise

from cspsched.bounds.best_hits.check import PlainHits
from cspsched.bounds.certificate import Details
from cspsched.bounds.pair_delay.details import MOST_CHUNKS, SHARE_UNIT
from cspsched.bounds.parts.check import PlainSolo, lone_chunk, lone_decode
from cspsched.bounds.parts.minorant import reachable_maxima
from cspsched.problem.cost import BatchFeatures, PiecewiseLinear, triangle
from cspsched.problem.instance import Instance
from cspsched.problem.request import Request
from cspsched.units import ceil_div

EVERYWHERE = 512
"""Domains up to this are searched at every whole number."""


def plain_pair_delay(instance: Instance, details: Details) -> int:
    """The bound on the sum of latencies that a certificate's details give, in nanoseconds.

    Raises
    ------
    ValueError
        If the share is none, or a request is in two pairs that are apart.
    """
    share, partners = int(details["share"]), int(details["partners"])
    method = "search" if details["prefill"] == "exact" else "minorant"
    if not 0 <= share <= SHARE_UNIT:
        raise ValueError(f"share is {share}, expected 0 to {SHARE_UNIT}")
    if partners < 0:
        raise ValueError(f"partners is {partners}, expected 0 or more")
    apart = [tuple(map(int, pair.split("-"))) for pair in str(details["apart"]).split()]
    members = [member for pair in apart for member in pair]
    places = range(len(instance.requests))
    if len(set(members)) < len(members) or any(len(pair) != 2 or pair[1] not in places for pair in apart):
        raise ValueError(f"apart is {details['apart']!r}, expected pairs of which no two share a request")
    company = PlainCompany(instance, share, method, partners)
    return company.value_ns() + sum(company.conflict(i, j) for i, j in apart)


@dataclass(frozen=True)
class PlainGrowth:
    """What entries add to a batch at least."""

    instance: Instance

    @property
    def longest(self) -> int:
        """Tokens of the longest request."""
        return max(request.peak_kv_tokens for request in self.instance.requests)

    @cached_property
    def _top(self) -> BatchFeatures[int]:
        return reachable_maxima(self.instance)

    def least(self, name: str, feature: str, amount: int) -> int:
        """Least growth of a term over all values that its feature can have before."""
        function: PiecewiseLinear = getattr(self.instance.cost, name)
        top = getattr(self._top, feature)
        amount = min(amount, top)
        starts = {0, top - amount}
        if top <= EVERYWHERE:
            starts.update(range(top - amount + 1))
        for knot in function.knots:
            starts.update(start for start in (knot, knot - amount) if 0 <= start <= top - amount)
        return int(min(function.exact(start + amount) - function.exact(start) for start in starts))

    @cached_property
    def chunks(self) -> list[int]:
        """By a chunk of 0, 1, ... tokens; the first means nothing."""
        largest = min(self.longest, self.instance.limits.max_batch_tokens)
        return [
            self.least("tokens", "tokens", chunk)
            + self.least("prefill_tokens", "prefill_tokens", chunk)
            + self.least("prefill_attention", "prefill_attention", triangle(chunk))
            + int(self.instance.cost.prefill_request)
            for chunk in range(largest + 1)
        ]

    @cached_property
    def later(self) -> list[int]:
        """By a later token that leaves 0, 1, ... tokens resident."""
        decode = self.least("tokens", "tokens", 1) + int(self.instance.cost.decode_request)
        decode += self.least("head", "num_generating", 1)
        growths = [0, 0]
        for resident in range(2, self.longest + 1):
            context = self.least("decode_context", "decode_context", resident - 1)
            growths.append(min(decode + context, self.refill(resident)))
        return growths

    @cached_property
    def _per_token(self) -> int:
        return min(growth * 2**16 // chunk for chunk, growth in enumerate(self.chunks) if chunk)

    def refill(self, resident: int) -> int:
        """By all chunks of a refill: each token as much as in the cheapest chunk, or found in the cache."""
        if not self.instance.switches.prefix_caching:
            return resident * self._per_token // 2**16
        return (
            min(
                (resident - found) * self._per_token + (self._context[found] << 16)
                for found in range(resident)
            )
            >> 16
        )

    @cached_property
    def _context(self) -> list[int]:
        """By 0, 1, ... tokens of context of a chunk."""
        return [self.least("prefill_context", "prefill_context", n) for n in range(self.longest + 1)]


@dataclass(frozen=True)
class PlainCompany:
    """Which requests are surely there when one arrives."""

    instance: Instance
    share: int
    method: str
    most: int
    """Pairs that each request has at most with those before it."""

    @cached_property
    def requests(self) -> list[Request]:
        """By arrival; of those that arrive together the shortest first."""
        return sorted(self.instance.requests, key=lambda r: (r.arrival_ns, r.prompt_tokens, r.output_tokens))

    @cached_property
    def solo(self) -> PlainSolo:
        """What requests take alone."""
        return PlainSolo(self.instance, self.method, PlainHits(self.instance))

    @cached_property
    def times(self) -> list[list[int]]:
        """Lone times of the tokens of each request."""
        return list(map(self.solo.token_times, self.requests))

    @cached_property
    def growth(self) -> PlainGrowth:
        """What entries add."""
        return PlainGrowth(self.instance)

    @property
    def alpha(self) -> int:
        """What every batch takes."""
        cost = self.instance.cost
        return cost.step_ceil + min(cost.prefill_batch_ceil, cost.decode_batch_ceil)

    def left(self, i: int, j: int) -> int:
        """Tokens of i whose batches start after j's arrival."""
        since = self.requests[j].arrival_ns - self.requests[i].arrival_ns
        starts = [0, *accumulate(self.times[i])][:-1]
        return sum(start >= since for start in starts)

    @cached_property
    def pairs(self) -> list[list[tuple[int, int]]]:
        """For each request the last earlier ones with tokens left, and how many."""
        pairs = []
        for j in range(len(self.requests)):
            present = [(i, left) for i in range(j) for left in [self.left(i, j)] if left]
            pairs.append(present[max(0, len(present) - self.most) :])
        return pairs

    @cached_property
    def decoding(self) -> list[tuple[int, int, int]]:
        """Older, younger, tokens left, where both have later tokens."""
        return [
            (i, j, left)
            for j, present in enumerate(self.pairs)
            for i, left in present
            if left > 1 and self.requests[j].output_tokens > 1
        ]

    @cached_property
    def caps(self) -> list[int]:
        """The most that an entry of each request may add in one pair."""
        caps = []
        for k, request in enumerate(self.requests):
            partners = self.partners(k)
            paired = self.alpha * self.share // SHARE_UNIT
            caps.append(min(self.growth.later[request.peak_kv_tokens], paired // partners) if partners else 0)
        return caps

    def partners(self, k: int) -> int:
        """Pairs of a request."""
        return sum(k in (i, j) for i, j, _ in self.decoding)

    def value_ns(self) -> int:
        """Prompts, later tokens alone, and pairs."""
        value = sum(self.prompt(j) for j in range(len(self.requests)))
        for request in self.requests:
            tokens = range(request.prompt_tokens + 1, request.peak_kv_tokens + 1)
            value += sum(self.token(resident) for resident in tokens)
        return value + sum(self.pair(*pair) for pair in self.decoding)

    def conflict(self, i: int, j: int) -> int:
        """What two requests that do not fit together cost on top, in either order of their ends."""
        older, younger, left = self.requests[i], self.requests[j], dict(self.pairs[j])[i]
        mine, theirs = younger.output_tokens, older.output_tokens
        shared = self.shared(older) + self.shared(younger)
        common = self.common(older.peak_kv_tokens - left + 1, younger.prompt_tokens, min(left, mine), shared)
        younger_waits = self.prompt(j, left - common) - self.prompt(j)
        common = self.common(older.prompt_tokens, younger.prompt_tokens, min(mine, theirs), shared)
        older_waits = self.prompt(i, mine - common) - self.prompt(i)
        return max(0, min(younger_waits, older_waits) - self.evasion(older) - self.evasion(younger))

    def shared(self, request: Request) -> int:
        """KV blocks of a request that count for another one."""
        return self.solo.hits.found(request) // self.instance.limits.block_tokens

    def common(self, older: int, younger: int, most: int, shared: int) -> int:
        """Batches in which both fit, one token longer in each, up to so many; some blocks do not count."""
        limits, count = self.instance.limits, 0
        while count < most:
            blocks = limits.blocks_of(older + count) + limits.blocks_of(younger + count)
            if blocks - shared > limits.kv_blocks:
                break
            count += 1
        return count

    def evasion(self, request: Request) -> int:
        """What a request saves at most if its later tokens cost no more than a refill in many chunks."""
        saved, least = 0, self.alpha * (SHARE_UNIT - self.share) // SHARE_UNIT
        for resident in range(request.prompt_tokens + 1, request.peak_kv_tokens + 1):
            saved += max(0, self.token(resident) - least - self.growth.refill(resident))
        return saved

    def token(self, resident: int) -> int:
        """Lone time of a later token, of which a share of refills is left out."""
        refill = self.solo.refills[resident] * (SHARE_UNIT - self.share) // SHARE_UNIT
        return min(refill, lone_decode(self.instance.cost, resident))

    def prompt(self, j: int, apart: int = 0) -> int:
        """Least cost of a prompt over its number of batches and how many have left before the last."""
        request = self.requests[j]
        tokens = request.prompt_tokens - self.solo.hits.findable(request)
        lone = self.solo.own_first(request)
        refund = self.partners(j) * self.caps[j]
        waiting = self.alpha * (SHARE_UNIT - self.share) // SHARE_UNIT
        present = [left for _, left in self.pairs[j]]
        starts = {1, *(left + 1 for left in present)}
        # A refund is a part of alpha, so there is none where alpha is 0.
        refunded = ceil_div(lone * refund, self.alpha) if refund else 0
        more = max((MOST_CHUNKS + 1) * (self.alpha - refund), lone - refunded)
        costs = [more]
        for count in range(1, MOST_CHUNKS + 1):
            alone = _least_sum(self._lone_corners, tokens, count) + self.instance.cost.head.ceil(1)
            added = _least_sum(self._corners, tokens, count)
            for start in starts:
                there = sum(left >= start for left in present)
                wait = waiting * max(0, start - count, apart + 1 - count)
                costs.append(max(alone, lone) - refund * count + there * added + wait)
        return min(costs)

    @cached_property
    def _corners(self) -> list[tuple[int, int]]:
        return list(_corners(self.growth.chunks))

    @cached_property
    def _lone_corners(self) -> list[tuple[int, int]]:
        cost = self.instance.cost
        return list(_corners([lone_chunk(cost, 0, c, 0) if c else 0 for c in range(len(self.growth.chunks))]))

    def pair(self, i: int, j: int, left: int) -> int:
        """What the decodes of a pair add to each other's batches, in either order of their ends."""
        older, younger = self.requests[i], self.requests[j]
        mine, theirs = self.tokens(younger), self.tokens(older)
        older_first = sum(theirs[len(theirs) - (left - 1) :]) + sum(
            min(growth, self.caps[j]) for growth in mine[:left]
        )
        younger_first = sum(mine) + sum(
            min(growth, self.caps[i]) for growth in theirs[: younger.output_tokens]
        )
        return min(older_first, younger_first)

    def tokens(self, request: Request) -> list[int]:
        """Growth by each later token."""
        return self.growth.later[request.prompt_tokens + 1 : request.peak_kv_tokens + 1]


def _corners(values: list[int]) -> Iterator[tuple[int, int]]:
    """Corners of the largest convex function below values at 1, 2, ...: always on along the least slope."""
    x = 1
    yield x, values[x]
    while x + 1 < len(values):
        x = min(
            range(x + 1, len(values)),
            key=lambda y, x=x: (Fraction(values[y] - values[x], y - x), -y),  # type: ignore[misc]
        )
        yield x, values[x]


def _least_sum(corners: list[tuple[int, int]], total: int, count: int) -> int:
    """`count` times the convex function at the mean, or at the nearest end."""
    # In units of 1 / count, so that the mean is a whole number.
    mean = min(max(total, count * corners[0][0]), count * corners[-1][0])
    for (left, low), (right, high) in pairwise(corners):
        if count * left <= mean <= count * right:
            return count * low + (mean - count * left) * (high - low) // (right - left)
    return count * corners[0][1]
