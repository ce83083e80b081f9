"""Work tables, lone times and the single machine, each against a slow twin."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspsched.bounds.flow import floor_of_sum
from cspsched.bounds.parts import solo as solo_module
from cspsched.bounds.parts import srpt
from cspsched.bounds.parts.check import naive_total_completion
from cspsched.bounds.parts.chunking import can_search, exact_prefills_ns, minorant_prefills_ns
from cspsched.bounds.parts.minorant import Minorant, minorants
from cspsched.bounds.parts.srpt import srpt_total_completion_ns
from cspsched.bounds.parts.tables import Tables
from cspsched.bounds.parts.work import WorkTable
from cspsched.problem.cost import BatchFeatures, CostModel, PiecewiseLinear
from tests.oracles.naive_bounds import (
    affine_costs,
    best_total_completion,
    chunkings,
    lone_prefill_time,
    tiny_instances,
)

LONG = tiny_instances(max_requests=3, max_prompt=8, max_output=5)
REFILL_PAYS = Minorant(
    batch=Fraction(1),
    prefill_batch=Fraction(0),
    tokens=Fraction(1),
    prefill_attention=Fraction(0),
    prefill_tokens=Fraction(0),
    prefill_context=Fraction(0),
    decode_context=Fraction(2),
    head=Fraction(0),
    prefill_request=Fraction(0),
    decode_request=Fraction(3, 2),
)


def contents(minorant):
    """Price of a batch without what every batch costs."""
    bare = replace(minorant, batch=Fraction(0), prefill_batch=Fraction(0))
    return bare.at


@settings(max_examples=60, deadline=None)
@given(instance=LONG)
def test_prefill_work_is_the_cheapest_chunking(instance):
    """The table's price of s tokens is the least over all ways to cut them."""
    budget = instance.limits.max_batch_tokens
    for minorant in minorants(instance):
        table = WorkTable(minorant, budget, longest=8)
        for resident in range(1, 9):
            least = min(
                lone_prefill_time(chunks, contents(minorant)) for chunks in chunkings(resident, budget)
            )
            assert Fraction(int(table.prefills[resident]), minorant.scale) == least


@settings(max_examples=60, deadline=None)
@given(instance=LONG)
def test_later_tokens_cost_the_cheaper_of_decode_and_refill(instance):
    """Work up to the last token is the prefill and, token by token, the cheaper way."""
    tables = Tables(instance)
    for table in tables.work:
        price, scale = contents(table.minorant), table.minorant.scale
        for request, work in zip(instance.requests, table.until(tables.prompts, tables.outputs), strict=True):
            lengths = range(request.prompt_tokens + 1, request.prompt_tokens + request.output_tokens)
            plain = Fraction(int(table.prefills[request.prompt_tokens]), scale)
            for s in lengths:
                decode = price(BatchFeatures(1, 0, 0, 0, s - 1, 1, 0, 1))
                plain += min(decode, Fraction(int(table.prefills[s]), scale))
            assert Fraction(work, scale) == plain


def test_a_refill_is_counted_where_it_is_cheaper_than_a_decode():
    """Context at 2 per entry, tokens at 1: refilling s tokens costs s, decoding one 2.5 + 2 (s - 1)."""
    table = WorkTable(REFILL_PAYS, 8, longest=4)
    assert table.until(np.array([2]), np.array([3])).tolist() == [2 * (2 + 3 + 4)]


def test_work_beyond_64_bits_falls_back_to_python_integers():
    """The same table with prices times 10^17 holds the same numbers times 10^17."""
    small = WorkTable(REFILL_PAYS, 3, longest=50)
    factor = 10**17
    names = Minorant.__dataclass_fields__
    huge = WorkTable(Minorant(**{n: getattr(REFILL_PAYS, n) * factor for n in names}), 3, longest=50)
    columns = np.array([5, 9]), np.array([40, 1])
    ratio = factor // 2 if huge.minorant.scale == 1 else factor
    assert [value * ratio for value in small.until(*columns)] == huge.until(*columns).tolist()


@settings(max_examples=40, deadline=None)
@given(instance=LONG)
def test_lone_prefill_is_the_shortest_of_all_chunkings(instance):
    """Dynamic programming finds what trying every chunking finds."""
    budget = instance.limits.max_batch_tokens
    times = exact_prefills_ns(instance.cost, budget, 8)
    for resident in range(1, 9):
        ways = chunkings(resident, budget)
        assert times[resident] == min(lone_prefill_time(way, instance.cost.batch_time_ns) for way in ways)


@settings(max_examples=60, deadline=None)
@given(instance=LONG)
def test_minorants_bound_lone_prefills_from_below(instance):
    """The bound for long prompts is at most the shortest time, for every length."""
    tables = Tables(instance)
    longest = tables.work[0].longest
    exact = exact_prefills_ns(instance.cost, instance.limits.max_batch_tokens, longest)
    assert np.all(minorant_prefills_ns(tables.work) <= exact)


