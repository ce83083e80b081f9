"""What a compiled policy of one's own is made of: marks, rules, parts of a step, actions on requests.

The functions are plain Python over the records of a run (`k.now`, `k.requests[i]`, `k.own`), which numba
compiles as they are. See docs/adding_a_policy.md.
"""

from cspsched.compiled.jit import inner, merged
from cspsched.policies.batching import (
    chunk_tokens,
    decode,
    decode_with,
    fits,
    growing_blocks,
    last_in_order,
    newest,
    prefill,
    prefill_with,
    queue_rules,
    reserved_tokens,
    rules_by_request,
    submit_to_queue,
)
from cspsched.policies.ranking import ranked_chunk, ranked_rules, serve, serve_with
from cspsched.simulate.kernel.actions import (
    blocks_of,
    decodes,
    evicted_now,
    known_tokens,
    lacking_tokens,
    missing_blocks,
    preempt,
    schedule,
)
from cspsched.simulate.kernel.cancel import cancel_with
from cspsched.simulate.kernel.columns import LISTED
from cspsched.simulate.kernel.layout import Kernel
from cspsched.simulate.kernel.lists import head, next_arrival, next_number, numbered_key, pop, push
from cspsched.simulate.kernel.loops import make_loop
from cspsched.simulate.kernel.rules import Chunk, Order, Reserve, Rules

__all__ = [
    "LISTED",
    "Chunk",
    "Kernel",
    "Order",
    "Reserve",
    "Rules",
    "blocks_of",
    "cancel_with",
    "chunk_tokens",
    "decode",
    "decode_with",
    "decodes",
    "evicted_now",
    "fits",
    "growing_blocks",
    "head",
    "inner",
    "known_tokens",
    "lacking_tokens",
    "last_in_order",
    "make_loop",
    "merged",
    "missing_blocks",
    "newest",
    "next_arrival",
    "next_number",
    "numbered_key",
    "pop",
    "preempt",
    "prefill",
    "prefill_with",
    "push",
    "queue_rules",
    "ranked_chunk",
    "ranked_rules",
    "reserved_tokens",
    "rules_by_request",
    "schedule",
    "serve",
    "serve_with",
    "submit_to_queue",
]
