"""Sum of latencies and sum of TTFT: the single machine that every schedule contains, and what follows it.

Theorem (problem.md, section 5): share the constant cost alpha of a batch among its residents by any convex
combination of memory share (blocks / kv_blocks), token share (c / C) and slot share (1 / R), the surcharge of
a batch with prefill among its prefills likewise, and give every request the work of its own tokens. The
shares of a batch sum to at most 1, so the batch is long enough to process all of them one after another; by
its k_i-th output token request i has received at least a fixed number q_i. Thus every feasible schedule
contains a preemptive single-machine schedule with processing times q_i and releases a_i in which request i is
finished no later, and SRPT (Schrage 1968) bounds the sum of the times of the k_i-th tokens from below. After
it, a request still needs its tail alone on the machine:

    sum of latencies >= SRPT(a, q up to token k_i) - sum a_i + sum tail_i(k_i)      for every choice of k_i.

`srpt` takes all tokens (for TTFT the first) and no tail; `srpt-tail` takes a share of the output tokens. q_i
is rounded down to integer nanoseconds: SRPT is monotone in processing times, so the bound stays a bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import product
from math import lcm
from typing import NamedTuple

import numpy as np

from cspsched.bounds.certificate import Certificate, Details
from cspsched.bounds.critical_path import critical_path
from cspsched.bounds.memory_price.search import memory_price_certificates
from cspsched.bounds.pair_delay.bound import pair_delay_certificates
from cspsched.bounds.parts.batches import Consumption, ExactArray
from cspsched.bounds.parts.minorant import Minorant
from cspsched.bounds.parts.srpt import srpt_completions_ns
from cspsched.bounds.parts.tables import Tables
from cspsched.bounds.parts.work import WorkTable
from cspsched.bounds.time_price.search import time_price_certificates
from cspsched.problem.cost import INT64_SAFE, IntArray
from cspsched.problem.instance import Limits
from cspsched.problem.objectives import Objective
from cspsched.units import ceil_div

SRPT, SRPT_TAIL = "srpt", "srpt-tail"
TAIL_SHARES = (Fraction(0), Fraction(1, 4), Fraction(1, 2), Fraction(3, 4))
"""Shares of the output tokens, at least one token, after which `srpt-tail` counts a request as alone."""
FINALISTS = 3
"""Relaxations that are evaluated exactly, from each of two rankings."""
MOST_ROUNDED = 2.0**44
"""Five hours in nanoseconds: so far a few roundings of floats are less than one."""
RANKED_REQUESTS = 4_000
"""Of more requests than these, only every so manieth counts for the rankings."""


class Split(NamedTuple):
    """How the constant cost of a batch is shared out: weights >= 0 that sum to 1."""

    memory: Fraction
    tokens: Fraction
    slots: Fraction

    def weights(self, limits: Limits) -> tuple[Fraction, Fraction, Fraction]:
        """Share of a batch's constant cost per block, per token and per slot."""
        return (
            self.memory / limits.kv_blocks,
            self.tokens / limits.max_batch_tokens,
            self.slots / limits.max_batch_requests,
        )


SPLITS = (
    *(Split(*map(Fraction, corner)) for corner in ((1, 0, 0), (0, 1, 0), (0, 0, 1))),
    *(Split(*(Fraction(half, 2) for half in pair)) for pair in ((1, 1, 0), (1, 0, 1), (0, 1, 1))),
    Split(Fraction(1, 3), Fraction(1, 3), Fraction(1, 3)),
)


