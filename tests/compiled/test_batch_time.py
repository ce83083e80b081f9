"""The flat table prices a batch as the cost model does, in whole nanoseconds and in parts."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, lcm

import numpy as np
import pytest

from cspsched.compiled.batch_time import (
    LINEAR_TERMS,
    batch_time,
    cost_tables,
)
from cspsched.costs.presets import load_cost
from cspsched.problem.cost import BatchFeatures, CostModel

COSTS = ("infermax-70b", "h100-llama-3.1-8b", "a100-80-qwen2.5-7b-tp2")
MOST = BatchFeatures(9000, 10**8, 9000, 10**5, 10**6, 300, 40, 260)


def drawn_batches() -> list[BatchFeatures[int]]:
    """Of any kind: each feature is often 0, and those of prefills are 0 where there is none."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, np.array(MOST), (200, 8)) * (rng.random((200, 8)) < 0.8)
    drawn[:, 1:4] *= (drawn[:, 6:7] > 0).astype(np.int64)
    return [BatchFeatures(*row) for row in drawn.tolist()]


@pytest.mark.parametrize("name", COSTS)
def test_the_table_gives_the_batch_time_of_the_model(name: str) -> None:
    """In whole nanoseconds."""
    cost = load_cost(name)
    tables = cost_tables(cost, 1)
    for batch in drawn_batches():
        assert batch_time(tables, np.array(batch)) == cost.batch_time_ns(batch)


def time_in_parts(cost: CostModel, batch: BatchFeatures[int], scale: int) -> Fraction:
    """Every term rounded up but for those that are whole in parts of a nanosecond."""
    total = Fraction(cost.batch_time_ns(batch))
    for name in LINEAR_TERMS:
        exact = getattr(cost, name).exact(getattr(batch, name))
        total += exact - ceil(exact)
    return total * scale


def test_linear_terms_are_left_in_parts() -> None:
    """The scale is a multiple of their denominators, so nothing of them is rounded."""
    cost = load_cost("infermax-70b")
    scale = lcm(*(getattr(cost, name).denominator for name in LINEAR_TERMS))
    tables = cost_tables(cost, scale)
    assert scale > 1
    for batch in drawn_batches():
        assert batch_time(tables, np.array(batch)) == time_in_parts(cost, batch, scale)
