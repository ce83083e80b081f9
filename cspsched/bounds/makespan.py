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

from cspsched.bounds.batches import Consumption, ExactArray, consume, suffix_sums
from cspsched.bounds.certificate import Certificate, Details
from cspsched.bounds.critical_path import critical_path
from cspsched.bounds.tables import Tables
from cspsched.bounds.work import WorkTable
from cspsched.problem.cost import IntArray
from cspsched.problem.metrics import Objective
from cspsched.units import ceil_div

ARRIVAL_SUFFIX = "arrival-suffix"


def makespan_certificates(tables: Tables) -> list[Certificate]:
    """One certificate for each way to count batches, for each the best minorant, and two with arrivals."""
    counts = consume(tables.prompts, tables.outputs, tables.instance.limits).total_counts()
    counted = [_whole_trace(tables, reason, number) for reason, number in counts.items()]
    return [*counted, _arrival_suffix(tables), critical_path(tables, Objective.MAKESPAN)]


def batch_floors(tables: Tables) -> list[tuple[Fraction, Fraction]]:
    """Pairs (alpha, work) in nanoseconds: B batches of a schedule take at least alpha B + work in all."""
    prefill_batches = _prefill_batches(tables)
    return [
        (table.minorant.batch, Fraction(_work(tables, table, prefill_batches), table.minorant.scale))
        for table in tables.work
        if table.minorant.batch > 0
    ]


def _whole_trace(tables: Tables, reason: str, num_batches: int) -> Certificate:
    """Bound that holds from the first arrival on."""
    start_ns, prefill_batches = int(tables.arrivals_ns.min()), _prefill_batches(tables)

    def value_ns(table: WorkTable) -> int:
        time = table.minorant.scaled("batch") * num_batches + _work(tables, table, prefill_batches)
        return start_ns + ceil_div(time, table.minorant.scale)

    best = max(tables.work, key=value_ns)
    details: Details = {
        "num_batches": num_batches,
        "num_prefill_batches": prefill_batches,
        "from_ns": start_ns,
    }
    return Certificate(reason, Objective.MAKESPAN, value_ns(best), details | best.minorant.to_details())


def _arrival_suffix(tables: Tables) -> Certificate:
    """Best bound over all sets of requests that arrive at some time or later."""
    order = np.argsort(tables.arrivals_ns, kind="stable")
    whole = consume(tables.prompts, tables.outputs, tables.instance.limits)
    batches, prefill_batches = _most(whole, order), _most(_first_tokens(tables), order)
    arrivals = tables.arrivals_ns[order].astype(object)

    def values_ns(table: WorkTable) -> ExactArray:
        price = table.minorant.scaled
        work = suffix_sums(table.until(tables.prompts, tables.outputs)[order])
        time = price("batch") * batches + price("prefill_batch") * prefill_batches + work
        ends: ExactArray = arrivals - (-time // table.minorant.scale)
        return ends

    columns = [values_ns(table) for table in tables.work]
    best = max(range(len(columns)), key=lambda k: columns[k].max())
    # Requests that arrive together: the first position of the largest value holds all of them.
    cut = int(np.argmax(columns[best]))
    details: Details = {
        "num_batches": batches[cut],
        "num_prefill_batches": prefill_batches[cut],
        "from_ns": arrivals[cut],
        "num_requests": len(order) - cut,
    }
    minorant = tables.work[best].minorant
    return Certificate(
        ARRIVAL_SUFFIX, Objective.MAKESPAN, columns[best][cut], details | minorant.to_details()
    )


def _work(tables: Tables, table: WorkTable, prefill_batches: int) -> int:
    """Work of all requests and the surcharge of the batches with prefill, times the minorant's scale."""
    work: int = sum(table.until(tables.prompts, tables.outputs))
    return work + table.minorant.scaled("prefill_batch") * prefill_batches


def _first_tokens(tables: Tables) -> Consumption:
    return consume(tables.prompts, tables.first_tokens, tables.instance.limits)


def _prefill_batches(tables: Tables) -> int:
    return max(_first_tokens(tables).total_counts().values())


def _most(consumption: Consumption, order: IntArray) -> ExactArray:
    """The best of the four batch counts for each suffix of an order."""
    most: ExactArray = np.maximum.reduce(list(consumption.suffix_counts(order).values()))
    return most
