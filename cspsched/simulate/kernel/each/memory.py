"""Memory of a run of the loops that visit every request."""

from __future__ import annotations

from typing import Any

import numpy as np

from cspsched.simulate.kernel import layout
from cspsched.simulate.kernel.each import layout as each
from cspsched.simulate.kernel.each.rules import EachRules
from cspsched.simulate.kernel.first import first_requests, first_state
from cspsched.simulate.kernel.records import NOBODY, Now, RequestNotes, new_own, new_records, set_column
from cspsched.simulate.kernel.rules import Order
from cspsched.simulate.kernel.workload import FloatArray, Int32Array, Workload


def each_arrays(workload: Workload, rules: EachRules, most: int, *, plain: bool) -> dict[str, Any]:
    """Fields of `Kernel` but prices and logs for a run from its beginning, nothing submitted yet."""
    orders = np.zeros((workload.num_requests, layout.HEAP + 1), dtype=np.int32)
    orders[:, layout.SUBMISSION] = workload.submission_order()
    return {
        "now": _first_state(workload, rules, plain=plain),
        "requests": _requests(workload, rules, plain=plain),
        "own": new_own(rules.own, plain=plain),
        "notes": _notes(workload, rules, plain=plain),
        "orders": orders,
        "slots": np.full((2 * most + 2, each.NUM_SLOT), NOBODY, dtype=np.int32),
        "residues": np.zeros(rules.block_tokens, dtype=np.int32),
        "calendar": _calendar(workload, rules),
    }


def _calendar(workload: Workload, rules: EachRules) -> Int32Array:
    """Who finishes at a decode step, modulo a power of two; behind it the chunks by stage."""
    empty = np.full(calendar_steps(workload), NOBODY, dtype=np.int32)
    return np.concatenate((empty, np.array(rules.stages, dtype=np.int32)))


def calendar_steps(workload: Workload) -> int:
    """Decode steps that the calendar tells apart: more than any request takes."""
    return 1 << int(workload.output_tokens.max()).bit_length()


def _first_state(workload: Workload, rules: EachRules, *, plain: bool) -> Now:
    now = first_state(workload, rules, plain=plain)
    now.is_locked = rules.lockstep
    now.last_prefill_step = -rules.interval
    now.calendar_mask = calendar_steps(workload) - 1
    now.free_host_blocks = rules.host_blocks
    return now


def _requests(workload: Workload, rules: EachRules, *, plain: bool) -> Any:
    requests = first_requests(workload, plain=plain)
    if rules.order is Order.PRIORITY:
        set_column(requests, "rank", workload.ranks(rules))
        set_column(requests, "importance", workload.importance())
    places = workload.places(rules.order) if rules.places is None else rules.places
    set_column(requests, "key", workload.by_priority(places) if rules.by_priority else places)
    return requests


def _notes(workload: Workload, rules: EachRules, *, plain: bool) -> Any:
    if not (rules.keeps_notes or rules.host_blocks):
        return new_records(RequestNotes, 1, plain=plain)
    notes = new_records(RequestNotes, workload.num_requests, plain=plain)
    if rules.clients:
        set_column(notes, "client", workload.clients_by_arrival())
    if rules.keeps_notes:
        set_column(notes, "priority", workload.priorities)
    if rules.has_deadlines:
        set_column(notes, "tier", workload.priorities)
        ttft_ns = _limits(workload.ttft_limit_ns, workload, rules.ttft_limit_ns)
        set_column(notes, "due_ns", workload.arrival_ns.astype(np.float64) + ttft_ns)
        set_column(notes, "token_ns", _limits(workload.tpot_limit_ns, workload, rules.tpot_limit_ns))
    return notes


def _limits(limits_ns: FloatArray | None, workload: Workload, else_ns: float) -> FloatArray:
    """Limits of all requests, those that a policy gives where a request has none."""
    if limits_ns is None:
        return np.full(workload.num_requests, else_ns)
    return np.where(np.isnan(limits_ns), else_ns, limits_ns)
