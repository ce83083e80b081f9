"""Batch counts: the numbers of problem.md, and a request's consumption against all ways to cut its prompt."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.bounds import BatchCount, batch_count_bound
from cspsched.bounds.parts.batches import consume, earlier_chunks
from cspsched.problem.instance import Limits
from cspsched.problem.request import Request
from tests.oracles.naive_bounds import chunkings, fewest_blocks


def identical_requests(count, prompt, output):
    """Requests of one shape, all at 0."""
    return [
        Request(request_id=f"r{k}", arrival_ns=0, prompt_tokens=prompt, output_tokens=output)
        for k in range(count)
    ]


@pytest.mark.parametrize(("capacity", "batches"), [(20_000, 28_496), (10_000, 56_991), (100_000, 5_700)])
def test_volume_bound_of_the_published_setting(capacity, batches):
    """E7 of problem.md: 1024 requests of 32 + 1024 tokens."""
    limits = Limits(kv_blocks=capacity, block_tokens=1, max_batch_tokens=4096, max_batch_requests=1024)
    assert batch_count_bound(identical_requests(1024, 32, 1024), limits) == BatchCount(batches, "kv-volume")


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((8, 100, 100), BatchCount(8, "kv-volume")),
        ((100, 4, 100), BatchCount(6, "tokens")),
        ((100, 100, 1), BatchCount(12, "slots")),
        ((100, 100, 100), BatchCount(3, "longest-request")),
    ],
)
def test_each_argument_wins_where_its_capacity_is_small(limits, expected):
    """Four requests of 4 + 3 tokens: 60 resident tokens, 24 processed, 12 slots, 3 batches each."""
    kv_blocks, tokens, slots = limits
    got = batch_count_bound(
        identical_requests(4, 4, 3),
        Limits(kv_blocks=kv_blocks, block_tokens=1, max_batch_tokens=tokens, max_batch_requests=slots),
    )
    assert got == expected


def test_blocks_are_rounded_up_per_request():
    """17 tokens take two blocks of 16: a request of 16 + 3 tokens holds 1 + 2 + 2 blocks over its batches."""
    limits = Limits(kv_blocks=2, block_tokens=16, max_batch_tokens=64, max_batch_requests=8)
    assert batch_count_bound(identical_requests(2, 16, 3), limits) == BatchCount(5, "kv-volume")


def test_a_chunked_prompt_holds_memory_before_its_first_token():
    """10 tokens in chunks of 4 hold at least 2 and 6 before the batch with 10."""
    limits = Limits(kv_blocks=18, block_tokens=1, max_batch_tokens=4, max_batch_requests=8)
    usage = consume(np.array([10]), np.array([1]), limits)
    assert (usage.blocks[0], usage.tokens[0], usage.slots[0]) == (18, 10, 3)


@given(prompt=st.integers(1, 9), budget=st.integers(1, 6), block=st.integers(1, 4), output=st.integers(1, 4))
def test_consumption_is_the_least_of_all_chunkings(prompt, budget, block, output):
    """No way to cut the prompt takes fewer blocks or slots."""
    limits = Limits(kv_blocks=99, block_tokens=block, max_batch_tokens=budget, max_batch_requests=9)
    usage = consume(np.array([prompt]), np.array([output]), limits)
    decodes = sum(-(-(prompt + k) // block) for k in range(1, output))
    assert usage.blocks[0] == fewest_blocks(prompt, budget, block) + decodes
    assert usage.slots[0] == min(map(len, chunkings(prompt, budget))) + output - 1
    assert usage.tokens[0] == prompt + output - 1


@given(values=st.lists(st.integers(0, 99), min_size=1, max_size=40), budget=st.integers(1, 50))
def test_earlier_chunks_sums_every_budget_th_value(values, budget):
    """The table is the plain sum."""
    plain = [sum(values[s - held] for held in range(budget, s, budget)) for s in range(len(values))]
    assert plain == earlier_chunks(np.array(values), budget).tolist()


@given(
    sizes=st.lists(
        st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(0, 9)), min_size=1, max_size=8
    )
)
def test_suffix_counts_are_the_counts_of_the_suffixes(sizes):
    """Each position of the columns equals the counts of the requests from there on."""
    limits = Limits(kv_blocks=20, block_tokens=4, max_batch_tokens=7, max_batch_requests=2)
    prompts, outputs, arrivals = (np.array(column) for column in zip(*sizes, strict=True))
    order = np.argsort(arrivals, kind="stable")
    columns = consume(prompts, outputs, limits).suffix_counts(order)
    for cut in range(len(order)):
        rest = order[cut:]
        counts = consume(prompts[rest], outputs[rest], limits).total_counts()
        assert counts == {name: column[cut] for name, column in columns.items()}


def test_sums_beyond_64_bits_are_exact():
    """Ten thousand requests with huge products overflow nothing."""
    limits = Limits(kv_blocks=1, block_tokens=1, max_batch_tokens=2**31, max_batch_requests=1)
    prompts = np.full(10_000, 1)
    outputs = np.full(10_000, 2**30)
    total = sum(consume(prompts, outputs, limits).blocks.tolist())
    assert total == 10_000 * (2**30 * (2**30 + 1) // 2) > 2**63
