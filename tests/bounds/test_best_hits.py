"""Bounds with prefix cache hits: never above what schedules with hits reach, and derived again."""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from cspsched.bounds import Certificate, best_bound, certificates, check_certificate, fewest_misses
from cspsched.bounds.best_hits.bound import best_hits
from cspsched.bounds.misses import percentile_ns
from cspsched.bounds.parts.tables import Tables
from cspsched.bounds.time_price.details import PRICE_UNIT
from cspsched.bounds.window_price.details import WINDOW_PRICE, WindowPrices
from cspsched.errors import InputError
from cspsched.policies.base import make_policy
from cspsched.problem.instance import Switches
from cspsched.problem.objectives import Objective
from cspsched.referee.judge import judge
from cspsched.simulate import simulate
from tests.oracles.exhaustive_hits import HitSearch, least, schedule_of
from tests.support.bound_cases import instance_of
from tests.support.hit_cases import (
    hit_instance,
    priced_bounds,
    sharing_crowd,
    value_of,
    waits,
    without_hits,
)

EXAMPLES = max(500, int(os.environ.get("CSPSCHED_ORACLE_EXAMPLES", "0")))
CACHED = "vllm:enable_prefix_caching=true"


def drawn(seed):
    """A tiny instance, and a generator for what is chosen about it."""
    rng = random.Random(seed)
    return hit_instance(rng, rng.choice([1, 2, 2, 2, 2, 3])), rng


def sharing(*requests, block=4, **limits):
    """Requests (arrival, prompt, output, prefix) that may find each other's blocks."""
    instance = instance_of([row[:3] for row in requests], block_tokens=block, **limits)
    with_prefixes = tuple(
        replace(request, prefix=row[3]) for request, row in zip(instance.requests, requests, strict=True)
    )
    return replace(instance, requests=with_prefixes, switches=Switches(prefix_caching=True))


@pytest.mark.parametrize("seed", range(60))
def test_the_referee_accepts_what_the_exhaustive_search_finds(seed):
    """Its best schedules break no rule and have the stated value; without any hit they may share blocks."""
    instance, _ = drawn(seed)
    found = HitSearch(instance).reachable()
    for objective in Objective:
        times, trail = min(found, key=lambda one: value_of(instance, objective, one[0]))
        judged = judge(instance, schedule_of(trail))
        if judged.violations:
            assert {"capacity"} == {violation.rule for violation in judged.violations}
            assert not judged.schedule.uses_prefix_cache
        else:
            assert value_of(instance, objective, times) == judged.metrics.objective_ns(objective)


def test_no_bound_exceeds_the_optimum_with_hits():
    """Every certificate, any prices, misses and percentiles: at most what trying everything finds.

    The same bounds where nothing is cached are above it on many instances, each kind of them.
    """
    too_high: Counter[str] = Counter()
    for seed in range(EXAMPLES):
        instance, rng = drawn(seed)
        found = HitSearch(instance).reachable()
        for objective in Objective:
            optimum = least(found, lambda times, o=objective, i=instance: value_of(i, o, times))
            for name, value_ns in _bounds(instance, objective, rng):
                assert value_ns <= optimum, (seed, objective, name)
            plain = without_hits(instance)
            too_high.update(name for name, value_ns in _bounds(plain, objective, rng) if value_ns > optimum)
        for objective in (Objective.LATENCY, Objective.TTFT):
            _assert_counts_hold(
                instance, objective, [waits(instance, objective, times) for times, _ in found]
            )
    assert {"tokens", "kv-volume", "slots", "critical-path", "srpt", "srpt-tail", "pair-delay"} <= {*too_high}
    assert {"memory-price", "time-price", "window-price"} & {*too_high}


def _bounds(instance, objective, rng):
    yield from ((one.name, one.value_ns) for one in certificates(instance, objective))
    if objective is Objective.LATENCY:
        for _ in range(3):
            yield from priced_bounds(instance, rng)


def _assert_counts_hold(instance, objective, rows):
    """Misses of any limit, and percentiles."""
    for limit in sorted({time - less for row in rows for time in row for less in (0, 1)})[:6]:
        missed = min(sum(time > limit for time in row) for row in rows)
        assert fewest_misses(instance, [limit] * len(instance.requests), objective) <= missed
    for percent in (50, 99):
        reached = min(float(np.percentile(row, percent)) for row in rows)
        assert percentile_ns(instance, percent, objective) <= reached + 1e-6


@pytest.mark.parametrize("objective", Objective)
@pytest.mark.parametrize("seed", range(25))
def test_every_certificate_of_tiny_instances_is_derived_again(seed, objective):
    """The checker finds the best hits itself, and reaches the same nanosecond."""
    instance, _ = drawn(1000 + seed)
    for certificate in certificates(instance, objective):
        assert check_certificate(instance, certificate) == []


