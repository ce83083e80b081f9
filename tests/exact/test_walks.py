"""Ways through the resident states: all states are there, values are the cheapest, prices only get better."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspsched.compiled.jit import compiled
from cspsched.errors import InternalError
from cspsched.exact.prices.resident_path_prices import proven_by, resident_path_prices
from cspsched.exact.prices.resident_paths import DECODE, HYBRID, PREFILL, Moves, new_paths, settle
from cspsched.exact.prices.resident_states import count_residents, list_residents, state_of

AWAY = 0


@st.composite
def moves_of_requests(draw, most_requests=3):
    """Up to three requests with growing sizes, and what their batches cost."""
    count, capacity = draw(st.integers(1, most_requests)), draw(st.integers(4, 12))
    counts = draw(st.lists(st.integers(1, 3), min_size=count, max_size=count))
    blocks = np.zeros((count, max(counts) + 1), dtype=np.int64)
    decode, prefill = np.zeros_like(blocks), np.zeros_like(blocks)
    for i, tokens in enumerate(counts):
        blocks[i, :tokens] = draw(st.integers(1, capacity - tokens + 1)) + np.arange(tokens)
        for g in range(tokens):
            decode[i, g], prefill[i, g] = draw(st.integers(0, 40)), draw(st.integers(0, 90))
    alone = draw(st.integers(1, 200)), draw(st.integers(1, 200))
    return Moves(
        blocks=blocks,
        counts=np.array(counts),
        strides=np.cumprod([1, *(tokens + 1 for tokens in counts)])[:-1],
        capacity=capacity,
        batch=np.array([*alone, max(alone) + draw(st.integers(0, 50))]),
        decode=decode,
        prefill=prefill,
        preemptive=draw(st.booleans()),
        holding=draw(st.booleans()),
    )


def residents_of(moves):
    """The resident states that the kernel numbers."""
    return list_residents(moves.blocks, moves.counts, moves.strides, moves.capacity)


def every_state(moves):
    """Every tuple of tokens whose KV blocks fit, with those that have just finished."""
    for tokens in product(*(range(count + 1) for count in moves.counts)):
        if sum(moves.blocks[i, g - 1] for i, g in enumerate(tokens) if g) <= moves.capacity:
            yield tokens


def choices(moves, tokens, i):
    """(tokens behind it, tokens emitted, kind, cost) of all that a batch or eviction can do to a request."""
    if tokens[i] == AWAY or moves.preemptive:
        yield AWAY, None, None, 0
        for g in range(moves.counts[i] if moves.preemptive else 1):
            yield g + 1, g, PREFILL, moves.prefill[i, g]
    if tokens[i] != AWAY:
        yield tokens[i] + 1, tokens[i], DECODE, moves.decode[i, tokens[i]]
        if moves.holding:
            yield tokens[i], None, None, 0


def steps(moves, prices, tokens):
    """(state behind it, reduced cost) of every batch from a state, and of the evictions."""
    count = len(tokens)
    for chosen in product(*(choices(moves, tokens, i) for i in range(count))):
        inside = [state for state, *_ in chosen]
        if sum(moves.blocks[i, g - 1] for i, g in enumerate(inside) if g) > moves.capacity:
            continue
        kinds = {kind for _, _, kind, _ in chosen} - {None}
        behind = tuple(AWAY if g == moves.counts[i] else g for i, g in enumerate(inside))
        if not kinds:
            yield behind, 0
            continue
        which = HYBRID if len(kinds) == 2 else kinds.pop()
        earned = sum(prices[i, g] for i, (_, g, _, _) in enumerate(chosen) if g is not None)
        yield behind, moves.batch[which] + sum(cost for *_, cost in chosen) - earned


def cheapest_paths(moves, prices):
    """Value of every state by trying all steps until nothing changes; None if a cycle earns too much."""
    states = [s for s in every_state(moves) if all(g < moves.counts[i] for i, g in enumerate(s))]
    arcs = [(s, t, cost) for s in states for t, cost in steps(moves, prices, s)]
    value = {s: 0 if not any(s) else np.inf for s in states}
    for _ in range(len(states) + 1):
        before = dict(value)
        for s, t, cost in arcs:
            value[s] = min(value[s], value[t] + cost)
        if value == before:
            return value
    return None


@settings(max_examples=60)
@given(moves_of_requests())
def test_every_resident_state_is_numbered_once(moves):
    """The list holds exactly the sets that fit, and each is found by its code."""
    residents = residents_of(moves)
    listed = {tuple(row) for row in residents.tokens.tolist()}

    assert listed == set(every_state(moves))
    assert len(residents.codes) == len(listed)
    assert count_residents(moves.blocks, moves.counts, moves.capacity) == len(listed)
    for state, code in enumerate(residents.codes):
        assert compiled(state_of)(residents.slots, residents.codes, code) == state


@settings(max_examples=250, deadline=None)
@given(moves_of_requests(), st.data())
def test_values_are_those_of_the_cheapest_paths(moves, data):
    """Values agree with trying everything; where a cycle earns too much, the ones written down do."""
    prices = np.zeros_like(moves.blocks)
    for i, count in enumerate(moves.counts.tolist()):
        prices[i, :count] = data.draw(st.lists(st.integers(0, 200), min_size=count, max_size=count))
    residents = residents_of(moves)
    paths = new_paths(len(residents.codes))
    emitted, costs = np.zeros((20, *prices.shape), dtype=np.int64), np.zeros(20, dtype=np.int64)
    found, _ = compiled(settle)(moves, residents, paths, prices, emitted, costs)
    expected = cheapest_paths(moves, prices)

    assert (expected is None) == (found > 0)
    for tour, cost in zip(emitted[:found], costs[:found], strict=True):
        assert cost < (tour * prices).sum()
    for tokens, value in (expected or {}).items():
        known = paths.value[compiled(state_of)(residents.slots, residents.codes, moves.strides @ tokens)]
        assert known == value or (value == np.inf and known >= 2**60)


@settings(max_examples=80, deadline=None)
@given(moves_of_requests(), st.booleans())
def test_prices_hold_and_are_no_worse_than_those_to_start_from(moves, waits):
    """Whatever they are, no cycle earns more than it costs, and what they prove has not fallen."""
    start = np.zeros_like(moves.blocks)
    best = resident_path_prices(moves, residents_of(moves), start, lambda *_: True, waits=waits)

    assert cheapest_paths(moves, best.prices) is not None
    assert (best.prices >= 0).all()
    assert proven_by(best.prices, waits=waits) >= 0


def growing_pair():
    """Two requests of 3 and 4 tokens, two outputs each, in 7 blocks: side by side for one token only."""
    nothing = np.zeros((2, 3), dtype=np.int64)
    return Moves(
        blocks=np.array([[3, 4, 0], [4, 5, 0]]),
        counts=np.array([2, 2]),
        strides=np.array([1, 3]),
        capacity=7,
        batch=np.array([100_000, 100_000, 100_000]),
        decode=nothing,
        prefill=np.array([[0, 90_000, 0], [0, 90_000, 0]]),
        preemptive=True,
        holding=True,
    )


def test_prices_see_that_requests_grow_together():
    """Three batches hold all tokens, but behind the first, with both, one of the two has to leave.

    So the cheapest schedule takes three batches and a refill: 390,000, which the prices prove but for
    the part at which they are good enough; single batches prove 300,000.
    """
    moves, start = growing_pair(), np.zeros((2, 3), dtype=np.int64)
    best = resident_path_prices(moves, residents_of(moves), start, lambda *_: True, waits=False)

    assert 389_500 <= best.prices.sum() <= 390_000


def test_prices_that_do_not_hold_are_refused():
    """A single token that earns more than its batch costs is a negative cycle."""
    start = np.zeros((2, 3), dtype=np.int64)
    start[0, 0] = 100_001
    with pytest.raises(InternalError, match="prices to start from"):
        resident_path_prices(
            growing_pair(), residents_of(growing_pair()), start, lambda *_: True, waits=False
        )


def test_no_time_means_the_prices_to_start_from():
    """Asked to stop at once, the search for prices gives back what it was given."""
    start = np.zeros((2, 3), dtype=np.int64)
    moves = growing_pair()
    best = resident_path_prices(moves, residents_of(moves), start, lambda *_: False, waits=False)

    assert best.prices.tolist() == start.tolist()
