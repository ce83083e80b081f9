"""The operators of a decoder: what the time of each depends on, and the work that a point of it is.

How often a step calls each is known to `cspsched.costs.rows`, which cost models are fitted with.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from cspsched.costs.models import LlmModel
from cspsched.profiler.points import Point
from cspsched.profiler.shapes import RankShape


class Family(StrEnum):
    """What the time of an operator depends on."""

    TOKEN = "token"
    """Tokens of the batch."""
    SEQUENCE = "sequence"
    """Requests that generate a token."""
    PREFILL = "prefill"
    """Chunks of prompts with their contexts."""
    DECODE = "decode"
    """Contexts of the decodes."""
    MIXED = "mixed"
    """Chunks and decodes in one kernel."""
    COLLECTIVE = "collective"
    """Bytes moved between ranks, given as tokens of hidden activations."""


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator and what its time depends on."""

    name: str
    family: Family


class Work(NamedTuple):
    """Least work of an operator on a batch."""

    flops: int
    """Multiplications and additions of matrix products and attention; 0 for what only moves data."""
    num_bytes: int
    """Bytes read and written once each: weights, activations, KV entries."""


DENSE_MLP = (
    Operator("gate_up", Family.TOKEN),
    Operator("silu_mul", Family.TOKEN),
    Operator("down", Family.TOKEN),
)
EXPERTS = (Operator("router", Family.TOKEN), Operator("experts", Family.TOKEN))
ATTENTION = (
    Operator("attn_prefill", Family.PREFILL),
    Operator("attn_decode", Family.DECODE),
    Operator("attn_mixed", Family.MIXED),
)
COLLECTIVES = (
    Operator("all_reduce", Family.COLLECTIVE),
    Operator("all_gather", Family.COLLECTIVE),
    Operator("reduce_scatter", Family.COLLECTIVE),
    Operator("send_recv", Family.COLLECTIVE),
)


def operators_of(model: LlmModel) -> tuple[Operator, ...]:
    """Operators of a model that a single device can measure, in the order of a layer."""
    qk_norm = (Operator("qk_norm", Family.TOKEN),) if model.qk_norm else ()
    return (
        Operator("embed", Family.TOKEN),
        Operator("rmsnorm", Family.TOKEN),
        Operator("qkv_proj", Family.TOKEN),
        *qk_norm,
        Operator("rope", Family.TOKEN),
        Operator("kv_cache_write", Family.TOKEN),
        *ATTENTION,
        Operator("o_proj", Family.TOKEN),
        Operator("residual", Family.TOKEN),
        *(DENSE_MLP if model.moe is None else EXPERTS),
        Operator("lm_head", Family.SEQUENCE),
        Operator("sampler", Family.SEQUENCE),
    )


def find_operator(name: str, model: LlmModel) -> Operator:
    """Operator of a model, or a collective, by its name."""
    return next(operator for operator in (*operators_of(model), *COLLECTIVES) if operator.name == name)


def gemm_sizes(operator: str, shape: RankShape) -> tuple[int, int] | None:
    """Output and input features of an operator that is one matrix product; None if it is none."""
    experts = shape.experts.num_experts if shape.experts else 0
    return {
        "qkv_proj": (shape.qkv_size, shape.hidden),
        "o_proj": (shape.hidden, shape.q_size),
        "gate_up": (2 * shape.width, shape.hidden),
        "down": (shape.hidden, shape.width),
        "router": (experts, shape.hidden),
        "lm_head": (shape.vocabulary, shape.hidden),
    }.get(operator)


def work_of(point: Point, shape: RankShape) -> Work:
    """Least work of a point."""
    size, tokens = shape.dtype_bytes, point.num_tokens
    gemm = gemm_sizes(point.operator, shape)
    if gemm is not None:
        n, k = gemm
        return Work(2 * tokens * n * k, size * (n * k + tokens * (n + k)))
    if point.operator.startswith("attn_"):
        flops = 4 * shape.q_size * point.attention_pairs
        return Work(flops, point.kv_read * shape.kv_bytes_per_token + 2 * tokens * shape.q_size * size)
    if point.operator == "experts":
        return _experts_work(point, shape)
    return Work(0, size * tokens * _features_moved(point.operator, shape))


def _experts_work(point: Point, shape: RankShape) -> Work:
    assert shape.experts is not None
    weights = 3 * shape.hidden * shape.experts.width
    pairs = point.num_tokens * shape.experts.experts_per_token
    moved = pairs * (2 * shape.hidden + 3 * shape.experts.width)
    return Work(2 * pairs * weights, shape.dtype_bytes * (point.active_experts * weights + moved))


def _features_moved(operator: str, shape: RankShape) -> int:
    """Features of a token that an operator without a matrix product reads and writes."""
    return {
        "embed": 2 * shape.hidden,
        "rmsnorm": 2 * shape.hidden,
        "qk_norm": 2 * (shape.q_size + shape.kv_size),
        "rope": 2 * (shape.q_size + shape.kv_size),
        "kv_cache_write": 4 * shape.kv_size,
        "residual": 3 * shape.hidden,
        "silu_mul": 3 * shape.width,
        "sampler": shape.vocabulary,
        "all_reduce": shape.hidden,
        "all_gather": shape.hidden,
        "reduce_scatter": shape.hidden,
        "send_recv": shape.hidden,
    }[operator]
