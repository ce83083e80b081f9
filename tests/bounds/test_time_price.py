"""The price of time: never above a schedule's latencies, whatever the prices; derived again; by hand."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.bounds import Certificate, best_bound, check_certificate
from cspsched.bounds.parts.price_windows import Idle
from cspsched.bounds.parts.tables import Tables
from cspsched.bounds.time_price import bound as time_price_bound
from cspsched.bounds.time_price import search
from cspsched.bounds.time_price.bound import Waits, bound_ns, columns
from cspsched.bounds.time_price.details import PRICE_UNIT, TIME_PRICE, Prices
from cspsched.bounds.time_price.search import time_price_certificates
from cspsched.bounds.window_price.details import WINDOW_PRICE, WindowPrices
from cspsched.errors import InputError
from cspsched.policies.base import make_policy
from cspsched.problem.cost import PiecewiseLinear
from cspsched.problem.instance import Instance, Limits
from cspsched.problem.objectives import Objective
from cspsched.problem.request import Request
from cspsched.simulate import simulate
from tests.oracles.exhaustive import exhaustive_optimum
from tests.oracles.naive_bounds import TimeAccounts, tiny_instances
from tests.support.crowds import (
    AFFINE,
    POLICIES,
    assert_derived_again,
    crowd,
    crowds,
    examples,
    idle_times,
    latency_certificates,
    sparse_crowd,
    sums_of_latencies,
)
from tests.support.strategies import UNIT


@st.composite
def prices(draw):
    """Any prices, sensible or not, in one period or in several."""
    count = draw(st.integers(1, 60))
    return Prices(
        price=draw(st.integers(0, 60)) * draw(st.sampled_from([1, 64, PRICE_UNIT])),
        num_windows=count,
        idle=draw(idle_times(count)),
        window_ns=draw(st.sampled_from([1, 7, 50, 400, 3000])),
        stretch=draw(st.sampled_from([0, 16, 17, 20, 24, 32, 64])),
        pace=draw(st.sampled_from([16, 17, 20, 24, 40])),
    )


def values_of(instance, chosen):
    """The bound under each minorant."""
    tables = Tables(instance)
    found = [columns(tables, work) for work in tables.work]
    return [bound_ns(table, chosen) for table in found if table is not None]


@examples(60)
@given(instance=tiny_instances(max_requests=2, max_prompt=4), chosen=prices())
def test_no_prices_exceed_the_optimum_of_two_requests(instance, chosen):
    """Two requests, any costs, any prices: never above what trying everything finds."""
    optimum = exhaustive_optimum(instance, Objective.LATENCY)
    assert all(value <= optimum for value in values_of(instance, chosen) if value is not None)


@examples(40)
@given(instance=tiny_instances(max_requests=3, max_prompt=3, max_output=2), chosen=prices())
def test_no_prices_exceed_the_optimum_of_three_requests(instance, chosen):
    """Three requests likewise."""
    optimum = exhaustive_optimum(instance, Objective.LATENCY)
    assert all(value <= optimum for value in values_of(instance, chosen) if value is not None)


@examples(100)
@given(instance=crowds(), chosen=prices())
def test_no_prices_exceed_a_policy(instance, chosen):
    """Crowds, any costs and limits, any prices: never above the latencies of any policy."""
    least = min(sums_of_latencies(instance), default=None)
    if least is not None:
        assert all(value <= least for value in values_of(instance, chosen) if value is not None)


@st.composite
def busy_times(draw):
    """Affine requests close together, and prices of the size that waiting has there."""
    count = draw(st.integers(1, 12))
    sizes = st.tuples(st.integers(0, 4000), st.sampled_from([1, 5, 40, 150]), st.integers(1, 15))
    rows = draw(st.lists(sizes, min_size=count, max_size=count))
    clocks = np.cumsum([0, *(row[0] for row in rows[1:])])
    requests = tuple(
        Request(request_id=f"r{k}", arrival_ns=int(clock), prompt_tokens=row[1], output_tokens=row[2])
        for k, (clock, row) in enumerate(zip(clocks, rows, strict=True))
    )
    budget = draw(st.sampled_from([16, 64, 512]))
    limits = Limits(kv_blocks=2000, block_tokens=1, max_batch_tokens=budget, max_batch_requests=64)
    chosen = Prices(
        price=draw(st.sampled_from([0, 1, 20, 300, PRICE_UNIT, 4 * PRICE_UNIT, 20 * PRICE_UNIT])),
        num_windows=draw(st.sampled_from([40, 150, 400])),
        window_ns=draw(st.sampled_from([30, 300, 800])),
        stretch=draw(st.sampled_from([0, 16, 17, 19, 22, 28, 40])),
        pace=draw(st.sampled_from([16, 17, 18, 22])),
    )
    return Instance(requests=requests, limits=limits, cost=AFFINE), chosen


@examples(60)
@given(drawn=busy_times(), policy=st.sampled_from(POLICIES))
def test_no_request_pays_less_than_its_least(drawn, policy):
    """In every schedule each request pays v_i or more: latency, less what it gets back, plus prices.

    This is much sharper than the sum: where a request runs as the bound assumes, both sides are equal.
    """
    instance, chosen = drawn
    tables = Tables(instance)
    waits = Waits(columns(tables, tables.work[-1]), chosen)
    least = time_price_bound.least_costs(waits) - waits.area
    accounts = TimeAccounts(instance, simulate(instance, make_policy(policy)).schedule, chosen)
    for i, value in enumerate(least.tolist()):
        completion, time, paid = accounts.net(i)
        assert value <= time + (paid if completion <= chosen.horizon_ns else 0) + 1e-3


@examples(6)
@given(instance=crowds())
def test_no_chosen_certificate_exceeds_a_policy(instance):
    """All certificates of a crowd, with the prices that the search chose, are at most any policy's value."""
    least = min(sums_of_latencies(instance), default=None)
    if least is not None:
        assert best_bound(instance, Objective.LATENCY).value_ns <= least


