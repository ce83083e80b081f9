"""An instance as integer tables for the state search: who needs what at which token, and what batches cost.

A state is, for each request, the tokens generated g and whether its KV cache is on the device. Amounts of
time are in `scale` parts of a nanosecond.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np

from cspsched.compiled.batch_time import CostTables, cost_tables
from cspsched.exact.parts.chunk_dominance import chunks_are_dominated, unrounded_scale
from cspsched.exact.states.heuristic_tables import (
    HeuristicTables,
    build_heuristic_tables,
    can_sharpen,
    sharpen_heuristic_tables,
)
from cspsched.problem.cost import IntArray
from cspsched.problem.instance import Instance, Preemption
from cspsched.problem.objectives import Objective

MOST_REQUESTS = 20
MOST_SCALE = 10**6
MOST_TIME = 2**60


class Shape(NamedTuple):
    """Requests, limits and switches. Arrays over (request, tokens generated) are padded to the longest."""

    outputs: IntArray
    prompts: IntArray
    strides: IntArray
    """Weight of a request's g in the number of a state."""
    twins: IntArray
    """Position of the identical request before each, or -1."""
    blocks: IntArray
    """KV blocks occupied while the next token is generated."""
    held: IntArray
    """KV blocks occupied while a resident request sits out a batch."""
    kv_blocks: int
    max_batch_tokens: int
    max_batch_requests: int
    hybrid: bool
    holding: bool
    preemptive: bool
    decode_is_cheaper: bool
    """Beside other decodes, a decode costs less than a refill, for every request."""
    counted: int
    """Tokens that a request waits for: all of them, or the first; -1 for makespan."""


@dataclass(kw_only=True)
class StateSpace:
    """Everything that the search reads."""

    instance: Instance
    objective: Objective
    shape: Shape
    prices: CostTables
    heuristic_tables: HeuristicTables
    """The strongest so far: a search that takes long has them sharpened, for all searches."""

    @property
    def can_sharpen(self) -> bool:
        """Whether a stronger heuristic than that of the start can be had."""
        return can_sharpen(self.heuristic_tables, self.instance, self.shape.blocks, self.objective)

    def sharpen(self, go_on: Callable[[int, int], bool]) -> None:
        """Take the time for a stronger heuristic, as long as `go_on` says (see `resident_path_prices`)."""
        shape, objective, scale = self.shape, self.objective, self.prices.scale
        tables = (self.instance, shape.blocks, shape.strides, objective, scale)
        self.heuristic_tables = sharpen_heuristic_tables(self.heuristic_tables, *tables, go_on)


def build_state_space(instance: Instance, objective: Objective, upper_ns: int) -> StateSpace | None:
    """Tables of an instance, or None if the search is not exact for it or it is too large.

    Exact where all requests are at 0 and chunks are off or dominated.
    """
    requests = instance.requests
    num_states = prod(request.output_tokens + 1 for request in requests)
    scale = unrounded_scale(instance)
    if (
        len(requests) > MOST_REQUESTS
        or num_states >= 2**62
        or scale > MOST_SCALE
        or upper_ns * scale * len(requests) >= MOST_TIME
        or not chunks_are_dominated(instance)
    ):
        return None
    shape = _shape(instance, objective)
    return StateSpace(
        instance=instance,
        objective=objective,
        shape=shape,
        prices=cost_tables(instance.cost, scale),
        heuristic_tables=build_heuristic_tables(instance, shape.blocks, objective, scale),
    )


def _shape(instance: Instance, objective: Objective) -> Shape:
    requests, limits, switches = instance.requests, instance.limits, instance.switches
    outputs = [request.output_tokens for request in requests]
    strides, stride = [], 1
    for count in outputs:
        strides.append(stride)
        stride *= count + 1
    blocks = np.zeros((len(requests), max(outputs) + 1), dtype=np.int64)
    held = np.zeros_like(blocks)
    for i, request in enumerate(requests):
        for g in range(request.output_tokens):
            known = request.prompt_tokens + g
            reserved = request.peak_kv_tokens if switches.reservation else known
            blocks[i, g] = limits.blocks_of(reserved)
            held[i, g] = limits.blocks_of(request.peak_kv_tokens if switches.reservation else known - 1)
    return Shape(
        outputs=np.array(outputs, dtype=np.int64),
        prompts=np.array([request.prompt_tokens for request in requests], dtype=np.int64),
        strides=np.array(strides, dtype=np.int64),
        twins=np.array(_twins(instance), dtype=np.int64),
        blocks=blocks,
        held=held,
        kv_blocks=limits.kv_blocks,
        max_batch_tokens=limits.max_batch_tokens,
        max_batch_requests=limits.max_batch_requests,
        hybrid=switches.hybrid_batches,
        holding=switches.holding,
        preemptive=switches.preemption is not Preemption.NONE,
        decode_is_cheaper=_decode_is_cheaper(instance),
        counted={Objective.MAKESPAN: -1, Objective.LATENCY: 0, Objective.TTFT: 1}[objective],
    )


def _decode_is_cheaper(instance: Instance) -> bool:
    """Whether one more refilled token always outweighs one more token of decode context.

    The decode may stay beside a prefill. Six nanoseconds make up for the rounding of the terms that change.
    """
    cost = instance.cost
    # The refilled request has at least two tokens, so the piece up to the first one does not count.
    beyond_one = [
        slope for slope, end in zip(cost.tokens.slopes, (*cost.tokens.knots[1:], 2), strict=True) if end > 1
    ]
    refill = min(beyond_one) + min(cost.prefill_tokens.slopes)
    context = max(cost.decode_context.slopes) + max(cost.mixed_context.slopes)
    request = cost.decode_request + cost.mixed_request
    return request <= cost.prefill_request and refill - context >= 6


def _twins(instance: Instance) -> list[int]:
    """For each request the nearest one before it with the same prompt and output, or -1."""
    last: dict[tuple[int, int], int] = {}
    twins = []
    for i, request in enumerate(instance.requests):
        key = (request.prompt_tokens, request.output_tokens)
        twins.append(last.get(key, -1))
        last[key] = i
    return twins
