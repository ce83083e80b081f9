"""Memory of one run: the arrays at its start, and logs that grow."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cspsched.problem.cost import IntArray
from cspsched.simulate.kernel import layout
from cspsched.simulate.kernel.each.memory import each_arrays, new_cache
from cspsched.simulate.kernel.each.rules import AnyRules, EachRules
from cspsched.simulate.kernel.first import first_requests, first_state
from cspsched.simulate.kernel.layout import Kernel
from cspsched.simulate.kernel.records import NOBODY, Nothing, RequestNotes, new_own, new_records, set_column
from cspsched.simulate.kernel.rules import Batch, KernelRules, Order
from cspsched.simulate.kernel.workload import Int32Array, Workload

ROWS_A_REQUEST, MOST_ROWS = 32, 1 << 22
"""Rows of a log at first, seldom too few, and how many it gets at a time. Unused ones cost nothing."""


def new_kernel(workload: Workload, rules: AnyRules, prices: IntArray, *, plain: bool = False) -> Kernel:
    """Memory of a run at its beginning, nothing submitted yet; with plain objects for plain Python."""
    most = layout.most_running(rules, workload.num_requests)
    rows = max(min(ROWS_A_REQUEST * workload.num_requests, MOST_ROWS), 6 * most + 6)
    notes_decisions = isinstance(rules, EachRules) and rules.notes_decisions
    logs = _new_logs(rows, layout.DECIDED_NS + notes_decisions)
    if isinstance(rules, EachRules):
        return Kernel(prices=prices, **each_arrays(workload, rules, most, plain=plain), **logs)
    return Kernel(
        now=first_state(workload, rules, plain=plain),
        requests=_requests(workload, rules, plain=plain),
        own=new_own(Nothing(), plain=plain),
        cache=new_cache(workload, None, plain=plain),
        notes=new_records(RequestNotes, 1, plain=plain),
        orders=_orders(workload, rules),
        slots=_slots(rules, most),
        residues=np.zeros(rules.block_tokens, dtype=np.int32),
        calendar=np.full(1 << int(workload.output_tokens.max()).bit_length(), NOBODY, dtype=np.int32),
        prices=prices,
        **logs,
    )


def _requests(workload: Workload, rules: KernelRules, *, plain: bool) -> Any:
    requests = first_requests(workload, plain=plain)
    if rules.order not in (Order.ARRIVAL, Order.QUALITY):
        set_column(requests, "rank", workload.ranks(rules))
    if rules.order is Order.PRIORITY:
        set_column(requests, "importance", workload.importance())
    return requests


def _orders(workload: Workload, rules: KernelRules) -> Int32Array:
    submission = workload.submission_order()
    if rules.order is Order.ARRIVAL:
        return submission[:, np.newaxis]
    if rules.order is Order.QUALITY:
        orders = np.zeros((workload.num_requests, layout.AT_END + 1), dtype=np.int32)
        orders[:, layout.SUBMISSION] = submission
        return orders
    return np.stack((submission, workload.queue_order(rules), np.zeros_like(submission)), axis=1)


def _slots(rules: KernelRules, most: int) -> Int32Array:
    """Twice as many as can run, so that holes are closed after as many admissions as can run."""
    slots = np.full((2 * most + 2, layout.ENOUGH_WAIT + 1), NOBODY, dtype=np.int32)
    if rules.batch is Batch.WAITING_RATIO:
        # The product in floating point is the policy's own; a whole number reaches it where its ceiling does.
        enough = np.ceil(rules.waiting_ratio * np.arange(len(slots)))
        slots[:, layout.ENOUGH_WAIT] = np.minimum(enough, np.iinfo(np.int32).max)
    return slots


class Logs:
    """Rows logged so far; the kernel writes into the newest array of each log."""

    def __init__(self) -> None:
        self._full: dict[str, list[npt.NDArray[Any]]] = {"batch_ns": [], "batch_counts": [], "spans": []}

    def keep(self, kernel: Kernel) -> None:
        """Take over what a kernel has logged."""
        num_batches, num_spans = kernel.now.batch_row, kernel.now.span_row
        self._full["batch_ns"].append(kernel.batch_ns[:num_batches])
        self._full["batch_counts"].append(kernel.batch_counts[:num_batches])
        self._full["spans"].append(kernel.spans[:num_spans])

    def grow(self, kernel: Kernel) -> Kernel:
        """Take over what is logged and give the kernel new arrays."""
        self.keep(kernel)
        kernel.now.batch_row = kernel.now.span_row = 0
        rows = max(MOST_ROWS, 3 * len(kernel.slots))
        return kernel._replace(**_new_logs(rows, kernel.batch_ns.shape[1]))

    def last_batch(self, kernel: Kernel) -> tuple[int, list[int]]:
        """End and counts of the last batch; (-1, []) if there was none."""
        row, times, counts = kernel.now.batch_row, kernel.batch_ns, kernel.batch_counts
        if not row and self._full["batch_ns"]:
            times, counts = self._full["batch_ns"][-1], self._full["batch_counts"][-1]
            row = len(times)
        return (int(times[row - 1, 1]), counts[row - 1].tolist()) if row else (-1, [])

    def column(self, name: str) -> npt.NDArray[Any]:
        """All rows of a log in order; they are given away."""
        rows = self._full.pop(name)
        return rows[0] if len(rows) == 1 else np.concatenate(rows)


def _new_logs(rows: int, times: int) -> dict[str, Any]:
    return {
        "batch_ns": np.empty((rows, times), dtype=np.int64),
        "batch_counts": np.empty((rows, 6), dtype=np.int32),
        "spans": np.empty((rows, layout.BEFORE + 1), dtype=np.int32),
    }
