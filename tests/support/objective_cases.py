"""Random tiny instances with every switch, limit and kind of preemption, and objectives of every kind."""

from __future__ import annotations

import random
from fractions import Fraction

from cspsched.problem.cost import CostModel, PiecewiseLinear
from cspsched.problem.instance import Instance, Limits, Preemption, Switches
from cspsched.problem.request import Request

SMALL = CostModel(
    name="small",
    step=Fraction(3),
    prefill_batch=Fraction(2),
    decode_batch=Fraction(1, 2),
    swap_block=Fraction(1, 2),
    tokens=PiecewiseLinear((0, 2, 3), (Fraction(1), Fraction(2), Fraction(0))),
    decode_context=PiecewiseLinear.linear(Fraction(1, 3)),
)
"""Batches of a few nanoseconds, so that every idle time can be tried; f_tok is a table."""
BENT = CostModel(
    name="bent",
    step=Fraction(2),
    prefill_request=Fraction(1, 2),
    decode_request=Fraction(2),
    prefill_attention=PiecewiseLinear.linear(1),
    head=PiecewiseLinear((0, 1), (Fraction(3), Fraction(1))),
)
"""Decodes cost more than refills of two tokens; moves are free."""
OBJECTIVES = (
    "makespan",
    "latency",
    "ttft",
    "weighted-latency",
    "weighted-ttft",
    "itl",
    "mean-itl",
    "max-itl",
    "tpot",
    "mean-tpot",
    "max-tpot",
    "misses",
    "weighted-misses",
    "latency+2*max-itl",
    "makespan+1/2*ttft+mean-tpot",
    "0.000000003*misses+latency",
    "max-itl+max-tpot",
    "misses,latency",
    "max-tpot,ttft",
    "ttft,mean-tpot",
    "weighted-misses,max-itl",
)
"""Every measure alone, weighted sums, and lexicographic orders of them."""


def random_case(seed: int) -> tuple[Instance, str]:
    """Two or three requests that fit one by one, tight in memory, and what to minimise."""
    rng = random.Random(seed)
    preemption, chunked = rng.choice(list(Preemption)), rng.random() < 0.6
    # With chunks and recompute a schedule may have so many batches that only the smallest are proven at once.
    count = 2 if chunked and preemption.recomputes else rng.choice([2, 2, 2, 3])
    most = 2 if count == 3 or (chunked and preemption.recomputes) else 3
    late, block = rng.random() < 0.4, rng.choice([1, 1, 2])
    shapes = [(rng.randint(1, most), rng.randint(1, most)) for _ in range(count)]
    peaks = [-(-(prompt + output - 1) // block) for prompt, output in shapes]
    limits = Limits(
        kv_blocks=rng.randint(max(peaks), max(max(peaks), sum(peaks) - 1)),
        block_tokens=block,
        max_batch_tokens=rng.randint(max(prompt for prompt, _ in shapes), 6),
        max_batch_requests=rng.choice([1, 2, 3, 3]),
        host_kv_blocks=rng.randint(0, sum(peaks)) if preemption.swaps else 0,
    )
    switches = Switches(
        chunked_prefill=chunked,
        hybrid_batches=rng.random() < 0.7,
        holding=rng.random() < 0.7,
        preemption=preemption,
        reservation=rng.random() < 0.2,
    )
    requests = [
        Request(
            request_id=f"r{i}",
            arrival_ns=rng.randint(0, 9) if late and i else 0,
            prompt_tokens=prompt,
            output_tokens=output,
            priority=rng.randint(0, 2),
            # A request has a limit, so that there is something to miss.
            ttft_limit_ns=rng.choice([None, 8, 15]) if i else 9,
            tpot_limit_ns=rng.choice([None, 5, 8]),
        )
        for i, (prompt, output) in enumerate(shapes)
    ]
    instance = Instance(
        requests=tuple(requests),
        limits=limits,
        cost=rng.choice([SMALL, SMALL, BENT]),
        switches=switches,
    )
    return instance, OBJECTIVES[seed % len(OBJECTIVES)]
