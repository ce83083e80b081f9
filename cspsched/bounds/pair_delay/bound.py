"""Sum of latencies: each request alone, and how long each pair of requests must hold each other up.

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

from cspsched.bounds.best_hits.bound import BestHits
from cspsched.bounds.certificate import Certificate, Details
from cspsched.bounds.pair_delay.conflicts import Conflict, conflicts
from cspsched.bounds.pair_delay.details import MOST_CHUNKS, PAIR_DELAY, SHARE_UNIT, Pairs
from cspsched.bounds.pair_delay.kernel import (
    NUM_ROWS,
    Crowds,
    Decodes,
    Prompts,
    Times,
    fill_decodes,
    fill_pairs,
    fill_prompts,
)
from cspsched.bounds.parts.chunking import decodes_ns
from cspsched.bounds.parts.entries import EntryTable
from cspsched.bounds.parts.minorant import reachable_maxima
from cspsched.bounds.parts.tables import Tables
from cspsched.bounds.time_price.bound import total
from cspsched.compiled.jit import compiled
from cspsched.problem.cost import INT64_SAFE, IntArray
from cspsched.problem.objectives import Objective

SHARES = (0, 1, 2, 4)
"""Of a batch without a request, what its pairs may use in place of its prompt, in sixteenths."""
MOST_PAIRS = 8_000_000
"""Pairs that are counted: of more requests that meet, each counts those that came last before it, so that
time and memory grow with the requests and not with their square."""
SAMPLE_REQUESTS = 4_000
"""Of more requests than these, the first ones choose the share."""


def pair_delay_certificates(tables: Tables) -> list[Certificate]:
    """The certificate `pair-delay` on the sum of latencies; none for too large numbers."""
    company = Company.of(tables)
    if company is None:
        return []
    value_ns, less = max((company.value_ns(share, SAMPLE_REQUESTS), -share) for share in SHARES)
    if len(company.first) > SAMPLE_REQUESTS:
        value_ns = company.value_ns(-less)
    apart = " ".join(f"{found.older}-{found.younger}" for found in company.apart)
    details: Details = {
        "share": -less,
        "partners": company.partners_each,
        "apart": apart,
        "prefill": tables.solo.method,
    }
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


def _is_above(middle: int, left: int, right: int, heights: list[int]) -> bool:
    """Whether a corner lies on or above the line between its neighbours."""
    up, across = heights[middle] - heights[left], middle - left
    return up * (right - middle) >= (heights[right] - heights[middle]) * across


@dataclass(frozen=True, eq=False)
class Company:
    """Which requests are surely there when one arrives; columns by arrival, shape (num_requests,), int64."""

    alpha: int
    first: IntArray
    """Tokens resident at the first output token."""
    last: IntArray
    """Tokens resident at the last output token."""
    own_prompts: IntArray
    """Prompt tokens that its own chunks process at least."""
    prompts_ns: IntArray
    """Lone time of its own batches up to the first token."""
    decodes_ns: IntArray
    """Lone time of a decode by resident tokens, shape (longest + 1,)."""
    refills_ns: IntArray
    """Lone time of a refill by resident tokens, shape (longest + 1,)."""
    entries: EntryTable
    chunks: Hull
    lone_chunks: Hull
    head_ns: int
    pairs: Pairs
    """Who came before whom and is surely there then, and how many tokens it has left."""
    partners: IntArray
    """Pairs of each request in which both have later tokens."""
    partners_each: int
    """The most pairs of a request with those that came before it."""
    apart: tuple[Conflict, ...]
    """Disjoint pairs that do not fit on the device together."""

    @classmethod
    def of(cls, tables: Tables) -> Company | None:
        """Columns of an instance; None for too large numbers."""
        cost, solo = tables.instance.cost, tables.solo
        order = np.lexsort((tables.outputs, tables.prompts, tables.arrivals_ns))
        first = tables.prompts[order]
        last = first + tables.outputs[order] - 1
        entries, most = EntryTable(tables.instance, int(last.max())), partners_each(len(first))
        if _largest(tables, entries.longest, most) >= INT64_SAFE:
            return None
        firsts_ns, later_ns = solo.firsts_ns[order].astype(np.int64), solo.later_ns.astype(np.int64)
        pairs, partners = _pairs(tables.arrivals_ns[order], first, last, firsts_ns, later_ns, most)
        hits = BestHits.none(len(first)) if tables.hits is None else tables.hits
        return cls(
            alpha=cost.step_ceil + min(cost.prefill_batch_ceil, cost.decode_batch_ceil),
            first=first,
            last=last,
            own_prompts=first - hits.findable[order],
            prompts_ns=solo.own_firsts_ns[order].astype(np.int64),
            decodes_ns=decodes_ns(cost, entries.longest),
            refills_ns=solo.refills_ns.astype(np.int64),
            entries=entries,
            chunks=Hull.below(entries.chunks_ns),
            lone_chunks=Hull.below(entries.lone_chunks_ns),
            head_ns=cost.head.ceil(1),
            pairs=pairs,
            partners=partners,
            partners_each=most,
            apart=conflicts(tables.instance.limits, first, last, hits.found[order], pairs),
        )

    def value_ns(self, share: int, most: int | None = None) -> int:
        """The bound, if so many sixteenths of the batches without a request count for its pairs.

        With `most`, the part of it that the first so many requests have, to compare shares.
        """
        waiting, paired = self.alpha * (SHARE_UNIT - share) // SHARE_UNIT, self.alpha * share // SHARE_UNIT
        partners, count = self.partners, len(self.first[:most])
        caps = np.minimum(self.growth[self.last], paired // np.maximum(partners, 1)) * (partners > 0)
        refunds, apart = partners * caps, [found for found in self.apart if found.younger < count]
        prompts = self._prompts_ns(np.arange(count), np.zeros(count, dtype=np.int64), waiting, refunds)
        # Lone times of later tokens, of which a share of refills is left out.
        tokens = np.minimum(self.refills_ns * (SHARE_UNIT - share) // SHARE_UNIT, self.decodes_ns)
        given = Decodes(
            first=self.first,
            last=self.last,
            caps=caps,
            capped_from=np.searchsorted(self.growth, caps, side="right") - 1,
            growth=np.cumsum(self.growth),
        )
        decodes = np.empty(count, dtype=np.int64)
        compiled(fill_decodes)(given, self.pairs, decodes)
        value = total(prompts) + total(self._over_later_tokens(tokens)[:count]) + total(decodes)
        if not apart:
            return value
        # What one may save on them by refills in many chunks beside the partner.
        saved = self._over_later_tokens(np.maximum(tokens - waiting - self.entries.refills_ns, 0))
        older, younger, younger_waits, older_waits = np.array(apart, dtype=np.int64).T
        waits = np.minimum(
            self._prompts_ns(younger, younger_waits, waiting, refunds) - prompts[younger],
            self._prompts_ns(older, older_waits, waiting, refunds) - prompts[older],
        )
        return value + total(np.maximum(waits - saved[older] - saved[younger], 0))

    @property
    def growth(self) -> IntArray:
        """By a later token that leaves s tokens resident, shape (longest + 1,)."""
        return self.entries.later_tokens_ns

    def _over_later_tokens(self, values: IntArray) -> IntArray:
        """Sum over the later tokens of each request of a value by resident tokens."""
        running = np.cumsum(values)
        sums: IntArray = running[self.last] - running[self.first]
        return sums

    def _prompts_ns(self, which: IntArray, apart: IntArray, waiting: int, refunds: IntArray) -> IntArray:
        """Least of the prompt's batches, what it adds to others' and the batches that it waits, of some.

        Each sits out `apart` batches at least, but for those with chunks of the prompt that emit nothing.
        """
        given = Prompts(
            tokens=self.own_prompts,
            prompts_ns=self.prompts_ns,
            refunds=refunds,
            crowds=self._crowds,
            corners=self.chunks.corners,
            heights=self.chunks.values,
            lone_corners=self.lone_chunks.corners,
            lone_heights=self.lone_chunks.values,
            scalars=np.array([self.head_ns, self.alpha, waiting], dtype=np.int64),
        )
        order = np.argsort(self.own_prompts[which], kind="stable")
        rows = np.empty((NUM_ROWS, MOST_CHUNKS + 2), dtype=np.int64)
        costs, found = np.empty_like(which), np.empty_like(which)
        compiled(fill_prompts)(given, which[order], apart[order], rows, costs)
        found[order] = costs
        return found

    @cached_property
    def _crowds(self) -> Crowds:
        """How many others are surely there when."""
        together = np.diff(self.pairs.starts)
        keys = np.repeat(np.arange(len(self.first)) << 32, together)
        keys += self.pairs.left
        keys.sort()
        final = np.flatnonzero(np.diff(keys, append=-1))
        request = keys[final] >> 32
        return Crowds(
            together=together,
            starts=np.searchsorted(request, np.arange(len(self.first) + 1)),
            batches=(keys[final] & (2**32 - 1)).astype(np.int32) + 1,
            present=(self.pairs.starts[request + 1] - final - 1).astype(np.int32),
        )


def partners_each(num_requests: int) -> int:
    """Pairs with those before it that each of so many requests counts at most."""
    return min(num_requests, max(1, MOST_PAIRS // num_requests))


def _pairs(
    arrivals: IntArray, first: IntArray, last: IntArray, prompts_ns: IntArray, later_ns: IntArray, most: int
) -> tuple[Pairs, IntArray]:
    """The pairs, and how many each request is in with later tokens of both."""
    count = len(arrivals)
    ends = arrivals + prompts_ns + later_ns[last] - later_ns[first]
    partners = np.zeros(count, dtype=np.int64)
    # Memory that nothing is written to is not taken.
    older, left = np.empty((2, count * most), dtype=np.int32)
    pairs = Pairs(np.empty(count + 1, dtype=np.int64), older, left)
    there = np.empty(count, dtype=np.int64)
    times = Times(arrivals, first, last, prompts_ns, ends, later_ns)
    compiled(fill_pairs)(times, most, there, pairs, partners)
    found = int(pairs.starts[-1])
    return Pairs(pairs.starts, older[:found].copy(), left[:found].copy()), partners


def _largest(tables: Tables, longest: int, most: int) -> int:
    """No number that occurs is larger."""
    worst_ns = tables.instance.cost.batch_time_ns(reachable_maxima(tables.instance))
    alone_ns = int(tables.solo.later_ns[-1]) + int(max(*tables.solo.own_firsts_ns, *tables.solo.refills_ns))
    count = most + longest + MOST_CHUNKS
    return 4 * (worst_ns * count * MOST_CHUNKS + SHARE_UNIT * alone_ns)
