"""The certificate `pair-delay`: parts against plain searches, the whole against exhaustive search."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction
from itertools import combinations_with_replacement

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.bounds import certificates, check_certificate
from cspsched.bounds.critical_path import critical_path
from cspsched.bounds.pair_delay import bound
from cspsched.bounds.pair_delay.bound import Company, Hull, pair_delay_certificates
from cspsched.bounds.pair_delay.details import MOST_CHUNKS, SHARE_UNIT
from cspsched.bounds.pair_delay.kernel import convex_sums
from cspsched.bounds.parts.entries import least_growth_ns
from cspsched.bounds.parts.tables import Tables
from cspsched.compiled.jit import compiled
from cspsched.costs.presets import load_cost
from cspsched.errors import InputError
from cspsched.policies.base import make_policy
from cspsched.problem.cost import CostModel, PiecewiseLinear
from cspsched.problem.instance import Instance, Limits
from cspsched.problem.objectives import Objective
from cspsched.problem.request import Request
from cspsched.simulate.kernel import simulate_fast
from tests.oracles.exhaustive import exhaustive_optimum
from tests.support.strategies import EXAMPLES, make_instance


def pair_delay(instance):
    """The certificate of an instance."""
    return next(found for found in certificates(instance, Objective.LATENCY) if found.name == "pair-delay")


def chat(count, gap_ns, seed):
    """Prompts of about 200 tokens and outputs of about 60 on the shipped H100 cost."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(gap_ns, count)).astype(int).tolist()
    requests = tuple(
        Request(request_id=f"r{k}", arrival_ns=arrivals[k], prompt_tokens=int(i), output_tokens=int(o))
        for k, (i, o) in enumerate(
            zip(rng.integers(100, 300, count), rng.integers(20, 100, count), strict=True)
        )
    )
    limits = Limits(kv_blocks=4000, block_tokens=16, max_batch_tokens=256, max_batch_requests=256)
    return Instance(requests=requests, limits=limits, cost=load_cost("h100-llama-3.1-8b"))


@given(
    knots=st.lists(st.integers(1, 30), max_size=4, unique=True),
    slopes=st.lists(st.fractions(0, 20, max_denominator=6), min_size=5, max_size=5),
    top=st.integers(1, 40),
)
def test_least_growth_is_the_least_over_every_start(knots, slopes, top):
    """Against every whole number at which a term can stand."""
    function = PiecewiseLinear((0, *sorted(knots)), tuple(slopes[: len(knots) + 1]))
    amounts = np.arange(top + 1)
    expected = [
        int(min(function.exact(x + amount) - function.exact(x) for x in range(top - amount + 1)))
        for amount in amounts.tolist()
    ]
    assert least_growth_ns(function, top, amounts).tolist() == expected


@given(
    steps=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    count=st.integers(1, 4),
    total=st.integers(1, 20),
)
def test_convex_sums_are_below_every_way_to_cut(steps, count, total):
    """Against all chunks that add up to the total or more; exact for one chunk of a convex function."""
    values = np.cumsum([0, *steps])
    found = least_sums(values, total)[count]
    ways = combinations_with_replacement(range(1, len(values)), count)
    assert all(found <= int(values[list(way)].sum()) for way in ways if sum(way) >= total)
    if len(steps) >= total and steps == sorted(steps):
        assert least_sums(values, total)[1] == values[total]


def least_sums(values, total):
    """What the hull of some values says for 0 (nothing), 1, 2, ... numbers that add up to a total."""
    hull, rows = Hull.below(values), np.zeros((1, MOST_CHUNKS + 2), dtype=np.int64)
    compiled(convex_sums)(hull.corners, hull.values, total, 0, rows, 0)
    return rows[0].tolist()


def steps(rng):
    """A term of up to three slopes, none of them fractions that hide behind rounding."""
    knots = (0, *sorted(rng.sample(range(1, 8), rng.choice((0, 0, 1, 2)))))
    return PiecewiseLinear(knots, tuple(Fraction(rng.choice((0, 0, 1, 2, 5, 9, 20))) for _ in knots))


