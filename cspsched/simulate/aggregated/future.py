"""Compiled: whether the memory of all running requests fits at every future completion (MC-SF, LightLLM).

Memory only grows until the next request finishes, so its peak lies just before one of the completions.
Decodes stand sorted by that; requests that do not decode yet, few at a time, are merged in.
"""

from __future__ import annotations

from cspsched.compiled.jit import inner
from cspsched.simulate.aggregated.batch import peak_blocks
from cspsched.simulate.aggregated.columns import GENERATING, NEW_TO_COME, NEW_TOKENS, SORTED, STARTED
from cspsched.simulate.kernel.actions import blocks_of, known_tokens
from cspsched.simulate.kernel.layout import DECODES, Kernel


@inner
def future_fits(k: Kernel, request: int) -> bool:
    """Whether the peak with one more request leaves enough free."""
    block, most = k.now.block_tokens, k.now.kv_blocks - k.own.future_spare
    if k.own.peak_blocks + peak_blocks(k, request) <= most:
        return True
    count = _sort_new(k, request)
    alive = held = new = decode = 0
    num_decodes = k.now.num_decodes
    while new < count or decode < num_decodes:
        if decode < num_decodes:
            to_come, tokens = _outlook(k, int(k.slots[decode, SORTED]))
        if decode == num_decodes or (new < count and k.slots[new, NEW_TO_COME] >= to_come):
            to_come, tokens = int(k.slots[new, NEW_TO_COME]), int(k.slots[new, NEW_TOKENS])
            new += 1
        else:
            decode += 1
        alive += 1
        held += tokens
        # Between full blocks throughout and a block cut into by each: the exact sum is seldom needed.
        if (held + alive * (to_come + block - 1)) // block <= most:
            continue
        tokens = held + alive * to_come
        if tokens > most * block or _blocks_at(k, new, decode, to_come) > most:
            return False
    return True


@inner
def _outlook(k: Kernel, request: int) -> tuple[int, int]:
    """Tokens that a request is expected to add and that it holds, one more if it does not decode yet.

    One that has outlived what was expected of it counts as about to finish.
    """
    row = k.requests[request]
    generated, context, extra = int(row.generated), known_tokens(k, request), int(k.own.future_extra)
    if row.phase == DECODES:
        steps = int(k.now.num_decode_steps) - int(row.since)
        generated, context, extra = generated + steps, int(row.kv_tokens) + steps + 1, 0
    return max(int(row.expected_tokens) - generated - 1, 0), context + extra


@inner
def _sort_new(k: Kernel, request: int) -> int:
    """Sort the head of the queue and the requests that run and do not decode yet; return their number."""
    count = 0
    for position in range(k.now.num_generating + k.own.num_started + 1):
        if position < k.now.num_generating:
            to_come, tokens = _outlook(k, int(k.slots[position, GENERATING]))
        elif position < k.now.num_generating + k.own.num_started:
            to_come, tokens = _outlook(k, int(k.slots[0, STARTED]))
        else:
            to_come, tokens = _outlook(k, request)
        place = count
        while place and k.slots[place - 1, NEW_TO_COME] < to_come:
            k.slots[place, NEW_TO_COME] = k.slots[place - 1, NEW_TO_COME]
            k.slots[place, NEW_TOKENS] = k.slots[place - 1, NEW_TOKENS]
            place -= 1
        k.slots[place, NEW_TO_COME], k.slots[place, NEW_TOKENS] = to_come, tokens
        count += 1
    return count


@inner
def _blocks_at(k: Kernel, num_new: int, num_decodes: int, steps: int) -> int:
    """KV blocks of the requests that finish last, so many steps from now."""
    blocks = 0
    for position in range(num_new):
        blocks += blocks_of(k, int(k.slots[position, NEW_TOKENS]) + steps)
    for position in range(num_decodes):
        blocks += blocks_of(k, _outlook(k, int(k.slots[position, SORTED]))[1] + steps)
    return blocks