@examples(30)
@given(instance=crowds(), chosen=prices())
def test_the_checker_derives_the_same_nanoseconds(instance, chosen):
    """Plain loops over requests, tokens and windows reach the same integer for any prices."""
    tables = Tables(instance)
    for work in tables.work:
        table = columns(tables, work)
        value_ns = None if table is None else bound_ns(table, chosen)
        if value_ns is not None:
            details = chosen.to_details() | work.minorant.to_details()
            assert_derived_again(instance, Certificate(TIME_PRICE, Objective.LATENCY, value_ns, details))


def test_it_beats_the_other_certificates_at_medium_load():
    """At medium load a price on time sees more than SRPT and lone requests."""
    found = latency_certificates(crowd(200, 4000))
    prices = (TIME_PRICE, WINDOW_PRICE)
    others = max(value.value_ns for name, value in found.items() if name not in prices)
    assert found[TIME_PRICE].value_ns > 1.1 * others


def test_making_others_wait_helps():
    """The same without mu is lower: that all requests wait for prefills is worth something."""
    instance = crowd(200, 4000)
    certificate = latency_certificates(instance)[TIME_PRICE]
    assert certificate.details["stretch"] != 0
    table = max((columns(t, w) for t in [Tables(instance)] for w in t.work), key=lambda one: one.decodes[-1])
    without = replace(Prices.from_details(certificate.details), stretch=0)
    assert bound_ns(table, without) < certificate.value_ns


def test_one_request_by_hand():
    """Price 0, no mu: one batch per token and no work, and the horizon does not cut it short."""
    instance = crowd(1, 0, prompt=5, output=4)
    chosen = Prices(price=0, num_windows=10, window_ns=10**6, stretch=0, pace=16)
    assert 4 * 1000 in values_of(instance, chosen)


def test_equal_requests_side_by_side_pay_what_the_bound_says():
    """Ten equal decodes a batch are best at P = 10^2 w / alpha = 2: least and payment differ by 3 %."""
    cost = replace(AFFINE, decode_context=PiecewiseLinear())
    instance = replace(crowd(10, 0, prompt=1, output=60), cost=cost)
    chosen = Prices(price=2 * PRICE_UNIT, num_windows=900, window_ns=100, stretch=0, pace=16)
    tables = Tables(instance)
    waits = Waits(columns(tables, tables.work[-1]), chosen)
    accounts = TimeAccounts(instance, simulate(instance, make_policy("vllm")).schedule, chosen)
    for i, least in enumerate(time_price_bound.least_costs(waits).tolist()):
        completion, time, paid = accounts.net(i)
        assert completion <= chosen.horizon_ns
        assert 0.97 * (time + paid) <= least <= time + paid


def test_a_decode_pays_for_the_best_batch():
    """Alpha 1000, work 218, price 1: 1000 + 218 + 2 sqrt(218 000), which is a batch of 1000 + 466."""
    tables = Tables(crowd(1, 0, prompt=99, output=2))
    table = columns(tables, tables.work[-1])
    assert table.decodes[100] == 20 + 2 * 99
    assert time_price_bound.token_costs(table, 16, PRICE_UNIT)[100] == 1000 + 218 + 2 * 466


def test_a_refill_may_be_cheaper_than_a_decode():
    """10 tokens at 20 and attention 55 are a refill of 255; a decode costs 38 and 2 x 194 of waiting."""
    tables = Tables(crowd(1, 0, prompt=9, output=2))
    table = columns(tables, tables.work[-1])
    assert time_price_bound.token_costs(table, 16, PRICE_UNIT)[10] == 1000 + 255


