"""Tiny instances in every combination of switches, with cost models of every shape."""

from fractions import Fraction

from hypothesis import strategies as st

from cspsched.problem.cost import CostModel, PiecewiseLinear
from cspsched.problem.instance import Preemption, Switches
from tests.support.instances import instance_of

STAIRS = CostModel(
    name="stairs",
    step=Fraction(50),
    prefill_batch=Fraction(20),
    decode_batch=Fraction(7, 2),
    prefill_request=Fraction(4),
    decode_request=Fraction(1, 3),
    tokens=PiecewiseLinear((0, 1, 2, 3, 4), tuple(map(Fraction, (9, 1, 30, 0, 12)))),
    prefill_attention=PiecewiseLinear.linear(Fraction(3, 2)),
    prefill_context=PiecewiseLinear.linear(2),
    decode_context=PiecewiseLinear((0, 3), (Fraction(1, 2), Fraction(5))),
    mixed_request=Fraction(7, 3),
    mixed_context=PiecewiseLinear((0, 2), (Fraction(6), Fraction(1, 2))),
    head=PiecewiseLinear((0, 1), (Fraction(10), Fraction(1))),
)
"""Every term of the cost form at work, convex, concave and neither."""

FLAT = CostModel(name="flat", step=Fraction(10))

all_switches = st.builds(
    Switches,
    chunked_prefill=st.booleans(),
    hybrid_batches=st.booleans(),
    holding=st.booleans(),
    preemption=st.sampled_from([Preemption.NONE, Preemption.RECOMPUTE]),
    reservation=st.booleans(),
)


@st.composite
def tiny_instances(draw, *, switches=all_switches, arrivals=True, costs=(STAIRS, FLAT)):
    """Two or three requests that fit one by one, tight in memory, budget or seats."""
    count = draw(st.integers(2, 3))
    most = 4 if count == 2 else 3
    latest = 300 if arrivals and draw(st.booleans()) else 0
    shapes = [
        (draw(st.integers(1, most)), draw(st.integers(1, most)), draw(st.integers(0, latest)))
        for _ in range(count)
    ]
    block = draw(st.integers(1, 2))
    peaks = [-(-(prompt + output - 1) // block) for prompt, output, _ in shapes]
    return instance_of(
        shapes,
        kv_blocks=draw(st.integers(max(peaks), sum(peaks))),
        block_tokens=block,
        max_batch_tokens=draw(st.integers(max(s[0] for s in shapes), 8)),
        max_batch_requests=draw(st.integers(1, 3)),
        cost=draw(st.sampled_from(costs)),
        switches=draw(switches),
    )


run_to_completion = st.builds(
    Switches,
    chunked_prefill=st.just(False),
    holding=st.just(False),
    preemption=st.just(Preemption.NONE),
    reservation=st.booleans(),
)
