"""What a `memory-price` certificate states, and its unit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cspsched.bounds.certificate import Details
from cspsched.problem.cost import IntArray

MEMORY_PRICE = "memory-price"
PRICE_UNIT = 1024


class Rule(NamedTuple):
    """Requests that cannot be resident together, if a resident stays until it is complete.

    Peaks and residents are in KV blocks, M is `kv_blocks`. The request that completes first is at its peak
    then, and the others have no less than now. So `members` requests with peaks of at least `small` do not
    fit if each has at least (M - small) // (members - 1) + 1 now, and one with a peak of at least `large` and
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


def _text(rows: Iterable[Sequence[int]]) -> str:
    return ";".join(" ".join(map(str, row)) for row in rows)


def _numbers(text: int | str) -> list[tuple[int, ...]]:
    return [tuple(map(int, row.split())) for row in str(text).split(";")]
