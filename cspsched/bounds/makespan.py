"""Makespan: batches that no schedule avoids, times what a batch costs, plus work that no schedule avoids.

Theorem (problem.md, section 5): let a minorant price every batch at alpha, a batch with prefill at
`surcharge` more, and the contents additively. Requests that arrive at t or later run in batches that start at
t or later. If these need at least B batches, at least B' of them with prefill, and at least the work w, then

    makespan >= t + alpha B + surcharge B' + w      for every t.

B' counts by the same four arguments as B, up to the first output token of each request. Chunking, refills and
restarts only add batches, tokens and work.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from cspsched.bounds.certificate import Certificate, Details
from cspsched.bounds.critical_path import critical_path
from cspsched.bounds.parts.batches import Consumption, ExactArray, suffix_sums
from cspsched.bounds.parts.tables import Tables
from cspsched.bounds.parts.work import WorkTable
from cspsched.problem.cost import INT64_SAFE, IntArray
from cspsched.problem.objectives import Objective
from cspsched.units import ceil_div

ARRIVAL_SUFFIX = "arrival-suffix"


def makespan_certificates(tables: Tables) -> list[Certificate]:
    """One certificate for each way to count batches, for each the best minorant, and two with arrivals."""
    whole, first = tables.consumption(tables.outputs), _first_tokens(tables)
    prefill_batches = max(first.total_counts().values())
    works = [_work(tables, table, prefill_batches) for table in tables.work]
    counted = [
        _whole_trace(tables, reason, number, prefill_batches, works)
        for reason, number in whole.total_counts().items()
    ]
    return [*counted, _arrival_suffix(tables, whole, first), critical_path(tables, Objective.MAKESPAN)]


def batch_floors(tables: Tables) -> list[tuple[Fraction, Fraction]]:
    """Pairs (alpha, work) in nanoseconds: B batches of a schedule take at least alpha B + work in all."""
    prefill_batches = max(_first_tokens(tables).total_counts().values())
    return [
        (table.minorant.batch, Fraction(_work(tables, table, prefill_batches), table.minorant.scale))
        for table in tables.work
        if table.minorant.batch > 0
    ]


def _whole_trace(
    tables: Tables, reason: str, num_batches: int, prefill_batches: int, works: list[int]
) -> Certificate:
    """Bound that holds from the first arrival on; `works` has one entry for each minorant."""
    start_ns, minorants = int(tables.arrivals_ns.min()), [table.minorant for table in tables.work]
    values_ns = [
        start_ns + ceil_div(minorant.scaled("batch") * num_batches + work, minorant.scale)
        for minorant, work in zip(minorants, works, strict=True)
    ]
    best = values_ns.index(max(values_ns))
    details: Details = {
        "num_batches": num_batches,
        "num_prefill_batches": prefill_batches,
        "from_ns": start_ns,
    }
    return Certificate(reason, Objective.MAKESPAN, values_ns[best], details | minorants[best].to_details())


def _arrival_suffix(tables: Tables, whole: Consumption, first: Consumption) -> Certificate:
    """Best bound over all sets of requests that arrive at some time or later."""
    order = np.argsort(tables.arrivals_ns, kind="stable")
    batches, prefill_batches = _most(whole, order), _most(first, order)
    arrivals = tables.arrivals_ns[order]

    def best_cut(table: WorkTable) -> tuple[int, int]:
        """Bound and first request of the best suffix; of huge numbers floats choose the suffix."""
        price, scale = table.minorant.scaled, table.minorant.scale
        work = table.compact_until(tables.prompts, tables.outputs)[order]
        largest = table.total(tables.prompts, tables.outputs) + int(arrivals[-1]) * scale
        largest += price("batch") * int(batches[0]) + price("prefill_batch") * int(prefill_batches[0])
        kind = np.int64 if largest < INT64_SAFE else np.float64
        time = price("batch") * batches.astype(kind) + price("prefill_batch") * prefill_batches.astype(kind)
        time = -((time + suffix_sums(work.astype(kind))) // -scale)
        # Requests that arrive together: the first position of the largest value holds all of them.
        cut = int(np.argmax(arrivals + time))
        exact = price("batch") * int(batches[cut]) + price("prefill_batch") * int(prefill_batches[cut])
        return int(arrivals[cut]) + ceil_div(exact + sum(work[cut:].tolist()), scale), cut

    cuts = [best_cut(table) for table in tables.work]
    best = max(range(len(cuts)), key=lambda k: cuts[k][0])
    value_ns, cut = cuts[best]
    details: Details = {
        "num_batches": int(batches[cut]),
        "num_prefill_batches": int(prefill_batches[cut]),
        "from_ns": int(arrivals[cut]),
        "num_requests": len(order) - cut,
    }
    minorant = tables.work[best].minorant
    return Certificate(ARRIVAL_SUFFIX, Objective.MAKESPAN, value_ns, details | minorant.to_details())


def _work(tables: Tables, table: WorkTable, prefill_batches: int) -> int:
    """Work of all requests and the surcharge of the batches with prefill, times the minorant's scale."""
    work = table.total(tables.prompts, tables.outputs)
    return work + table.minorant.scaled("prefill_batch") * prefill_batches


def _first_tokens(tables: Tables) -> Consumption:
    return tables.consumption(tables.first_tokens)


def _most(consumption: Consumption, order: IntArray) -> ExactArray:
    """The best of the four batch counts for each suffix of an order."""
    most: ExactArray = np.maximum.reduce(list(consumption.suffix_counts(order).values()))
    return most
