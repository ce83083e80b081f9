"""Compiled: how a prefill is cut, what an admission takes, and the tests that it has to pass (`QueueRun`)."""

from __future__ import annotations

from cspsched.simulate.kernel.batch import blocks_of
from cspsched.simulate.kernel.each.batch import bit_length, decodes, known_tokens
from cspsched.simulate.kernel.each.layout import (
    ASSUMED_TOKENS,
    BATCH_TOKENS,
    BATCHED,
    CUT,
    DECODES_FOLLOW,
    GROUP_LEFT,
    GROUPS,
    HELD_TOKENS,
    IS_FULL,
    LEARNS_LENGTHS,
    LENGTH_COUNT,
    LENGTH_SUM,
    LENGTH_THRESHOLD,
    LISTED,
    MIXES_DECODES,
    MODE,
    MOST_PREFILL,
    NUM_BATCHED,
    NUM_LISTED,
    RATIO,
    RESERVES,
    SHARE,
    SPARE_BLOCKS,
    TEST,
    TO_COME,
    TOKENS,
    TOTAL_TOKENS,
    USED_TOKENS,
)
from cspsched.simulate.kernel.each.lists import get_float, set_float
from cspsched.simulate.kernel.each.rules import Mode
from cspsched.simulate.kernel.jit import inner
from cspsched.simulate.kernel.layout import (
    BLOCK_TOKENS,
    BLOCKS,
    CONTEXT,
    EVICTIONS,
    FREE,
    GENERATED,
    KV_BLOCKS,
    MAX_RUNNING,
    MAX_TOKENS,
    OUTPUT,
    PROMPT,
    SUBMISSION,
    SUBMITTED,
    WAITING,
    Kernel,
)
from cspsched.simulate.kernel.rules import Admit, Chunk, Reserve

NEVER, WHOLE_BLOCKS, BEYOND = int(Chunk.NEVER), int(Chunk.WHOLE_BLOCKS), int(Chunk.BEYOND_BUDGET)
PEAK, WHOLE_OUTPUT = int(Reserve.PEAK), int(Reserve.OUTPUT)
SGLANG_MODE = int(Mode.SGLANG)
FUTURE = int(Admit.FUTURE)
DECAY_STEPS, RETRACT_STEPS, LEAST_SHARE, MOST_NEW_TOKENS = 600, 20, 0.14, 4096
"""SGLang's constants; see `cspsched.policies.sglang`."""


@inner
def growth(k: Kernel, request: int) -> int:
    """Blocks that a running request takes to process one more token: 1 if all its blocks are full."""
    row = k.rows[request]
    return 1 if row[CONTEXT] == row[BLOCKS] * k.now[BLOCK_TOKENS] else 0


@inner
def growing_blocks(k: Kernel) -> int:
    """KV blocks that the running requests lack to decode a token each."""
    blocks = 0
    for position in range(k.now[NUM_LISTED]):
        blocks += growth(k, int(k.slots[position, LISTED]))
    return blocks


@inner
def most_blocks(k: Kernel, tokens: int) -> int:
    """KV blocks of a number of tokens, at most the whole device."""
    return min(blocks_of(k, tokens), int(k.now[KV_BLOCKS]))


@inner
def reserved_tokens(k: Kernel, request: int) -> int:
    """Tokens whose KV blocks a request takes at its admission."""
    row, mode = k.rows[request], k.now[RESERVES]
    if mode == PEAK:
        return int(row[PROMPT]) + int(row[OUTPUT]) - 1
    if mode == WHOLE_OUTPUT:
        return int(row[PROMPT]) + int(row[OUTPUT])
    return known_tokens(k, request)


