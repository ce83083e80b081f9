"""Certificates by name: hand-made values, what wins where, and what the checker refuses."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from cspsched.bounds import Certificate, best_bound, certificates, check_certificate, solo_ns
from cspsched.bounds.parts import solo as solo_module
from cspsched.errors import InputError, LimitError, UsageError
from cspsched.problem.cost import PiecewiseLinear
from cspsched.problem.linear_form import read_objectives
from cspsched.problem.objectives import Objective
from tests.support.bound_cases import COST, instance_of


def named(instance, objective):
    """Certificates by name."""
    return {certificate.name: certificate for certificate in certificates(instance, objective)}


def test_one_request_is_solved_by_its_critical_path():
    """Prefill 100 + 40 + 2*5, then decodes 100 + 10 + 2 + context 5 and 6."""
    instance = instance_of([(7, 5, 3)])
    assert solo_ns(instance) == [150 + 117 + 118]
    assert best_bound(instance, Objective.MAKESPAN).value_ns == 7 + 385
    assert best_bound(instance, Objective.LATENCY).value_ns == 385
    assert best_bound(instance, Objective.TTFT).value_ns == 150


def test_volume_certificate_by_hand():
    """Two requests of 2 + 2 tokens, M = 3: volume 10, so 4 batches at 110, two 30 dearer, and work."""
    certificate = named(instance_of([(0, 2, 2)] * 2, kv_blocks=3), Objective.MAKESPAN)["kv-volume"]
    work = 2 * (2 * 2 + 2 + 2)
    prefill_batches = 2  # 4 resident tokens at the first tokens, 3 fit
    assert certificate.value_ns == 4 * 110 + prefill_batches * 30 + work
    assert certificate.details["num_batches"] == 4


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        ({"kv_blocks": 4}, "kv-volume"),
        ({"max_batch_tokens": 2}, "tokens"),
        ({"max_batch_requests": 1}, "slots"),
    ],
)
def test_the_binding_limit_names_the_winner(limits, name):
    """All at 0 and many: the certificate of the scarce resource is the best of the four counts."""
    found = named(instance_of([(0, 2, 3)] * 30, **limits), Objective.MAKESPAN)
    counts = ("kv-volume", "tokens", "slots", "longest-request")
    assert max(counts, key=lambda count: found[count].value_ns) == name


def test_a_late_crowd_is_seen_by_the_suffix():
    """One early request and a crowd at 10^6: the bound is 10^6 plus that of the crowd alone."""
    crowd = [(10**6, 4, 6)] * 20
    suffix = named(instance_of([(0, 4, 6), *crowd], kv_blocks=9), Objective.MAKESPAN)["arrival-suffix"]
    alone = best_bound(instance_of(crowd, kv_blocks=9), Objective.MAKESPAN)
    assert suffix.value_ns == alone.value_ns
    assert (suffix.details["from_ns"], suffix.details["num_requests"]) == (10**6, 20)


def test_critical_path_names_the_request_that_decides():
    """The makespan's critical path is that of the latest request."""
    found = named(instance_of([(0, 4, 6), (10**6, 4, 6)]), Objective.MAKESPAN)["critical-path"]
    assert found.details["request"] == "r1"


def test_srpt_wins_when_all_arrive_together_and_critical_path_when_apart():
    """Contention is seen by the single machine, idle machines by the lone request."""
    together = instance_of([(0, 4, 6)] * 30, kv_blocks=9)
    apart = instance_of([(k * 10**6, 4, 6) for k in range(5)])
    assert best_bound(together, Objective.LATENCY).name == "srpt"
    assert best_bound(apart, Objective.LATENCY).name == "critical-path"


def test_the_tail_helps_where_prompts_queue_and_outputs_do_not():
    """Heavy prompts one at a time, light decodes: queueing for first tokens plus the lone tail beats both."""
    cost = replace(COST, decode_context=PiecewiseLinear())
    prompts = instance_of([(0, 100, 50)] * 10, cost=cost, max_batch_tokens=100, kv_blocks=2000)
    found = named(prompts, Objective.LATENCY)
    others = max(found["srpt"].value_ns, found["critical-path"].value_ns)
    assert found["srpt-tail"].value_ns > others


def test_a_refill_bounds_the_price_of_a_decode():
    """Where decoding is dear, the critical path takes the refill."""
    dear = replace(COST, decode_request=Fraction(10**6))
    assert solo_ns(instance_of([(0, 5, 2)], cost=dear)) == [150 + 152]


