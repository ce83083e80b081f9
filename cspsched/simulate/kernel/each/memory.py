"""Memory of a run of the loops that visit every request."""

from __future__ import annotations

from typing import Any

import numpy as np

from cspsched.problem.cost import IntArray
from cspsched.simulate.kernel import layout
from cspsched.simulate.kernel.each import layout as each
from cspsched.simulate.kernel.each.rules import EachRules, Loop, Mode
from cspsched.simulate.kernel.rules import Order
from cspsched.simulate.kernel.workload import FloatArray, Int32Array, Workload

LOCKSTEP_LOOPS = Loop.QUEUE, Loop.FAMILY, Loop.VLLM
"""Loops in which decodes run in lockstep wherever nothing speaks against it."""


def each_arrays(workload: Workload, rules: EachRules, most: int) -> dict[str, Any]:
    """Fields of `Kernel` but prices and logs for a run from its beginning, nothing submitted yet."""
    orders = np.zeros((workload.num_requests, layout.HEAP + 1), dtype=np.int32)
    orders[:, layout.SUBMISSION] = workload.submission_order()
    return {
        "now": _first_state(workload, rules),
        "rows": _rows(workload, rules),
        "wide": _wide(workload, rules),
        "orders": orders,
        "slots": np.full((2 * most + 2, each.NUM_SLOT), layout.NOBODY, dtype=np.int32),
        "residues": np.zeros(rules.block_tokens, dtype=np.int32),
        "calendar": _calendar(workload, rules),
    }


def _calendar(workload: Workload, rules: EachRules) -> Int32Array:
    """Who finishes at a decode step, modulo a power of two; behind it the chunks by stage."""
    empty = np.full(calendar_steps(workload), layout.NOBODY, dtype=np.int32)
    return np.concatenate((empty, np.array(rules.stages, dtype=np.int32)))


def calendar_steps(workload: Workload) -> int:
    """Decode steps that the calendar tells apart: more than any request takes."""
    return 1 << int(workload.output_tokens.max()).bit_length()


def _first_state(workload: Workload, rules: EachRules) -> IntArray:
    now = np.zeros(each.NUM_NOW, dtype=np.int64)
    now[layout.KV_BLOCKS : each.USED_TOKENS] = rules.codes
    now[layout.UNFINISHED] = workload.num_requests
    now[layout.FREE] = rules.kv_blocks
    now[layout.REFUSED] = layout.NOBODY
    now[each.IS_LOCKED] = rules.loop in LOCKSTEP_LOOPS
    now[each.LAST_PREFILL_STEP] = -rules.interval
    now[each.CALENDAR_MASK] = calendar_steps(workload) - 1
    now[each.SHARE] = np.float64(rules.ratio).view(np.int64)
    return now


def _rows(workload: Workload, rules: EachRules) -> Int32Array:
    rows = np.zeros((workload.num_requests, each.NUM_ROW), dtype=np.int32)
    rows[:, layout.PROMPT] = workload.prompt_tokens
    rows[:, layout.OUTPUT] = workload.output_tokens
    rows[:, each.LAST_STEP] = each.NO_RUN
    if rules.order is Order.PRIORITY:
        rows[workload.queue_order(rules), layout.RANK] = np.arange(workload.num_requests)
        rows[:, layout.IMPORTANCE] = workload.importance()
    if rules.clients:
        rows[:, each.QUEUE_OF_CLIENT] = layout.NOBODY
        rows[:, each.CLIENT] = workload.clients_by_arrival()
    return rows


def _wide(workload: Workload, rules: EachRules) -> IntArray:
    with_deadlines = rules.mode in (Mode.DEADLINES, Mode.RELEGATING)
    width = each.NUM_WIDE_WITH_DEADLINES if with_deadlines else each.NUM_WIDE
    wide = np.zeros((workload.num_requests, width), dtype=np.int64)
    wide[:, layout.ARRIVAL_NS] = workload.arrival_ns
    wide[:, layout.SCHEDULED_NS : layout.FINISH_NS + 1] = -1
    wide[:, each.KEY] = workload.places(rules.order)
    if rules.retracts_for:
        wide[:, each.KEY] = workload.places_by_priority(rules.order)
        wide[:, each.PRIORITY] = workload.priorities
    if with_deadlines:
        wide[:, each.TIER] = workload.priorities
        ttft_ns = _limits(workload.ttft_limit_ns, workload, rules.price)
        wide[:, each.DUE_NS] = (workload.arrival_ns.astype(np.float64) + ttft_ns).view(np.int64)
        wide[:, each.TOKEN_NS] = _limits(workload.tpot_limit_ns, workload, rules.output_price).view(np.int64)
    return wide


def _limits(limits_ns: FloatArray | None, workload: Workload, else_ns: float) -> FloatArray:
    """Limits of all requests, those that a policy gives where a request has none."""
    if limits_ns is None:
        return np.full(workload.num_requests, else_ns)
    return np.where(np.isnan(limits_ns), else_ns, limits_ns)
