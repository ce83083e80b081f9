"""Random instances under memory pressure, and how many a test tries."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from cspsched.problem.instance import Instance, Limits
from cspsched.problem.request import Request
from tests.support.strategies import EVERY_TERM, EXAMPLES

check = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@st.composite
def instances(draw: st.DrawFn) -> Instance:
    """A few requests on a device that holds one of them for sure and all of them rarely."""
    block_tokens = draw(st.integers(1, 16))
    sizes = draw(st.lists(st.tuples(st.integers(1, 24), st.integers(1, 12)), min_size=1, max_size=7))
    largest = max(-(-(prompt + output - 1) // block_tokens) for prompt, output in sizes)
    requests = tuple(
        Request(
            request_id=f"r{draw(st.integers(0, 9))}-{index}",
            arrival_ns=draw(st.sampled_from([0, 0, 3, 8, 20, 60, 200])),
            prompt_tokens=prompt,
            output_tokens=output,
            priority=draw(st.integers(0, 2)),
        )
        for index, (prompt, output) in enumerate(sizes)
    )
    limits = Limits(
        kv_blocks=largest + draw(st.integers(0, largest + 2)),
        block_tokens=block_tokens,
        max_batch_tokens=draw(st.integers(1, 40)),
        max_batch_requests=draw(st.integers(1, 8)),
    )
    return Instance(requests=requests, limits=limits, cost=EVERY_TERM)
