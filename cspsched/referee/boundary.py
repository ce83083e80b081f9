"""The referee's rules for what happens at a boundary between batches: eviction, swap, prefix cache hits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cspsched.referee.history import History
from cspsched.referee.prefix import missing_hits
from cspsched.referee.violation import Violation, about, count_rest, first, report, report_batches
from cspsched.referee.walk import BoolArray


def check_preemption(history: History) -> Iterator[Violation]:
    """Rule 8: only a resident, unfinished request is evicted, and only in a way that is allowed."""
    schedule, preemption = history.schedule, history.instance.switches.preemption
    swapped = schedule.evicted_to_host != 0
    for what, count, allowed in (
        ("evictions", int((~swapped).sum()), preemption.recomputes),
        ("swaps", int(swapped.sum()), preemption.swaps),
    ):
        if count and not allowed:
            yield Violation(rule="preemption", message=f"{count} {what}, but preemption is {preemption}")
    yield from _evictions_where(history, history.kv_evicted == 0, "evicted but holds no KV cache")
    last = np.full(len(history.instance.requests), schedule.num_batches, dtype=np.int64)
    last[schedule.request[history.finishes]] = schedule.batch_of_entry[history.finishes]
    late = schedule.evicted_batch > last[schedule.evicted_request]
    yield from _evictions_where(history, late, "evicted after its last token")


def _evictions_where(history: History, broken: BoolArray, what: str) -> Iterator[Violation]:
    schedule = history.schedule
    for k in first(broken):
        i, j = int(schedule.evicted_request[k]), int(schedule.evicted_batch[k])
        yield about(history, "preemption", f"is {what}", request=i, batch=j)
    yield from count_rest("preemption", broken, f"requests are {what}")


def check_swap(history: History) -> Iterator[Violation]:
    """Rule 8: host memory holds what was swapped out, until it is restored; only then it is processed."""
    schedule, capacity = history.schedule, history.instance.limits.host_kv_blocks
    for k in first(history.kv_restored == 0):
        i, j = int(schedule.restored_request[k]), int(schedule.restored_batch[k])
        yield about(history, "swap", "is restored but not in host memory", request=i, batch=j)
    yield from count_rest("swap", history.kv_restored == 0, "restored requests are not in host memory")
    yield from report(
        "swap", history, history.on_host, lambda e: "is processed while its KV cache is in host memory"
    )
    in_use = history.host_blocks
    yield from report_batches(
        "swap",
        in_use > capacity,
        lambda j: f"{in_use[j]} KV blocks are in host memory in batch {j}, it offers {capacity}",
    )


def check_prefix_cache(history: History) -> Iterator[Violation]:
    """A hit gives full blocks to a request that holds nothing and is processed in the same batch.

    A request has computed their content, and all before it, in that batch or before.
    """
    if not history.schedule.uses_prefix_cache:
        return
    schedule, requests = history.schedule, len(history.instance.requests)
    processed = schedule.batch_of_entry * requests + schedule.request
    idle = ~np.isin(schedule.hit_batch * requests + schedule.hit_request, processed)
    partial = schedule.hit_tokens % history.instance.limits.block_tokens != 0
    for broken, what in (
        (history.hit_carries, "has a prefix cache hit but holds KV entries already"),
        (idle, "has a prefix cache hit but is not processed"),
        (partial, "has a prefix cache hit that is no number of full blocks"),
    ):
        for k in first(broken):
            i, j = int(schedule.hit_request[k]), int(schedule.hit_batch[k])
            yield about(history, "prefix cache", what, request=i, batch=j)
        yield from count_rest("prefix cache", broken, "hits break this rule")
    missing = missing_hits(history)
    unknown = np.array([block is not None for block in missing])
    for k in first(unknown):
        i, j = int(schedule.hit_request[k]), int(schedule.hit_batch[k])
        message = f"starts with cached tokens, but nobody has computed those of its block {missing[k]} before"
        yield about(history, "prefix cache", message, request=i, batch=j)
    yield from count_rest("prefix cache", unknown, "hits find what nobody has computed")
