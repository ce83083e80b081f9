"""Memory of the kernel: records (`kernel.records`), lists and logs.

Requests that decode in lockstep change no record from step to step: one that entered with `kv_tokens` at
decode step `since` has kv_tokens + now.num_decode_steps - since of them now. What a step needs of all of them
together is in `now` (count, sum of contexts) and `residues` (contexts modulo the block). A loop that chooses
per request every step can work on the same records with `HELD` in place of `DECODES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from cspsched.problem.cost import IntArray
from cspsched.simulate.kernel.records import (
    BlockState,
    ContentState,
    Now,
    PlaceState,
    RequestNotes,
    RequestState,
)
from cspsched.simulate.kernel.rules import Rules
from cspsched.simulate.kernel.workload import Int32Array

# Values of `phase`: in the queue (or finished), prefill, decode in lockstep, decode that sits out.
QUEUED, PREFILLS, DECODES, HELD = range(4)
# Columns of `orders`: ENDED holds the requests whose ends are known and were not told, in that order. Those
# after it serve a queue by quality.
SUBMISSION, BY_RANK, HEAP, ENDED = range(4)
# Column of `batch_ns` that is there if batches are decided before they start.
DECIDED_NS = 2
# Columns of `spans`, and kinds: a chunk before the last, a last chunk, a run of decodes; an eviction, one to
# host memory, a return from there; tokens found in the prefix cache.
KIND, SPAN_REQUEST, SPAN_NUMBER, FIRST, AMOUNT, BEFORE = range(6)
CHUNK_SPAN, LAST_CHUNK_SPAN, RUN_SPAN, EVICTION_SPAN, SWAP_SPAN, RETURN_SPAN, HIT_SPAN = range(7)

# Answers of the loop.
FINISHED, LOG_FULL, STUCK, LIVELOCK, PROMPT_REFUSED, TOO_LONG, NO_HOST_ROOM, HOST_FULL = range(8)
FIRST_QUESTION = 16
"""From here on the answer is a question to a policy in Python."""
ASK_MACHINE = 20
"""The question to a machine: when the batch that was decided starts and ends."""
LAST_CLOCK_NS = 2**61
LAST_COUNT = 2**31 - 2**27
"""Batches and admissions are counted in 32 bits."""
MAX_FRUITLESS = 100


class Cache(NamedTuple):
    """The prefix cache."""

    blocks: Sequence[BlockState]
    contents: Sequence[ContentState]
    places: Sequence[PlaceState]
    """Of all requests, one after the other."""


class Kernel(NamedTuple):
    """Everything that a run reads and writes; requests are positions in the workload.

    Few arrays, since compilation takes as long as there are many: 32 bits wherever they are enough.
    """

    now: Now
    """The state as a whole, and the rules."""
    requests: Sequence[RequestState]
    """A record for each request; times that have not come are -1."""
    own: Any
    """What the policy alone reads and writes (`Rules.own`)."""
    notes: Sequence[RequestNotes]
    """A record for each request, or a single one where the policy keeps nothing of them."""
    cache: Any
    """A `Cache`, or None."""
    orders: Int32Array
    """Shape (num_requests, 3), or (num_requests, 1) if the queue is in order of arrival: requests by
    (arrival, file); requests in the order of the queue; a heap of ranks in that order. If the queue is by
    quality (num_requests, 10): the third is the queue, the rest is room for what `kernel.quality` sorts."""
    slots: Int32Array
    """Lists of running requests, a column each: all in order of admission, with holes (-1) where requests
    left; those with prefill left, in that order, and the tokens that each gets in this batch; those whose
    prefill ends in this batch; preempted ones, the last to be served first; those that decode, last to finish
    first; what those that do not decode yet will add and hold; for TGI, by the number of running requests,
    how many waiting ones are enough."""
    residues: Int32Array
    """Decodes by (context + shift) modulo the block size: those of residue `now.shift` take a block."""
    calendar: Int32Array
    """First request that finishes at each decode step, modulo its length (a power of two)."""
    prices: IntArray
    """The flat cost model (see `flatten_cost`), shape (1 + num_terms + num_knots, 4)."""
    batch_ns: IntArray
    """Log: start and end; when it was decided, if that may be before its start."""
    batch_counts: Int32Array
    """Log: prefills, decodes, prefill tokens, blocks held, waiting, running."""
    spans: Int32Array
    """Log: kind; request; number of its admission; batch (of a run: first decode step); tokens (of a run:
    steps; of an eviction: blocks, 0 if the last token is in flight and nothing lost); context before."""


def most_running(rules: Rules, num_requests: int) -> int:
    """Most requests that ever run at a time: each holds a block."""
    return min(rules.most_holders, num_requests, rules.kv_blocks)
