"""Crowds of requests and what their certificates have to hold, for the tests of bounds made of prices."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from cspsched.bounds import Certificate, certificates, check_certificate
from cspsched.bounds.parts.price_windows import Idle
from cspsched.errors import CspschedError
from cspsched.policies.base import make_policy
from cspsched.problem.cost import CostModel, PiecewiseLinear
from cspsched.problem.instance import Instance, Limits
from cspsched.problem.objectives import Objective
from cspsched.problem.request import Request
from cspsched.referee.metrics import measure
from cspsched.simulate import simulate
from tests.oracles.naive_bounds import cost_models

EXAMPLES = int(os.environ.get("CSPSCHED_ORACLE_EXAMPLES", "0"))
POLICIES = ("vllm", "sarathi", "smallest-volume", "mc-sf")
AFFINE = CostModel(
    name="affine",
    step=Fraction(1000),
    prefill_batch=Fraction(300),
    tokens=PiecewiseLinear.linear(20),
    decode_context=PiecewiseLinear.linear(2),
    prefill_attention=PiecewiseLinear.linear(1),
)


def examples(few: int) -> settings:
    """Few in CI, many on demand."""
    return settings(max_examples=max(few, EXAMPLES), deadline=None)


def crowd(count: int, gap_ns: int, prompt: int = 30, output: int = 20, **limits: int) -> Instance:
    """Equal requests at equal distances under affine costs."""
    defaults = {"kv_blocks": 5000, "block_tokens": 1, "max_batch_tokens": 512, "max_batch_requests": 64}
    requests = tuple(
        Request(request_id=f"r{k}", arrival_ns=k * gap_ns, prompt_tokens=prompt, output_tokens=output)
        for k in range(count)
    )
    return Instance(requests=requests, limits=Limits(**defaults | limits), cost=AFFINE)


@st.composite
def crowds(draw: st.DrawFn) -> Instance:
    """Up to 25 requests with any cost model, close together or apart, and limits that may bind."""
    count, gap = draw(st.integers(1, 25)), draw(st.sampled_from([0, 30, 1000, 9000]))
    sizes = draw(
        st.lists(
            st.tuples(st.integers(0, 3), st.integers(1, 40), st.integers(1, 12)),
            min_size=count, max_size=count,
        )
    )  # fmt: skip
    arrivals = np.cumsum([wait * gap for wait, _, _ in sizes]).tolist()
    requests = tuple(
        Request(request_id=f"r{k}", arrival_ns=arrival, prompt_tokens=prompt, output_tokens=output)
        for k, (arrival, (_, prompt, output)) in enumerate(zip(arrivals, sizes, strict=True))
    )
    limits = Limits(
        kv_blocks=draw(st.sampled_from([60, 120, 2000])),
        block_tokens=draw(st.sampled_from([1, 4])),
        max_batch_tokens=draw(st.sampled_from([9, 32, 512])),
        max_batch_requests=draw(st.sampled_from([3, 64])),
    )
    cost = draw(st.one_of(st.just(AFFINE), cost_models()))
    return Instance(requests=requests, limits=limits, cost=cost).split_rejected()[0]


@st.composite
def idle_times(draw: st.DrawFn, num_windows: int) -> tuple[Idle, ...]:
    """Nothing, or up to three stretches of time without a price."""
    befores = st.sets(st.integers(1, num_windows - 1), max_size=3) if num_windows > 1 else st.just(set())
    return tuple(Idle(before, draw(st.integers(1, 20))) for before in sorted(draw(befores)))


def sparse_crowd(gap_ns: int, *, count: int = 40) -> Instance:
    """Requests of unlike lengths in pairs, and pairs far apart."""
    requests = tuple(
        replace(
            request,
            arrival_ns=k // 2 * gap_ns + k % 2 * 900,
            prompt_tokens=20 + 7 * k % 30,
            output_tokens=8 + k % 5,
        )
        for k, request in enumerate(crowd(count, 0).requests)
    )
    return replace(crowd(count, 0), requests=requests)


def sums_of_latencies(instance: Instance) -> Iterator[int]:
    """What each policy that can serve the instance reaches, in nanoseconds."""
    for name in POLICIES:
        try:
            schedule = simulate(instance, make_policy(name)).schedule
        except CspschedError:
            continue
        yield measure(instance, schedule).objective_ns(Objective.LATENCY)


def latency_certificates(instance: Instance) -> dict[str, Certificate]:
    """Certificates of the sum of latencies by name."""
    return {found.name: found for found in certificates(instance, Objective.LATENCY)}


def assert_derived_again(instance: Instance, certificate: Certificate) -> None:
    """The checker reaches the same nanosecond from the same details, and refuses one more."""
    assert check_certificate(instance, certificate) == []
    wrong = replace(certificate, value_ns=certificate.value_ns + 1)
    assert any("derived" in objection for objection in check_certificate(instance, wrong))