def test_waiting_prices_fall_from_window_to_window():
    """One request, S = 2, L = 4000 at 0: mu is 2 at 0 and 0 at 8000; windows of 1000 count their ends."""
    instance = crowd(1, 0, prompt=5, output=4)
    tables = Tables(instance)
    chosen = Prices(price=0, num_windows=9, window_ns=1000, stretch=32, pace=16)
    waits = Waits(columns(tables, tables.work[-1]), chosen)
    assert waits.length.tolist() == [4000]
    ends = [1792, 1536, 1280, 1024, 768, 512, 256, 0, 0]
    assert waits.waiting_prices.tolist() == ends
    assert waits.area.tolist() == [8000]


def test_windows_grow_with_the_requests_and_not_with_their_span(monkeypatch):
    """Pairs of requests a second or eleven days apart: equally many windows, and the same bounds."""
    monkeypatch.setattr(search, "hardly_waits", lambda *_: False)
    near, far = (time_price_certificates(Tables(sparse_crowd(gap))) for gap in (10**9, 10**15))
    for chosen, before, after in zip((Prices, WindowPrices), near, far, strict=True):
        windows = chosen.from_details(after.details).windows()
        assert len(windows.idle) == 19
        assert abs(windows.num_windows - chosen.from_details(before.details).windows().num_windows) <= 20
        assert 0.99 * before.value_ns < after.value_ns <= min(sums_of_latencies(sparse_crowd(10**15)))
    assert_derived_again(sparse_crowd(10**15), far[0])


def test_where_hardly_any_request_waits_there_are_no_prices_by_window():
    """Pairs a second apart are served as if each were alone, and one price proves less than that."""
    instance = sparse_crowd(10**9)
    found = latency_certificates(instance)

    assert found[TIME_PRICE].value_ns < found["critical-path"].value_ns
    assert WINDOW_PRICE not in found
    assert WINDOW_PRICE in latency_certificates(crowd(40, 1000))


def test_windows_of_a_batch_that_costs_next_to_nothing_are_few():
    """Arrivals a second apart at 1 ns a batch: as many windows as requests wait for, not a billion."""
    instance = replace(sparse_crowd(10**9), cost=UNIT)
    certificate = time_price_certificates(Tables(instance))[0]
    assert Prices.from_details(certificate.details).num_windows < 40 * 64 * 33


def test_idle_time_costs_nothing_and_separates():
    """Two equal requests an age apart are bounded as one is, twice."""
    one, two = crowd(1, 0), crowd(2, 10**9)
    alone = Prices(price=300, num_windows=200, window_ns=1000, stretch=20, pace=18)
    apart = replace(alone, num_windows=400, idle=(Idle(200, 10**6 - 200),))
    assert [2 * value for value in values_of(one, alone)] == values_of(two, apart)


def test_a_request_that_arrives_in_idle_time_has_its_own_batches():
    """Outside of all periods nothing is priced or paid: the time alone on the machine is left."""
    instance = crowd(2, 5000, prompt=5, output=4)
    early = Prices(price=0, num_windows=10, window_ns=1000, stretch=0, pace=16, idle=(Idle(4, 6),))
    table = columns(Tables(instance), Tables(instance).work[0])
    first, second = (time_price_bound.least_costs(Waits(table, early))).tolist()
    assert second == int(table.least[1] + table.prefill[1])
    assert first >= 4000


@pytest.mark.parametrize("text", ["0 5", "3 0", "9 5", "5 1;5 1", "5", "5 1 1", "5 x"])
def test_checker_refuses_idle_time_that_is_none(text):
    """Idle time lies between windows, one after another, and is at least a window long."""
    instance = crowd(10, 4000)
    certificate = latency_certificates(instance)[TIME_PRICE]
    details = certificate.details | {"num_windows": 9, "idle": text}
    with pytest.raises(InputError, match="details are incomplete"):
        check_certificate(instance, replace(certificate, details=details))


@pytest.mark.parametrize(
    ("name", "value"), [("pace", 15), ("stretch", 8), ("price", -1), ("window_ns", 0), ("num_windows", 0)]
)
def test_checker_refuses_prices_that_prove_nothing(name, value):
    """Values outside the theorem's domain are refused."""
    instance = crowd(10, 4000)
    certificate = latency_certificates(instance)[TIME_PRICE]
    with pytest.raises(InputError, match="prove nothing"):
        check_certificate(instance, replace(certificate, details=certificate.details | {name: value}))


def test_huge_numbers_give_no_certificate():
    """Where 64-bit products could overflow there is no value rather than a wrong one."""
    dear = replace(AFFINE, step=Fraction(2**50))
    instance = replace(crowd(10, 4000), cost=dear)
    assert TIME_PRICE not in latency_certificates(instance)
    chosen = Prices(price=2**40, num_windows=4, window_ns=2**40, stretch=16, pace=16)
    assert set(values_of(crowd(10, 4000), chosen)) == {None}