@pytest.mark.parametrize("objective", Objective)
def test_checker_accepts_minorant_based_solo_times(objective, monkeypatch):
    """Certificates of prompts that are too long to search are derived again from the minorants."""
    monkeypatch.setattr(solo_module, "can_search", lambda *_: False)
    instance = instance_of([(0, 9, 4), (50, 3, 7), (60, 20, 2)], max_batch_tokens=6, kv_blocks=30)
    for certificate in certificates(instance, objective):
        assert check_certificate(instance, certificate) == []


@pytest.mark.parametrize("objective", Objective)
@pytest.mark.parametrize("change", [1, -1])
def test_checker_refuses_another_value(objective, change):
    """A value off by a nanosecond is not derived."""
    instance = instance_of([(0, 9, 4), (50, 3, 7)], max_batch_tokens=6, kv_blocks=30)
    for certificate in certificates(instance, objective):
        wrong = replace(certificate, value_ns=certificate.value_ns + change)
        assert any("derived" in objection for objection in check_certificate(instance, wrong))


def test_checker_refuses_a_minorant_above_the_cost():
    """A raised price per batch is named, although the value follows from it."""
    instance = instance_of([(0, 9, 4)])
    certificate = named(instance, Objective.MAKESPAN)["tokens"]
    details = certificate.details | {"minorant_batch_ns": "100000"}
    objections = check_certificate(instance, replace(certificate, details=details))
    assert any("line over tokens" in objection for objection in objections)
    assert any("above the cost at tokens = 1" in objection for objection in objections)


def test_checker_refuses_a_start_after_an_arrival():
    """A whole-trace bound may not start after the first arrival."""
    instance = instance_of([(0, 9, 4), (50, 3, 7)])
    certificate = named(instance, Objective.MAKESPAN)["slots"]
    details = certificate.details | {"from_ns": 50}
    with pytest.raises(InputError, match="arrives before"):
        check_certificate(instance, replace(certificate, details=details))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("srpt", {"output_share": "1/2"}, "leaves a tail"),
        ("srpt", {"memory_share": "2"}, "no convex combination"),
        ("srpt-tail", {"output_share": "-"}, "incomplete"),
    ],
)
def test_checker_refuses_choices_that_prove_nothing(name, change, message):
    """Shares beyond a whole, or a head without its tail, are refused."""
    instance = instance_of([(0, 9, 4), (50, 3, 7)])
    certificate = named(instance, Objective.LATENCY)[name]
    with pytest.raises(InputError, match=message):
        check_certificate(instance, replace(certificate, details=certificate.details | change))


def test_checker_refuses_unknown_names():
    """Only certificates of known kinds are checked."""
    unknown = Certificate("hope", Objective.MAKESPAN, 1, {})
    with pytest.raises(InputError, match="'hope' is of no known kind"):
        check_certificate(instance_of([(0, 1, 1)]), unknown)


def test_checker_refuses_large_instances():
    """The slow checker says what it takes."""
    instance = instance_of([(0, 9, 4), (50, 3, 7)])
    certificate = best_bound(instance, Objective.MAKESPAN)
    with pytest.raises(LimitError, match="2 requests with 21 tokens"):
        check_certificate(instance, certificate, max_requests=1)
    with pytest.raises(LimitError, match="at most 2000 and 20"):
        check_certificate(instance, certificate, max_tokens=20)


@pytest.mark.parametrize("ask", [certificates, best_bound, solo_ns])
@pytest.mark.parametrize("text", ["latency+2*max-itl", "misses", "2*makespan+ttft"])
def test_a_mixture_is_not_bounded_as_if_it_were_latency(ask, text):
    """Certificates are of three objectives; a mixture, or a text, has none, and is told so."""
    instance = instance_of([(7, 5, 3)])
    instance = replace(instance, requests=(replace(instance.requests[0], ttft_limit_ns=1),))
    for objective in (*read_objectives(text, instance), text):
        with pytest.raises(UsageError, match=r"is none of .*ttft.*solve"):
            ask(instance, objective)


def test_a_lone_time_is_no_makespan():
    """Times alone on the machine are latencies or TTFTs."""
    with pytest.raises(UsageError, match="objective makespan is none of latency, ttft"):
        solo_ns(instance_of([(7, 5, 3)]), Objective.MAKESPAN)
