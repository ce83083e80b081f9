"""Instances with affine costs and limits that bind only if they are told to."""

from __future__ import annotations

from fractions import Fraction

from cspsched.problem.cost import CostModel, PiecewiseLinear
from cspsched.problem.instance import Instance, Limits
from cspsched.problem.request import Request

COST = CostModel(
    name="affine",
    step=Fraction(100),
    prefill_batch=Fraction(40),
    decode_batch=Fraction(10),
    tokens=PiecewiseLinear.linear(2),
    decode_context=PiecewiseLinear.linear(1),
)


def instance_of(sizes, cost=COST, **limits):
    """Requests (arrival, prompt, output) under limits that do not bind unless they are given."""
    defaults = {"kv_blocks": 1000, "block_tokens": 1, "max_batch_tokens": 1000, "max_batch_requests": 100}
    requests = tuple(
        Request(request_id=f"r{k}", arrival_ns=arrival, prompt_tokens=prompt, output_tokens=output)
        for k, (arrival, prompt, output) in enumerate(sizes)
    )
    return Instance(requests=requests, limits=Limits(**defaults | limits), cost=cost)
