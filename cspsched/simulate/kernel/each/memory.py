"""Memory of a run of the loops that visit every request."""

from __future__ import annotations

from typing import Any

import numpy as np

from cspsched.problem.cost import IntArray
from cspsched.problem.instance import Limits
from cspsched.problem.prefix import BlockContents
from cspsched.simulate.kernel import layout
from cspsched.simulate.kernel.each import layout as each
from cspsched.simulate.kernel.each.rules import EachRules
from cspsched.simulate.kernel.first import first_requests, first_state
from cspsched.simulate.kernel.records import (
    NOBODY,
    BlockState,
    ContentState,
    Now,
    PlaceState,
    RequestNotes,
    new_own,
    new_records,
    set_column,
)
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
        "cache": new_cache(workload, rules, plain=plain),
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
    now.calendar_mask = calendar_steps(workload) - 1
    now.free_host_blocks = rules.host_blocks
    now.last_free = rules.kv_blocks - 1
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
    if not (rules.keeps_notes or rules.host_blocks or rules.caches_prefixes or rules.flies):
        return new_records(RequestNotes, 1, plain=plain)
    notes = new_records(RequestNotes, workload.num_requests, plain=plain)
    if rules.clients:
        set_column(notes, "client", workload.clients_by_arrival())
    if rules.keeps_notes:
        set_column(notes, "priority", workload.priorities)
    if rules.caches_prefixes:
        counts = _num_places(workload, rules)
        set_column(notes, "first_place", np.cumsum(counts) - counts)
    if rules.has_deadlines:
        set_column(notes, "tier", workload.priorities)
        ttft_ns = _limits(workload.ttft_limit_ns, workload, rules.ttft_limit_ns)
        set_column(notes, "due_ns", workload.arrival_ns.astype(np.float64) + ttft_ns)
        set_column(notes, "token_ns", _limits(workload.tpot_limit_ns, workload, rules.tpot_limit_ns))
    return notes


def _num_places(workload: Workload, rules: EachRules) -> IntArray:
    """KV blocks that each request may ever hold."""
    tokens = workload.prompt_tokens.astype(np.int64) + workload.output_tokens + rules.lookahead
    return -(-tokens // rules.block_tokens)


def new_cache(workload: Workload, rules: EachRules | None, *, plain: bool) -> layout.Cache:
    """An empty prefix cache: all blocks free, in order; a record of each kind where there is none."""
    if rules is None or not rules.caches_prefixes:
        kinds = BlockState, ContentState, PlaceState
        return layout.Cache(*(new_records(kind, 1, plain=plain) for kind in kinds))
    count, num_places = rules.kv_blocks, _num_places(workload, rules)
    limits = Limits(
        kv_blocks=count, block_tokens=rules.block_tokens, max_batch_tokens=1, max_batch_requests=1
    )
    contents = BlockContents(workload.prefixes or [()] * workload.num_requests, limits)
    content = contents.num_shared + np.arange(num_places.sum())
    for request, first in enumerate((np.cumsum(num_places) - num_places).tolist()):
        shared = contents.shared(request)
        content[first : first + len(shared)] = shared
    blocks = new_records(BlockState, count, plain=plain)
    set_column(blocks, "next", np.append(np.arange(1, count), NOBODY))
    set_column(blocks, "previous", np.arange(-1, count - 1))
    places = new_records(PlaceState, len(content), plain=plain)
    set_column(places, "content", content)
    num_contents = contents.num_shared + len(content)
    return layout.Cache(blocks, new_records(ContentState, num_contents, plain=plain), places)


def _limits(limits_ns: FloatArray | None, workload: Workload, else_ns: float) -> FloatArray:
    """Limits of all requests, those that a policy gives where a request has none."""
    if limits_ns is None:
        return np.full(workload.num_requests, else_ns)
    return np.where(np.isnan(limits_ns), else_ns, limits_ns)
