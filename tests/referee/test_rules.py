"""Every rule of the referee at its edge and one step beyond, and the referee against a naive twin."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.problem.cost import CostModel
from cspsched.problem.instance import Instance, Preemption
from cspsched.problem.schedule import Schedule
from cspsched.referee.history import follow
from cspsched.referee.rules import find_violations, occupied_blocks
from cspsched.referee.timing import schedule_asap
from cspsched.referee.violation import SHOWN_PER_RULE
from tests.oracles.naive_referee import broken_rules
from tests.support.drafts import (
    ALWAYS_WRONG,
    MUTATIONS,
    Draft,
    with_limits,
)
from tests.support.strategies import Batches, Evictions, check, check_briefly, feasible_runs, make_instance

PROMPT_OF_TWO = [[(0, 2)], [(0, 1)], [(0, 1)]]
"""All batches of one request of two prompt and three output tokens."""

Sentence = tuple[str, int | None, str | None, str]
"""Rule, batch, request and message of a violation."""


def sentences(instance: Instance, schedule: Schedule) -> list[Sentence]:
    """What the referee says."""
    found = find_violations(instance, schedule)
    return [(v.rule, v.batch, v.request_id, v.message) for v in found]


def judged(instance: Instance, batches: Batches, evictions: Evictions | None = None) -> list[Sentence]:
    """What the referee says about batches that run as early as they may."""
    return sentences(instance, schedule_asap(instance, batches, evictions or [[] for _ in batches]))


def changed(schedule: Schedule, **columns: list[int]) -> Schedule:
    """The schedule with other columns."""
    return replace(schedule, **{name: np.array(column) for name, column in columns.items()})


@pytest.fixture
def alone() -> Instance:
    """One request (2, 3); every batch takes 1 ns."""
    return make_instance((2, 3))


@pytest.fixture
def run(alone: Instance) -> Schedule:
    """Its schedule: batches [0, 1), [1, 2), [2, 3)."""
    return schedule_asap(alone, PROMPT_OF_TWO, [[], [], []])


def test_the_plain_schedule_is_feasible(alone, run):
    """The schedule that the cases below break in one place each breaks nothing itself."""
    assert sentences(alone, run) == []


@pytest.mark.parametrize("index", [1, -1])
def test_form_requests_exist(alone, run, index):
    """With one request, index 0 exists while 1 and -1 do not, and nothing else is said."""
    expected = ("form", 1, None, f"entry 1 of batch 1: request index {index} does not exist")

    assert [expected] == sentences(alone, changed(run, request=[0, index, 0]))


@pytest.mark.parametrize("tokens", [0, -1])
def test_form_entries_process_something(alone, run, tokens):
    """An entry of 1 token is fine, one of 0 or -1 is not."""
    expected = ("form", 2, None, f"entry 2 of batch 2: processes {tokens} tokens")

    assert [expected] == sentences(alone, changed(run, tokens=[2, 1, tokens]))


def test_form_batches_are_not_empty(alone, run):
    """A batch without entries is refused."""
    hollow = changed(run, start_ns=[0, 1, 2, 3], end_ns=[1, 2, 3, 4], first_entry=[0, 1, 1, 2, 3])

    assert sentences(alone, hollow) == [("form", 1, None, "batch 1 is empty")]


@pytest.mark.parametrize(("batch", "request_index"), [(3, 0), (-1, 0), (1, 1), (1, -1)])
def test_form_evictions_exist(alone, run, batch, request_index):
    """Evictions name one of the three batches and the one request."""
    broken = changed(run, evicted_batch=[batch], evicted_request=[request_index])
    message = f"eviction of request index {request_index} before batch {batch} does not exist"

    assert [("form", None, None, message)] == sentences(alone, broken)


def test_form_nobody_is_twice_in_a_batch():
    """One request may be in a batch once, not twice."""
    instance = make_instance((2, 1), (2, 1))
    twice = Schedule.from_batches([[(0, 1), (1, 2), (0, 1)]], [[]], [0], [1])

    assert judged(instance, [[(0, 2), (1, 2)]]) == []
    assert sentences(instance, twice) == [("form", 0, None, "request index 0 is processed twice in batch 0")]


def test_form_nobody_is_evicted_twice_at_a_boundary(alone):
    """One request loses its memory before a batch once, not twice."""
    batches = [[(0, 2)], [(0, 3)], [(0, 1)]]

    assert judged(alone, batches, [[], [0], []]) == []
    said = judged(alone, batches, [[], [0, 0], []])
    assert said == [("form", 1, None, "request index 0 is evicted twice in batch 1")]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([2, 1, 1], None),
        ([3, 1, 1], (0, "request 'r0' in batch 0 holds 0 and processes 3 tokens, only 2 are known")),
        ([2, 2, 1], (1, "request 'r0' in batch 1 holds 2 and processes 2 tokens, only 3 are known")),
    ],
)
def test_known_tokens(alone, tokens, expected):
    """A prompt of 2 yields to a batch of 2 and not of 3; then one new token is known, not two."""
    said = judged(alone, [[(0, c)] for c in tokens])

    assert (expected is None) == (said == [])
    if expected:
        assert ("known tokens", expected[0], "r0", expected[1]) == said[0]


@pytest.mark.parametrize("stated", [3, 5, 0])
def test_memory_is_what_was_processed(alone, run, stated):
    """After prompt and two decodes four entries are held; any other number is refused."""
    message = f"request 'r0' in batch 2 states {stated} KV entries, expected 3 carried + 1 processed"

    assert [("memory", 2, "r0", message)] == sentences(alone, changed(run, kv_tokens=[2, 3, stated]))


@pytest.mark.parametrize(
    ("block_tokens", "kv_blocks", "occupied"),
    [(1, 12, None), (1, 11, 12), (4, 4, None), (4, 3, 4), (5, 4, None), (5, 3, 4), (12, 2, None), (12, 1, 2)],
)
def test_capacity_counts_whole_blocks_of_all_residents(block_tokens, kv_blocks, occupied):
    """Two residents of 6 tokens need 12 blocks of 1, 4 of 4 or 5, 2 of 12; r0 counts while it waits."""
    instance = make_instance((6, 2), (6, 1), block_tokens=block_tokens, kv_blocks=kv_blocks)
    said = judged(instance, [[(0, 6)], [(1, 6)], [(0, 1)]])
    message = f"batch 1 occupies {occupied} KV blocks, the device offers {kv_blocks}"

    assert ([("capacity", 1, None, message)] if occupied else []) == said


def test_memory_is_released_before_the_next_batch_and_not_earlier():
    """A request of 4 that ends in batch 0 leaves room for 4 in batch 1, and none for 1 more in batch 0."""
    instance = make_instance((4, 1), (4, 1), kv_blocks=4)
    message = "batch 0 occupies 5 KV blocks, the device offers 4"

    assert judged(instance, [[(0, 4)], [(1, 4)]]) == []
    assert [("capacity", 0, None, message)] == judged(instance, [[(0, 4), (1, 1)], [(1, 3)]])


def test_the_last_output_token_is_never_stored():
    """A request (2, 3) peaks at 4 = I + O - 1 entries: 4 blocks do and 3 do not."""
    message = "batch 2 occupies 4 KV blocks, the device offers 3"

    assert judged(make_instance((2, 3), kv_blocks=4), PROMPT_OF_TWO) == []
    assert [("capacity", 2, None, message)] == judged(make_instance((2, 3), kv_blocks=3), PROMPT_OF_TWO)


@pytest.mark.parametrize(("kv_blocks", "occupied"), [(8, None), (7, 8)])
def test_reservation_occupies_the_peak_from_admission_on(kv_blocks, occupied):
    """Two requests (2, 3) reserve 4 blocks each with their first token, though they hold 2 then."""
    instance = make_instance((2, 3), (2, 3), kv_blocks=kv_blocks, reservation=True)
    said = judged(instance, [[(0, 1)], [(1, 1)], [(0, 1), (1, 1)], *[[(0, 1), (1, 1)]] * 2])
    expected = [
        ("capacity", j, None, f"batch {j} occupies {occupied} KV blocks, the device offers {kv_blocks}")
        for j in (1, 2, 3, 4)
    ]

    assert (expected if occupied else []) == said


def test_reservation_ends_with_an_eviction_and_starts_with_the_refill():
    """With room for one reservation, evicting r0 admits r1, and r0 comes back once r1 is done."""
    instance = make_instance((2, 2), (3, 1), kv_blocks=3, reservation=True)
    batches = [[(0, 2)], [(1, 3)], [(0, 3)]]

    assert judged(instance, batches, [[], [0], []]) == []
    assert {"capacity"} == {rule for rule, *_ in judged(instance, [*batches[:2], [(0, 1)]])}


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_batch_tokens": 5, "max_batch_requests": 2}, None),
        ({"max_batch_tokens": 4}, "batch 0 processes 5 tokens, the limit is 4"),
        ({"max_batch_requests": 1}, "batch 0 processes 2 requests, the limit is 1"),
    ],
)
def test_budget(limits, message):
    """Prompts of 2 and 3 in one batch need a budget of 5 tokens and 2 requests."""
    said = judged(make_instance((2, 1), (3, 1), **limits), [[(0, 2), (1, 3)]])

    assert ([("budget", 0, None, message)] if message else []) == said


def test_completion_needs_every_token(alone):
    """Three output tokens are three generating batches, not two."""
    said = judged(alone, PROMPT_OF_TWO[:2])

    assert said == [("completion", None, "r0", "request 'r0' generates 2 tokens, expected 3")]


def test_completion_ends_with_the_last_token(alone):
    """The third output token is not processed any more."""
    said = judged(alone, [*PROMPT_OF_TWO, [(0, 1)]])

    assert ("completion", None, "r0", "request 'r0' generates 4 tokens, expected 3") in said
    assert ("completion", 3, "r0", "request 'r0' in batch 3 is processed after its last token") in said


def test_completion_of_a_request_that_never_runs():
    """A request that is in no batch is missed."""
    said = judged(make_instance((2, 1), (1, 1)), [[(0, 2)]])

    assert said == [("completion", None, "r1", "request 'r1' generates 0 tokens, expected 1")]


def test_an_empty_schedule_completes_nobody(alone):
    """A schedule without batches is well formed and leaves everything undone."""
    said = judged(alone, [])

    assert said == [("completion", None, "r0", "request 'r0' generates 0 tokens, expected 3")]


@pytest.mark.parametrize(
    ("start_ns", "end_ns", "expected"),
    [
        ([0, 1, 2], [1, 2, 3], []),
        ([0, 5, 6], [1, 6, 7], []),
        ([0, 0, 1], [1, 1, 2], [(1, "batch 1 starts at 0 ns, before 1 ns")]),
        ([-1, 1, 2], [0, 2, 3], [(0, "batch 0 starts at -1 ns, before 0 ns")]),
        ([0, 1, 2], [1, 2, 4], [(2, "batch 2 takes 2 ns, its composition costs 1 ns")]),
        ([0, 1, 2], [1, 2, 2], [(2, "batch 2 takes 0 ns, its composition costs 1 ns")]),
    ],
)
def test_time_of_batches(alone, run, start_ns, end_ns, expected):
    """Batches of 1 ns may wait, and neither overlap, nor start before the clock, nor be longer or shorter."""
    said = sentences(alone, changed(run, start_ns=start_ns, end_ns=end_ns))

    assert [("time", batch, None, message) for batch, message in expected] == [
        violation for violation in said if "arrives" not in violation[3]
    ]


def test_time_does_not_wrap_around(alone, run):
    """A batch that ends in the negative because 64 bits are full is refused: it is no batch of 1 ns."""
    latest = 2**63 - 1
    said = sentences(alone, changed(run, start_ns=[0, 1, latest], end_ns=[1, 2, -(2**63)]))

    assert [violation[:2] for violation in said] == [("time", 2)]


@pytest.mark.parametrize(("arrival_ns", "late"), [(4, False), (5, True)])
def test_time_waits_for_arrivals(arrival_ns, late):
    """A batch that starts at 4 ns may hold who arrives at 4 ns and not who arrives at 5 ns."""
    instance = make_instance((1, 1), (1, 1), arrivals_ns=[0, arrival_ns])
    schedule = Schedule.from_batches([[(0, 1)], [(1, 1)]], [[], []], [0, 4], [1, 5])
    message = "request 'r1' in batch 1 arrives at 5 ns, its batch starts at 4 ns"

    assert ([("time", 1, "r1", message)] if late else []) == sentences(instance, schedule)


def test_a_duration_beyond_64_bits_is_a_violation():
    """A composition that costs more than 2^63 ns breaks the time rule instead of the referee."""
    instance = make_instance((1, 1), cost=CostModel(name="slow", step=Fraction(2**63)))
    schedule = Schedule.from_batches([[(0, 1)]], [[]], [0], [1])

    assert [rule for rule, *_ in sentences(instance, schedule)] == ["time"]


@pytest.mark.parametrize("preemption", [Preemption.NONE, Preemption.RECOMPUTE])
def test_preemption_needs_the_switch(preemption):
    """The same eviction and refill is fine with recompute and refused without preemption."""
    instance = make_instance((2, 3), preemption=preemption)
    said = judged(instance, [[(0, 2)], [(0, 3)], [(0, 1)]], [[], [0], []])
    expected = [("preemption", None, None, "1 evictions, but preemption is none")]

    assert (expected if preemption is Preemption.NONE else []) == said


def test_preemption_needs_a_resident(alone):
    """Before batch 1 the request holds memory and may be evicted; before batch 0 it holds none."""
    message = "request 'r0' in batch 0 is evicted but holds no KV cache"

    assert judged(alone, [[(0, 2)], [(0, 3)], [(0, 1)]], [[], [0], []]) == []
    assert [("preemption", 0, "r0", message)] == judged(alone, PROMPT_OF_TWO, [[0], [], []])


def test_preemption_needs_an_unfinished_request():
    """A request is evicted before the batch that finishes it, not before the one after."""
    instance = make_instance((2, 2), (1, 1))
    message = "request 'r0' in batch 2 is evicted after its last token"

    assert judged(instance, [[(0, 2)], [(0, 3)], [(1, 1)]], [[], [0], []]) == []
    said = judged(instance, [[(0, 2)], [(0, 1)], [(1, 1)]], [[], [], [0]])
    assert [("preemption", 2, "r0", message)] == said


def test_chunking_is_a_switch():
    """A prompt of 2 in two chunks needs chunked prefill; in one piece it does not."""
    off = make_instance((2, 1), chunked_prefill=False)
    message = "request 'r0' in batch 0 gets a chunk, but chunking is off"

    assert judged(make_instance((2, 1)), [[(0, 1)], [(0, 1)]]) == []
    assert judged(off, [[(0, 2)]]) == []
    assert [("chunked prefill", 0, "r0", message)] == judged(off, [[(0, 1)], [(0, 1)]])


def test_every_incomplete_chunk_is_named():
    """A prompt in three chunks breaks the rule in the two batches that leave it incomplete."""
    said = judged(make_instance((3, 1), chunked_prefill=False), [[(0, 1)]] * 3)

    assert [violation[:2] for violation in said] == [("chunked prefill", 0), ("chunked prefill", 1)]


def test_refills_are_chunks_too():
    """Without chunked prefill a refill of 3 tokens comes in one batch."""
    off = make_instance((2, 2), chunked_prefill=False)
    message = "request 'r0' in batch 1 gets a chunk, but chunking is off"

    assert judged(off, [[(0, 2)], [(0, 3)]], [[], [0]]) == []
    said = judged(off, [[(0, 2)], [(0, 2)], [(0, 1)]], [[], [0], []])
    assert [("chunked prefill", 1, "r0", message)] == said


def test_hybrid_batches_are_a_switch():
    """Prompt and decode share a batch only where hybrid batches are on; two decodes always may."""
    mixed: Batches = [[(0, 2)], [(0, 1), (1, 2)]]
    message = "batch 1 mixes 1 prefills with 1 decodes"
    off = make_instance((2, 2), (2, 1), hybrid_batches=False)

    assert judged(make_instance((2, 2), (2, 1)), mixed) == []
    assert [("hybrid batches", 1, None, message)] == judged(off, mixed)
    both = make_instance((2, 2), (2, 2), hybrid_batches=False)
    assert judged(both, [[(0, 2), (1, 2)], [(0, 1), (1, 1)]]) == []


def test_holding_is_a_switch():
    """A resident may sit out a batch only where holding is on."""
    waiting: Batches = [[(0, 2)], [(1, 2)], [(0, 1)]]
    message = "batch 1 processes 1 of 2 resident requests"
    off = make_instance((2, 2), (2, 1), holding=False)

    assert judged(make_instance((2, 2), (2, 1)), waiting) == []
    assert [("holding", 1, None, message)] == judged(off, waiting)
    assert judged(off, [[(0, 2)], [(0, 1), (1, 2)]]) == []


def test_evicted_requests_do_not_hold():
    """Without holding a request may wait once it is evicted: it holds nothing then."""
    off = make_instance((2, 2), (2, 1), holding=False)

    assert judged(off, [[(0, 2)], [(1, 2)], [(0, 3)]], [[], [0], []]) == []


@pytest.mark.parametrize(
    ("rule", "columns"),
    [
        ("form", {"tokens": [0]}),
        ("memory", {"kv_tokens": [9]}),
        ("time", {"end_ns": [0]}),
    ],
)
def test_long_lists_are_counted(rule, columns):
    """Of 25 broken places 20 are shown, and one sentence counts the other 5."""
    size = SHOWN_PER_RULE + 5
    instance = make_instance(*[(1, 1)] * size)
    schedule = schedule_asap(instance, [[(i, 1)] for i in range(size)], [[]] * size)
    said = sentences(instance, changed(schedule, **{name: value * size for name, value in columns.items()}))
    of_rule = [message for name, _, _, message in said if name == rule and "before" not in message]

    assert len(of_rule) == SHOWN_PER_RULE + 1
    assert of_rule[-1].startswith("5 more ")


@given(feasible_runs())
@check
def test_random_feasible_schedules_pass(drawn):
    """Schedules that follow the rules by construction pass both referees."""
    instance, schedule = drawn

    assert find_violations(instance, schedule) == []
    assert set() == broken_rules(instance, schedule)


@given(feasible_runs())
@check_briefly
def test_capacity_is_tight(drawn):
    """A feasible schedule stays feasible with exactly the blocks that it occupies, and not with one less."""
    instance, schedule = drawn
    peak = int(occupied_blocks(follow(instance, schedule)).max())

    assert find_violations(with_limits(instance, kv_blocks=peak), schedule) == []
    if peak > 1:
        smaller = with_limits(instance, kv_blocks=peak - 1)
        assert {"capacity"} == {violation.rule for violation in find_violations(smaller, schedule)}


def mutated(drawn: tuple[Instance, Schedule], mutation: Any, seed: int, *, restated: bool) -> Draft:
    """The draft of a schedule after a mutation, its memory and times stated anew or left alone."""
    draft = Draft.of(*drawn)
    mutation(draft, random.Random(seed))
    if restated:
        draft.restate()
    return draft


seeds = st.integers(0, 2**20)


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_referee_agrees_with_its_naive_twin_after_a_mutation(mutation):
    """One mutation of a feasible schedule: both referees object, or neither does."""

    @given(feasible_runs(), seeds, st.booleans())
    @check_briefly
    def agree(drawn, seed, restated):
        draft = mutated(drawn, mutation, seed, restated=restated)
        assert_same_verdict(draft.instance, draft.schedule())

    agree()


@pytest.mark.parametrize("mutation", ALWAYS_WRONG)
def test_referee_objects_to(mutation):
    """Dropping an entry, changing its tokens or memory, or ending a batch earlier is always noticed."""

    @given(feasible_runs(), seeds)
    @check_briefly
    def object_to(drawn, seed):
        draft = mutated(drawn, mutation, seed, restated=False)
        assert find_violations(draft.instance, draft.schedule())

    object_to()


@given(feasible_runs(), st.lists(st.tuples(st.sampled_from(MUTATIONS), seeds), min_size=2, max_size=4))
@check
def test_referee_agrees_with_its_naive_twin_after_several_mutations(drawn, mutations):
    """Several mutations with memory and times stated anew: both referees object, or neither does."""
    draft = Draft.of(*drawn)
    for mutation, seed in mutations:
        if any(draft.batches):
            mutation(draft, random.Random(seed))
    draft.restate()

    assert_same_verdict(draft.instance, draft.schedule())


def assert_same_verdict(instance: Instance, schedule: Schedule) -> None:
    """Both referees name the same rules; after a broken count of tokens the rest of the walk may differ."""
    naive = broken_rules(instance, schedule)
    said = {violation.rule for violation in find_violations(instance, schedule)}

    assert bool(naive) == bool(said)
    if not naive & {"known tokens", "completion", "preemption", "swap"}:
        assert naive == said
    else:
        assert naive & said
