"""The KV block pool counts exactly and gives out nothing that it does not have."""

from __future__ import annotations

import contextlib

import pytest
from cspsched.simulate.pool import BlockPool, PoolError
from hypothesis import given, settings
from hypothesis import strategies as st


def test_all_blocks_are_free_at_first() -> None:
    """Nobody holds anything."""
    pool = BlockPool(capacity=5, num_requests=2)

    assert (pool.free, pool.used, pool.num_holders) == (5, 0, 0)


def test_blocks_taken_add_up() -> None:
    """A request that takes twice is one holder."""
    pool = BlockPool(capacity=5, num_requests=2)
    pool.take(0, 1)
    pool.take(0, 2)
    pool.take(1, 2)

    assert pool.held == [3, 2]
    assert (pool.free, pool.used, pool.num_holders) == (0, 5, 2)


def test_the_last_block_is_given_and_not_one_more() -> None:
    """The edge of the capacity, and one beyond it, which changes nothing."""
    pool = BlockPool(capacity=2, num_requests=2)
    pool.take(0, 2)

    with pytest.raises(PoolError, match="1 KV blocks asked for, 0 of 2 are free"):
        pool.take(1, 1)
    assert (pool.free, pool.num_holders) == (0, 1)


@pytest.mark.parametrize("blocks", [0, -1])
def test_only_a_positive_number_of_blocks_is_taken(blocks: int) -> None:
    """Taking less than one block is refused."""
    with pytest.raises(PoolError, match=f"{blocks} KV blocks asked for"):
        BlockPool(capacity=2, num_requests=1).take(0, blocks)


def test_release_returns_everything() -> None:
    """A release empties the request and says how much it had."""
    pool = BlockPool(capacity=4, num_requests=1)
    pool.take(0, 3)

    assert pool.release(0) == 3
    assert (pool.free, pool.num_holders, pool.held) == (4, 0, [0])


def test_releasing_nothing_is_refused() -> None:
    """A double release is a bug of the caller's."""
    with pytest.raises(PoolError, match="no KV blocks to release"):
        BlockPool(capacity=4, num_requests=1).release(0)


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 20), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 8))))
def test_free_and_held_blocks_are_the_capacity(capacity: int, moves: list[tuple[int, int]]) -> None:
    """Whatever is taken (blocks > 0) or released (0), and refused or not, no block is lost or made."""
    pool = BlockPool(capacity=capacity, num_requests=4)
    for request, blocks in moves:
        with contextlib.suppress(PoolError):
            pool.take(request, blocks) if blocks else pool.release(request)
        assert capacity == pool.free + sum(pool.held)
        assert pool.free >= 0
        assert pool.num_holders == sum(held > 0 for held in pool.held)
