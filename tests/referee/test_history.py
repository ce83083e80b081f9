"""What decisions imply: memory, tokens, phases and prices, with evictions and refills and without."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.errors import InputError
from cspsched.problem.cost import BatchFeatures, CostModel
from cspsched.problem.schedule import COLUMNS, REQUIRED_COLUMNS, Schedule
from cspsched.referee.history import History, follow
from cspsched.referee.metrics import measure
from cspsched.referee.rules import find_violations, occupied_blocks
from cspsched.referee.timing import schedule_asap
from tests.support.strategies import (
    Batches,
    Evictions,
    check,
    check_briefly,
    feasible_runs,
    make_instance,
    one_after_another,
)

PHASES = CostModel(
    name="phases", step=Fraction(1), prefill_request=Fraction(100), decode_request=Fraction(1000)
)
"""A batch takes 1 ns, 100 ns for each prefill and 1000 ns for each decode."""


def followed(*sizes: tuple[int, int], batches: Batches, evictions: Evictions | None = None) -> History:
    """History of batches of an instance with room for everything."""
    instance = make_instance(*sizes)
    return follow(instance, schedule_asap(instance, batches, evictions or [[] for _ in batches]))


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 25), st.integers(1, 8))
@check
def test_one_request_alone(prompt, output, budget, block):
    """E1: I + O - 1 tokens, peak I + O - 1, ceil(I / C) + O - 1 batches; one block less does not do."""
    peak = prompt + output - 1
    blocks = -(-peak // block)
    limits = {"max_batch_tokens": budget, "max_batch_requests": 1, "block_tokens": block}
    instance = make_instance((prompt, output), kv_blocks=blocks, **limits)
    batches = one_after_another(instance)
    schedule = schedule_asap(instance, batches, [[] for _ in batches])

    assert find_violations(instance, schedule) == []
    assert schedule.tokens.sum() == peak
    assert schedule.kv_tokens.max() == peak
    assert occupied_blocks(follow(instance, schedule)).max() == blocks
    assert schedule.num_batches == -(-prompt // budget) + output - 1
    assert measure(instance, schedule).makespan_ns == schedule.num_batches
    if blocks > 1:
        smaller = make_instance((prompt, output), kv_blocks=blocks - 1, **limits)
        assert {violation.rule for violation in find_violations(smaller, schedule)} == {"capacity"}


def test_a_request_of_one_token_is_one_batch():
    """(1, 1): one token is processed, its output is not, and nothing is left to do."""
    history = followed((1, 1), batches=[[(0, 1)]])

    assert history.generates.tolist() == history.finishes.tolist() == [True]
    assert history.decodes.tolist() == [False]


def test_columns_of_a_small_schedule():
    """A chunked prompt of 3, its first token with the last chunk, then two decodes of one token."""
    history = followed((3, 3), batches=[[(0, 2)], [(0, 1)], [(0, 1)], [(0, 1)]])

    assert history.kv_before.tolist() == [0, 2, 3, 4]
    assert history.kv_after.tolist() == [2, 3, 4, 5]
    assert history.generated_before.tolist() == [0, 0, 1, 2]
    assert history.generates.tolist() == [False, True, True, True]
    assert history.decodes.tolist() == [False, False, True, True]
    assert history.finishes.tolist() == [False, False, False, True]


def test_eviction_loses_all_memory_and_no_token():
    """Evicted with G = 2 and 4 entries, a request (3, 4) refills 3 + 2 tokens and keeps its two outputs."""
    history = followed((3, 4), batches=[[(0, 3)], [(0, 1)], [(0, 5)], [(0, 1)]], evictions=[[], [], [0], []])

    assert history.kv_lost.tolist() == [4]
    assert history.kv_before.tolist() == [0, 3, 0, 5]
    assert history.generated_before.tolist() == [0, 1, 2, 3]
    assert history.generates.tolist() == [True] * 4
    assert history.decodes.tolist() == [False, True, False, True]


def test_only_the_last_chunk_of_a_refill_yields_a_token():
    """The refill of 3 + 2 tokens in chunks of 2, 2 and 1 generates with the third, none of them a decode."""
    batches: Batches = [[(0, 3)], [(0, 1)], [(0, 2)], [(0, 2)], [(0, 1)], [(0, 1)]]
    history = followed((3, 4), batches=batches, evictions=[[], [], [0], [], [], []])

    assert history.generates.tolist() == [True, True, False, False, True, True]
    assert history.decodes.tolist() == [False, True, False, False, False, True]


def test_eviction_in_the_middle_of_a_prompt():
    """Evicted before its first token a request starts its prompt over: I tokens, not I + 1."""
    history = followed((3, 1), batches=[[(0, 2)], [(0, 3)]], evictions=[[], [0]])

    assert history.kv_lost.tolist() == [2]
    assert history.generates.tolist() == [False, True]


@pytest.mark.parametrize(
    ("batches", "evictions", "times_ns"),
    [
        ([[(0, 3)], [(0, 1)]], [[], []], [101, 1001]),
        ([[(0, 2)], [(0, 1)], [(0, 1)]], [[], [], []], [101, 101, 1001]),
        ([[(0, 3)], [(0, 4)]], [[], [0]], [101, 101]),
        ([[(0, 3)], [(0, 3)], [(0, 1)]], [[], [0], []], [101, 101, 101]),
    ],
)
def test_one_token_chunks_are_priced_as_prefill(batches, evictions, times_ns):
    """The one-token last chunk of a prompt or refill costs 100, as a prefill; only a decode costs 1000."""
    instance = make_instance((3, 2), cost=PHASES)
    schedule = schedule_asap(instance, batches, evictions)

    assert find_violations(instance, schedule) == []
    assert (schedule.end_ns - schedule.start_ns).tolist() == times_ns


def test_a_held_decode_is_still_a_decode():
    """Sitting out a batch does not change the phase."""
    history = followed((2, 2), (2, 1), batches=[[(0, 2)], [(1, 2)], [(0, 1)]])

    assert history.decodes.tolist() == [False, False, True]


def test_features_of_a_hybrid_batch():
    """A chunk of 2 behind 3 entries, the first chunk of a prompt, and a decode that reads 4 entries."""
    batches: Batches = [[(0, 3), (1, 4)], [(0, 2), (1, 1), (2, 3)]]
    features = followed((6, 1), (4, 2), (3, 1), batches=batches).features

    assert [column.tolist()[1] for column in features] == list(
        BatchFeatures(
            tokens=6,
            prefill_attention=(4 + 5) + (1 + 2 + 3),
            prefill_tokens=5,
            prefill_context=3,
            decode_context=4,
            num_generating=2,
            num_prefills=2,
            num_decodes=1,
        )
    )


@pytest.mark.parametrize(
    ("block_tokens", "occupied"), [(1, [4, 7, 9, 6]), (4, [1, 2, 3, 2]), (5, [1, 2, 2, 2]), (9, [1, 2, 2, 1])]
)
def test_occupied_blocks(block_tokens, occupied):
    """r0 holds 4, 4, 5, 6 tokens and r1 0, 3, 4, 0: each is rounded up to blocks by itself."""
    instance = make_instance((4, 3), (4, 1), block_tokens=block_tokens)
    schedule = schedule_asap(instance, [[(0, 4)], [(1, 3)], [(0, 1), (1, 1)], [(0, 1)]], [[]] * 4)

    assert find_violations(instance, schedule) == []
    assert occupied_blocks(follow(instance, schedule)).tolist() == occupied


@given(feasible_runs())
@check_briefly
def test_tokens_and_memory_are_conserved(drawn):
    """Processed tokens are those of every request plus the entries lost; outputs are what was asked for."""
    instance, schedule = drawn
    history = follow(instance, schedule)

    assert schedule.tokens.sum() == sum(r.peak_kv_tokens for r in instance.requests) + history.kv_lost.sum()
    assert history.generates.sum() == sum(request.output_tokens for request in instance.requests)
    assert history.finishes.sum() == len(instance.requests)
    assert schedule.tokens[history.decodes].tolist() == [1] * int(history.decodes.sum())


@given(feasible_runs())
@check_briefly
def test_batch_features_add_up(drawn):
    """Over all batches P plus the decodes is N, and n_pre plus n_dec is the number of entries."""
    features = follow(*drawn).features

    assert (features.prefill_tokens + features.num_decodes == features.tokens).all()
    assert (features.num_prefills + features.num_decodes).sum() == len(drawn[1].request)
    assert (features.num_generating >= features.num_decodes).all()


def test_from_batches_derives_the_memory():
    """Stated memory follows the decisions: it grows by what is processed and is gone after an eviction."""
    batches: Batches = [[(0, 2), (1, 1)], [(0, 1)], [(0, 4)]]
    schedule = Schedule.from_batches(batches, [[], [], [0]], [0, 1, 2], [1, 2, 3])

    assert schedule.kv_tokens.tolist() == [2, 1, 3, 4]
    assert schedule.first_entry.tolist() == [0, 2, 3, 4]
    assert schedule.batch_of_entry.tolist() == [0, 0, 1, 2]
    assert (schedule.evicted_batch.tolist(), schedule.evicted_request.tolist()) == ([2], [0])
    assert (schedule.num_batches, schedule.num_preemptions) == (3, 1)


def test_a_schedule_of_nothing():
    """No batches are a schedule too: empty int64 columns."""
    schedule = Schedule.from_batches([], [], [], [])

    assert schedule.num_batches == 0
    assert {getattr(schedule, name).dtype for name in COLUMNS} == {np.dtype(np.int64)}


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        ("end_ns", [1], "2 starts, 1 ends and 3 offsets, expected as many ends as starts and one offset"),
        ("first_entry", [0, 2], "2 starts, 2 ends and 2 offsets"),
        ("first_entry", [0, 1, 3], "first_entry must rise from 0 to 2, the number of entries"),
        ("first_entry", [1, 1, 2], "first_entry must rise from 0 to 2"),
        ("first_entry", [0, 3, 2], "first_entry must rise from 0 to 2"),
        ("tokens", [1], "request, tokens and kv_tokens differ in length"),
        ("kv_tokens", [1, 2, 3], "request, tokens and kv_tokens differ in length"),
        ("evicted_batch", [1], "evicted_batch, evicted_request, evicted_to_host differ in length"),
    ],
)
def test_ragged_columns_are_refused(name, column, message):
    """Columns that do not belong together make no schedule."""
    schedule = Schedule.from_batches([[(0, 1)], [(0, 1)]], [[], []], [0, 1], [1, 2])
    with pytest.raises(InputError) as caught:
        replace(schedule, **{name: np.array(column)})

    assert message in str(caught.value)


@pytest.mark.parametrize("name", [name for name in REQUIRED_COLUMNS if name != "first_entry"])
def test_schedules_are_equal_by_value(name):
    """Equal columns make equal schedules, and one number in any of them makes another."""
    schedule = Schedule.from_batches([[(0, 1)], [(0, 2)]], [[], [0]], [0, 1], [1, 2])
    other = replace(schedule, **{name: getattr(schedule, name) + 1})

    assert schedule == replace(schedule)
    assert schedule != other
    assert schedule != "schedule"
