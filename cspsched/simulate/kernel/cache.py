"""The prefix cache of a run at its beginning."""

from __future__ import annotations

import numpy as np

from cspsched.problem.cost import IntArray
from cspsched.problem.instance import Limits
from cspsched.problem.prefix import BlockContents
from cspsched.simulate.kernel.layout import Cache
from cspsched.simulate.kernel.records import (
    NO_REQUEST,
    BlockState,
    ContentState,
    PlaceState,
    new_records,
    set_column,
)
from cspsched.simulate.kernel.rules import Rules
from cspsched.simulate.kernel.workload import Workload


def num_places_of(workload: Workload, rules: Rules) -> IntArray:
    """KV blocks that each request may ever hold."""
    tokens = workload.prompt_tokens.astype(np.int64) + workload.output_tokens + rules.lookahead
    return -(-tokens // rules.block_tokens)


def first_places(workload: Workload, rules: Rules) -> IntArray:
    """Where the places of each request begin, one after the other."""
    counts = num_places_of(workload, rules)
    return np.cumsum(counts) - counts


def new_cache(workload: Workload, rules: Rules, *, plain: bool) -> Cache | None:
    """An empty prefix cache, all blocks free, in order; None where there is none."""
    if not rules.caches_prefixes:
        return None
    count, counts = rules.kv_blocks, num_places_of(workload, rules)
    limits = Limits(
        kv_blocks=count, block_tokens=rules.block_tokens, max_batch_tokens=1, max_batch_requests=1
    )
    contents = BlockContents(workload.prefixes or [()] * workload.num_requests, limits)
    content = contents.num_shared + np.arange(counts.sum())
    for request, first in enumerate(first_places(workload, rules).tolist()):
        shared = contents.shared(request)
        content[first : first + len(shared)] = shared
    blocks = new_records(BlockState, count, plain=plain)
    set_column(blocks, "next", np.append(np.arange(1, count), NO_REQUEST))
    set_column(blocks, "previous", np.arange(-1, count - 1))
    places = new_records(PlaceState, len(content), plain=plain)
    set_column(places, "content", content)
    num_contents = contents.num_shared + len(content)
    return Cache(blocks, new_records(ContentState, num_contents, plain=plain), places)
