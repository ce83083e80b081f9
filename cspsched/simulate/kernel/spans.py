"""From spans to entries: a run of decodes becomes one entry a batch, in the order of the scheduler."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cspsched.problem.cost import IntArray
from cspsched.problem.schedule import Schedule
from cspsched.simulate.kernel.each.rules import AnyRules, EachRules
from cspsched.simulate.kernel.jit import compiled, outer
from cspsched.simulate.kernel.layout import (
    AMOUNT,
    BEFORE,
    EVICTION_SPAN,
    FIRST,
    KIND,
    RUN_SPAN,
    SPAN_NUMBER,
    SPAN_REQUEST,
)
from cspsched.simulate.kernel.rules import Batch
from cspsched.simulate.kernel.workload import Int32Array


def expand_spans(
    rules: AnyRules, batch_ns: IntArray, batch_counts: Int32Array, spans: Int32Array
) -> Schedule:
    """The schedule of a run from the kernel's logs (see `Kernel`), entries in the policy's order.

    Within a batch vLLM V1 goes by admission, the Sarathi family takes prefills first, the others decodes;
    within each kind, too, the order is that of admission. Of `EachRules` the numbers are the order.
    """
    sizes = batch_counts[:, 0].astype(np.int64) + batch_counts[:, 1]
    first_entry = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(sizes)))
    # Without blocks: preempted with the last token in flight, so nothing is lost.
    evictions = spans[(spans[:, KIND] == EVICTION_SPAN) & (spans[:, AMOUNT] > 0)]
    served = spans[spans[:, KIND] != EVICTION_SPAN]
    request, tokens, kv_tokens = np.empty((3, int(first_entry[-1])), dtype=np.int64)
    columns = (
        served[_policy_order(rules, served)],
        np.flatnonzero(batch_counts[:, 1]),
        first_entry[:-1].copy(),
    )
    compiled(fill_entries)(*columns, request, tokens, kv_tokens)
    return Schedule(
        start_ns=np.ascontiguousarray(batch_ns[:, 0]),
        end_ns=np.ascontiguousarray(batch_ns[:, 1]),
        first_entry=first_entry,
        request=request,
        tokens=tokens,
        kv_tokens=kv_tokens,
        evicted_batch=evictions[:, FIRST].astype(np.int64),
        evicted_request=evictions[:, SPAN_REQUEST].astype(np.int64),
    )


def _policy_order(rules: AnyRules, spans: Int32Array) -> npt.NDArray[np.intp]:
    """Order of spans in which each batch gets its entries."""
    number = spans[:, SPAN_NUMBER]
    if isinstance(rules, EachRules) or rules.batch is Batch.RUNNING_FIRST:
        return np.argsort(number, kind="stable")
    is_run = spans[:, KIND] == RUN_SPAN
    return np.lexsort((number, is_run if rules.prefills_first else ~is_run))


@outer
def fill_entries(
    spans: Int32Array,
    decode_batches: npt.NDArray[np.intp],
    next_entry: IntArray,
    request: IntArray,
    tokens: IntArray,
    kv_tokens: IntArray,
) -> None:
    """Append every span, in the order given, to the batches that it covers.

    Parameters
    ----------
    decode_batches
        Batch of each decode step.
    next_entry
        Next free entry of each batch; used up.
    """
    for position in range(len(spans)):
        span = spans[position]
        is_run = span[KIND] == RUN_SPAN
        for step in range(span[AMOUNT] if is_run else 1):
            batch = decode_batches[span[FIRST] + step] if is_run else span[FIRST]
            entry = next_entry[batch]
            next_entry[batch] += 1
            request[entry] = span[SPAN_REQUEST]
            tokens[entry] = 1 if is_run else span[AMOUNT]
            kv_tokens[entry] = span[BEFORE] + tokens[entry] + step