def pressed(rng):
    """Two or three requests that meet, dear tokens and little memory, so that the pairs decide the bound."""
    count = rng.choice((2, 2, 2, 3))
    terms = {
        name: steps(rng)
        for name in ("prefill_attention", "prefill_tokens", "prefill_context", "decode_context", "head")
        if rng.random() < 0.5
    }
    cost = CostModel(
        name="pressed",
        step=Fraction(rng.choice((3, 6, 10, 40, 100))),
        prefill_batch=Fraction(rng.choice((0, 0, 1, 3))),
        decode_batch=Fraction(rng.choice((0, 0, 1, 3))),
        decode_request=Fraction(rng.choice((0, 1, 3)), 2),
        tokens=steps(rng),
        **terms,
    )
    step, (longest_prompt, longest_output) = int(cost.step), (4, 4) if count == 2 else (2, 3)
    shapes = [(rng.randint(1, longest_prompt), rng.randint(1, longest_output)) for _ in range(count)]
    peak = max(prompt + output - 1 for prompt, output in shapes)
    return make_instance(
        *shapes,
        arrivals_ns=[rng.choice((0, rng.randint(0, 3 * step), rng.randint(0, 6 * step))) for _ in shapes],
        cost=cost,
        kv_blocks=rng.randint(peak, 3 * peak),
        max_batch_tokens=rng.randint(1, 6),
        max_batch_requests=rng.randint(1, 3),
    )


@pytest.mark.parametrize("first", range(0, EXAMPLES * 2, 50))
def test_no_share_exceeds_the_optimum(first):
    """Every share of a batch for pairs is at most the optimum; at 0 it is no less than each request alone."""
    apart = better = 0
    for seed in range(first, first + 50):
        instance = pressed(random.Random(seed))
        optimum = exhaustive_optimum(instance, Objective.LATENCY)
        company = Company.of(Tables(instance))
        alone = critical_path(Tables(instance), Objective.LATENCY).value_ns
        assert company is not None
        values = [company.value_ns(share) for share in range(SHARE_UNIT + 1)]
        assert alone <= values[0] <= max(values) <= optimum
        assert check_certificate(instance, pair_delay(instance)) == []
        apart, better = apart + bool(company.apart), better + (values[0] > alone)
    assert min(apart, better) > 0


@pytest.mark.parametrize("first", range(0, EXAMPLES, 50))
def test_some_of_the_pairs_prove_no_more_than_the_optimum(first, monkeypatch):
    """Where each request counts only the last before it, this is a bound, too, and derived again."""
    others = 0
    for seed in range(first, first + 50):
        instance = pressed(random.Random(seed))
        every = pair_delay(instance)
        with monkeypatch.context() as few:
            few.setattr(bound, "MOST_PAIRS", 1)
            certificate = pair_delay(instance)
        assert certificate.details["partners"] == 1
        assert certificate.value_ns <= exhaustive_optimum(instance, Objective.LATENCY)
        assert check_certificate(instance, certificate) == []
        others += certificate.value_ns != every.value_ns
    assert others > 0


def test_long_traces_have_it_too():
    """Each pair counts once, with 100 requests a second; a trace of any length is bounded as well."""
    values = [pair_delay_certificates(Tables(chat(count, 1e7, 3)))[0].value_ns for count in (3000, 13_000)]
    assert values[1] / 13_000 == pytest.approx(values[0] / 3000, rel=0.01)


