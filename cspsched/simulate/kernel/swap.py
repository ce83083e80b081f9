"""KV blocks that move between device and host memory, and what a batch waits for.

What a request has there stands in its notes. The blocks move at the boundary before the next batch.
"""

from __future__ import annotations

from cspsched.compiled.jit import inner
from cspsched.simulate.kernel.layout import (
    DECIDED_NS,
    DECODES,
    PREFILLS,
    QUEUED,
    RETURN_SPAN,
    SWAP_SPAN,
    Kernel,
)
from cspsched.simulate.kernel.prefix import CACHES, freed_by, take
from cspsched.simulate.kernel.runs import close_run, log_span


@inner
def swap_out(k: Kernel, request: int) -> None:
    """Evict a running request, which is not in the batch, to host memory: all its blocks, filled or not."""
    now, row, notes = k.now, k.requests[request], k.notes[request]
    close_run(k, request)
    now.num_evictions += 1
    row.evicted_at = now.decision
    log_span(k, SWAP_SPAN, request, now.num_batches, row.blocks, row.kv_tokens)
    row.num_preemptions += 1
    notes.host_tokens, notes.host_blocks = row.kv_tokens, row.blocks
    notes.decodes_on_host = row.phase == DECODES
    now.free_host_blocks -= row.blocks
    now.moved_blocks += row.blocks
    now.free_blocks += freed_by(k, request)
    now.num_running -= 1
    now.num_waiting += 1
    row.blocks = row.kv_tokens = 0
    row.phase = QUEUED


@inner
def swap_in(k: Kernel, request: int) -> None:
    """Bring a request back from host memory, into as many blocks as it held."""
    now, row, notes = k.now, k.requests[request], k.notes[request]
    if CACHES and now.caches_prefixes:
        take(k, request, int(notes.host_blocks))
    row.blocks, row.kv_tokens = notes.host_blocks, notes.host_tokens
    row.phase = DECODES if notes.decodes_on_host else PREFILLS
    log_span(k, RETURN_SPAN, request, now.num_batches, row.blocks, row.kv_tokens)
    now.free_host_blocks += row.blocks
    now.moved_blocks += row.blocks
    now.free_blocks -= row.blocks
    now.num_restored += 1
    now.num_running += 1
    now.num_waiting -= 1
    notes.host_tokens = 0


@inner
def await_moves(k: Kernel) -> None:
    """Let the batch that was decided wait for the blocks that move before it."""
    now = k.now
    if now.host_blocks:
        swap = k.prices[len(k.prices) - 1]
        k.batch_ns[now.batch_row, DECIDED_NS] = now.clock_ns
        now.clock_ns += (now.moved_blocks * swap[0] + swap[1] - 1) // swap[1]
        now.moved_blocks = 0
