"""Prices per window: never above a schedule's latencies, whatever the prices; derived again; by hand."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.bounds import Certificate, check_certificate
from cspsched.bounds.parts.tables import Tables
from cspsched.bounds.time_price.bound import columns
from cspsched.bounds.time_price.details import PRICE_UNIT
from cspsched.bounds.time_price.search import time_price_certificates
from cspsched.bounds.window_price import search
from cspsched.bounds.window_price.bound import WindowTable, line_tables, outcome, window_bound_ns
from cspsched.bounds.window_price.details import RATE_UNIT, WINDOW_PRICE, WindowPrices
from cspsched.errors import InputError
from cspsched.problem.cost import CostModel, PiecewiseLinear
from cspsched.problem.instance import Instance, Limits
from cspsched.problem.objectives import Objective
from tests.oracles.exhaustive import exhaustive_optimum
from tests.oracles.naive_bounds import tiny_instances
from tests.support.crowds import (
    AFFINE,
    assert_derived_again,
    crowd,
    crowds,
    examples,
    idle_times,
    latency_certificates,
    sums_of_latencies,
)


@st.composite
def window_prices(draw):
    """Any prices, sensible or not, in up to 40 windows of one or several periods."""
    scale = draw(st.sampled_from([1, 64, PRICE_UNIT]))
    price = st.integers(0, 60).map(lambda value: value * scale)
    count = draw(st.integers(1, 40))
    return WindowPrices(
        prices=tuple(draw(st.lists(price, min_size=count, max_size=count))),
        window_ns=draw(st.sampled_from([1, 7, 50, 400, 3000])),
        height=draw(st.sampled_from([0, 1, 8, 14, 16, 17, 24, 64])),
        pace=draw(st.sampled_from([16, 17, 20, 24, 40])),
        memory=draw(st.integers(0, 16)),
        slopes=tuple(draw(st.lists(st.integers(1, 200), min_size=1, max_size=3))),
        references=tuple(draw(st.lists(price, min_size=1, max_size=3))),
        idle=draw(idle_times(count)),
    )


def tables_of(instance):
    """Columns under each minorant whose batches cost something."""
    tables, limits = Tables(instance), instance.limits
    found = [(columns(tables, work), work) for work in tables.work]
    capacity = limits.kv_blocks * limits.block_tokens
    return [(WindowTable(table, capacity), work) for table, work in found if table is not None]


def values_of(instance, chosen):
    """The bound under each minorant."""
    values = [window_bound_ns(table, chosen) for table, _ in tables_of(instance)]
    return [value for value in values if value is not None]


@examples(60)
@given(instance=tiny_instances(max_requests=2, max_prompt=4), chosen=window_prices())
def test_no_prices_exceed_the_optimum_of_two_requests(instance, chosen):
    """Two requests, any costs, any prices: never above what trying everything finds."""
    optimum = exhaustive_optimum(instance, Objective.LATENCY)
    assert all(value <= optimum for value in values_of(instance, chosen))


@examples(40)
@given(instance=tiny_instances(max_requests=3, max_prompt=3, max_output=2), chosen=window_prices())
def test_no_prices_exceed_the_optimum_of_three_requests(instance, chosen):
    """Three requests likewise."""
    optimum = exhaustive_optimum(instance, Objective.LATENCY)
    assert all(value <= optimum for value in values_of(instance, chosen))


@examples(100)
@given(instance=crowds(), chosen=window_prices())
def test_no_prices_exceed_a_policy(instance, chosen):
    """Crowds, any costs and limits, any prices: never above the latencies of any policy."""
    least = min(sums_of_latencies(instance), default=None)
    if least is not None:
        assert all(value <= least for value in values_of(instance, chosen))


@examples(60)
@given(instance=crowds(), chosen=window_prices())
def test_any_prices_are_derived_again(instance, chosen):
    """The plain twin reaches the same nanosecond from the same details."""
    for table, work in tables_of(instance):
        value_ns = window_bound_ns(table, chosen)
        if value_ns is not None:
            details = chosen.to_details() | work.minorant.to_details()
            assert_derived_again(instance, Certificate(WINDOW_PRICE, Objective.LATENCY, value_ns, details))


def mixed(count):
    """Lognormal lengths, all at 0: 12 ms a batch, 70 us a token, 0.35 us a KV entry read."""
    rng = np.random.default_rng(1)
    prompts = np.clip(rng.lognormal(6.0, 1.0, count), 1, 4096).astype(int).tolist()
    outputs = np.clip(rng.lognormal(4.8, 0.8, count), 1, 1024).astype(int).tolist()
    requests = tuple(
        replace(request, prompt_tokens=prompt, output_tokens=output)
        for request, prompt, output in zip(crowd(count, 0).requests, prompts, outputs, strict=True)
    )
    cost = CostModel(
        name="lognormal",
        step=Fraction(12_000_000),
        tokens=PiecewiseLinear.linear(70_000),
        decode_context=PiecewiseLinear.linear(350),
    )
    limits = Limits(kv_blocks=20_000, block_tokens=1, max_batch_tokens=2048, max_batch_requests=256)
    return Instance(requests=requests, limits=limits, cost=cost)


def test_it_beats_the_other_certificates_where_all_are_there_at_once():
    """Different lengths, memory for a third: falling prices see both the queue and the wait in a batch."""
    instance = mixed(60)
    found = latency_certificates(instance)
    others = max(value.value_ns for name, value in found.items() if name != WINDOW_PRICE)
    assert 1.05 * others < found[WINDOW_PRICE].value_ns <= min(sums_of_latencies(instance))
    assert int(found[WINDOW_PRICE].details["memory"]) > 0


def test_prices_that_follow_a_burst_beat_one_price():
    """Quiet, then three times the load: the steps along the gradient are worth something."""
    slow, fast = crowd(60, 9000), crowd(120, 3000)
    shifted = tuple(
        replace(request, request_id=f"f{k}", arrival_ns=request.arrival_ns + 60 * 9000)
        for k, request in enumerate(fast.requests)
    )
    instance = replace(slow, requests=slow.requests + shifted)
    certificate = latency_certificates(instance)[WINDOW_PRICE]
    chosen = WindowPrices.from_details(certificate.details)
    middle = int(np.median(chosen.prices))
    flat = replace(chosen, prices=(middle,) * len(chosen.prices), references=(middle,))
    assert len(set(chosen.prices)) > 1
    assert certificate.value_ns > max(values_of(instance, flat))


def test_one_request_by_hand():
    """Price 0 and s = 1: every decode costs alpha = 1000 and the line gives 1 for a nanosecond of it."""
    instance = crowd(1, 0, prompt=5, output=4)
    chosen = WindowPrices(
        prices=(0,) * 10, window_ns=1000, height=0, pace=16, memory=0, slopes=(64,), references=(0,)
    )
    table = tables_of(instance)[-1][0]
    lines = line_tables(table, chosen)
    assert np.diff(lines.costs[0])[5:].tolist() == [1000, 1000, 1000]
    # Three decodes, less what rounding the rate up takes: at most 4 / 4096 of the time.
    assert 4 / RATE_UNIT < 0.001
    assert 3000 * 0.995 <= outcome(table, chosen).value_ns <= 4000


ALONE_NS = 1000 + 10_000 + 100 * 1000
"""What the request of `lone` takes."""


def lone(window_ns, count, *slopes):
    """One prompt of 10,000 ns, 100 decodes of 1,000 ns without work; some windows at a price of 1/4."""
    cost = CostModel(name="level", step=Fraction(1000), prefill_tokens=PiecewiseLinear.linear(1000))
    chosen = WindowPrices(
        prices=(PRICE_UNIT // 4,) * count,
        window_ns=window_ns,
        height=0,
        pace=16,
        memory=0,
        slopes=slopes,
        references=(PRICE_UNIT // 4,),
    )
    return replace(crowd(1, 0, prompt=10, output=101), cost=cost), chosen


def test_two_lines_that_cross_inside_a_window_by_hand():
    """At its start the steep line shows much, at its end the flat one; neither at both.

    h is s where decodes have no work. To end at C costs C (1 - s) + 100,000 s, and 2,500 for the
    prompt: with s = 1/64 that is 4,000 at the start (rounded) and 198,775 at the end, with s = 127/64 it is
    200,900 at the start and next to nothing at the end, and with both 102,500 at C = 100,000. The larger of
    the two at each border would prove 198,775 - 50,000, for a request that takes 111,000.
    """
    instance, chosen = lone(200_000, 1, 1, 127)
    paid, prompt_cost, flat = 200_000 // 4, 10_000 // 4, 100 * (1000 // 64)
    (table, _), *_ = tables_of(instance)
    assert min(sums_of_latencies(instance)) == ALONE_NS < 198_775 - paid
    assert outcome(table, chosen).value_ns == prompt_cost + flat - paid


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("window_ns", [60_000, 100_000, 150_000, 200_000, 300_000])
def test_lines_that_cross_inside_windows_prove_no_more_than_the_optimum(window_ns, count):
    """Wherever the borders lie: alone on the machine it takes 111,000 ns, and the plain twin agrees."""
    instance, chosen = lone(window_ns, count, 1, 32, 96, 127)
    for table, work in tables_of(instance):
        value_ns = window_bound_ns(table, chosen)
        assert value_ns <= ALONE_NS
        details = chosen.to_details() | work.minorant.to_details()
        assert_derived_again(instance, Certificate(WINDOW_PRICE, Objective.LATENCY, value_ns, details))


def least_at_any_moment(table, chosen):
    """What the theorem's formula gives for the only request, in floats, at 40 ends in every window."""
    columns, slope_unit, sixteenths = table.columns, 64, 16
    alpha, memory, height = columns.alpha, chosen.memory / sixteenths, chosen.height / sixteenths
    resident = np.arange(int(columns.first[0]) + 1, int(columns.last[0]) + 1)
    work = columns.decodes[resident] * (1 - memory)
    prices, window = np.array(chosen.prices) / PRICE_UNIT, chosen.window_ns
    length = int(columns.least[0]) * chosen.pace // sixteenths
    length = length if length <= len(prices) * window else 0
    part = window / 40
    starts = np.arange(len(prices) * 40) * part
    mu = height * np.clip((length - starts) / part, 0, 1)
    prompt_cost = int(columns.prefill[0]) * (
        prices + height * (window * (np.arange(len(prices)) + 1) <= length)
    )
    costs = []
    for slope in np.array(chosen.slopes) / slope_unit:
        for reference in np.array(chosen.references) / PRICE_UNIT:
            held = reference * alpha * memory * resident / table.capacity
            roots = np.sqrt(slope * alpha + held) + np.sqrt(reference * work)
            left = np.maximum(roots - np.sqrt(np.outer(prices, work)), 0) ** 2 / alpha
            rates = (left - np.outer(prices, memory * resident / table.capacity)).max(axis=1, initial=0)
            gains = np.maximum(height * (starts < length), np.repeat(np.maximum(rates, 0), 40))
            lined = np.append(0, np.cumsum((1 - gains) * part))
            waited = np.append(0, np.cumsum(part - mu * part))
            opened = (waited - lined)[:-1:40] + prompt_cost
            least = np.minimum.accumulate(opened)[
                np.minimum(np.arange(len(starts) + 1) // 40, len(prices) - 1)
            ]
            costs.append(lined + least + np.sum(roots**2))
    ends = np.append(starts, len(prices) * window)
    dearest = np.maximum(np.max(costs, axis=0), np.append(0, np.cumsum(part - mu * part)))
    stays = dearest - height * np.maximum(length - ends, 0)
    # Who ends at H is late, too, and so takes the time alone on the machine or longer.
    stays[-1] = max(stays[-1], columns.least[0] + columns.prefill[0] - height * length)
    return min(stays[ends >= columns.least[0]], default=np.inf)


@examples(100)
@given(instance=crowds(), chosen=window_prices())
def test_an_end_inside_a_window_costs_no_less(instance, chosen):
    """The largest of several lines may be least between two borders; the bound knows that."""
    alone = replace(instance, requests=instance.requests[:1])
    for table, _ in tables_of(alone):
        window_ns = max(chosen.window_ns, int(table.columns.least[0]) // 4)
        chosen = replace(chosen, window_ns=window_ns, idle=())
        value_ns = window_bound_ns(table, chosen)
        if value_ns is not None:
            paid = sum(chosen.prices) * chosen.window_ns / PRICE_UNIT
            slack = 1 + 1e-3 * table.columns.least[0] * (1 + chosen.height / 16)
            assert value_ns + paid <= least_at_any_moment(table, chosen) + slack


def test_work_that_dwarfs_its_batches_is_priced_in_few_windows():
    """At 1 ns a batch and 10,000 ns a token windows as short as stays would be millions."""
    cost = CostModel(name="dear work", step=Fraction(1), tokens=PiecewiseLinear.linear(10_000))
    instance = replace(crowd(32, 0, prompt=3, output=3), cost=cost)
    for table, _ in tables_of(instance):
        counts = [len(chosen.prices) for chosen in search.falling_prices(table)]
        assert 0 < max(counts) <= search.MOST_FALLING_WINDOWS + 1


@pytest.mark.parametrize("gap_ns", [0, 1000, 3000])
def test_work_grows_smoothly_with_the_requests(gap_ns, monkeypatch):
    """Counted, from a crowd at once to one that comes slowly: no size at which it jumps or the bound ends."""
    works = {}

    def counted(*arguments):
        found = outcome(*arguments)
        works[count] += 0 if found is None else found.work
        return found

    monkeypatch.setattr(search, "outcome", counted)
    monkeypatch.setattr(search, "WORK", 3_000_000)
    monkeypatch.setattr(search, "WORK_OF_CROWD", 6_000_000)
    monkeypatch.setattr(search, "SAMPLE_REQUESTS", 100)
    monkeypatch.setattr(search, "LEAST_SAMPLE", 25)
    sizes = [200 * 2**doubled for doubled in range(7)]
    for count in sizes:
        works[count] = 0
        names = [found.name for found in time_price_certificates(Tables(crowd(count, gap_ns)))]
        assert WINDOW_PRICE in names
    for size in sizes[1:]:
        assert 0.4 * works[size // 2] < works[size] < 2.5 * works[size // 2]
    assert max(works.values()) < 20 * search.WORK


def test_every_so_manieth_request_stands_for_all():
    """An estimate from a tenth of a crowd is near the bound; what is certified counts all."""
    instance = mixed(400)
    certificate = latency_certificates(instance)[WINDOW_PRICE]
    chosen = WindowPrices.from_details(certificate.details)
    (table, _), *_ = [(table, work) for table, work in tables_of(instance) if is_of(work, certificate)]
    assert outcome(table, chosen).value_ns == certificate.value_ns
    assert outcome(table, chosen, 10).value_ns == pytest.approx(certificate.value_ns, rel=0.2)


def is_of(work, certificate):
    """Whether a certificate uses the minorant of a work table."""
    return work.minorant.to_details().items() <= certificate.details.items()


def test_work_that_dwarfs_its_batches_proves_something():
    """At 1 ns a batch and 10,000 ns a token, too."""
    cost = CostModel(name="dear work", step=Fraction(1), tokens=PiecewiseLinear.linear(10_000))
    instance = replace(crowd(32, 0, prompt=3, output=3), cost=cost)
    least = min(sums_of_latencies(instance))
    assert 0 < latency_certificates(instance)[WINDOW_PRICE].value_ns <= least


@pytest.mark.parametrize(
    ("name", "value"),
    [("pace", 15), ("height", -1), ("memory", 17), ("window_ns", 0), ("prices", "5 -1"), ("slopes", "0 64")],
)
def test_checker_refuses_prices_that_prove_nothing(name, value):
    """Values outside the theorem's domain are refused."""
    instance = crowd(40, 4000)
    certificate = latency_certificates(instance)[WINDOW_PRICE]
    with pytest.raises(InputError, match="prove nothing"):
        check_certificate(instance, replace(certificate, details=certificate.details | {name: value}))


def test_huge_numbers_give_no_certificate():
    """Where 64-bit products could overflow there is no value rather than a wrong one."""
    dear = replace(AFFINE, step=Fraction(2**50))
    assert WINDOW_PRICE not in latency_certificates(replace(crowd(40, 4000), cost=dear))
    chosen = WindowPrices(
        prices=(2**40,) * 4, window_ns=2**40, height=16, pace=16, memory=4, slopes=(64,), references=(2**40,)
    )
    assert values_of(crowd(10, 4000), chosen) == []
