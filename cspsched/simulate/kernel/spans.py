"""From the kernel's spans to the runs of a schedule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cspsched.problem.cost import IntArray
from cspsched.problem.runs import Column, Runs, RunSchedule
from cspsched.problem.schedule import Schedule
from cspsched.simulate.kernel.layout import (
    AMOUNT,
    BEFORE,
    EVICTION_SPAN,
    FIRST,
    HIT_SPAN,
    KIND,
    RETURN_SPAN,
    RUN_SPAN,
    SPAN_NUMBER,
    SPAN_REQUEST,
    SWAP_SPAN,
)
from cspsched.simulate.kernel.rules import Entries, Rules
from cspsched.simulate.kernel.workload import Int32Array


def expand_spans(rules: Rules, batch_ns: IntArray, batch_counts: Int32Array, spans: Int32Array) -> Schedule:
    """The schedule of a run from the kernel's logs (see `Kernel`), entries in the policy's order."""
    # Without blocks: preempted with the last token in flight, so nothing is lost.
    kind = spans[:, KIND]
    evictions = spans[((kind == EVICTION_SPAN) & (spans[:, AMOUNT] > 0)) | (kind == SWAP_SPAN)]
    served = spans[kind <= RUN_SPAN]
    is_run = served[:, KIND] == RUN_SPAN
    tokens = np.where(is_run, 1, served[:, AMOUNT]).astype(np.int32)
    runs = Runs(
        request=np.ascontiguousarray(served[:, SPAN_REQUEST]),
        is_decode_run=is_run,
        first=np.ascontiguousarray(served[:, FIRST]),
        length=np.where(is_run, served[:, AMOUNT], 1).astype(np.int32),
        tokens=tokens,
        kv_tokens=served[:, BEFORE] + tokens,
        rank=_rank(rules, served),
        step_batch=np.flatnonzero(batch_counts[:, 1]),
    )
    schedule = RunSchedule.of(
        runs,
        start_ns=np.ascontiguousarray(batch_ns[:, 0]),
        end_ns=np.ascontiguousarray(batch_ns[:, 1]),
        evicted_batch=evictions[:, FIRST].astype(np.int64),
        evicted_request=evictions[:, SPAN_REQUEST].astype(np.int64),
    )
    if not (kind > EVICTION_SPAN).any():
        return schedule
    returns, hits = spans[kind == RETURN_SPAN], spans[kind == HIT_SPAN]
    return replace(
        schedule,
        evicted_to_host=(evictions[:, KIND] == SWAP_SPAN).astype(np.int64),
        restored_batch=returns[:, FIRST].astype(np.int64),
        restored_request=returns[:, SPAN_REQUEST].astype(np.int64),
        hit_batch=hits[:, FIRST].astype(np.int64),
        hit_request=hits[:, SPAN_REQUEST].astype(np.int64),
        hit_tokens=hits[:, AMOUNT].astype(np.int64),
    )


def _rank(rules: Rules, spans: Int32Array) -> Column:
    """Order of spans in which each batch gets its entries."""
    number = np.ascontiguousarray(spans[:, SPAN_NUMBER])
    if rules.entries is Entries.BY_NUMBER:
        return number
    is_run = spans[:, KIND] == RUN_SPAN
    comes_last = is_run if rules.entries is Entries.PREFILLS_FIRST else ~is_run
    return np.asarray(comes_last * (np.int64(1) << 32) + number)