@dataclass(frozen=True, eq=False)
class Heads:
    """Every request up to a share of its output tokens (at least one), and its tail after that."""

    tables: Tables
    share: Fraction

    @cached_property
    def emitted(self) -> IntArray:
        """Output tokens up to which a request occupies the machine, shape (num_requests,)."""
        rounded_up = -(-self.tables.outputs * self.share.numerator // self.share.denominator)
        return np.maximum(rounded_up, 1)

    @cached_property
    def consumption(self) -> Consumption:
        """Blocks, tokens and slots up to that token."""
        return self.tables.consumption(self.emitted)

    def work(self, table: WorkTable) -> ExactArray:
        """Work up to that token, times the minorant's scale; int64 where each number is small enough."""
        return table.compact_until(self.tables.prompts, self.emitted)

    @cached_property
    def tails_ns(self) -> int:
        """Sum of the times that the requests still need alone on the machine."""
        tables = self.tables
        return int(sum(tables.solo.tail_ns(tables.prompts, tables.outputs, self.emitted)))


@dataclass(frozen=True, eq=False)
class Relaxation:
    """One single machine: a choice of heads, minorant and split."""

    heads: Heads
    work: ExactArray
    """Work of the heads, times the minorant's scale."""
    first: Consumption
    """Consumption up to the first output token, which shares the surcharge of batches with prefill."""
    minorant: Minorant
    split: Split
    with_tails: bool

    def processing_ns(self, every: int = 1) -> ExactArray:
        """q_i, rounded down, of every so manieth request; shape (num_requests,) for all of them."""
        weights = self.split.weights(self.first.limits)
        denominator = lcm(*(weight.denominator for weight in weights))
        integers = [int(weight * denominator) for weight in weights]
        price, divisor = self.minorant.scaled, denominator * self.minorant.scale
        terms = [(denominator, self.work[::every])]
        for batch, consumption in (("batch", self.heads.consumption), ("prefill_batch", self.first)):
            amounts = (consumption.blocks, consumption.tokens, consumption.slots)
            terms += [
                (price(batch) * weight, amount[::every])
                for weight, amount in zip(integers, amounts, strict=True)
                if price(batch) * weight
            ]
        return floor_of_sum(terms, divisor)

    def value_ns(self) -> int:
        """The bound on the sum of latencies or TTFT."""
        arrivals = self.heads.tables.arrivals_ns
        completions = srpt_completions_ns(arrivals, self.processing_ns())
        return completions - int(sum(arrivals.tolist())) + self._tails_ns

    def estimates(self) -> tuple[float, float]:
        """Its value if no request waits, and if all arrive together; floats that choose and never prove."""
        every = ceil_div(len(self.work), RANKED_REQUESTS)
        times = np.sort(self.processing_ns(every).astype(np.float64)) * every
        waiting = np.arange(len(times), 0, -1) * every
        return float(times.sum()) + self._tails_ns, float(times @ waiting) + self._tails_ns

    @property
    def _tails_ns(self) -> int:
        return self.heads.tails_ns if self.with_tails else 0

    def details(self) -> Details:
        """The choice, as text that a checker reads."""
        split = {f"{name}_share": str(value) for name, value in self.split._asdict().items()}
        solo = {"prefill": self.heads.tables.solo.method} if self.with_tails else {}
        return {"output_share": str(self.heads.share)} | solo | split | self.minorant.to_details()


def flow_certificates(tables: Tables, objective: Objective) -> Iterator[Certificate]:
    """Certificates of a sum of latencies or of TTFT, the cheap ones first, each made when it is taken."""
    yield from quick_flow_certificates(tables, objective)
    if objective is Objective.LATENCY:
        yield from memory_price_certificates(tables)
        yield from time_price_certificates(tables)


def quick_flow_certificates(tables: Tables, objective: Objective) -> Iterator[Certificate]:
    """Those that search no prices, a tenth of the time of all."""
    is_latency = objective is Objective.LATENCY
    yield critical_path(tables, objective)
    yield _srpt_certificate(tables, objective, SRPT, [Fraction(1 if is_latency else 0)])
    if is_latency:
        yield _srpt_certificate(tables, objective, SRPT_TAIL, TAIL_SHARES)
        yield from pair_delay_certificates(tables)


def _srpt_certificate(
    tables: Tables, objective: Objective, name: str, shares: Sequence[Fraction]
) -> Certificate:
    """The best of the relaxations that look best under either ranking."""
    first = Heads(tables, Fraction(0)).consumption
    heads = [Heads(tables, share) for share in shares]

    def relaxations(head: Heads, table: WorkTable) -> list[Relaxation]:
        work, with_tails = head.work(table), name == SRPT_TAIL
        return [Relaxation(head, work, first, table.minorant, split, with_tails) for split in SPLITS]

    # One group at a time: the work of a million requests is a hundred megabytes.
    groups = list(product(heads, tables.work))
    estimates = [relaxation.estimates() for group in groups for relaxation in relaxations(*group)]
    finalists = {
        k
        for ranking in (0, 1)
        for k in sorted(range(len(estimates)), key=lambda k: -estimates[k][ranking])[:FINALISTS]
    }
    found: tuple[int, Details] | None = None
    for k in sorted(finalists):
        relaxation = relaxations(*groups[k // len(SPLITS)])[k % len(SPLITS)]
        value_ns = relaxation.value_ns()
        if found is None or value_ns > found[0]:
            found = value_ns, relaxation.details()
    assert found is not None
    return Certificate(name, objective, *found)


def floor_of_sum(terms: Sequence[tuple[int, ExactArray]], divisor: int) -> ExactArray:
    """Sum of whole multiples of columns over a divisor, rounded down; int64 where that is safe.

    Floats tell the quotient but for one; the remainder, which then fits into 64 bits though the products do
    not, says which it is.
    """
    # Wider than 64 bits only where sums of them would be.
    terms = [(factor, _narrow(column)) for factor, column in terms]
    quotient = np.sum([column.astype(np.float64) * (factor / divisor) for factor, column in terms], axis=0)
    floats_do = float(quotient.max()) < MOST_ROUNDED and 2 * divisor < INT64_SAFE
    if not floats_do or any(column.dtype == object for _, column in terms):
        whole: ExactArray = sum(column.astype(object) * factor for factor, column in terms) // divisor  # type: ignore[assignment]
        return whole
    found = np.floor(quotient).astype(np.int64)
    rest = found.astype(np.uint64) * np.uint64(-divisor % 2**64)
    for factor, column in terms:
        rest += column.astype(np.uint64) * np.uint64(factor % 2**64)
    signed = rest.astype(np.int64)
    result: ExactArray = found + (signed >= divisor) - (signed < 0)
    return result


def _narrow(column: ExactArray) -> ExactArray:
    is_wide = column.dtype == object and max(map(abs, column.tolist())) >= INT64_SAFE
    return column if is_wide else column.astype(np.int64)
