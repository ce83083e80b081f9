"""An instance as integer tables for the state search: who needs what at which token, and what batches cost.

A state is, for each request, the tokens generated g and whether its KV cache is on the device. Amounts of
time are in `scale` parts of a nanosecond.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import floor, prod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cspsched.bounds.minorant import Minorant, minorants
from cspsched.exact.unchunked import LINEAR_TERMS, chunks_are_dominated, unrounded_scale
from cspsched.problem.cost import FUNCTION_FEATURES, BatchFeatures, IntArray, PiecewiseLinear, triangle
from cspsched.problem.instance import Instance, Preemption
from cspsched.problem.metrics import Objective

MOST_REQUESTS = 12
MOST_SCALE = 10**6
MOST_TIME = 2**60
MOST_DUAL_FEASIBLE = 16
PRICED = (*FUNCTION_FEATURES, "prefill_request_term", "decode_request_term")
FEATURE_OF = {
    **FUNCTION_FEATURES,
    "prefill_request_term": "num_prefills",
    "decode_request_term": "num_decodes",
}


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
    """Beside other decodes, a decode costs less than a refill, whoever it is."""
    counted: int
    """Tokens that a request waits for: all of them, or the first; -1 for makespan."""


class Prices(NamedTuple):
    """Batch time: constants, and the pieces of every term, shape (num_terms, num_pieces)."""

    step: int
    prefill_batch: int
    decode_batch: int
    feature: IntArray
    knots: IntArray
    bases: IntArray
    slopes: IntArray
    denominators: IntArray
    rounded: npt.NDArray[np.bool_]
    scale: int


class Floors(NamedTuple):
    """Lower bounds on what is left, for the heuristic."""

    areas: IntArray
    """Shape (num_functions, requests, tokens + 1): dual-feasible sizes of all tokens still to come."""
    capacity: int
    """What the sizes of one batch sum up to at most."""
    alphas: IntArray
    """Shape (num_minorants,): time of a batch."""
    surcharges: IntArray
    """Shape (num_minorants,): what a batch with a prefill costs on top."""
    work: IntArray
    """Shape (num_minorants, requests, tokens + 1): unavoidable work of the tokens still to come."""
    refill: IntArray
    """Same shape: what is added if the request is not on the device."""


@dataclass(frozen=True, kw_only=True)
class StateSpace:
    """Everything that the search reads."""

    instance: Instance
    shape: Shape
    prices: Prices
    floors: Floors


def build_state_space(instance: Instance, objective: Objective, upper_ns: int) -> StateSpace | None:
    """Tables of an instance, or None if the search is not exact for it or it is too large.

    Exact where all requests are at 0 and chunks are off or dominated.
    """
    requests = instance.requests
    num_states = prod(request.output_tokens + 1 for request in requests) << len(requests)
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
        shape=shape,
        prices=_prices(instance, scale),
        floors=_floors(instance, shape, objective, scale),
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

    Four nanoseconds make up for the rounding of the terms that change.
    """
    cost = instance.cost
    # The refilled request has at least two tokens, so the piece up to the first one does not count.
    beyond_one = [
        slope for slope, end in zip(cost.tokens.slopes, (*cost.tokens.knots[1:], 2), strict=True) if end > 1
    ]
    refill = min(beyond_one) + min(cost.prefill_tokens.slopes)
    return cost.decode_request <= cost.prefill_request and refill - max(cost.decode_context.slopes) >= 4


def _twins(instance: Instance) -> list[int]:
    """For each request the nearest one before it with the same prompt and output, or -1."""
    last: dict[tuple[int, int], int] = {}
    twins = []
    for i, request in enumerate(instance.requests):
        key = (request.prompt_tokens, request.output_tokens)
        twins.append(last.get(key, -1))
        last[key] = i
    return twins