@pytest.mark.parametrize(("seed", "gap_ns"), [(0, 0), (1, 0), (0, 40), (1, 40), (2, 900)])
def test_crowds_that_share_are_bounded_and_checked(seed, gap_ns):
    """Requests in conversations: below vLLM with its cache, and every certificate is derived again."""
    instance = sharing_crowd(random.Random(seed), 33, gap_ns)
    run = judge(instance, simulate(instance, make_policy(CACHED)).schedule)
    assert not run.violations
    assert run.schedule.uses_prefix_cache
    for objective in Objective:
        found = certificates(instance, objective)
        if objective is Objective.LATENCY:
            assert {one.name for one in found} >= {"time-price" if gap_ns else "memory-price"}
        for certificate in found:
            assert certificate.value_ns <= run.metrics.objective_ns(objective), certificate.name
            assert check_certificate(instance, certificate) == [], certificate.name


def test_a_block_is_charged_to_the_first_request_that_holds_it():
    """Three requests with 8 common tokens: the earliest pays, and can find them only of later ones."""
    text = (("a", 8),)
    instance = sharing((50, 10, 1, text), (0, 10, 1, text), (20, 8, 1, text))
    hits = best_hits(instance)
    assert hits.found.tolist() == [8, 0, 8]
    assert hits.findable.tolist() == [8, 8, 4]
    assert hits.wait_ns.tolist() == [0, 20, 0]


def test_only_full_blocks_of_the_same_text_are_found():
    """Seven common tokens in blocks of 4 are one block; another text before them shares nothing."""
    instance = sharing((0, 20, 1, (("a", 7),)), (1, 20, 1, (("a", 9),)), (2, 20, 1, (("b", 4), ("a", 7))))
    assert best_hits(instance).found.tolist() == [0, 4, 0]


def test_bounds_with_hits_by_hand():
    """Two prompts of 100 tokens, 96 in common: 96 of the tokens are processed once; alone each takes less."""
    text = (("a", 96),)
    instance = sharing((0, 100, 1, text), (0, 100, 1, text))
    # 100 + 40 a batch with prefill and 2 a token, in one batch.
    assert best_bound(instance, Objective.MAKESPAN).value_ns == 140 + 2 * (100 + 4)
    assert best_bound(without_hits(instance), Objective.MAKESPAN).value_ns == 140 + 2 * 200


def test_a_request_that_waits_for_a_later_one_has_waited():
    """The earlier of two finds nothing before the later one comes, so its lone time is whole."""
    text = (("a", 96),)
    far = sharing((0, 100, 1, text), (10**6, 100, 1, text))
    assert Tables(far).solo.firsts_ns.tolist() == [140 + 200, 140 + 8]
    near = sharing((0, 100, 1, text), (30, 100, 1, text))
    assert Tables(near).solo.firsts_ns.tolist() == [30 + 140 + 8, 140 + 8]


def test_a_refill_finds_what_it_computed_itself():
    """Without any shared prompt a cached refill may be cheaper than a decode, so certificates fall."""
    alone = instance_of([(0, 10, 9)])
    dear = replace(alone, cost=replace(alone.cost, decode_batch=alone.cost.prefill_batch * 9))
    cached = replace(dear, switches=Switches(prefix_caching=True))
    values = [best_bound(one, Objective.LATENCY).value_ns for one in (cached, dear)]
    assert values[0] < values[1]


def test_the_order_of_the_file_means_nothing():
    """Permuting the requests changes no value."""
    rng = random.Random(5)
    instance = sharing_crowd(rng, 20, 60)
    shuffled = replace(instance, requests=tuple(rng.sample(instance.requests, 20)))
    for objective in Objective:
        values = [{c.name: c.value_ns for c in certificates(one, objective)} for one in (instance, shuffled)]
        assert values[0] == values[1]


def test_the_checker_refuses_prices_on_shared_memory():
    """Residents that share blocks may hold more than the capacity, so that their shares prove nothing."""
    instance = sharing_crowd(random.Random(0), 40, 40)
    chosen = WindowPrices(
        prices=(PRICE_UNIT,) * 9,
        window_ns=99,
        height=0,
        pace=16,
        memory=8,
        slopes=(64,),
        references=(PRICE_UNIT,),
    )
    details = chosen.to_details() | Tables(instance).work[0].minorant.to_details()
    with pytest.raises(InputError, match="share blocks"):
        check_certificate(instance, Certificate(WINDOW_PRICE, Objective.LATENCY, 1, details))


@pytest.mark.parametrize("objective", Objective)
def test_a_bound_without_hits_is_refused_where_there_are_some(objective):
    """A certificate of the same requests with caching off is no certificate with it on."""
    text = (("a", 96),)
    instance = sharing((0, 100, 3, text), (0, 100, 3, text))
    assert any(check_certificate(instance, one) for one in certificates(without_hits(instance), objective))