@settings(max_examples=30, deadline=None)
@given(instance=tiny_instances(max_requests=1, max_prompt=8, max_output=5, costs=affine_costs()))
def test_minorants_of_affine_costs_miss_lone_prefills_by_rounding_only(instance):
    """Affine costs: the bound is within the roundings of the terms of each batch (at most 8 ns a batch)."""
    tables = Tables(instance)
    longest, budget = tables.work[0].longest, instance.limits.max_batch_tokens
    miss = exact_prefills_ns(instance.cost, budget, longest) - minorant_prefills_ns(tables.work)
    assert np.all(miss <= 8 * -(-np.arange(longest + 1) // budget))


def test_large_chunk_graphs_are_not_searched():
    """A prompt of 100,000 tokens with a budget of 8,192 is bounded, one of 500 is searched."""
    cost = CostModel(name="unit", step=Fraction(1))
    assert can_search(cost, 8192, 500)
    assert not can_search(cost, 8192, 100_000)


def test_costs_near_64_bits_are_not_searched():
    """Path lengths beyond int64 would wrap around."""
    cost = CostModel(name="slow", step=Fraction(2**58))
    assert not can_search(cost, 8, 64)


@settings(max_examples=40, deadline=None)
@given(instance=LONG)
def test_minorant_and_search_give_ordered_solo_times(instance):
    """Solo times by minorants never exceed those by search."""
    tables = Tables(instance)
    exact = tables.solo
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solo_module, "can_search", lambda *_: False)
        bounded = solo_module.solo_table(instance, tables.work)
    assert (exact.method, bounded.method) == ("exact", "minorant")
    assert np.all(bounded.later_ns <= exact.later_ns)
    assert np.all(bounded.firsts_ns <= exact.firsts_ns)
    assert np.all(bounded.refills_ns <= exact.refills_ns)


@given(
    machine=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=4),
)
def test_srpt_is_the_best_preemptive_schedule(machine):
    """The sum of completions is the smallest over all unit-step schedules (all processing times positive)."""
    releases, processing = zip(*((release, time + 1) for release, time in machine), strict=True)
    least = best_total_completion(releases, processing)
    assert least == srpt_total_completion_ns(releases, processing)


@given(machine=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), min_size=1, max_size=12))
def test_srpt_agrees_with_the_naive_simulation(machine):
    """Heap and plain scan agree, requests without processing time included."""
    releases, processing = map(list, zip(*machine, strict=True))
    assert naive_total_completion(releases, processing) == srpt_total_completion_ns(releases, processing)


@given(
    machine=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), min_size=1, max_size=12),
    scale=st.sampled_from([1, 2**31, 2**52]),
)
def test_compiled_srpt_agrees_with_the_loop(machine, scale):
    """The same sum of completions, numbers beyond 32 bits and sums beyond 64 included."""
    releases, processing = np.array(machine).T * scale
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(srpt, "FEW_REQUESTS", 0)
        found = srpt.srpt_completions_ns(releases, processing)
    assert found == srpt_total_completion_ns(releases.tolist(), processing.tolist())


@given(
    columns=st.lists(st.lists(st.integers(0, 2**40), min_size=3, max_size=3), min_size=1, max_size=4),
    factors=st.lists(st.integers(0, 2**70), min_size=4, max_size=4),
    divisor=st.integers(1, 2**61 - 1) | st.integers(2**66, 2**70),
)
def test_floors_of_sums_are_exact(columns, factors, divisor):
    """Against Python's integers: products beyond 64 bits, quotients next to a whole number."""
    terms = [(factor, np.array(column)) for factor, column in zip(factors, columns, strict=False)]
    expected = [sum(f * c for f, c in zip(factors, row, strict=False)) for row in zip(*columns, strict=True)]
    assert floor_of_sum(terms, divisor).tolist() == [number // divisor for number in expected]
    whole = np.array([7, 8, 9])
    for more in (-1, 0, 1):
        terms = [(divisor, whole), (1, np.array([1 + more] * 3)), (divisor - 1, np.ones(3, dtype=int))]
        assert floor_of_sum(terms, divisor).tolist() == [k + (divisor + more) // divisor for k in (7, 8, 9)]


def test_srpt_interrupts_a_long_request_for_a_short_one():
    """(release 0, 10) and (release 2, 3): completions 5 and 13."""
    assert srpt_total_completion_ns([0, 2], [10, 3]) == 18


def test_stairs_over_tokens_make_lone_chunks_stop_at_the_stair():
    """8 tokens cost less in two chunks of 4 than in one: the search finds it."""
    stairs = PiecewiseLinear((0, 4, 5), tuple(map(Fraction, (0, 100, 0))))
    cost = CostModel(name="stairs", step=Fraction(10), tokens=stairs)
    assert exact_prefills_ns(cost, 8, 8)[8] == 20