def _prices(instance: Instance, scale: int) -> Prices:
    cost = instance.cost
    functions: list[PiecewiseLinear] = [getattr(cost, name) for name in PRICED]
    width = max(len(function.knots) for function in functions)
    never = 2**62

    def table(rows: list[tuple[int, ...]], filler: int) -> IntArray:
        return np.array([[*row, *[filler] * (width - len(row))] for row in rows], dtype=np.int64)

    return Prices(
        step=cost.step_ceil * scale,
        prefill_batch=cost.prefill_batch_ceil * scale,
        decode_batch=cost.decode_batch_ceil * scale,
        feature=np.array([BatchFeatures._fields.index(FEATURE_OF[name]) for name in PRICED]),
        knots=table([function.knots for function in functions], never),
        bases=table([function.knot_numerators for function in functions], 0),
        slopes=table([function.slope_numerators for function in functions], 0),
        denominators=np.array([function.denominator for function in functions], dtype=np.int64),
        rounded=np.array([scale == 1 or name not in LINEAR_TERMS for name in PRICED]),
        scale=scale,
    )


def _floors(instance: Instance, shape: Shape, objective: Objective, scale: int) -> Floors:
    chosen = minorants(instance)
    counts = np.ones_like(shape.outputs) if objective is Objective.TTFT else shape.outputs
    tables = [_work(instance, minorant, counts, scale) for minorant in chosen]
    return Floors(
        areas=_areas(shape, counts),
        capacity=shape.kv_blocks,
        alphas=np.array([floor(minorant.batch * scale) for minorant in chosen], dtype=np.int64),
        surcharges=np.array([floor(minorant.prefill_batch * scale) for minorant in chosen], dtype=np.int64),
        work=np.stack([work for work, _ in tables]),
        refill=np.stack([refill for _, refill in tables]),
    )


def _work(instance: Instance, minorant: Minorant, counts: IntArray, scale: int) -> tuple[IntArray, IntArray]:
    """Unavoidable work from each g on, and what a refill adds to it; the cheaper of decode and refill."""
    width = max(request.output_tokens for request in instance.requests) + 1
    work = np.zeros((len(instance.requests), width), dtype=np.int64)
    refill = np.zeros_like(work)
    for i, request in enumerate(instance.requests):
        for g in reversed(range(int(counts[i]))):
            known = request.prompt_tokens + g
            prefill = floor(scale * _prefill_price(minorant, known))
            cheaper = prefill if g == 0 else min(prefill, floor(scale * _decode_price(minorant, known)))
            work[i, g] = work[i, g + 1] + cheaper
            refill[i, g] = prefill - cheaper
    return work, refill


def _prefill_price(minorant: Minorant, tokens: int) -> Fraction:
    per_token = minorant.tokens + minorant.prefill_tokens
    fixed = minorant.prefill_request + minorant.head
    return tokens * per_token + triangle(tokens) * minorant.prefill_attention + fixed


def _decode_price(minorant: Minorant, known: int) -> Fraction:
    fixed = minorant.tokens + minorant.decode_request + minorant.head
    return (known - 1) * minorant.decode_context + fixed


def _areas(shape: Shape, counts: IntArray) -> IntArray:
    """Sizes of the tokens to come under dual-feasible functions (Fekete and Schepers), summed from each g on.

    f_e(x) is the capacity M above M - e, 0 below e, and x between: whatever fits into a batch sums up to at
    most M. e = 0 is the plain KV volume.
    """
    sizes = sorted({int(size) for size in shape.blocks[shape.blocks > 0] if 2 * size <= shape.kv_blocks})
    step = max(1, len(sizes) // MOST_DUAL_FEASIBLE)
    cuts = [0, *sizes[::step], (shape.kv_blocks + 1) // 2]
    areas = np.zeros((len(cuts), *shape.blocks.shape), dtype=np.int64)
    for area, cut in zip(areas, cuts, strict=True):
        size = np.where(shape.blocks > shape.kv_blocks - cut, shape.kv_blocks, shape.blocks)
        size = np.where(shape.blocks < cut, 0, size)
        for i, count in enumerate(counts):
            area[i, :count] = np.cumsum(size[i, :count][::-1])[::-1]
    return areas
