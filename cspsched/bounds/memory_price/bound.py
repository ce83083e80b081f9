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
from typing import NamedTuple

import numpy as np

from cspsched.bounds.certificate import Details
from cspsched.bounds.parts.batches import ExactArray
from cspsched.bounds.parts.tables import Tables
from cspsched.bounds.parts.work import WorkTable
from cspsched.problem.cost import INT64_SAFE, IntArray
from cspsched.problem.instance import Instance, Preemption
from cspsched.units import ceil_div, round_up

MEMORY_PRICE = "memory-price"
PRICE_UNIT = 1024


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


class Rule(NamedTuple):
    """Who cannot be resident together, if a resident stays until it is complete.

    Peaks and residents are in KV blocks, M is `kv_blocks`. Whoever completes first is at its peak then, and
    the others have no less than now. So `members` requests with peaks of at least `small` do not fit if
    each has at least (M - small) // (members - 1) + 1 now, and one with a peak of at least `large` and
    M - small + 1 now fits with none of them that has M - large + 1.
    """

    large: int
    small: int
    members: int

    def share(self, resident: IntArray, peak: IntArray, kv_blocks: int) -> IntArray:
        """Shares in 1 / (members - 1), same shape as the residents."""
        others = self.members - 1
        blocking = (peak >= self.large) & (resident > kv_blocks - self.small)
        least = max(kv_blocks - self.large, (kv_blocks - self.small) // others) + 1
        counted = (peak >= self.small) & (resident >= least)
        return np.where(blocking, others, np.where(counted, 1, 0))


@dataclass(frozen=True, kw_only=True)
class MemoryPrices:
    """What a `memory-price` certificate states; any values give a bound.

    Attributes
    ----------
    rules
        Beside that of volume; none where requests may be preempted.
    prices
        One tuple for the volume and one for each rule: prices in the first batches, in 1 / 1024; 0 in all
        later ones.
    """

    rules: tuple[Rule, ...]
    prices: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        ordered = all(rule.large >= rule.small >= 1 and rule.members >= 2 for rule in self.rules)
        negative = min((price for row in self.prices for price in row), default=0) < 0
        if not ordered or negative or len(self.prices) != len(self.rules) + 1:
            raise ValueError("rules or prices of memory that prove nothing")

    @property
    def num_batches(self) -> int:
        """Batches of which any has a price."""
        return max(map(len, self.prices))

    def padded(self, length: int) -> IntArray:
        """Prices with zeros behind them, shape (rules + 1, length)."""
        table = np.zeros((len(self.prices), length), dtype=np.int64)
        for row, prices in zip(table, self.prices, strict=True):
            row[: len(prices)] = prices
        return table

    def to_details(self) -> Details:
        """Lists of integers as text, for a certificate."""
        return {"rules": _text(self.rules), "prices": _text(self.prices)}

    @classmethod
    def from_details(cls, details: Details) -> MemoryPrices:
        """Read what `to_details` wrote; `KeyError` or `ValueError` if it is missing or proves nothing."""
        rules = [row for row in _numbers(details["rules"]) if row]
        if any(len(row) != len(Rule._fields) for row in rules):
            raise ValueError("a rule of memory has three numbers")
        return cls(rules=tuple(Rule(*row) for row in rules), prices=tuple(_numbers(details["prices"])))


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
    pairs = np.stack([tables.prompts, tables.outputs], axis=1)
    distinct, counts = np.unique(pairs, axis=0, return_counts=True)
    prompts, outputs = distinct.T
    first, last = (np.repeat(ends, outputs) for ends in (prompts, prompts + outputs - 1))
    ages = np.arange(outputs.sum()) - np.repeat(np.cumsum(outputs) - outputs, outputs)
    peaks = -(-last // limits.block_tokens)
    return Residents(
        kv_blocks=limits.kv_blocks,
        pause=pause_of(instance),
        counts=counts,
        outputs=outputs,
        chunks=-(-prompts // limits.max_batch_tokens),
        blocks=peaks if instance.switches.reservation else -(-(first + ages) // limits.block_tokens),
        peaks=peaks,
    )


def least_ends(table: Residents, chosen: MemoryPrices) -> int | None:
    """Lower bound on the sum of e_i, or None where 64-bit integers might overflow."""
    from cspsched.bounds.memory_price.kernel import least_costs

    unit, longest = table.unit(chosen.rules), int((table.outputs + table.chunks).max())
    length = chosen.num_batches + longest
    dearest = max((price for row in chosen.prices for price in row), default=0)
    if unit * (PRICE_UNIT * length + dearest * len(chosen.prices) * 2 * length) >= INT64_SAFE:
        return None
    costs = np.empty(len(table.outputs), dtype=np.int64)
    least_costs(
        table.shares(chosen.rules), chosen.padded(length), table.starts, table.outputs, table.chunks,
        unit * PRICE_UNIT, int(table.pause), costs, np.empty((2, length), dtype=np.int64),
    )  # fmt: skip
    paid = unit * sum(map(sum, chosen.prices))
    total = sum(cost * count for cost, count in zip(costs.tolist(), table.counts.tolist(), strict=True))
    return ceil_div(total - paid, unit * PRICE_UNIT)


def latency_ns(tables: Tables, work: WorkTable, ends: int) -> int:
    """Bound on the sum of latencies from one on the sum of e_i, under the minorant of a work table."""
    minorant, budget = work.minorant, tables.instance.limits.max_batch_tokens
    surcharge = minorant.scaled("prefill_batch") * tables.prompts.astype(object)
    own: ExactArray = work.until(tables.prompts, tables.outputs) * budget + surcharge
    waiting = range(len(own), 0, -1)
    works = sum(time * number for time, number in zip(sorted(own.tolist()), waiting, strict=True))
    return round_up(minorant.batch * ends + Fraction(works, minorant.scale * budget))


def _text(rows: Iterable[Sequence[int]]) -> str:
    return ";".join(" ".join(map(str, row)) for row in rows)


def _numbers(text: int | str) -> list[tuple[int, ...]]:
    return [tuple(map(int, row.split())) for row in str(text).split(";")]
