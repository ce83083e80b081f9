"""Every batch starts as early as rule 7 allows; units convert exactly and round in the named direction."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.problem.cost import CostModel
from cspsched.referee.rules import find_violations
from cspsched.referee.timing import schedule_asap
from cspsched.units import NS_PER_S, ceil_div, ns_to_seconds, round_up, seconds_to_ns
from tests.support.strategies import check, check_briefly, feasible_runs, make_instance

TEN = CostModel(name="ten", step=Fraction(10))
"""Every batch takes 10 ns."""


def decisions(schedule):
    """Batches, evictions, and moves to and from host memory of a schedule, for `schedule_asap`."""
    entries = list(zip(schedule.request.tolist(), schedule.tokens.tolist(), strict=True))
    offsets = schedule.first_entry.tolist()
    batches = [entries[offsets[j] : offsets[j + 1]] for j in range(schedule.num_batches)]
    evictions, swapped, restored = ([[] for _ in batches] for _ in range(3))
    evicted = zip(schedule.evicted_batch.tolist(), schedule.evicted_request.tolist(), strict=True)
    for (j, i), to_host in zip(evicted, schedule.evicted_to_host.tolist(), strict=True):
        evictions[j].append(i)
        swapped[j] += [i] * to_host
    for j, i in zip(schedule.restored_batch.tolist(), schedule.restored_request.tolist(), strict=True):
        restored[j].append(i)
    return {"batches": batches, "evictions": evictions, "swapped": swapped, "restored": restored}


@pytest.mark.parametrize(
    ("arrivals_ns", "starts"),
    [([0, 0], [0, 10]), ([0, 10], [0, 10]), ([0, 11], [0, 11]), ([5, 0], [5, 15]), ([5, 50], [5, 50])],
)
def test_batches_start_at_the_clock_or_the_latest_arrival(arrivals_ns, starts):
    """A batch of 10 ns starts when the one before ended and all of its requests are there."""
    instance = make_instance((1, 1), (1, 1), arrivals_ns=arrivals_ns, cost=TEN)
    schedule = schedule_asap(instance, [[(0, 1)], [(1, 1)]], [[], []])

    assert schedule.start_ns.tolist() == starts
    assert schedule.end_ns.tolist() == [start + 10 for start in starts]


def test_a_batch_waits_for_the_last_of_its_requests():
    """Of arrivals at 3 and 8 ns in one batch the later decides."""
    instance = make_instance((1, 1), (1, 1), arrivals_ns=[3, 8], cost=TEN)

    assert schedule_asap(instance, [[(0, 1), (1, 1)]], [[]]).start_ns.tolist() == [8]


def test_a_request_that_only_waits_does_not_delay():
    """Residents that sit a batch out have no say in its start."""
    instance = make_instance((2, 1), (1, 1), arrivals_ns=[0, 100], cost=TEN)

    assert schedule_asap(instance, [[(0, 1)], [(0, 1)], [(1, 1)]], [[]] * 3).start_ns.tolist() == [0, 10, 100]


def test_empty_batches_are_left_to_the_referee():
    """An empty batch gets a time like any other, and the referee says what is wrong with it."""
    instance = make_instance((1, 1), cost=TEN)
    schedule = schedule_asap(instance, [[], [(0, 1)]], [[], []])

    assert schedule.start_ns.tolist() == [0, 10]
    assert [violation.message for violation in find_violations(instance, schedule)] == ["batch 0 is empty"]


def test_no_batches_take_no_time():
    """Nothing to run gives a schedule of nothing."""
    assert schedule_asap(make_instance((1, 1)), [], []).num_batches == 0


@given(feasible_runs())
@check_briefly
def test_asap_is_feasible_and_never_later(drawn):
    """The decisions of any feasible schedule run as early as possible are feasible, and no batch is later."""
    instance, schedule = drawn
    earliest = schedule_asap(instance, **decisions(schedule))

    assert find_violations(instance, earliest) == []
    assert (earliest.start_ns <= schedule.start_ns).all()


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ("0", 0),
        ("1", NS_PER_S),
        ("0.000000001", 1),
        ("0.0000000005", 0),
        ("0.0000000015", 2),
        ("0.00000000051", 1),
        ("-1.5", -1_500_000_000),
        ("9000000000.123456789", 9_000_000_000_123_456_789),
        ("1e-9", 1),
        (0.1, 100_000_000),
        (1e-9, 1),
        (3, 3 * NS_PER_S),
    ],
)
def test_seconds_are_read_digit_by_digit(seconds, expected):
    """Text is exact to the nanosecond, also where a float of that many seconds is not; ties go to even."""
    assert seconds_to_ns(seconds) == expected


@given(st.integers(-(9 * 10**18), 9 * 10**18))
@check
def test_nanoseconds_survive_text(time_ns):
    """Any number of nanoseconds written as decimal seconds is read back exactly."""
    sign, (whole, rest) = "-" * (time_ns < 0), divmod(abs(time_ns), NS_PER_S)

    assert seconds_to_ns(f"{sign}{whole}.{rest:09d}") == time_ns


@pytest.mark.parametrize("text", ["soon", "", "nan", "inf", "-inf", math.inf, math.nan])
def test_what_is_no_finite_time_is_refused(text):
    """Neither words nor infinities are times."""
    with pytest.raises(ValueError, match=r"not a finite number|NaN"):
        seconds_to_ns(text)


@pytest.mark.parametrize(
    ("numerator", "denominator", "expected"),
    [(0, 3, 0), (1, 3, 1), (3, 3, 1), (4, 3, 2), (-1, 3, 0), (-3, 3, -1), (10**30 + 1, 10**15, 10**15 + 1)],
)
def test_ceil_div_rounds_up(numerator, denominator, expected):
    """Up means towards plus infinity, in exact integers of any size."""
    assert ceil_div(numerator, denominator) == expected
    assert round_up(Fraction(numerator, denominator)) == expected


@given(st.fractions())
@check_briefly
def test_round_up_is_the_least_integer_not_below(value):
    """The result is not below the rational, and less than one above it."""
    assert 0 <= round_up(value) - value < 1


def test_seconds_are_for_people():
    """1.5 s are shown as a float."""
    assert ns_to_seconds(1_500_000_000) == 1.5
