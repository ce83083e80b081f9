"""Compiled: rules 1 to 3, 6 and 7 followed along the runs of a schedule, a run of decodes at a time.

A run is taken as a whole where every entry of it generates a token. Whatever else there is, or breaks a rule,
is left to the walk along the entries: here nothing is said of it but where it is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cspsched.compiled.jit import outer
from cspsched.problem.cost import IntArray
from cspsched.problem.runs import Column

BoolArray = npt.NDArray[np.bool_]

# Rows of `per_batch`: the features of `BatchFeatures` in their order, then changes of blocks and residents.
(
    TOKENS, ATTENTION, PREFILL_TOKENS, PREFILL_CONTEXT, DECODE_CONTEXT, NUM_GENERATING, NUM_PREFILLS,
    NUM_DECODES, BLOCKS, RESIDENTS,
) = range(10)  # fmt: skip
NUM_FEATURES = 8
# Rows of `per_step`: runs that begin less those that have ended; their KV entries at step 0, if they decoded
# then; and runs that cover the step and the one before.
BEGUN, CONTEXT, COVERING = range(3)


class Asked(NamedTuple):
    """What the requests ask for, and the blocks that each takes under reservation; 0 without."""

    prompt_tokens: IntArray
    output_tokens: IntArray
    arrival_ns: IntArray
    reserved_blocks: IntArray


class RunColumns(NamedTuple):
    """The columns of `Runs`."""

    request: Column
    is_decode_run: BoolArray
    first: Column
    length: Column
    tokens: Column
    kv_tokens: Column
    step_batch: npt.NDArray[np.intp]


class Boundaries(NamedTuple):
    """Times of batches, and evictions in the order of (request, batch).

    Those of a request are `next_eviction:last_eviction`; the first number rises as they are met.
    """

    start_ns: IntArray
    end_ns: IntArray
    evicted_batch: IntArray
    next_eviction: IntArray
    last_eviction: IntArray


class Followed(NamedTuple):
    """State of the requests: 0 and false at the beginning, and -1."""

    kv: IntArray
    generated: IntArray
    decoding: BoolArray
    last_batch: IntArray


class Found(NamedTuple):
    """What is found; zeros at the beginning. A lone gap lies before the first token of a run or chunk."""

    first_token_ns: IntArray
    last_token_ns: IntArray
    kv_evicted: IntArray
    per_batch: IntArray
    per_step: IntArray
    lone_gaps: IntArray


@outer
def walk_runs(
    asked: Asked,
    block_tokens: int,
    runs: RunColumns,
    boundaries: Boundaries,
    followed: Followed,
    found: Found,
) -> int:
    """Number of lone gaps; or -1 - the number of the first run that is not plainly right."""
    prompt_tokens, output_tokens, arrival_ns, reserved_blocks = asked
    request, is_decode_run, first, length, tokens, kv_tokens, step_batch = runs
    start_ns, end_ns, evicted_batch, next_eviction, last_eviction = boundaries
    kv, generated, decoding, last_batch = followed
    first_token_ns, last_token_ns, kv_evicted, per_batch, per_step, lone_gaps = found
    num_gaps = 0
    for run in range(len(request)):
        i = request[run]
        if i < 0 or i >= len(prompt_tokens):
            return -1 - run
        count = length[run]
        begin = step_batch[first[run]] if is_decode_run[run] else np.int64(first[run])
        end = step_batch[first[run] + count - 1] if is_decode_run[run] else begin
        if begin <= last_batch[i]:
            return -1 - run
        while next_eviction[i] < last_eviction[i] and evicted_batch[next_eviction[i]] <= begin:
            k = next_eviction[i]
            if evicted_batch[k] <= last_batch[i] or kv[i] == 0:
                return -1 - run
            kv_evicted[k] = kv[i]
            blocks = reserved_blocks[i] if reserved_blocks[i] else -(-kv[i] // block_tokens)
            per_batch[BLOCKS, evicted_batch[k]] -= blocks
            per_batch[RESIDENTS, evicted_batch[k]] -= 1
            kv[i], decoding[i] = 0, False
            next_eviction[i] += 1
        before, amount = kv[i], np.int64(tokens[run])
        known = prompt_tokens[i] + generated[i]
        if generated[i] >= output_tokens[i] or start_ns[begin] < arrival_ns[i]:
            return -1 - run
        if amount < 1 or amount > known - before or kv_tokens[run] != before + amount:
            return -1 - run
        generates = amount == known - before
        if generated[i] and generates:
            lone_gaps[num_gaps] = end_ns[begin] - last_token_ns[i]
            num_gaps += 1
        if is_decode_run[run]:
            if not generates or not decoding[i] or amount != 1 or generated[i] + count > output_tokens[i]:
                return -1 - run
            step = np.int64(first[run])
            per_step[BEGUN, step] += 1
            per_step[BEGUN, step + count] -= 1
            per_step[CONTEXT, step] += before - step
            per_step[CONTEXT, step + count] -= before - step
            per_step[COVERING, step + 1] += 1
            per_step[COVERING, step + count] -= 1
            if not reserved_blocks[i]:
                for later in range(-before % block_tokens, count, block_tokens):
                    per_batch[BLOCKS, step_batch[step + later]] += 1
            kv[i] += count
            generated[i] += count
        else:
            after = before + amount
            per_batch[TOKENS, begin] += amount
            per_batch[NUM_GENERATING, begin] += generates
            if decoding[i]:
                per_batch[NUM_DECODES, begin] += 1
                per_batch[DECODE_CONTEXT, begin] += before
            else:
                per_batch[NUM_PREFILLS, begin] += 1
                per_batch[PREFILL_TOKENS, begin] += amount
                per_batch[PREFILL_CONTEXT, begin] += before
                per_batch[ATTENTION, begin] += after * (after + 1) // 2 - before * (before + 1) // 2
            if before == 0:
                per_batch[RESIDENTS, begin] += 1
                per_batch[BLOCKS, begin] += reserved_blocks[i]
            if not reserved_blocks[i]:
                per_batch[BLOCKS, begin] += -(-after // block_tokens) - -(-before // block_tokens)
            if generates and not generated[i]:
                first_token_ns[i] = end_ns[begin]
            kv[i], decoding[i] = after, generates
            generated[i] += generates
        if generates:
            last_token_ns[i] = end_ns[end]
        last_batch[i] = end
        if generated[i] == output_tokens[i]:
            blocks = reserved_blocks[i] if reserved_blocks[i] else -(-kv[i] // block_tokens)
            per_batch[BLOCKS, end + 1] -= blocks
            per_batch[RESIDENTS, end + 1] -= 1
            kv[i], decoding[i] = 0, False
    return num_gaps
