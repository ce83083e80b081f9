"""Memory of a run at its beginning."""

from __future__ import annotations

from typing import Any

import numpy as np

from cspsched.problem.cost import IntArray
from cspsched.simulate.kernel import layout
from cspsched.simulate.kernel.cache import first_places, new_cache
from cspsched.simulate.kernel.columns import NUM_SLOT
from cspsched.simulate.kernel.layout import BY_RANK, DECIDED_NS, SUBMISSION, Kernel
from cspsched.simulate.kernel.logs import MOST_ROWS, ROWS_A_REQUEST, new_logs
from cspsched.simulate.kernel.records import (
    NO_REQUEST,
    Now,
    RequestNotes,
    RequestState,
    new_own,
    new_records,
    rules_into,
    set_column,
)
from cspsched.simulate.kernel.rules import Order, Rules
from cspsched.simulate.kernel.workload import FloatArray, Int32Array, Workload


def new_kernel(workload: Workload, rules: Rules, prices: IntArray, *, plain: bool = False) -> Kernel:
    """Memory of a run at its beginning, nothing submitted yet; with plain objects for plain Python."""
    most = layout.most_running(rules, workload.num_requests)
    rows = max(min(ROWS_A_REQUEST * workload.num_requests, MOST_ROWS), 6 * most + 6)
    return Kernel(
        now=_first_state(workload, rules, plain=plain),
        requests=_requests(workload, rules, plain=plain),
        own=new_own(rules.own, plain=plain),
        notes=_notes(workload, rules, plain=plain),
        cache=new_cache(workload, rules, plain=plain),
        orders=_orders(workload, rules),
        # Twice as many as can run, so that holes are closed after as many admissions as can run.
        slots=np.full((2 * most + 2, NUM_SLOT), NO_REQUEST, dtype=np.int32),
        residues=np.zeros(rules.block_tokens, dtype=np.int32),
        calendar=_calendar(workload, rules),
        prices=prices,
        **new_logs(rows, DECIDED_NS + rules.notes_decisions, plain=plain),
    )


def _first_state(workload: Workload, rules: Rules, *, plain: bool) -> Now:
    """A replica to which nothing has been submitted, under a policy's rules."""
    now: Now = new_records(Now, 1, plain=plain)[0]
    rules_into(now, rules)
    now.num_arrivals = now.num_unfinished = workload.num_requests
    now.free_blocks, now.free_host_blocks = rules.kv_blocks, rules.host_blocks
    now.refused, now.refusal = NO_REQUEST, layout.PROMPT_REFUSED
    now.is_locked = rules.lockstep
    now.calendar_mask = _calendar_steps(workload) - 1
    now.last_free = rules.kv_blocks - 1
    return now


def _requests(workload: Workload, rules: Rules, *, plain: bool) -> Any:
    """Requests that wait for their arrival."""
    requests = new_records(RequestState, workload.num_requests, plain=plain)
    for name in ("prompt_tokens", "output_tokens", "arrival_ns"):
        set_column(requests, name, getattr(workload, name))
    set_column(requests, "expected_tokens", workload.expected_tokens(rules))
    if rules.ranks or rules.order is Order.PRIORITY:
        set_column(requests, "rank", workload.ranks(rules))
    if rules.order is Order.PRIORITY:
        set_column(requests, "importance", workload.importance())
    if not rules.ranks:
        places = workload.places(rules)
        set_column(requests, "key", workload.by_priority(places) if rules.by_priority else places)
    return requests


def _orders(workload: Workload, rules: Rules) -> Int32Array:
    orders = np.zeros((workload.num_requests, rules.order_columns), dtype=np.int32)
    orders[:, SUBMISSION] = workload.submission_order()
    if rules.ranks:
        orders[:, BY_RANK] = workload.queue_order(rules)
    return orders


def _calendar(workload: Workload, rules: Rules) -> Int32Array:
    """Who finishes at a decode step, modulo a power of two; behind it the chunks by stage."""
    empty = np.full(_calendar_steps(workload), NO_REQUEST, dtype=np.int32)
    return np.concatenate((empty, np.array(rules.stages, dtype=np.int32)))


def _calendar_steps(workload: Workload) -> int:
    """Decode steps that the calendar tells apart: more than any request takes."""
    return 1 << int(workload.output_tokens.max()).bit_length()


def _notes(workload: Workload, rules: Rules, *, plain: bool) -> Any:
    if not (rules.keeps_notes or rules.host_blocks or rules.caches_prefixes or rules.flies):
        return new_records(RequestNotes, 1, plain=plain)
    notes = new_records(RequestNotes, workload.num_requests, plain=plain)
    if rules.clients:
        set_column(notes, "client", workload.clients_by_arrival())
    if rules.keeps_notes:
        set_column(notes, "priority", workload.priorities)
    if rules.caches_prefixes:
        set_column(notes, "first_place", first_places(workload, rules))
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
