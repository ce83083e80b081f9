"""Sum of latencies of requests that arrive together: prices on the memory of every batch.

Theorem (docs/bounds.md, section 12). Let e_i be the number of the batch that completes request i, and let
every batch have a price p_b >= 0 for each *rule* b: a share of every resident, such that the shares of the
residents of a batch sum to at most 1. Then

    sum of e_i >= sum_i min over the ways of request i of (e_i + prices of its shares) - sum of all p_b,
    sum of latencies >= alpha x (sum of e_i) + SPT(own works).

The rule of volume gives a resident its blocks / kv_blocks. Where nothing is preempted there are more: see
`Rule`. Prices are integers in 1 / 1024, shares are whole parts of `Residents.unit`; nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from fractions import Fraction
from math import lcm

import numpy as np

from cspsched.bounds.memory_price.details import PRICE_UNIT, MemoryPrices, Rule
from cspsched.bounds.memory_price.kernel import Runs, least_costs
from cspsched.bounds.parts.batches import ExactArray
from cspsched.bounds.parts.tables import Tables
from cspsched.bounds.parts.work import WorkTable
from cspsched.compiled.jit import compiled
from cspsched.problem.cost import INT64_SAFE, IntArray
from cspsched.problem.instance import Instance, Preemption
from cspsched.units import ceil_div, round_up


class Pause(IntEnum):
    """What a request does in a batch between two of its tokens."""

    NEVER = 0
    """There is none: it decodes in every batch."""
    STAYS = 1
    """It holds its memory."""
    LEAVES = 2
    """It may be preempted, and takes no memory."""


def pause_of(instance: Instance) -> Pause:
    """What the switches of an instance allow."""
    if instance.switches.preemption is not Preemption.NONE:
        return Pause.LEAVES
    return Pause.STAYS if instance.switches.holding else Pause.NEVER


@dataclass(frozen=True, eq=False)
class Residents:
    """The tokens of all distinct requests, one request after the other; int64."""

    kv_blocks: int
    pause: Pause
    counts: IntArray
    """How many requests are like this one, shape (num_distinct,)."""
    outputs: IntArray
    """Output tokens, shape (num_distinct,)."""
    chunks: IntArray
    """Batch that emits the first token, at the earliest (the first batch is 1); shape (num_distinct,)."""
    blocks: IntArray
    """KV blocks in the batch that emits the token, shape (num_tokens,)."""
    peaks: IntArray
    """KV blocks of its request in the end, shape (num_tokens,)."""

    @property
    def starts(self) -> IntArray:
        """Where each request's tokens begin, shape (num_distinct,)."""
        return np.cumsum(self.outputs) - self.outputs

    @property
    def runs(self) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """Columns of the distinct requests, as the kernel takes them."""
        return self.starts, self.outputs, self.chunks, self.counts

    def unit(self, rules: Iterable[Rule]) -> int:
        """Whole that all shares are parts of."""
        return self.kv_blocks * lcm(*(rule.members - 1 for rule in rules))

    def shares(self, rules: Sequence[Rule]) -> IntArray:
        """Parts of the unit of each rule, that of volume first; shape (rules + 1, num_tokens)."""
        unit = self.unit(rules)
        volume = self.blocks * (unit // self.kv_blocks)
        others = [
            rule.share(self.blocks, self.peaks, self.kv_blocks) * (unit // (rule.members - 1))
            for rule in rules
        ]
        return np.stack([volume, *others])


def residents(tables: Tables) -> Residents:
    """Tokens of an instance; under a reservation each takes its request's peak."""
    instance, limits = tables.instance, tables.instance.limits
    shared = (tables.prompts - tables.charged_prompts) // limits.block_tokens
    kinds = np.stack([tables.prompts, tables.outputs, tables.chunks, shared], axis=1)
    distinct, counts = np.unique(kinds, axis=0, return_counts=True)
    prompts, outputs, chunks, shared = distinct.T
    first, last = (np.repeat(ends, outputs) for ends in (prompts, prompts + outputs - 1))
    elsewhere = np.repeat(shared, outputs)
    ages = np.arange(outputs.sum()) - np.repeat(np.cumsum(outputs) - outputs, outputs)
    # What an earlier request holds counts for that one.
    peaks = -(-last // limits.block_tokens) - elsewhere
    return Residents(
        kv_blocks=limits.kv_blocks,
        pause=pause_of(instance),
        counts=counts,
        outputs=outputs,
        chunks=chunks,
        blocks=peaks
        if instance.switches.reservation
        else -(-(first + ages) // limits.block_tokens) - elsewhere,
        peaks=peaks,
    )


def least_ends(table: Residents, chosen: MemoryPrices) -> int | None:
    """Lower bound on the sum of e_i, or None where 64-bit integers might overflow."""
    unit, longest = table.unit(chosen.rules), int((table.outputs + table.chunks).max())
    length = chosen.num_batches + longest
    dearest = max((price for row in chosen.prices for price in row), default=0)
    if unit * (PRICE_UNIT * length + dearest * len(chosen.prices) * 2 * length) >= INT64_SAFE:
        return None
    costs = np.empty(len(table.outputs), dtype=np.int64)
    shares, prices, rows = table.shares(chosen.rules), chosen.padded(length), np.empty((2, length), np.int64)
    compiled(least_costs)(shares, prices, Runs(*table.runs), unit * PRICE_UNIT, int(table.pause), costs, rows)
    paid = unit * sum(map(sum, chosen.prices))
    total = sum(cost * count for cost, count in zip(costs.tolist(), table.counts.tolist(), strict=True))
    return ceil_div(total - paid, unit * PRICE_UNIT)


def latency_ns(tables: Tables, work: WorkTable, ends: int) -> int:
    """Bound on the sum of latencies from one on the sum of e_i, under the minorant of a work table."""
    minorant, budget = work.minorant, tables.instance.limits.max_batch_tokens
    surcharge = minorant.scaled("prefill_batch") * tables.charged_prompts.astype(object)
    own: ExactArray = work.until(tables.prompts, tables.outputs) * budget + surcharge
    waiting = range(len(own), 0, -1)
    works = sum(time * number for time, number in zip(sorted(own.tolist()), waiting, strict=True))
    return round_up(minorant.batch * ends + Fraction(works, minorant.scale * budget))
