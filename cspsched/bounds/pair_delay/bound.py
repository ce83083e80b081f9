"""Sum of latencies: everybody alone, and how long each pair of requests must hold each other up.

Theorem (docs/bounds.md, section 13). A request's latency is the time of its own batches, as if alone, what
others' entries add to batches during its stay (`entries`), and alpha = step + min(b_p, b_d) for each batch of
its stay in which it has no entry. Let request j arrive after request i, and let m tokens of i be left then at
least. Then i is there in the first m batches after that. So j pays, with K batches for its prompt and the
last of them the P-th after its arrival,

    time of K chunks alone + (growth by K chunks) x (number of i with m >= P) + alpha (P - K),

and the decodes of a pair hold each other up for as long as both are surely there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cspsched.bounds.certificate import Certificate, Details
from cspsched.bounds.pair_delay.conflicts import Conflict, conflicts
from cspsched.bounds.pair_delay.details import MOST_CHUNKS, PAIR_DELAY, SHARE_UNIT
from cspsched.bounds.parts.chunking import decodes_ns
from cspsched.bounds.parts.entries import EntryTable
from cspsched.bounds.parts.minorant import reachable_maxima
from cspsched.bounds.parts.tables import Tables
from cspsched.bounds.time_price.bound import total
from cspsched.problem.cost import INT64_SAFE, IntArray
from cspsched.problem.objectives import Objective
from cspsched.units import ceil_div

SHARES = (0, 1, 2, 4)
"""Of a batch without a request, what its pairs may use in place of its prompt, in sixteenths."""
COUNTS: IntArray = np.arange(1, MOST_CHUNKS + 1, dtype=np.int64)
MOST_REQUESTS, MOST_PAIRS = 12_000, 2_000_000


def pair_delay_certificates(tables: Tables) -> list[Certificate]:
    """The certificate `pair-delay` on the sum of latencies; none for too many pairs or too large numbers."""
    company = Company.of(tables) if len(tables.prompts) <= MOST_REQUESTS else None
    if company is None:
        return []
    value_ns, less = max((company.value_ns(share), -share) for share in SHARES)
    apart = " ".join(f"{found.older}-{found.younger}" for found in company.apart)
    details: Details = {"share": -less, "apart": apart, "prefill": tables.solo.method}
    return [Certificate(PAIR_DELAY, Objective.LATENCY, value_ns, details)]


@dataclass(frozen=True, eq=False)
class Hull:
    """Largest convex function below some values at 1, 2, ...; lines between its corners."""

    corners: IntArray
    values: IntArray

    @classmethod
    def below(cls, values: IntArray) -> Hull:
        """Of values at 0, 1, ..., of which the first does not count."""
        corners: list[int] = []
        heights = values.tolist()
        for x in range(1, len(heights)):
            while len(corners) > 1 and _is_above(corners[-1], corners[-2], x, heights):
                corners.pop()
            corners.append(x)
        return cls(np.array(corners), values[corners])

    def sums(self, total: int, counts: IntArray) -> IntArray:
        """Least sum of the values at `count` numbers that add up to at least `total`, rounded down.

        Values must not fall. Shape of `counts`; nothing is said for counts so small that the numbers would be
        too large: there it is the value at the end.
        """
        if len(self.corners) == 1:
            return np.asarray(counts * self.values[0], dtype=np.int64)
        # Corners are whole numbers: they are at most the mean if they are at most its floor.
        k = np.searchsorted(self.corners, total // counts, side="right") - 1
        k = np.clip(k, 0, len(self.corners) - 2)
        across, up = self.corners[k + 1] - self.corners[k], self.values[k + 1] - self.values[k]
        rest = np.clip(total - counts * self.corners[k], 0, counts * across)
        sums: IntArray = counts * self.values[k] + rest * up // across
        return sums


def _is_above(middle: int, left: int, right: int, heights: list[int]) -> bool:
    """Whether a corner lies on or above the line between its neighbours."""
    up, across = heights[middle] - heights[left], middle - left
    return up * (right - middle) >= (heights[right] - heights[middle]) * across


@dataclass(frozen=True, eq=False)
class Company:
    """Who is surely there when somebody arrives; columns by arrival, shape (num_requests,), int64."""

    alpha: int
    first: IntArray
    """Tokens resident at the first output token."""
    last: IntArray
    """Tokens resident at the last output token."""
    prompts_ns: IntArray
    """Lone time to the first token."""
    decodes_ns: IntArray
    """Lone time of a decode by resident tokens, shape (longest + 1,)."""
    refills_ns: IntArray
    """Lone time of a refill by resident tokens, shape (longest + 1,)."""
    entries: EntryTable
    chunks: Hull
    lone_chunks: Hull
    head_ns: int
    pairs: tuple[tuple[IntArray, IntArray], ...]
    """For each request those that came before it and are surely there, and how many tokens they have left."""
    apart: tuple[Conflict, ...]
    """Disjoint pairs that do not fit on the device together."""

    @classmethod
    def of(cls, tables: Tables) -> Company | None:
        """Columns of an instance; None for too many pairs or too large numbers."""
        cost, solo = tables.instance.cost, tables.solo
        order = np.lexsort((tables.outputs, tables.prompts, tables.arrivals_ns))
        first = tables.prompts[order]
        last = first + tables.outputs[order] - 1
        entries = EntryTable(tables.instance, int(last.max()))
        if _largest(tables, entries.longest) >= INT64_SAFE:
            return None
        prompts_ns, later_ns = solo.prefills_ns[first].astype(np.int64), solo.later_ns.astype(np.int64)
        pairs = _pairs(tables.arrivals_ns[order], first, last, prompts_ns, later_ns)
        if pairs is None:
            return None
        return cls(
            alpha=cost.step_ceil + min(cost.prefill_batch_ceil, cost.decode_batch_ceil),
            first=first,
            last=last,
            prompts_ns=prompts_ns,
            decodes_ns=decodes_ns(cost, entries.longest),
            refills_ns=solo.prefills_ns.astype(np.int64),
            entries=entries,
            chunks=Hull.below(entries.chunks_ns),
            lone_chunks=Hull.below(entries.lone_chunks_ns),
            head_ns=cost.head.ceil(1),
            pairs=pairs,
            apart=conflicts(tables.instance.limits, first, last, pairs),
        )

    def value_ns(self, share: int) -> int:
        """The bound, if so many sixteenths of the batches without a request count for its pairs."""
        waiting, paired = self.alpha * (SHARE_UNIT - share) // SHARE_UNIT, self.alpha * share // SHARE_UNIT
        partners = self._partners
        caps = np.minimum(self.growth[self.last], paired // np.maximum(partners, 1)) * (partners > 0)
        refunds = partners * caps

        def prompt_ns(j: int, apart: int = 0) -> int:
            return self._prompt_ns(j, apart, waiting, int(refunds[j]))

        # Lone times of later tokens, of which a share of refills is left out.
        tokens = np.minimum(self.refills_ns * (SHARE_UNIT - share) // SHARE_UNIT, self.decodes_ns)
        # What one may save on them by refills in many chunks beside the partner.
        saved = self._over_later_tokens(np.maximum(tokens - waiting - self.entries.refills_ns, 0))
        prompts = [prompt_ns(j) for j in range(len(self.first))]
        value = sum(prompts) + total(self._over_later_tokens(tokens)) + self._decodes_ns(caps)
        for i, j, younger_waits, older_waits in self.apart:
            waits = prompt_ns(j, younger_waits) - prompts[j], prompt_ns(i, older_waits) - prompts[i]
            value += max(0, min(waits) - int(saved[i] + saved[j]))
        return value

    @property
    def growth(self) -> IntArray:
        """By a later token that leaves s tokens resident, shape (longest + 1,)."""
        return self.entries.later_tokens_ns

    @cached_property
    def _running_growth(self) -> IntArray:
        return np.cumsum(self.growth)

    def _over_later_tokens(self, values: IntArray) -> IntArray:
        """Sum over the later tokens of each request of a value by resident tokens."""
        running = np.cumsum(values)
        sums: IntArray = running[self.last] - running[self.first]
        return sums

    @cached_property
    def _partners(self) -> IntArray:
        """Pairs of each request in which both have later tokens; shape (num_requests,)."""
        counts = np.zeros(len(self.first), dtype=np.int64)
        for j, (older, _) in enumerate(self._decoding):
            counts[older] += 1
            counts[j] += len(older)
        return counts

    @cached_property
    def _decoding(self) -> list[tuple[IntArray, IntArray]]:
        """Those of the pairs in which both have later tokens."""
        return [
            (older[left > 1], left[left > 1]) if self.last[j] > self.first[j] else (older[:0], left[:0])
            for j, (older, left) in enumerate(self.pairs)
        ]

    def _prompt_ns(self, j: int, apart: int, waiting: int, refund: int) -> int:
        """Least of the prompt's batches, what it adds to others' and the batches that it waits.

        It sits out `apart` batches at least, but for those with chunks of the prompt that emit nothing.
        """
        lone_ns, (own, added), (starts, present) = int(self.prompts_ns[j]), self._chunked[j], self._crowds[j]
        alone = np.maximum(own, lone_ns) - COUNTS * refund
        missed = np.maximum(starts[:, None] - COUNTS, np.maximum(apart + 1 - COUNTS, 0))
        costs = alone + present[:, None] * added + waiting * missed
        # More chunks than that: at least alpha for each, and the lone time. A refund is less than alpha.
        refunded = ceil_div(lone_ns * refund, self.alpha) if refund else 0
        more = max((MOST_CHUNKS + 1) * (self.alpha - refund), lone_ns - refunded)
        return min(int(costs.min()), more)

    @cached_property
    def _chunked(self) -> list[tuple[IntArray, IntArray]]:
        """For each request the least time of 1, 2, ... lone chunks of its prompt, and their growth."""
        known: dict[int, tuple[IntArray, IntArray]] = {}
        for tokens in np.unique(self.first).tolist():
            alone = self.lone_chunks.sums(tokens, COUNTS) + self.head_ns
            known[tokens] = alone, self.chunks.sums(tokens, COUNTS)
        return [known[tokens] for tokens in self.first.tolist()]

    @cached_property
    def _crowds(self) -> list[tuple[IntArray, IntArray]]:
        """For each request from which batch after its arrival on how many others are surely there."""
        crowds = []
        for _, left in self.pairs:
            ends, ended = np.unique(left, return_counts=True)
            present = len(left) - np.cumsum(ended)
            crowds.append((np.append(1, ends + 1), np.append(len(left), present)))
        return crowds

    def _decodes_ns(self, caps: IntArray) -> int:
        """What the later tokens of each pair add to each other's batches."""
        value, growth = 0, self._running_growth
        for j, (older, left) in enumerate(self._decoding):
            if not len(older):
                continue
            mine = self.last[j] - self.first[j]
            theirs = self.last[older] - self.first[older]
            both = np.full_like(older, j)
            # Whoever ends first has all its tokens from then on in the other's stay.
            older_first = growth[self.last[older]] - growth[self.last[older] - left + 1]
            older_first += self._capped(both, np.minimum(left, mine), caps)
            mine_first = growth[self.last[j]] - growth[self.first[j]]
            younger_first = mine_first + self._capped(older, np.minimum(mine + 1, theirs), caps)
            value += int(np.minimum(older_first, younger_first).sum())
        return value

    def _capped(self, which: IntArray, counts: IntArray, caps: IntArray) -> IntArray:
        """Growth by the first so many later tokens of some requests, each at most its cap."""
        running, cap, start = self._running_growth, caps[which], self.first[which]
        below = np.clip(np.searchsorted(self.growth, cap, side="right") - 1, start, start + counts)
        sums: IntArray = running[below] - running[start] + (start + counts - below) * cap
        return sums


