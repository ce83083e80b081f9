"""Random tiny runs of vLLM V1 with every switch, and what is compared of them."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

from cspsched.policies.vllm_v1 import QueueOrder, VllmSettings, VllmV1
from cspsched.problem.cost import CostModel, PiecewiseLinear
from cspsched.problem.instance import Instance, Limits
from cspsched.problem.request import Request
from cspsched.simulate import Simulation
from tests.oracles.naive_vllm import STEP_NS

PER_TOKEN = PiecewiseLinear.linear(1)
COST = CostModel(
    name="naive",
    step=Fraction(STEP_NS),
    tokens=PER_TOKEN,
    prefill_context=PER_TOKEN,
    decode_context=PER_TOKEN,
)
"""The batch time of the naive engine."""


def random_prefix(rng: random.Random, prompt: int) -> tuple[tuple[str, int], ...]:
    """Segments of two streams, often of more than one."""
    segments = []
    while prompt and rng.random() < 0.6:
        tokens = rng.randint(1, prompt)
        segments.append((rng.choice("ab"), tokens))
        prompt -= tokens
    return tuple(segments)


def random_request(rng: random.Random, index: int, room: int) -> Request:
    """A request that fits into so many tokens."""
    prompt = rng.randint(1, max(1, room * 2 // 3))
    return Request(
        request_id=f"r{rng.randint(0, 99):02}-{index}",
        arrival_ns=rng.choice([0, 0, rng.randint(0, 150)]),
        prompt_tokens=prompt,
        output_tokens=rng.randint(1, max(1, min(room - prompt, 12))),
        priority=rng.randint(0, 2),
        prefix=random_prefix(rng, prompt),
    )


def random_case(rng: random.Random) -> tuple[Instance, dict[str, Any]]:
    """An instance under memory pressure, and the engine's arguments."""
    block_tokens, kv_blocks = rng.choice([1, 2, 2, 3, 4]), rng.randint(5, 14)
    room = block_tokens * kv_blocks
    requests = tuple(random_request(rng, i, room) for i in range(rng.randint(2, 7)))
    arguments = {
        "max_num_batched_tokens": rng.choice([rng.randint(1, 8), rng.randint(4, 30)]),
        "max_num_seqs": rng.randint(1, 6),
        "max_num_active_seqs": rng.choice([None, None, rng.randint(1, 6)]),
        "long_prefill_token_threshold": rng.choice([0, 0, rng.randint(1, 6)]),
        "long_prefill_token_threshold_adaptive": rng.random() < 0.3,
        "enable_chunked_prefill": rng.random() < 0.8,
        "scheduler_reserve_full_isl": rng.random() < 0.6,
        "watermark": rng.choice([0.0, 0.0, 0.1, 0.3]),
        "policy": rng.choice(["fcfs", "priority"]),
        "async_scheduling": rng.random() < 0.5,
        "enable_prefix_caching": rng.random() < 0.8,
        "prefill_schedule_interval": rng.choice([1, 1, 2, 3, 5]),
        "num_lookahead_tokens": rng.choice([0, 0, 0, 1, 3]),
    }
    limits = Limits(
        kv_blocks=kv_blocks,
        block_tokens=block_tokens,
        max_batch_tokens=arguments["max_num_batched_tokens"],
        max_batch_requests=max(arguments["max_num_seqs"], arguments["max_num_active_seqs"] or 0),
        max_model_len=rng.choice([None, room, room]),
    )
    instance = Instance(requests=requests, limits=limits, cost=COST)
    return instance.split_rejected()[0], arguments


def policy_of(arguments: dict[str, Any]) -> VllmV1:
    """Our policy with the engine's arguments."""
    return VllmV1(VllmSettings(**{**arguments, "policy": QueueOrder(arguments["policy"])}))


def rows_of(simulation: Simulation) -> list[tuple[object, ...]]:
    """Per batch: (request, tokens, computed before), preempted, hits, KV blocks held, start, end."""
    schedule = simulation.schedule
    before = schedule.kv_tokens - schedule.tokens
    rows = []
    for j in range(schedule.num_batches):
        entries = slice(int(schedule.first_entry[j]), int(schedule.first_entry[j + 1]))
        columns = (column[entries].tolist() for column in (schedule.request, schedule.tokens, before))
        hits = schedule.hit_batch == j
        rows.append(
            (
                list(zip(*columns, strict=True)),
                [request for batch, request in simulation.preempted if batch == j],
                list(
                    zip(schedule.hit_request[hits].tolist(), schedule.hit_tokens[hits].tolist(), strict=True)
                ),
                int(simulation.held_blocks[j]),
                int(schedule.start_ns[j]),
                int(schedule.end_ns[j]),
            )
        )
    return rows