def test_pairs_and_time_grow_with_the_requests(monkeypatch):
    """Where all come at once, each counts those that came last; never more pairs than are allowed."""
    monkeypatch.setattr(bound, "MOST_PAIRS", 10_000)
    counts = [len(Company.of(Tables(chat(count, 1, 3))).pairs.older) for count in (50, 100, 200, 400)]
    assert counts[:2] == [50 * 49 // 2, 100 * 99 // 2]
    assert all(8000 < count <= 10_000 for count in counts[2:])


def test_a_prompt_beside_a_decoding_request_is_priced_exactly():
    """By hand: 10 ns a batch, 2 ns a token. r0 decodes for 3 batches; r1 comes after 1 ns with 4 tokens.

    Alone r0 takes 12 + 3 x 12 = 48 and r1 18. r1 adds its 4 tokens to one of r0's batches (8), or waits for
    three batches, which is dearer.
    """
    cost = CostModel(name="plain", step=Fraction(10), tokens=PiecewiseLinear.linear(2))
    instance = make_instance((1, 4), (4, 1), arrivals_ns=(0, 1), cost=cost)
    assert Company.of(Tables(instance)).value_ns(0) == 48 + 18 + 8
    assert pair_delay(instance).value_ns == 48 + 18 + 8
    # In truth r0 waits for r1 (1), for r1 would wait for a whole batch, and r1 meets one token of r0 (2).
    assert exhaustive_optimum(instance, Objective.LATENCY) == 48 + 18 + 8 + 1 + 2


def test_decodes_that_must_meet_are_priced():
    """By hand: two requests that come together share all 6 batches, and each adds 2 ns to the other in each.

    The bound sees the one's prompt (2) and its 5 decodes (10) in the other's stay. With a share for pairs,
    also the other's decodes: then prompts are long, so that a share of a refill is dearer than a decode.
    """
    cost = CostModel(name="plain", step=Fraction(1000), tokens=PiecewiseLinear.linear(2))
    instance = make_instance((1, 6), (1, 6), cost=cost)
    alone = 2 * 6 * 1002
    assert exhaustive_optimum(instance, Objective.LATENCY) == alone + 2 * 6 * 2
    assert Company.of(Tables(instance)).value_ns(0) == alone + 2 + 10
    longer = Company.of(Tables(make_instance((90, 6), (90, 6), cost=cost, kv_blocks=200)))
    alone = 2 * (1180 + 5 * 1002)
    assert longer.value_ns(0) == alone + 180 + 10
    # Of the 5 more, each prompt gives 2 back.
    assert longer.value_ns(1) == alone + 180 + 10 + 10 - 4


def test_two_that_do_not_fit_together_wait_for_each_other():
    """By hand: 10 ns a batch, 5 + 4 tokens each, room for 8: one after the other, 40 and 80 ns."""
    cost = CostModel(name="step", step=Fraction(10))
    instance = make_instance((5, 4), (5, 4), cost=cost, kv_blocks=8)
    assert exhaustive_optimum(instance, Objective.LATENCY) == 120
    assert pair_delay(instance).value_ns == 120
    assert pair_delay(instance).details["apart"] == "0-1"
    # Room for the first two batches of both: with 12 blocks they are apart for two batches.
    wider = replace(instance, limits=replace(instance.limits, kv_blocks=12))
    assert pair_delay(wider).value_ns == 100 == exhaustive_optimum(wider, Objective.LATENCY)


@pytest.mark.parametrize("seed", range(4))
def test_windows_of_chat_traffic_are_bounded_to_a_few_per_cent(seed):
    """Against policies: never above the best, better than each request alone, and derived again."""
    instance = chat(8, 1e8, seed)
    certificate = pair_delay(instance)
    arrivals = sum(request.arrival_ns for request in instance.requests)
    best = min(
        sum(simulate_fast(instance, make_policy(name)).finish_ns.tolist()) - arrivals
        for name in ("vllm", "sarathi", "vllm:max_num_batched_tokens=64", "smallest-volume")
    )
    alone = critical_path(Tables(instance), Objective.LATENCY).value_ns
    assert alone < certificate.value_ns <= best
    assert best - certificate.value_ns < (best - alone) * 3 / 4
    assert check_certificate(instance, certificate) == []


def test_details_are_checked():
    """A share that is none, and a value that does not follow, are refused."""
    instance = make_instance((2, 3), (2, 3))
    certificate = pair_delay(instance)
    assert check_certificate(instance, replace(certificate, value_ns=certificate.value_ns + 1))
    with pytest.raises(InputError, match="partners is -1"):
        check_certificate(instance, replace(certificate, details=certificate.details | {"partners": -1}))
    with pytest.raises(InputError, match="share is 17"):
        check_certificate(instance, replace(certificate, details=certificate.details | {"share": 17}))
    for apart in ("0-1 1-0", "0-2", "0", "1-0"):
        with pytest.raises(InputError, match="details are incomplete"):
            check_certificate(instance, replace(certificate, details=certificate.details | {"apart": apart}))


def test_numbers_that_do_not_fit_give_no_certificate():
    """A cost whose sums pass 64 bits is bounded by other certificates."""
    huge = CostModel(name="huge", step=Fraction(10**16), tokens=PiecewiseLinear.linear(10**17))
    instance = make_instance((2, 3), (2, 3), cost=huge)
    assert Company.of(Tables(instance)) is None
    assert "critical-path" in {found.name for found in certificates(instance, Objective.LATENCY)}