def _pairs(
    arrivals: IntArray, first: IntArray, last: IntArray, prompts_ns: IntArray, later_ns: IntArray
) -> tuple[tuple[IntArray, IntArray], ...] | None:
    """For each request the older ones with tokens left, and how many; None if these are too many."""
    ends = arrivals + prompts_ns + later_ns[last] - later_ns[first]
    pairs, count, there = [], 0, np.empty(0, dtype=np.int64)
    for j, arrival in enumerate(arrivals.tolist()):
        there = there[ends[there] > arrival]
        since = arrival - arrivals[there]
        # Tokens whose batches may have started: each after the lone time of those before.
        later = later_ns[first[there]] + since - prompts_ns[there]
        begun = np.searchsorted(later_ns, later) - first[there]
        begun = np.where(since > 0, 1 + np.maximum(begun, 0) * (since > prompts_ns[there]), 0)
        left = last[there] - first[there] + 1 - begun
        pairs.append((there[left > 0], left[left > 0]))
        count += len(there)
        if count > MOST_PAIRS:
            return None
        there = np.append(there, j)
    return tuple(pairs)


def _largest(tables: Tables, longest: int) -> int:
    """No number that occurs is larger."""
    worst_ns = tables.instance.cost.batch_time_ns(reachable_maxima(tables.instance))
    alone_ns = int(tables.solo.later_ns[-1]) + int(max(tables.solo.prefills_ns))
    count = len(tables.prompts) + longest + MOST_CHUNKS
    return 4 * (worst_ns * count * MOST_CHUNKS + SHARE_UNIT * alone_ns)