@inner
def chunk_tokens(k: Kernel, lacking: int) -> int:
    """Tokens of a prefill that go into this batch: all, or what the budget leaves if it may be cut."""
    now = k.now
    if now[MODE] == SGLANG_MODE:
        return _sglang_chunk(k, lacking)
    budget, mode = now[MAX_TOKENS] - now[USED_TOKENS], now[CUT]
    if lacking <= budget:
        return lacking
    if mode == NEVER or budget <= 0 or (mode == BEYOND and lacking <= now[MAX_TOKENS]):
        return 0
    if mode == WHOLE_BLOCKS:
        return int(budget // now[BLOCK_TOKENS] * now[BLOCK_TOKENS])
    return int(budget)


@inner
def _sglang_chunk(k: Kernel, lacking: int) -> int:
    """The whole prompt, or whole blocks of it; others in the batch count in whole blocks."""
    now = k.now
    block, taken, num_decodes = int(now[BLOCK_TOKENS]), 0, 0
    for position in range(now[NUM_BATCHED]):
        taken += blocks_of(k, int(k.rows[k.slots[position, BATCHED], TOKENS])) * block
    if now[MIXES_DECODES]:
        for position in range(now[NUM_LISTED]):
            num_decodes += decodes(k, int(k.slots[position, LISTED]))
        taken += num_decodes
    if taken and taken + lacking > now[MOST_PREFILL]:
        return 0
    budget = max(min(now[MAX_TOKENS] - taken, now[BATCH_TOKENS] - now[USED_TOKENS] - num_decodes), 0)
    if lacking <= budget:
        return lacking
    return 0 if now[CUT] == NEVER else int(budget // block * block)


@inner
def fits(k: Kernel, request: int) -> bool:
    """Whether the head of the queue may be admitted beside the running requests."""
    now = k.now
    if now[MODE] == SGLANG_MODE:
        now[IS_FULL] = not _sglang_has_room(k, request)
        return not now[IS_FULL]
    if now[GROUPS]:
        return bool(now[GROUP_LEFT])
    if now[TEST] == FUTURE:
        return _fits_for_ever(k, request)
    if now[TOTAL_TOKENS] and not _fits_total(k, request):
        return False
    spare = now[FREE] - (growing_blocks(k) if now[DECODES_FOLLOW] else 0)
    needed = reserved_tokens(k, request)
    if now[LEARNS_LENGTHS]:
        needed = max(needed, _expected_tokens(k, int(k.rows[request, PROMPT])))
    return bool(most_blocks(k, needed) <= spare)


@inner
def _expected_tokens(k: Kernel, prompt: int) -> int:
    """Mean length of finished requests of like prompt, rounded up; 0 if it is not to be looked at."""
    bits = bit_length(prompt)
    count = int(k.now[LENGTH_COUNT + bits])
    if prompt < k.now[LENGTH_THRESHOLD] or not count:
        return 0
    return (int(k.now[LENGTH_SUM + bits]) + count - 1) // count


@inner
def _fits_total(k: Kernel, request: int) -> bool:
    """Whether input and output of all that run stay within the limit."""
    total = k.rows[request, PROMPT] + k.rows[request, OUTPUT]
    for position in range(k.now[NUM_LISTED]):
        row = k.rows[k.slots[position, LISTED]]
        total += row[PROMPT] + row[OUTPUT]
    return bool(total <= k.now[TOTAL_TOKENS])


@inner
def form_group(k: Kernel) -> None:
    """When the last group has finished, the next: the first in order of arrival whose reservations fit."""
    now = k.now
    if now[NUM_LISTED] or now[GROUP_LEFT]:
        return
    free, first = now[FREE], now[SUBMITTED] - now[WAITING]
    for position in range(min(now[WAITING], now[MAX_RUNNING])):
        request = int(k.orders[first + position, SUBMISSION])
        free -= most_blocks(k, reserved_tokens(k, request))
        if free < 0:
            break
        now[GROUP_LEFT] += 1


@inner
def _fits_for_ever(k: Kernel, request: int) -> bool:
    """Whether the peak of all that run and one more leaves enough free, if each decodes in every batch."""
    now = k.now
    most, needed, count = now[KV_BLOCKS] - now[SPARE_BLOCKS], 0, now[NUM_LISTED]
    is_busy = now[KV_BLOCKS] - now[FREE] >= get_float(k, RATIO) * now[KV_BLOCKS]
    for position in range(count + 1):
        other = int(k.slots[position, LISTED]) if position < count else request
        row = k.rows[other]
        longest = int(row[OUTPUT])
        if not is_busy:
            longest = min(longest, max(int(row[GENERATED]) * 11 // 10, int(now[ASSUMED_TOKENS])))
        to_come = max(0, longest - int(row[GENERATED]) - 1)
        held = known_tokens(k, other) + (not decodes(k, other))
        k.slots[position, TO_COME], k.slots[position, HELD_TOKENS] = to_come, held
        needed += blocks_of(k, held + to_come)
    return bool(needed <= most) or _peak_fits(k, int(count) + 1, int(most))


@inner
def _peak_fits(k: Kernel, count: int, most: int) -> bool:
    """Whether the blocks fit before each of the ends, the last end first."""
    _sort_by_end(k, count)
    block, held = int(k.now[BLOCK_TOKENS]), 0
    for alive in range(1, count + 1):
        steps = int(k.slots[alive - 1, TO_COME])
        held += int(k.slots[alive - 1, HELD_TOKENS])
        # Between full blocks throughout and a block cut into by each: the exact sum is seldom needed.
        if (held + alive * (steps + block - 1)) // block <= most:
            continue
        if held + alive * steps > most * block:
            return False
        blocks = 0
        for position in range(alive):
            blocks += blocks_of(k, int(k.slots[position, HELD_TOKENS]) + steps)
        if blocks > most:
            return False
    return True


@inner
def _sort_by_end(k: Kernel, count: int) -> None:
    """Sort what requests hold and will add, who adds most first."""
    for position in range(1, count):
        to_come, held = k.slots[position, TO_COME], k.slots[position, HELD_TOKENS]
        place = position
        while place and k.slots[place - 1, TO_COME] < to_come:
            k.slots[place, TO_COME] = k.slots[place - 1, TO_COME]
            k.slots[place, HELD_TOKENS] = k.slots[place - 1, HELD_TOKENS]
            place -= 1
        k.slots[place, TO_COME], k.slots[place, HELD_TOKENS] = to_come, held


@inner
def _sglang_has_room(k: Kernel, request: int) -> bool:
    """Whether there is room for a request and the outputs that are set aside."""
    now = k.now
    whole = shared = 0
    for position in range(now[NUM_LISTED]):
        row = k.rows[k.slots[position, LISTED]]
        left = min(int(row[OUTPUT] - row[GENERATED]), MOST_NEW_TOKENS)
        if row[TOKENS]:
            whole += left
        else:
            shared += left
    free = now[FREE] - (growing_blocks(k) if now[MIXES_DECODES] else 0)
    left = min(int(k.rows[request, OUTPUT] - k.rows[request, GENERATED]), MOST_NEW_TOKENS)
    needed = known_tokens(k, request) + left + now[BLOCK_TOKENS]
    return bool(needed < free * now[BLOCK_TOKENS] - (whole + get_float(k, SHARE) * shared))


@inner
def update_share(k: Kernel) -> None:
    """Decay, or after a retraction expect a few more tokens of everybody than have been generated."""
    now, first = k.now, get_float(k, RATIO)
    if not now[EVICTIONS]:
        least = LEAST_SHARE * first
        set_float(k, SHARE, max(get_float(k, SHARE) - (first - least) / DECAY_STEPS, least))
        return
    now[IS_FULL] = 0
    generated = outputs = 0
    for position in range(now[NUM_LISTED]):
        row = k.rows[k.slots[position, LISTED]]
        generated += row[GENERATED]
        outputs += row[OUTPUT]
    set_float(k, SHARE, min(1.0, (generated + RETRACT_STEPS * now[NUM_LISTED]) / (outputs + 1)))
